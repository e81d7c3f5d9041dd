"""Does a half-trained teacher's student give more back?

Claim C6 of the paper, over several seeds.

python analyses/c06_does_weak_suppression_leak.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C6")
