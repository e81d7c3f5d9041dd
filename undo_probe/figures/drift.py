"""How far each arm's residual stream moved from the original's, by layer and by position."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import in_order, labels, layer_label, layer_order, plain
from undo_probe.figures.said import said
from undo_probe.figures.tables import nothing, number, readings_of
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

READ = "="
"""How readings name the position at which the answer is read, whatever token stands there."""
_MOVED = ("#F3F6FA", "#C3DDF0", "#7DB8DF", "#2C7FB8", "#083D66")  # pale: where the original is; dark: far
_AROUND = ("#7F3B08", "#E0923B", "#F7F5F2", "#8F86BF", "#3B1668")
_CENTRES = {"norm_ratio": 1.0, "change": 0.0}
"""Measures that can be far on either side, and where they are not."""
_SCORE = "undo-probe score"
_ROW = 21
_ROOMY = 8  # columns of which two decimals still fit on a phone
MEASURES = {
    "relative_distance": "distance / norm of the original",
    "cosine": "cosine with the original",
    "cka": "CKA with the original (debiased)",
    "norm_ratio": "norm / norm of the original",
}


def drift_layers(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Layer by arm at the position where the answer is read, forget and retain side by side, one panel a measure."""
    words = words or TaskWords()
    found = {measure: _at_read(readings_of(readings, measure)) for measure in MEASURES}
    found = {measure: rows for measure, rows in found.items() if rows}
    if not found:
        raise nothing("no drift readings yet", _SCORE)
    arms = _moved(in_order(reading.arm for rows in found.values() for reading in rows))
    grid = Panels([MEASURES[m] for m in found], columns=2, panel_height=_ROW * len(arms), row_gap=86, bottom=40,
                  gap=0.06)  # fmt: skip
    names = labels(arms)
    traces = [
        _layer_map(rows, arms, names, index, measure) for index, (measure, rows) in enumerate(found.items())
    ]
    layout = _map_layout(grid, len(arms))
    tight = {
        f"data.{index}.texttemplate": "%{z:.1f}"
        for index, trace in enumerate(traces)
        if trace["texttemplate"] and len(trace["z"][0]) > _ROOMY
    }
    return Figure(
        name="drift-layers",
        title="How far the inside moved from the original",
        plotly=draw(traces, layout),
        caption=(
            f"Residual streams at {words.read_at} against the original’s, at the embedding and after each numbered "
            "block; dark is far. Look for the twin: it was taught by the original and lost nothing, so what it shows "
            "is a change of basis. "
            "Only what an UNDO row has beyond its twin, and on the forget side beyond retain, speaks of erasure. "
            + _twin_sentence(found)
        ),
        opposite=(
            "a twin as far away as its UNDO arm means that drift says nothing about removal here; an unlearned row "
            "near zero means that unlearning left the inside as it was."
        ),
        table=_layer_table(found, names),
        narrow=grid.narrow() | tight,
    )


def drift_positions(
    readings: "pd.DataFrame", measure: str = "relative_distance", words: TaskWords | None = None
) -> Figure:
    """Position by arm on forget rows, one panel a layer."""
    words = words or TaskWords()
    speak = said(words)
    found = [r for r in readings_of(readings, measure, "forget") if r.value is not None]
    positions = list(dict.fromkeys(reading.subset for reading in found))
    if len(positions) < 2:
        raise nothing("no drift readings by position yet", _SCORE)
    layers = sorted({reading.layer or "" for reading in found}, key=layer_order)
    arms = _moved(in_order(reading.arm for reading in found))
    names = labels(arms)
    grid = Panels([plain(layer_label(layer)) for layer in layers], columns=min(3, len(layers)), bottom=44, gap=0.025,
                  panel_height=_ROW * len(arms))  # fmt: skip
    scale = map_scale([[reading.value for reading in found]], measure)
    traces: list[dict[str, Any]] = []
    for index, layer in enumerate(layers):
        at = {(r.arm, r.subset): r.value for r in found if (r.layer or "") == layer}
        values = [[at.get((arm, position)) for position in positions] for arm in arms]
        shown = [plain(_position(position, words)) for position in positions]
        traces.append(heat(values, shown, [plain(names[arm]) for arm in arms], index) | scale)
    return Figure(
        name="drift-positions",
        title=f"Where in the {speak.place} the inside moved",
        plotly=draw(traces, _map_layout(grid, len(arms), type="category")),
        caption=(
            f"{speak.rows.format('Forget')} only, {MEASURES.get(measure, measure)}, one column a token position; "
            f"other measures read at {words.read_at}. Look for where an unlearned row darkens and its neighbours do "
            "not: that is where the method acts."
        ),
        opposite="rows equally dark at every position, the twin’s included, show a change of basis of the whole model.",
        table=_position_table(found, names, words),
        narrow=grid.narrow(),
    )


def _position(subset: str, words: TaskWords) -> str:
    """A position for an axis: its number, or the mark at which the answer is read."""
    return words.read_mark if subset == READ else subset.removeprefix("pos ")


def _at_read(readings: Sequence[Reading]) -> list[Reading]:
    known = [reading for reading in readings if reading.value is not None]
    return [reading for reading in known if reading.subset == READ] or known


def _moved(arms: Sequence[Arm]) -> list[Arm]:
    """All arms but the original itself, whose distance to itself says nothing."""
    return [arm for arm in arms if arm.stage != "original" or arm.variant]


def _layer_map(
    rows: Sequence[Reading], arms: Sequence[Arm], names: dict[Arm, str], index: int, measure: str
) -> dict[str, Any]:
    layers = sorted({reading.layer or "" for reading in rows}, key=layer_order)
    splits = [split for split in ("forget", "retain") if any(r.task_split == split for r in rows)]
    at = {(r.arm, r.task_split, r.layer or ""): r.value for r in reversed(rows)}
    values = [[at.get((arm, split, layer)) for split in splits for layer in layers] for arm in arms]
    columns = [
        [split for split in splits for _ in layers],
        [plain(short_layer(layer)) for _ in splits for layer in layers],
    ]
    return heat(values, columns, [plain(names[arm]) for arm in arms], index) | map_scale(values, measure)


def map_scale(values: list[list[float | None]], measure: str) -> dict[str, Any]:
    """Dark is far from the original in every panel; a norm can be far on either side of 1."""
    known = [value for row in values for value in row if value is not None]
    colors = _MOVED
    low, high = 0.0, max(1e-9, _most(known))
    if measure in ("cosine", "cka"):
        colors, low, high = _MOVED[::-1], min(0.0, *known), 1.0
    if measure in _CENTRES:
        centre = _CENTRES[measure]
        most = max(0.1, _most([abs(value - centre) for value in known]))
        colors, low, high = _AROUND, centre - most, centre + most
    scale = [[place / (len(colors) - 1), color] for place, color in enumerate(colors)]
    return {"colorscale": scale, "zmin": low, "zmax": high}


def _most(values: Sequence[float]) -> float:
    """Where the scale ends: one far arm must not leave all others pale, and every cell says its number anyway."""
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else 0.0


def short_layer(layer: str) -> str:
    """A column's name: ``emb`` for the embedding, a number for the state after that block."""
    label = layer_label(layer)
    return {"embedding": "emb"}.get(label, label.removeprefix("after block "))


def heat(values: list[list[float | None]], columns: Any, rows: list[str], index: int) -> dict[str, Any]:
    """A heat map's trace in panel ``index``; numbers are written into the cells where there is room."""
    few = len(values[0]) <= 12 if values else True
    return {
        "type": "heatmap",
        "z": values,
        "x": columns,
        "y": rows,
        "showscale": False,
        "texttemplate": "%{z:.2f}" if few else "",
        "textfont": {"size": 11},
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hovertemplate": "%{y}, %{x}: <b>%{z:.3f}</b><extra></extra>",
        **axis_names(index),
    }


def _map_layout(grid: Panels, rows: int, **x_axis: Any) -> dict[str, Any]:
    y_axis = axis(showgrid=False, range=[rows - 0.5, -0.5])
    layout = grid.layout(axis(showgrid=False, showdividers=False, tickangle=0, **x_axis), y_axis)
    layout["margin"] = {**layout["margin"], "l": 128}
    return layout


def _twin_sentence(found: dict[str, list[Reading]]) -> str:
    """What the pair with the largest alpha shows in this run, in numbers."""
    rows = [r for r in found.get("relative_distance", []) if r.task_split == "forget"]
    twins = [
        r.arm
        for r in rows
        if r.arm.variant == "twin" and r.arm.stage == "distilled" and r.arm.alpha is not None
    ]
    if not twins:
        return ""
    twin = max(twins, key=lambda arm: arm.alpha or 0.0)
    last = max((r.layer or "" for r in rows), key=layer_order)
    at = {(r.arm.variant, r.arm.stage, r.arm.alpha): r.value for r in rows if (r.layer or "") == last}
    pair = at.get(("", "distilled", twin.alpha)), at.get(("twin", twin.stage, twin.alpha))
    if pair[0] is None or pair[1] is None:
        return ""
    return (
        f"Here, {layer_label(last)}, UNDO {twin.alpha:g} lies {number(pair[0])} of the original’s norm away and its "
        f"twin {number(pair[1])}: the excess is {number(pair[0] - pair[1])}."
    )


def _layer_table(found: dict[str, list[Reading]], names: dict[Arm, str]) -> "pd.DataFrame":
    import pandas as pd

    rows: dict[tuple[Arm, str, str], dict[str, str]] = {}
    for measure, readings in found.items():
        for r in sorted(readings, key=lambda r: layer_order(r.layer or "")):
            if r.arm in names:
                key = (r.arm, r.task_split, r.layer or "")
                first = {
                    "model": names[r.arm],
                    "side": r.task_split,
                    "layer": layer_label(r.layer or ""),
                }
                rows.setdefault(key, first)[MEASURES[measure]] = number(r.value)
    order = list(names)
    return pd.DataFrame(
        [rows[key] for key in sorted(rows, key=lambda key: (order.index(key[0]), key[1]))]
    ).fillna("")


def _position_table(found: Sequence[Reading], names: dict[Arm, str], words: TaskWords) -> "pd.DataFrame":
    import pandas as pd

    rows: dict[tuple[Arm, str], dict[str, str]] = {}
    for r in found:
        if r.arm in names:
            first = {"model": names[r.arm], "layer": layer_label(r.layer or "")}
            rows.setdefault((r.arm, r.layer or ""), first)[
                f"at {words.read_mark}" if r.subset == READ else r.subset
            ] = number(r.value)
    order = list(names)
    keys = sorted(rows, key=lambda key: (order.index(key[0]), layer_order(key[1])))
    return pd.DataFrame([rows[key] for key in keys]).fillna("")
