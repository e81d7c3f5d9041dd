"""Does the student return to the original's basis, or find its own?

Reads a finished run; what is not measured yet is measured, and kept in the run's store. On retain questions, which
original and student both answer, the original running on the student's states loses nothing exactly where the two
share a basis. Beside it: how well an affine map explains the original's states, what the original's own decoder
reads, and whether the weights lie in the original's valley. With --attack each student is also attacked, and the
attack's update compared with the unlearning's: -1 would be unlearning undone.

    python analyses/does_the_student_return_to_the_originals_basis.py runs/demo
    python analyses/does_the_student_return_to_the_originals_basis.py runs/demo --attack 0.001
"""

import argparse
from pathlib import Path

import undo_probe as up
from undo_probe.attacks.one_model import attack_once
from undo_probe.jobs import default_workers
from undo_probe.measures import ItemScores
from undo_probe.measures.also import measure_also
from undo_probe.measures.battery import Measured
from undo_probe.measures.weights import cosine, weight_change
from undo_probe.records import Arm
from undo_probe.store import Run
from undo_probe.training import Context

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="the folder of a finished run")
parser.add_argument("--attack", type=float, metavar="RATE", help="attack every student once at this rate")
parser.add_argument("--workers", type=int, default=default_workers())
# column: measure, side, subset; blocks are averaged over
PLACES = {
    "swap cost": ("patch_drop", "retain", "raw"),
    "mapped": ("patch_drop", "retain", "stitched"),
    "explained": ("stitch_explained", "retain", "held out"),
    "own lens": ("lens_log_probability", "retain", "own"),
    "its lens": ("lens_log_probability", "retain", "original's"),
    "distance": ("weight_distance", "forget", "all weights"),
    "barrier": ("barrier", "retain", "all"),
    "cos(U, D)": ("change_cosine", "forget", "unlearning, distillation"),
}


def main() -> None:
    """Prints a line an arm."""
    asked = parser.parse_args()
    run = up.load_run(asked.run)
    found, _ = measure_also(run, ["depth", "lens", "weights"], asked.workers)
    print(
        "bits a token on retain questions: the original on this model's states (swap cost), the same mapped, log-"
    )
    print(
        "probability through the own and the original's decoder (means over layers); relative L2 and barrier to the"
    )
    print("original; cosines of unlearning's change with distillation's and the attack's")
    print(f"{'':30}" + "".join(f"{name:>11}" for name in (*PLACES, "cos(U, A)")))
    for arm in run.arms:
        if arm.stage in ("original", "oracle", "unlearned", "distilled"):
            cells = [mean(found[arm.name], place) for place in PLACES.values()]
            cells.append(attacked(run, arm, asked.attack) if asked.attack else None)
            print(f"{arm.label:30}" + "".join(f"{'-' if x is None else format(x, '.3f'):>11}" for x in cells))


def mean(items: list[Measured], place: tuple[str, str, str]) -> float | None:
    """Mean over rows and layers of the readings of that name; None where it was not measured."""
    here = [item for item in items if (item.measure, item.task_split, item.subset) == place]
    values = [float(i.values.mean()) if isinstance(i, ItemScores) else i.value for i in here]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def attacked(run: Run, arm: Arm, rate: float) -> float | None:
    """Cosine of what the attack adds to a student's weights with what unlearning added to the original's."""
    model, original = run.load(arm), run.model("original")
    done, _ = attack_once(model, run.task, run.config.attack, rate, Context(run.config.seed))
    return cosine(weight_change(run.model("unlearned"), original), weight_change(done.model, model))


if __name__ == "__main__":
    main()
