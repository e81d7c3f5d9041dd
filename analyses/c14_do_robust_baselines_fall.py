"""Do SAM and RepNoise give back what UNDO does not?

Claim C14 of the paper, over several seeds.

python analyses/c14_do_robust_baselines_fall.py --seeds 31 32 33 34 35 36 --out runs/claims
"""

from undo_probe.claim_sheet import main

if __name__ == "__main__":
    main("C14")
