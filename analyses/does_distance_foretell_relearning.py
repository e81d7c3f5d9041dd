"""Does distance to the original foretell relearning? And which measure orders the stages as relearning does?

Reads finished, attacked and scored runs, one a seed; measures of score.also are among the predictors where a run has
them. Positive: stages in which the measure finds more are those that give more back. One seed has no interval.

    python analyses/does_distance_foretell_relearning.py runs/seeds
    python analyses/does_distance_foretell_relearning.py runs/demo --cells
"""

import argparse
from pathlib import Path

from undo_probe.foretold import TARGET, cells, foretelling
from undo_probe.intervals import Interval
from undo_probe.replicates import read_runs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders that hold one a seed")
parser.add_argument("--cells", action="store_true", help="print every stage's values too")


def main() -> None:
    """Prints a line for each measure, the one that says most beyond accuracy first."""
    asked = parser.parse_args()
    runs, readings = read_runs(asked.runs)
    table = cells(readings)
    print(f"rank correlation with what the attack reaches, over {len(table)} stages of {len(runs)} runs")
    print("(unlearned models, students, twins, placebos, variations; mean over seeds, 95 % Student interval)")
    print(f"{'':26}{'all stages':>22}{'within an alpha':>22}{'beyond accuracy':>22}{'n':>6}")
    for line in foretelling(table):
        shown = "".join(f"{text(each):>22}" for each in (line.overall, line.within, line.beyond))
        print(f"{line.predictor:26}{shown}{line.cells:6d}")
    if asked.cells:
        print(table.sort_values(["seed", TARGET]).to_string(index=False, float_format="%.3f"))


def text(found: Interval | None) -> str:
    """The mean, with its interval where there are seeds for one."""
    if found is None:
        return "-"
    return f"{found.value:.2f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.n > 1 else "")


if __name__ == "__main__":
    main()
