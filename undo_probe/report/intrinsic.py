"""How little training brings the knowledge back: one line an arm."""

import re
from typing import TYPE_CHECKING

from undo_probe.figures.look import STORY_VARIANTS, in_order
from undo_probe.figures.tables import number, readings_of
from undo_probe.records import Reading

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {
    "intrinsic_rank": "LoRA rank",
    "intrinsic_dimension": "random subspace",
    "intrinsic_block": "one block alone",
}


def intrinsic_table(readings: "pd.DataFrame") -> "pd.DataFrame":
    """The smallest rank and dimension that were enough, and the block; empty where none was looked for."""
    import pandas as pd

    found = {measure: {r.arm: r for r in readings_of(readings, measure)} for measure in COLUMNS}
    found = {measure: own for measure, own in found.items() if own}
    arms = in_order(arm for own in found.values() for arm in own if arm.variant in STORY_VARIANTS)
    rows = [
        {"model": arm.label}
        | {_heading(m, own): _cell(m, own[arm]) for m, own in found.items() if arm in own}
        for arm in arms
    ]
    return pd.DataFrame(rows).fillna("–")


def _heading(measure: str, own: dict) -> str:
    share = re.search(r"for ([0-9.]+) of", next(iter(own.values())).note)
    return f"{COLUMNS[measure]}, for {float(share[1]):.0%}" if share else COLUMNS[measure]


def _cell(measure: str, reading: Reading) -> str:
    if measure == "intrinsic_block":
        return number(reading.value, 0) if reading.value is not None else "none"
    tried = re.search(r"tried: ([0-9, ]+)", reading.note)
    beyond = f">\u202f{tried[1].split(', ')[-1]}" if tried else "–"
    if reading.value is None:
        return beyond
    low, high = (beyond if limit is None else number(limit, 0) for limit in (reading.low, reading.high))
    return f"{number(reading.value, 0)} ({low} to {high})"
