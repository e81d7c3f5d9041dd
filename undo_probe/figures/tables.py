"""From the run's tables to what a figure draws: readings of one measure, and curves as lines."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.records import Arm, Reading

if TYPE_CHECKING:
    import pandas as pd

MOST_POINTS = 300


def readings_of(table: "pd.DataFrame", measure: str, task_split: str = "") -> list[Reading]:
    """The readings of one measure, with missing numbers as None; both splits if none is named."""
    _require(table, ("stage", "measure", "task_split", "subset", "value"), "readings")
    keep = table["measure"] == measure
    if task_split:
        keep &= table["task_split"] == task_split
    return [reading_from_row(row) for row in table.loc[keep].to_dict("records")]


def reading_from_row(row: Mapping[Any, Any]) -> Reading:
    """One row of ``readings.parquet`` as a reading; columns it does not know are left aside."""
    given = {str(name): _plain_value(value) for name, value in row.items()}
    arm = arm_from_row(given)
    names = set(Reading.__dataclass_fields__) - {"arm"}
    values = {name: given[name] for name in names & set(given) if given[name] is not None}
    return Reading(arm, **values)


def arm_from_row(row: Mapping[Any, Any]) -> Arm:
    """The arm of a row of either table."""
    given = {name: _plain_value(row[name]) for name in Arm.__dataclass_fields__ if name in row}
    return Arm(**{name: value for name, value in given.items() if value is not None})


def _plain_value(value: Any) -> Any:
    """A cell as a plain Python value; NaN, NaT and NA become None."""
    value = value.item() if hasattr(value, "item") else value
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or str(value) == "<NA>":
        return None
    return value


@dataclass(frozen=True)
class Line:
    """One curve: values over steps with their interval, averaged over attack seeds where there are several."""

    arm: Arm
    rate: float | None
    steps: tuple[int, ...]
    values: tuple[float, ...]
    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    n: int = 0
    subset: str = ""


def lines_of(curves: "pd.DataFrame", kind: str, task_split: str = "forget") -> list[Line]:
    """The lines of one kind, in the table's order, each of at most 300 points; of attacks, relearning alone."""
    _require(curves, ("stage", "kind", "step", "task_split", "subset", "value"), "curves")
    chosen = curves.loc[(curves["kind"] == kind) & (curves["task_split"] == task_split)]
    if "attack" in chosen:
        chosen = chosen.loc[chosen["attack"].isin(("", "relearn"))]
    columns = [name for name in (*Arm.__dataclass_fields__, "learning_rate", "subset") if name in chosen]
    groups: dict[tuple[str, ...], list[dict[Any, Any]]] = {}
    for row in chosen.to_dict("records"):
        groups.setdefault(tuple(str(row[name]) for name in columns), []).append(row)
    return [_line(rows) for rows in groups.values()]


def _line(rows: list[dict[Any, Any]]) -> Line:
    steps = thinned(sorted({int(row["step"]) for row in rows}))
    at: dict[int, list[dict[Any, Any]]] = {step: [] for step in steps}
    for row in rows:
        if int(row["step"]) in at and _plain_value(row["value"]) is not None:
            at[int(row["step"])].append(row)
    steps = [step for step in steps if at[step]]
    return Line(
        arm_from_row(rows[0]),
        _plain_value(rows[0].get("learning_rate")),
        tuple(steps),
        tuple(sum(row["value"] for row in at[step]) / len(at[step]) for step in steps),
        tuple(min(_known(at[step], "low"), default=None) for step in steps),
        tuple(max(_known(at[step], "high"), default=None) for step in steps),
        int(_plain_value(rows[0].get("n")) or 0),
        str(rows[0]["subset"]),
    )


def _known(rows: list[dict[Any, Any]], name: str) -> list[float]:
    return [value for row in rows if (value := _plain_value(row.get(name))) is not None]


def thinned(steps: list[int], most: int = MOST_POINTS) -> list[int]:
    """At most ``most`` of the sorted steps, the first and last among them, evenly spread on a log axis."""
    if len(steps) <= most:
        return steps
    first, last = (math.log2(1 + steps[at] - steps[0]) for at in (0, -1))
    chosen = {steps[0], steps[-1]}
    at = 0
    for place in range(most - 2):
        target = first + (last - first) * (place + 1) / (most - 1)
        while at < len(steps) - 1 and math.log2(1 + steps[at] - steps[0]) < target:
            at += 1
        chosen.add(steps[at])
    return sorted(chosen)


def last_step(readings: Iterable[Reading]) -> dict[Arm, Reading]:
    """For each arm the reading whose subset, ``step 200``, names the latest step."""
    latest: dict[Arm, Reading] = {}
    for reading in readings:
        if reading.value is not None and step_of(reading) >= step_of(latest.get(reading.arm)):
            latest[reading.arm] = reading
    return latest


def step_of(reading: Reading | None) -> int:
    """The step that a subset such as ``step 200`` names; -1 where it names none."""
    match = re.fullmatch(r"step (\d+)", reading.subset) if reading else None
    return int(match[1]) if match else -1


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table or label, with a true minus sign and a dash for a missing one."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else f"{0:.{digits}f}"


def with_interval(value: float | None, low: float | None, high: float | None, digits: int = 2) -> str:
    """``0.88 (0.84 to 0.91)``."""
    if value is None or low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} ({number(low, digits)} to {number(high, digits)})"


def nothing(what: str, command: str) -> UndoProbeError:
    """The error of a figure that has nothing to draw: what is missing and what makes it."""
    return UndoProbeError(f"{what}: `{command}` makes them.")


def _require(table: "pd.DataFrame", columns: Iterable[str], name: str) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UndoProbeError(
            f"the table of {name} has no column {missing[0]!r} (it has {', '.join(map(str, table.columns))}): "
            f"give the table of a run's {name}.parquet"
        )
