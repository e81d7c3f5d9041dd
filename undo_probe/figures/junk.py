"""RMU's junk direction: does it exist, and does taking it out give the forgotten answers back?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import BLUE, GREY, PURPLE, SOFT, in_order, plain
from undo_probe.figures.said import said
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

ITSELF, BEFORE = "junk direction", "no ablation"
_ROWS = {
    BEFORE: "nothing ablated",
    ITSELF: "<b>junk direction</b>",
    "isotropic": "random",
    "covariance": "random, as activations lie",
    "components": "leading components",
    "retain": "shift on retain",
    "placebo": "placebo’s direction",
    "junk direction in the original": "junk, in the original",
    "junk direction, all blocks": "junk, in all blocks",
    "isotropic, all blocks": "random, in all blocks",
}
CONTROLS = ("isotropic", "covariance", "components", "retain", "placebo")
_FOUND = {
    ("junk_cosine", "raw"): "cosine with the control vector",
    ("junk_cosine", "mean removed"): "the same, mean removed",
    ("junk_share", "held-out half"): "share of the held-out shift",
}


def junk(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Accuracy with the junk direction ablated, beside every control, and how well the direction is found."""
    effects = [reading for reading in readings_of(readings, "ablated_accuracy") if reading.value is not None]
    if not effects:
        raise nothing("no readings of a junk direction (only RMU models have one)", "undo-probe score")
    arm = in_order(reading.arm for reading in effects)[0]
    effects = [reading for reading in effects if reading.arm == arm]
    rows = _rows(effects)
    found = _found(readings, arm)
    titles = ["accuracy with a direction ablated"] + (["how well the direction is found"] if found else [])
    grid = Panels(
        titles,
        columns=len(titles),
        panel_height=max(170, 31 * len(rows)),
        gap=0.27,
        bottom=84,
        row_gap=74,
        labels_in_first_column=False,
        legend_rows=1,
        narrow_title_shift=-150,
    )
    traces = _effect_traces(rows, effects, said(words).rows)
    layout = grid.layout(axis(range=[-0.03, 1.03], dtick=0.25, tickformat=".0%"), axis(), showlegend=True)
    layout["yaxis"] |= _row_axis([_ROWS.get(row, plain(row)) for row in rows])
    layout["margin"] = {**layout["margin"], "l": 178}
    layout["legend"] = {**layout["legend"], "itemclick": False, "itemdoubleclick": False}
    if found:
        traces += _direction_traces(found)
        layout["yaxis2"] |= _row_axis([_FOUND[reading.measure, reading.subset] for reading in found])
        layout["xaxis2"] |= {"range": [min(-0.03, *(r.value or 0.0 for r in found)), 1.03], "tickformat": ""}
    return Figure(
        name="junk",
        title=f"The junk direction of {arm.label}",
        plotly=draw(traces, layout),
        caption=(
            "The direction is the mean shift of forget states, fitted on half of the families and tested on the "
            "other; a control’s bar spans all its draws. Look at the gap between the row of the junk direction and "
            f"the controls: on {said(words).rows.format('forget')}, and without loss on retain, that is what the "
            "direction hid. " + _sentence(effects)
        ),
        opposite=(
            "a placebo’s or a random direction that gives back as much would mean that any large ablation does; "
            "no recovery at all means that the method destroyed the information, or hid it elsewhere."
        ),
        table=_table(rows, effects, found),
        narrow=grid.narrow(),
        wide_from=800,
    )


def _found(readings: "pd.DataFrame", arm: Arm) -> list[Reading]:
    """The readings that say how well the direction is found, in their order."""
    measures = dict.fromkeys(measure for measure, _ in _FOUND)
    at = {
        (r.measure, r.subset): r
        for measure in measures
        for r in readings_of(readings, measure)
        if r.arm == arm
    }
    return [at[place] for place in _FOUND if place in at and at[place].value is not None]


def _rows(effects: Sequence[Reading]) -> list[str]:
    """What was ablated, in reading order; what this file does not know comes last."""
    subsets = list(dict.fromkeys(reading.subset for reading in effects))
    return [row for row in _ROWS if row in subsets] + [row for row in subsets if row not in _ROWS]


def _row_axis(rows: Sequence[str]) -> dict[str, Any]:
    return {"tickvals": list(range(len(rows))), "ticktext": list(rows), "range": [len(rows) - 0.4, -0.6]}


def _effect_traces(rows: Sequence[str], effects: Sequence[Reading], rows_of: str) -> list[dict[str, Any]]:
    at = {(reading.task_split, reading.subset): reading for reading in reversed(effects)}
    looks = {"forget": ("square", PURPLE, 0.12), "retain": ("circle-open", BLUE, -0.12)}
    traces: list[dict[str, Any]] = []
    for split, (symbol, color, offset) in looks.items():
        points = [(place, at[split, row]) for place, row in enumerate(rows) if (split, row) in at]
        traces.append(_points(points, rows_of.format(split), (symbol, color), offset, axis_names(0)))
    return traces


def _points(
    points: Sequence[tuple[int, Reading]],
    name: str,
    look: tuple[str, str],
    offset: float,
    axes: dict[str, str],
) -> dict[str, Any]:
    values = [reading.value or 0.0 for _, reading in points]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": [place + offset for place, _ in points],
        "error_x": {
            "array": [r.high - v if r.high is not None else 0 for (_, r), v in zip(points, values, strict=True)],
            "arrayminus": [v - r.low if r.low is not None else 0 for (_, r), v in zip(points, values, strict=True)],
            "color": look[1], "thickness": 1.4, "width": 0,
        },
        "marker": {"symbol": look[0], "size": 10, "color": look[1], "line": {"width": 2, "color": look[1]}},
        "name": name,
        "hovertemplate": "%{fullData.name}: <b>%{x:.2f}</b><extra></extra>",
        **axes,
    }  # fmt: skip


def _direction_traces(found: Sequence[Reading]) -> list[dict[str, Any]]:
    points = list(enumerate(found))
    controls = [(place, r.control_value) for place, r in points if r.control_value is not None]
    return [
        {**_points(points, "the direction", ("diamond", PURPLE), 0.0, axis_names(1)), "showlegend": False},
        {
            "type": "scatter", "mode": "markers", "x": [value for _, value in controls],
            "y": [place for place, _ in controls], "name": "control directions",
            "marker": {"symbol": "line-ns-open", "size": 14, "color": GREY, "line": {"width": 2, "color": SOFT}},
            "hovertemplate": "control: <b>%{x:.2f}</b><extra></extra>", **axis_names(1),
        },
    ]  # fmt: skip


def effect(effects: Sequence[Reading]) -> tuple[Reading, Reading, Reading] | None:
    """On forget rows: nothing ablated, the junk direction ablated, and the strongest control."""
    at = {reading.subset: reading for reading in effects if reading.task_split == "forget"}
    controls = [at[name] for name in CONTROLS if name in at]
    if not controls or BEFORE not in at or ITSELF not in at:
        return None
    return at[BEFORE], at[ITSELF], max(controls, key=lambda reading: reading.value or 0.0)


def _sentence(effects: Sequence[Reading]) -> str:
    """What the ablation gave back here, beside the strongest control."""
    found = effect(effects)
    if found is None:
        return ""
    before, after, best = found
    return (
        f"Here forget accuracy goes from {number(before.value)} to {number(after.value)}; the strongest control "
        f"({_ROWS.get(best.subset, best.subset)}) gives {number(best.value)} on average."
    )


def _table(rows: Sequence[str], effects: Sequence[Reading], found: Sequence[Reading]) -> "pd.DataFrame":
    import pandas as pd

    at = {(reading.task_split, reading.subset): reading for reading in reversed(effects)}
    table = [
        {
            "ablated, or measured": row,
            "forget accuracy, or value": _shown(at.get(("forget", row))),
            "retain accuracy": _shown(at.get(("retain", row))),
            "control": "",
        }
        for row in rows
    ]
    table += [
        {
            "ablated, or measured": _FOUND[r.measure, r.subset],
            "forget accuracy, or value": _shown(r),
            "retain accuracy": "",
            "control": f"{number(r.control_value)} ({r.control})" if r.control else "",
        }
        for r in found
    ]
    return pd.DataFrame(table)


def _shown(reading: Reading | None) -> str:
    return "" if reading is None else with_interval(reading.value, reading.low, reading.high)
