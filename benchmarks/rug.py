"""The Persian Rug from weights that are never stored: loss over theory and time, up to 131072 features.

    python benchmarks/rug.py --sizes 1024 8192 131072

One thread. A dense matrix of the largest size would have 17 billion entries.
"""

import argparse
import time

import numpy as np
import torch

from undo_probe import persian_rug

SETTINGS = ((0.25, 0.045), (0.5, 0.2), (0.25, 0.01))
ENTRIES = 2**24
"""Features drawn a measurement, so that every size has about the same standard error."""


def main() -> None:
    """Print a line a size and setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 8192, 131072])
    sizes = parser.parse_args().sizes
    grid = np.meshgrid(np.geomspace(1e-3, 0.95, 100), np.geomspace(1e-6, 0.8, 100))
    begun = time.process_time()
    persian_rug.optimal_loss(*grid)
    print(f"{grid[0].size} points of (r, p): {time.process_time() - begun:.2f} s")
    for n_s in sizes:
        for r, p in SETTINGS:
            begun = time.process_time()
            rug = persian_rug.weights(n_s, r, p)
            made = time.process_time() - begun
            rows = ENTRIES // n_s
            found = persian_rug.measured_loss(rug, n_s, p, rows, chunk=max(1, 2**21 // n_s))
            best = persian_rug.optimal_loss(rug.r, p)
            each = 1000 * (time.process_time() - begun - made) / rows
            print(
                f"n_s {n_s} r {r} p {p} (n_s p {n_s * p:.0f}): loss / L* {found.value / best:.4f} +- "
                f"{found.error / best:.4f}, foretold {persian_rug.finite_loss(n_s, r, p) / best:.4f}; "
                f"coherence {rug.frame.coherence:.3f}; weights {made:.2f} s, {each:.2f} ms a row"
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
