"""Weights moved as far without shrinking them: is the student as robust?

Claim C12 of the paper, over several seeds.

python analyses/c12_does_it_have_to_shrink.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C12")
