"""Does distilling the unlearned model into random weights make it robust?

Claim C5 of the paper, over several seeds.

python analyses/c05_does_a_fresh_student_resist.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C5")
