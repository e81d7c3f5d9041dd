"""Does the unlearned model relearn ten times sooner than one that never knew?

Claim C3 of the paper, over several seeds.

python analyses/c03_is_suppression_shallow.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C3")
