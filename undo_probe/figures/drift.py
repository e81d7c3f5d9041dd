"""How far each arm's residual stream moved from the original's, by layer and by position."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import READ, ROOMY, ROW, at_read, distance_colors, heat, map_layout, short
from undo_probe.figures.layout import Panels, draw
from undo_probe.figures.look import in_order, labels, layer_label, layer_order, plain
from undo_probe.figures.said import said
from undo_probe.figures.tables import nothing, number, readings_of
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

_SCORE = "undo-probe score"
MEASURES = {
    "relative_distance": "distance / norm of the original",
    "cosine": "cosine with the original",
    "cka": "CKA with the original (debiased)",
    "norm_ratio": "norm / norm of the original",
}


def drift_layers(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Layer by arm at the position where the answer is read, forget and retain side by side, one panel a measure."""
    words = words or TaskWords()
    found = {measure: at_read(readings_of(readings, measure)) for measure in MEASURES}
    found = {measure: rows for measure, rows in found.items() if rows}
    if not found:
        raise nothing("no drift readings yet", _SCORE)
    arms = _moved(in_order(reading.arm for rows in found.values() for reading in rows))
    grid = Panels([MEASURES[m] for m in found], columns=2, panel_height=ROW * len(arms), row_gap=86, bottom=40,
                  gap=0.06)  # fmt: skip
    names = labels(arms)
    traces = [
        _layer_map(rows, arms, names, index, measure) for index, (measure, rows) in enumerate(found.items())
    ]
    layout = map_layout(grid, len(arms))
    tight = {
        f"data.{index}.texttemplate": "%{z:.1f}"
        for index, trace in enumerate(traces)
        if trace["texttemplate"] and len(trace["z"][0]) > ROOMY
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
                  panel_height=ROW * len(arms))  # fmt: skip
    shades = distance_colors([[reading.value for reading in found]], measure)
    traces: list[dict[str, Any]] = []
    for index, layer in enumerate(layers):
        at = {(r.arm, r.subset): r.value for r in found if (r.layer or "") == layer}
        values = [[at.get((arm, position)) for position in positions] for arm in arms]
        shown = [plain(_position(position, words)) for position in positions]
        traces.append(heat(values, shown, [plain(names[arm]) for arm in arms], index) | shades)
    return Figure(
        name="drift-positions",
        title=f"Where in the {speak.place} the inside moved",
        plotly=draw(traces, map_layout(grid, len(arms), type="category")),
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
        [plain(short(layer)) for _ in splits for layer in layers],
    ]
    return heat(values, columns, [plain(names[arm]) for arm in arms], index) | distance_colors(
        values, measure
    )


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
