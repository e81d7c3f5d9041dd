"""The same noise and a teacher that knows: is the capability kept?

Claim C15 of the paper, over several seeds.

python analyses/c15_does_a_knowing_teacher_pass_it_on.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C15")
