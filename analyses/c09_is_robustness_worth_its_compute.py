"""Does UNDO buy more robustness than the same share of a clean retraining?

Claim C9 of the paper, over several seeds.

python analyses/c09_is_robustness_worth_its_compute.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C9")
