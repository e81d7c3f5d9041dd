"""At which depth does the answer vanish? Depth by block, as it is and mapped to the original's basis.

Reads a finished run; what is not measured yet is measured, and kept in the run's store. 0 is the original, 1 the
matched oracle. A depth counts by its excess over the twin's, which knows everything.

    python analyses/at_which_depth_does_the_answer_vanish.py runs/demo
    python analyses/at_which_depth_does_the_answer_vanish.py runs/demo --map distilled-maxent-0.4
"""

import argparse
from pathlib import Path

import undo_probe as up
from undo_probe.figures.look import layer_label
from undo_probe.jobs import default_workers
from undo_probe.measures.also import measure_also
from undo_probe.measures.stitches import asked_rows
from undo_probe.records import Arm, Reading
from undo_probe.scorecard import arm_readings

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("run", type=Path, help="the folder of a finished run")
parser.add_argument("--map", metavar="ARM", help="also: what each place of ARM and of the original carries")
parser.add_argument("--workers", type=int, default=default_workers())
VANISHED = 0.5


def main() -> None:
    """Prints depth by arm, the block at which half of it is reached, and the map of an arm."""
    asked = parser.parse_args()
    run = up.load_run(asked.run)
    named = {arm.name: arm for arm in run.arms}
    if asked.map and asked.map not in named:
        parser.error(f"the run has no arm {asked.map!r}; it has {', '.join(named)}")
    found, _ = measure_also(run, ["depth"], asked.workers)
    readings = {
        arm: arm_readings(arm, found[arm.name], [], [], 0, run.config.seed)
        for arm in run.arms
        if arm.stage != "noised"
    }
    for kind in ("raw", "stitched", "junk removed"):
        print(f"\ndepth, {kind}: all blocks, without the last (95 % intervals over families), block by block")
        for arm, mine in readings.items():
            show(arm, [r for r in mine if r.measure == "depth" and r.subset.startswith(f"{kind},")])
    print("\nforget variance outside the span that the maps were fitted on, by block (retain's)")
    for arm, mine in readings.items():
        outside = [r for r in mine if r.measure == "stitch_outside"]
        print(f"  {arm.label:28} " + "  ".join(f"{r.value:.2f} ({r.control_value:.2f})" for r in outside))
    if asked.map:
        arm = named[asked.map]
        table = up.patch_map(run.model("original"), run.load(arm), asked_rows(run.task, "forget"))
        wide = table.pivot_table(index=["into", "layer"], columns="position", values="change")
        print(f"\nbits a token gained by patching one place, forget questions (a: original, b: {arm.label})")
        print(wide.to_string(float_format="%.2f"))


def show(arm: Arm, readings: list[Reading]) -> None:
    """One line: over all blocks, without the last, then block by block; and where the answer is gone."""
    if not readings:
        return
    cells = [f"{r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" if r.low is not None else "-" for r in readings[:2]]
    blocks = [r for r in readings if r.layer]
    gone = [layer_label(r.layer or "") for r in blocks if (r.value or 0) > VANISHED]
    twin = readings[0].control_value
    beside = "" if twin is None else f"; {readings[0].control} {twin:.2f}"
    by_block = " ".join("-" if r.value is None else f"{r.value:.2f}" for r in blocks)
    half = f"half gone: {gone[0] if gone else 'never'}"
    print(f"  {arm.label:28} {'  '.join(cells):40} {by_block}  {half}{beside}")


if __name__ == "__main__":
    main()
