"""Is depth more than a change of basis? Depth of each student beyond its twin's, over seeds.

Reads finished runs with score.also=["depth"], one a seed. At every alpha that has a twin: UNDO less twin, raw and
stitched, with Student's interval and a sign-flip test over seeds. Beside it, what must come out near 0 once the basis
is mapped away, tested for equivalence within .1: the stitched depth of the twins and of an original of another seed
(the run's second one where it has one, else the next seed's run's, if all ran on one task).

    python analyses/is_depth_more_than_a_change_of_basis.py runs/seeds
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from undo_probe.intervals import tost
from undo_probe.measures import ItemScores
from undo_probe.measures.depth import depth_measures
from undo_probe.measures.stitches import fit_stitches
from undo_probe.replicates import by_seed, contrast, read_runs
from undo_probe.store import Run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders that hold one a seed")
parser.add_argument("--over", default="without the last", help="or: all blocks")


def main() -> None:
    """Prints the excess of every student over its twin, and the two equivalence tests."""
    runs, readings = read_runs((asked := parser.parse_args()).runs)
    for subset in (f"raw, {asked.over}", f"stitched, {asked.over}"):
        table = by_seed(readings, f"measure == 'depth' and task_split == 'forget' and subset == '{subset}'")
        print(f"\ndepth, {subset}: means over {len(table)} seeds")
        for arm, values in table.items():
            print(f"  {arm:36}{values.mean():.3f}  by seed: {' '.join(f'{value:.2f}' for value in values)}")
        twins = [name for name in table if name.startswith("distilled") and name.endswith("-twin")]
        for twin in twins:
            print(f"  {contrast(table, twin.removesuffix('-twin'), twin)}")
            if subset.startswith("stitched"):
                near_zero(twin, table[twin].dropna().to_numpy(float))
    second(runs, table, subset)


def second(runs: list[Run], table: pd.DataFrame, subset: str) -> None:
    """The stitched depth of an original of another seed."""
    if "original-b" in table:
        near_zero("original-b", table["original-b"].dropna().to_numpy(float))
    elif len({run.task.fingerprint for run in runs}) > 1 or len(runs) < 2:
        print("  no original of another seed: the runs have neither original-b nor one task in common")
    else:
        pairs = zip(runs, [*runs[1:], runs[0]], strict=True)
        near_zero(
            "the next seed's original", np.array([of_other(run, other, subset) for run, other in pairs])
        )


def of_other(run: Run, other: Run, subset: str) -> float:
    """Depth of another run's original, in this run's."""
    model, original, gold = other.model("original"), run.model("original"), run.model("oracle_matched")
    maps = [fit_stitches(each, original, run.task, run.config.seed).maps for each in (model, gold)]
    found = depth_measures(model, original, gold, run.task, (maps[0], maps[1]))
    items = (item for item in found if isinstance(item, ItemScores))
    return next(float(item.values.mean()) for item in items if item.subset == subset)


def near_zero(name: str, values: np.ndarray) -> None:
    """Two one-sided tests that the mean lies within the margin of 0."""
    if len(values) < 2:
        print(f"  {name}: {values} (one seed: no test)")
        return
    found = tost(values, margin=0.1, draws=0)
    verdict = f"{'0' if found.equivalent else 'not shown to be 0'} within .1, p = {found.p_value:.3f}"
    print(
        f"  {name}: {found.difference:.3f} [{found.low:.3f}, {found.high:.3f}] at 90 %, n = {found.n}: {verdict}"
    )


if __name__ == "__main__":
    main()
