"""What do forget and retain rows share, where do updates lie, and is a collapsed one particular? CIR's C2, C5, C11.

Reads finished runs with score.also=["subspaces"], one a seed. Over seeds, for one arm: the share of V's and of retain's
variance inside T's leading directions (C2: nearly equal); the share of a short attack's update in them beside a random
direction's (C5: far more); and the cosine of a forgetting gradient with siblings' over that with paraphrases', before
and after collapse (C11: it falls).

    python analyses/what_do_forget_and_retain_rows_share.py runs/seeds --arm unlearned-simnpo
"""

import argparse
from pathlib import Path

import pandas as pd

from undo_probe.measures.subspaces import BANDS
from undo_probe.replicates import contrast, read_runs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders that hold one a seed")
parser.add_argument("--arm", default="original")
SIDES = {"inputs": "W_in", "gradients": "W_out"}
LEADING = 3  # bands: the mean's direction and 16 components


def main() -> None:
    """Prints the three contrasts for the arm, on what MLPs read and on the gradients at what they write."""
    asked = parser.parse_args()
    _, readings = read_runs(asked.runs)
    here = readings.query(f"arm == '{asked.arm}'")
    if here.query("measure == 'selectivity'").empty:
        parser.error(f"{asked.arm} has no such readings: undo-probe score RUN --also subspaces makes them")
    for side, ending in SIDES.items():
        print(f"\n{asked.arm}, {side} of {ending}, by band ({', '.join(BANDS)})")
        shared(here, side, ending)
        moved(here, f"{ending} {side}")
    selective(here)


def by_band(readings: pd.DataFrame, name: str, asked: str, column: str = "value") -> pd.Series:
    """Prints the mean of each band of what a query picks; returns the leading bands' sum by seed."""
    found = {band: readings.query(asked.format(band)).groupby("seed")[column].mean() for band in BANDS}
    table = pd.DataFrame(found)
    print(f"  {name:14}" + " ".join(f"{value:.3f}" for value in table.to_numpy(float).mean(0)))
    return pd.Series(table.to_numpy(float)[:, :LEADING].sum(1))


def shared(readings: pd.DataFrame, side: str, ending: str) -> None:
    """C2: the share of V's and of retain's variance in T's leading directions."""
    asked = f"measure == 'shared_variance' and layer.str.endswith('{ending}') and subset == '{side}, {{}}'"
    rows = {"V": "forget", "retain": "retain"}
    sums = {n: by_band(readings, n, f"{asked} and task_split == '{split}'") for n, split in rows.items()}
    print(f"  C2, leading directions: {contrast(pd.DataFrame(sums), 'V', 'retain')}")


def moved(readings: pd.DataFrame, place: str) -> None:
    """C5: the share of a short attack's update in the leading directions, beside chance; other updates' too."""
    energy = readings.query("measure == 'update_energy'")
    asked = {
        u: f"subset == '{u}: {place}, {{}}'" for u in {name.partition(":")[0] for name in energy["subset"]}
    }
    sums = {update: by_band(energy, update, query) for update, query in sorted(asked.items())}
    sums["chance"] = by_band(energy, "chance", asked["relearning"], "control_value")
    print(f"  C5, leading directions: {contrast(pd.DataFrame(sums), 'relearning', 'chance')}")


def selective(readings: pd.DataFrame) -> None:
    """C11: siblings' cosine over paraphrases', plain and at three eighths of the width."""
    found = readings.query("measure == 'selectivity'")
    names = [subset.partition(", k=") for subset in found["subset"]]
    table = found.assign(kind=[name[0] for name in names], k=[int(name[2]) for name in names])
    print("\nselectivity: cosine with other rows' gradients by k, mean over seeds")
    print(table.pivot_table("value", "kind", "k").to_string(float_format="%.3f"))
    sizes = sorted(set(table["k"]))
    both = {k: table.query(f"k == {k}").pivot_table("value", "seed", "kind") for k in (0, sizes[-3])}
    ratio = {f"k={k}": each["sibling"] / each["paraphrase"] for k, each in both.items()}
    print(f"  C11, sibling over paraphrase: {contrast(pd.DataFrame(ratio), 'k=0', f'k={sizes[-3]}')}")


if __name__ == "__main__":
    main()
