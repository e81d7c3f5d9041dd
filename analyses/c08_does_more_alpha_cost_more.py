"""Does distillation take longer the more was damaged?

Claim C8 of the paper, over several seeds.

python analyses/c08_does_more_alpha_cost_more.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C8")
