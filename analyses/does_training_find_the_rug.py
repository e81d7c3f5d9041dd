"""Does training find the rug, and does it stay there?

Four settings from a random start, several seeds each: (a) a wide model in the middle of its plateau, (b) dense
features, (c) a long training at r = .5, p = .2, (d) long trainings at every r and p of at least .2. Two outputs, kept
apart: the plateau's level over L*, and the final loss over the lower of rug and digon.

    python analyses/does_training_find_the_rug.py --out runs/bars       (resumes; about ten minutes)
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd

from undo_probe.persian_rug.grid import combinations, train_cells
from undo_probe.persian_rug.training import rug_config

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("runs/bars"))
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
parser.add_argument("--workers", type=int, default=2)
SHORT = {"steps": 800, "learning_rate": 1e-3}
DENSE = {"steps": 1500, "learning_rate": 1e-3}
LONG = {"steps": 3000, "learning_rate": 2e-3}
SETTINGS = {
    "a": (1024, SHORT, [0.5], [0.2]),
    "b": (256, DENSE, [0.5], [0.5]),
    "c": (256, LONG, [0.5], [0.2]),
    "d": (256, LONG, [0.1, 0.25, 0.5, 0.75], [0.2, 0.5]),
}
SHOWN = ["plateau_match", "final", "of the lower", "of digons", "spread_diagonal", "dropped", "phase", "met"]


def main() -> None:
    """Prints a line a training."""
    asked = parser.parse_args()
    for bar, (n_s, fit, ratios, rates) in SETTINGS.items():
        cells = combinations(rug_config(n_s=n_s, fit=fit), [n_s], ratios, rates, asked.seeds)
        grid = train_cells(cells, asked.out, workers=asked.workers)
        grid.check()
        found = read(grid.table())
        found["met"] = [met(bar, dict(zip(found, one, strict=True))) for one in found.to_numpy(object)]
        print(f"({bar}) n_s {n_s}, {fit['steps']} steps: {found['met'].sum()} of {len(found)} meet it")
        print(found.set_index(["r", "p", "seed"])[SHOWN].round(4).to_string(), flush=True)


def read(table: pd.DataFrame) -> pd.DataFrame:
    """Final losses over L*, over the digons' and over the lower of the two."""
    lower = table[["rug", "digon"]].min(axis=1)
    ratios = {"final": table["rug"], "of digons": table["digon"], "of the lower": lower}
    return table.assign(**{name: table["loss"] / unit for name, unit in ratios.items()})


def met(bar: str, one: dict[str, Any]) -> bool:
    """Whether a training meets the bar, as it was set before any was run."""
    if bar == "a":
        return 0.97 <= one["plateau_match"] <= 1.03 and one["spread_diagonal"] < 0.03
    if bar == "b":
        return 0.98 <= one["final"] <= 1.02
    if bar == "c":
        return one["final"] < 0.45 and 0.9 <= one["of digons"] <= 1.1
    return one["of the lower"] <= 1.03


if __name__ == "__main__":
    main()
