"""How far and in which directions the weights moved: one line an arm."""

from statistics import median
from typing import TYPE_CHECKING

from undo_probe.figures.look import STORY_VARIANTS, in_order
from undo_probe.figures.tables import number, readings_of, with_interval
from undo_probe.records import Arm, Reading

if TYPE_CHECKING:
    import pandas as pd


def weights_table(readings: "pd.DataFrame") -> "pd.DataFrame":
    """Distance from the original, rank and cosine of the change, and the barrier; empty where not measured."""
    import pandas as pd

    distance = {r.arm: r for r in readings_of(readings, "weight_distance") if r.subset == "all weights"}
    ranks: dict[Arm, list[float]] = {}
    for r in readings_of(readings, "change_stable_rank"):
        if r.value is not None:
            ranks.setdefault(r.arm, []).append(r.value)
    cosines = {
        r.arm: r for r in readings_of(readings, "change_cosine") if r.subset == "unlearning, distillation"
    }
    barriers = {(r.arm, r.task_split): r for r in readings_of(readings, "barrier")}
    arms = [
        a for a in in_order(distance) if a.variant in STORY_VARIANTS and (a.stage != "original" or a.variant)
    ]
    rows = [
        {
            "model": arm.label,
            "distance": number(distance[arm].value),
            "stable rank": _spread(ranks.get(arm, [])),
            "cosine with unlearning": number(cosines[arm].value) if arm in cosines else "–",
            "barrier, forget": _barrier(barriers.get((arm, "forget"))),
            "barrier, retain": _barrier(barriers.get((arm, "retain"))),
        }
        for arm in arms
    ]
    return pd.DataFrame(rows)


def _spread(values: list[float]) -> str:
    """The median, and on a line below the lowest and highest."""
    if not values:
        return "–"
    return f"{number(median(values), 1)}\n({number(min(values), 1)} to {number(max(values), 1)})"


def _barrier(reading: Reading | None) -> str:
    if reading is None:
        return "–"
    if reading.value is None:
        return reading.note.partition(":")[0]
    return with_interval(reading.value, reading.low, reading.high).replace(" (", "\n(")
