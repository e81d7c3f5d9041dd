"""Does the weakest student answer more forget questions than its teacher?

Claim C13 of the paper, over several seeds.

python analyses/c13_does_a_small_alpha_reexpose.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C13")
