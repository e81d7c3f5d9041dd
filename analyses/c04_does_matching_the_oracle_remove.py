"""A model trained to answer like the oracle: does it relearn like the oracle?

Claim C4 of the paper, over several seeds.

python analyses/c04_does_matching_the_oracle_remove.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C4")
