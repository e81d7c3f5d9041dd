"""What a linear reader still finds inside: probe bits or accuracy for each arm, target and layer, with floors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import GREY, SOFT, faint, in_order, labels, layer_label, layer_order, look, plain
from undo_probe.figures.said import said
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

QUANTITIES = {"bits": "probe_bits", "accuracy": "probe_accuracy"}
MOST_LAYERS = 5
_SHUFFLED = "shuffled"
_FAILS = "control fails"
_MARKERS = ("triangle-up-open", "circle-open", "diamond-open", "square-open")


def probes(
    readings: "pd.DataFrame",
    quantity: str = "bits",
    task_split: str = "forget",
    words: TaskWords | None = None,
) -> Figure:
    """One row an arm, one panel a target, one marker a layer; floors as a band and as ticks.

    Args:
        readings: The table of a run's readings.
        quantity: ``bits`` (information beyond the context) or ``accuracy``.
        task_split: ``forget`` or ``retain``.
        words: What the run's task is called; arithmetic's words if not given.
    """
    words = words or TaskWords()
    if quantity not in QUANTITIES:
        raise UndoProbeError(f"unknown quantity {quantity!r} of a probe: expected bits or accuracy")
    found = [r for r in readings_of(readings, QUANTITIES[quantity], task_split) if r.value is not None]
    rows = said(words).rows.format(task_split)
    if not found and not words.targets:
        raise UndoProbeError("this task has nothing that a probe could be trained to read")
    if not found:
        raise nothing(f"no probe readings ({quantity}) on {rows} yet", "undo-probe score")
    arms = in_order(reading.arm for reading in found)
    targets = list(dict.fromkeys(reading.subset for reading in found))
    layers = sorted({reading.layer or "" for reading in found}, key=layer_order)
    shown = layers if len(layers) <= MOST_LAYERS else _evenly(layers)
    grid = Panels(
        [plain(words.targets.get(target, target)) for target in targets],
        columns=min(3, len(targets)),
        panel_height=24 * len(arms) + 16,
        gap=0.03,
        bottom=84,
        row_gap=74,
        legend_rows=1,
        narrow_title_shift=-110,
    )
    context = _context(readings, found, task_split)
    traces: list[dict[str, Any]] = []
    for index, target in enumerate(targets):
        chosen = [reading for reading in found if reading.subset == target and (reading.layer or "") in shown]
        traces += _panel(chosen, arms, shown, axis_names(index))
    traces += _layer_legend(shown)
    layout = _layout(grid, arms, found, targets, context)
    return Figure(
        name=f"probes-{quantity}-{task_split}",
        title=_title(quantity, rows),
        plotly=draw(traces, layout),
        caption=_caption(quantity, task_split, words) + _left_out(layers, shown) + _failed(found),
        opposite=_OPPOSITE[task_split],
        table=_table(found, labels(arms), context, words),
        narrow=grid.narrow(),
    )


def _context(readings: "pd.DataFrame", found: Sequence[Reading], task_split: str) -> dict[str, float]:
    """By target, what a probe of the question's text alone reaches; by definition nothing, in bits."""
    if found[0].measure == "probe_bits":
        return {reading.subset: 0.0 for reading in found}
    given = [r for r in readings_of(readings, "context_accuracy", task_split) if r.value is not None]
    levels = {reading.subset: reading.value or 0.0 for reading in given}
    named = [r for r in found if r.control.startswith("context") and r.control_value is not None]
    return {reading.subset: reading.control_value or 0.0 for reading in named} | levels


def _evenly(layers: Sequence[str]) -> list[str]:
    places = {round(at * (len(layers) - 1) / (MOST_LAYERS - 1)) for at in range(MOST_LAYERS)}
    return [layers[place] for place in sorted(places)]


def _panel(
    readings: Sequence[Reading], arms: Sequence[Arm], layers: Sequence[str], axes: dict[str, str]
) -> list[dict[str, Any]]:
    unique = {(reading.arm, reading.layer or ""): reading for reading in reversed(readings)}
    traces: list[dict[str, Any]] = []
    for depth, layer in enumerate(layers):
        rows = [(place, unique[arm, layer]) for place, arm in enumerate(arms) if (arm, layer) in unique]
        offset = 0.0 if len(layers) == 1 else 0.5 * (depth / (len(layers) - 1) - 0.5)
        traces.append(_dots(rows, offset, depth == len(layers) - 1, depth, axes))
    shuffled = [
        (arms.index(reading.arm), reading.control_value)
        for reading in readings
        if reading.control.startswith(_SHUFFLED)
        and reading.control_value is not None
        and (reading.layer or "") == layers[-1]
    ]
    traces.append(_ticks(shuffled, axes))
    return traces


def _dots(
    rows: Sequence[tuple[int, Reading]], offset: float, last: bool, depth: int, axes: dict[str, str]
) -> dict[str, Any]:
    colors = [look(reading.arm).color for _, reading in rows]
    values = [reading.value or 0.0 for _, reading in rows]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": [place + offset for place, _ in rows],
        "error_x": {
            "array": [
                (r.high or v) - v if r.high is not None else 0 for (_, r), v in zip(rows, values, strict=True)
            ],
            "arrayminus": [
                v - r.low if r.low is not None else 0 for (_, r), v in zip(rows, values, strict=True)
            ],
            "color": faint("#7a7a82", 0.45),
            "thickness": 1.2,
            "width": 0,
        },
        "marker": {
            "symbol": "circle" if last else _MARKERS[depth % len(_MARKERS)],
            "size": 9 if last else 8,
            "color": colors,
            "line": {"width": 1.6, "color": colors},
        },
        "customdata": [[plain(r.arm.label), plain(layer_label(r.layer or ""))] for _, r in rows],
        "hovertemplate": "%{customdata[0]}, %{customdata[1]}: <b>%{x:.2f}</b><extra></extra>",
        "showlegend": False,
        **axes,
    }


def _ticks(rows: Sequence[tuple[int, float]], axes: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "x": [value for _, value in rows], "y": [place for place, _ in rows],
        "marker": {"symbol": "line-ns-open", "size": 11, "color": GREY, "line": {"width": 1.5}},
        "hovertemplate": "shuffled labels: <b>%{x:.2f}</b><extra></extra>", "showlegend": False, **axes,
    }  # fmt: skip


def _layer_legend(layers: Sequence[str]) -> list[dict[str, Any]]:
    entries = [
        (plain(layer_label(layer)), "circle" if depth == len(layers) - 1 else _MARKERS[depth % len(_MARKERS)])
        for depth, layer in enumerate(layers)
    ]
    entries.append(("shuffled labels", "line-ns-open"))
    return [
        {
            "type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": name, "showlegend": True,
            "marker": {"symbol": symbol, "size": 9, "color": GREY, "line": {"width": 1.6, "color": GREY}},
        }
        for name, symbol in entries
    ]  # fmt: skip


def _layout(
    grid: Panels,
    arms: Sequence[Arm],
    found: Sequence[Reading],
    targets: Sequence[str],
    context: dict[str, float],
) -> dict[str, Any]:
    names = labels(arms)
    quantity = "bits" if found[0].measure == "probe_bits" else "accuracy"
    y_axis = axis(
        tickvals=list(range(len(arms))),
        ticktext=[plain(names[arm]) for arm in arms],
        range=[len(arms) - 0.4, -0.6],
        showgrid=True,
    )
    x_axis = axis(range=_range(found, quantity), nticks=6)
    layout = grid.layout(x_axis, y_axis, showlegend=True)
    layout["margin"] = {**layout["margin"], "l": 128}
    layout["legend"] = {**layout["legend"], "itemclick": False, "itemdoubleclick": False}
    layout["shapes"] = [
        shape
        for index, target in enumerate(targets)
        for shape in _floors(found, target, index, context.get(target))
    ]
    for index in range(len(targets)):
        name = "xaxis" if index == 0 else f"xaxis{index + 1}"
        layout[name]["title"] = {
            "text": "bits beyond the context" if quantity == "bits" else "accuracy",
            "font": {"size": 12, "color": SOFT}, "standoff": 4,
        }  # fmt: skip
    return layout


def _range(found: Sequence[Reading], quantity: str) -> list[float]:
    if quantity == "accuracy":
        return [0, 1.03]
    values = [v for r in found for v in (r.value, r.low, r.high, r.control_value) if v is not None]
    return [min(-0.1, *values) - 0.05, max(0.5, *values) * 1.04]


def _floors(found: Sequence[Reading], target: str, index: int, level: float | None) -> list[dict[str, Any]]:
    """The matched oracle's best interval as a band, and the context-only probe as a line."""
    here = [reading for reading in found if reading.subset == target]
    names = axis_names(index)
    on = {"xref": names["xaxis"], "yref": f"{names['yaxis']} domain", "y0": 0, "y1": 1, "layer": "below"}
    shapes: list[dict[str, Any]] = []
    matched = [
        r for r in here if r.arm.stage == "oracle_matched" and r.low is not None and r.high is not None
    ]
    if matched:
        best = max(matched, key=lambda reading: reading.value or 0.0)
        shapes.append({
            "type": "rect", "x0": best.low, "x1": best.high, "fillcolor": faint("#7a7a82", 0.16),
            "line": {"width": 0}, **on,
        })  # fmt: skip
    if level is not None:
        shapes.append({
            "type": "line", "x0": level, "x1": level, "line": {"color": GREY, "width": 1.2, "dash": "dot"}, **on,
        })  # fmt: skip
    return shapes


def _title(quantity: str, rows: str) -> str:
    what = "What a linear probe still reads inside" if quantity == "bits" else "The same probes as accuracy"
    return f"{what}, on {rows}"


def _caption(quantity: str, task_split: str, words: TaskWords) -> str:
    floor = (
        f"zero bits (dotted) is what {words.prompt} already tell"
        if quantity == "bits"
        else "the dotted line is a probe of the question’s text alone"
    )
    look_for = (
        "markers to the right of the grey band: there the answer can still be read, although it is not said"
        if task_split == "forget"
        else "markers that stay far right at every stage: the probes work, and retain knowledge was not harmed"
    )
    return (
        f"Read at {words.read_at}, on families the probe was not trained on. The band is the matched oracle’s best "
        f"layer with its interval; {floor}; short ticks are the same probe on shuffled labels. Look for {look_for}. "
    )


_OPPOSITE = {
    "forget": (
        "had unlearning removed the knowledge, its row would lie in the band at every layer; had UNDO only hidden "
        "it, its rows would stay where the unlearned model’s is."
    ),
    "retain": "rows that fall here too would mean that the probes, or the models, got worse at everything.",
}


def _left_out(layers: Sequence[str], shown: Sequence[str]) -> str:
    if len(layers) == len(shown):
        return ""
    return f"{len(shown)} of {len(layers)} layers are drawn, evenly spaced; the table holds all."


def _failed(found: Sequence[Reading]) -> str:
    """A warning where a probe's own control went wrong, so that nobody reads it as a finding."""
    failed = {(r.arm.name, r.subset, r.layer) for r in found if _FAILS in r.note}
    return (
        f" In {len(failed)} places the control of shuffled labels failed: see the last column of the table."
        if failed
        else ""
    )


def _table(
    found: Sequence[Reading], names: dict[Arm, str], context: dict[str, float], words: TaskWords
) -> "pd.DataFrame":
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, str]] = {}
    order = list(names)
    last = max((reading.layer or "" for reading in found), key=layer_order)
    for reading in sorted(found, key=lambda r: (r.subset, order.index(r.arm), layer_order(r.layer or ""))):
        key = (names[reading.arm], reading.subset)
        row = rows.setdefault(key, {"model": key[0], "target": words.targets.get(key[1], key[1])})
        layer = layer_label(reading.layer or "")
        row[layer] = with_interval(reading.value, reading.low, reading.high)
        if reading.control.startswith(_SHUFFLED) and (reading.layer or "") == last:
            row[f"shuffled labels, {layer}"] = number(reading.control_value)
            row["the text alone"] = number(context.get(key[1]))
            row["rows, families"] = f"{reading.n}, {reading.n_clusters}"
        if _FAILS in reading.note:
            row["control fails at"] = ", ".join(filter(None, (row.get("control fails at"), layer)))
    return pd.DataFrame(list(rows.values())).fillna("")
