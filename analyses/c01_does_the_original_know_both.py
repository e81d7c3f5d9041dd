"""Does the original know what is to be forgotten and what is to be kept?

Claim C1 of the paper, over several seeds.

python analyses/c01_does_the_original_know_both.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C1")
