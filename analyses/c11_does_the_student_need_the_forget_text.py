"""Repaired without the teacher's answers to forget questions: does the capability come back?

Claim C11 of the paper, over several seeds.

python analyses/c11_does_the_student_need_the_forget_text.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C11")
