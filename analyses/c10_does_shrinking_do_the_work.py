"""Is shrinking alone as good as shrinking with noise?

Claim C10 of the paper, over several seeds.

python analyses/c10_does_shrinking_do_the_work.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C10")
