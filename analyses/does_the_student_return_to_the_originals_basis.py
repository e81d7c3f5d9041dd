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
from undo_probe.attacks.relearn import attack_once
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
COLUMNS = ("swap cost", "mapped", "explained", "lens gap", "distance", "barrier", "cos(U, D)", "cos(U, A)")


def main() -> None:
    """Prints a line an arm."""
    asked = parser.parse_args()
    run = up.load_run(asked.run)
    found, _ = measure_also(run, ["depth", "lens", "weights"], asked.workers)
    layers = [f"blocks.{i}.hook_resid_post" for i in range(run.config.model.n_layers)]
    print(
        "bits a token on retain questions, mean over blocks: the original on this model's states (swap cost), the same"
    )
    print(
        "mapped, share of variance that the map explains, own decoder less the original's on the last block (lens gap);"
    )
    print(
        "relative L2 and barrier (bits) to the original, cosines of unlearning with distillation and attack"
    )
    print(f"{'':30}" + "".join(f"{name:>11}" for name in COLUMNS))
    for arm in run.arms:
        if arm.stage not in ("original", "oracle", "unlearned", "distilled"):
            continue
        items = found[arm.name]
        lens = [
            value(items, "lens_log_probability", "retain", name, layers[-1]) for name in ("own", "original's")
        ]
        cells = [
            mean(value(items, "patch_drop", "retain", "raw", layer) for layer in layers),
            mean(value(items, "patch_drop", "retain", "stitched", layer) for layer in layers),
            mean(value(items, "stitch_explained", "retain", "held out", layer) for layer in layers),
            None if None in lens else (lens[0] or 0.0) - (lens[1] or 0.0),
            value(items, "weight_distance", "forget", "all weights", None),
            value(items, "barrier", "retain", "all", None),
            value(items, "change_cosine", "forget", "unlearning, distillation", None),
            attacked(run, arm, asked.attack) if asked.attack else None,
        ]
        print(f"{arm.label:30}" + "".join(f"{'-' if x is None else format(x, '.3f'):>11}" for x in cells))


def value(items: list[Measured], measure: str, split: str, subset: str, layer: str | None) -> float | None:
    """The one reading of that name, as a mean over rows; None where it was not measured."""
    for item in items:
        if (item.measure, item.task_split, item.subset, item.layer) == (measure, split, subset, layer):
            return float(item.values.mean()) if isinstance(item, ItemScores) else item.value
    return None


def mean(values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def attacked(run: Run, arm: Arm, rate: float) -> float | None:
    """Cosine of what the attack adds to a student's weights with what unlearning added to the original's."""
    model, original = run.load(arm), run.model("original")
    done, _ = attack_once(model, run.task, run.config.attack, rate, Context(run.config.seed))
    return cosine(weight_change(run.model("unlearned"), original), weight_change(done.model, model))


if __name__ == "__main__":
    main()
