"""Does unlearning bring forget questions to chance and keep the rest?

Claim C2 of the paper, over several seeds.

python analyses/c02_does_unlearning_suppress.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C2")
