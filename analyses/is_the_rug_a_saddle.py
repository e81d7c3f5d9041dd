"""Is the Persian Rug a minimum that training ends in, or a saddle that it passes?

The exact rug, settled to a critical point by its symmetry; the least eigenvalue of its Hessian from all blocks,
measured again on fresh rows; the loss along that eigenvector to both sides on others; and training from the rug and
from 5 % of its length beside it. It may be called a saddle where the curvature and both sides are two standard
errors below zero. Full Lanczos on one sample stands beside it once: much of what it finds is that sample.

    python analyses/is_the_rug_a_saddle.py --out runs/rug       (an hour on one core; finished cells are kept)
"""

import argparse
from pathlib import Path

import pandas as pd

from undo_probe.parquet import read_table, write_table
from undo_probe.persian_rug.blocks import rug_curvature
from undo_probe.persian_rug.hessian import curvature
from undo_probe.persian_rug.saddle import escape

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/rug"))
parser.add_argument("--n-s", type=int, nargs="+", default=[64, 128, 256, 512])
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--rows", type=int, default=16384)
POINTS = [(0.25, 0.045), (0.5, 0.2), (0.5, 0.5)]
KEY = ["n_s", "r", "p", "seed"]


def main() -> None:
    """Prints a line for every cell and the means over seeds; writes the tables that the rug's page reads."""
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    files = {name: asked.out / f"{name}.parquet" for name in ("curvature", "line", "escape")}
    for n_s in asked.n_s:
        for seed in asked.seeds:
            for r, p in POINTS:
                if not done(files["curvature"], (n_s, r, p, seed)):
                    found = escape(n_s, r, p, seed=seed, rows=asked.rows)
                    line = found.line.assign(n_s=n_s, r=r, p=p, seed=seed)
                    add(files["line"], line)
                    add(files["escape"], found.curves())
                    add(files["curvature"], pd.DataFrame([found.summary()]))
                    print(found.summary(), flush=True)
    table = read_table(files["curvature"])
    print(table.groupby(["r", "p", "n_s"])[["curvature", "lowest on the line", "exact", "nudged"]].mean())
    print(table.groupby(["r", "p", "n_s"])["verdict"].agg(lambda each: ", ".join(each)))
    warning(min(asked.n_s), asked.rows)


def done(path: Path, cell: tuple[float, ...]) -> bool:
    return path.is_file() and cell in set(read_table(path)[KEY].itertuples(index=False, name=None))


def add(path: Path, lines: pd.DataFrame) -> None:
    before = [read_table(path)] if path.is_file() else []
    write_table(pd.concat([*before, lines], ignore_index=True), path)


def warning(n_s: int, rows: int) -> None:
    """Lanczos over all parameters on one sample, against the same rows through the blocks."""
    r, p = POINTS[1]
    model, blocks = rug_curvature(n_s, r, p, rows)
    for name, found in (("blocks", blocks), ("full Lanczos", curvature(model, p, rows))):
        value, error = found.curvature
        print(f"{name}, n_s {n_s}: fitted {found.fitted:.4f}, on fresh rows {value:.4f} ± {error:.4f}")


if __name__ == "__main__":
    main()
