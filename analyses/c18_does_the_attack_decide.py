"""Does the choice of attacker change the verdict?

Claim C18 of the paper, over several seeds.

python analyses/c18_does_the_attack_decide.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C18")
