"""Every claim about UNDO on one sheet: what holds, what does not, and what these runs cannot say.

python analyses/all_claims.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main()
