"""Is a forget set that shares structure with the retain set harder to remove?

Claim C17 of the paper, over several seeds. Beside each seed's run it makes a second one, in OUT/entangled, in which
only the products and quotients with certain factors are to be forgotten, or half of what is true of a person.

python analyses/c17_are_entangled_sets_harder.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C17")
