"""Does robustness rise with alpha?

Claim C7 of the paper, over several seeds.

python analyses/c07_does_more_alpha_resist_more.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C7")
