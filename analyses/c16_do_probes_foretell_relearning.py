"""Does what a probe reads foretell what the attack brings back?

Claim C16 of the paper, over several seeds.

python analyses/c16_do_probes_foretell_relearning.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C16")
