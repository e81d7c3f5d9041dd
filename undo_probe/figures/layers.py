"""Layer by layer: from which block on the answer is gone, and what a model would answer if it stopped there."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import short
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import labels, layer_label, layer_order, look, plain
from undo_probe.figures.said import said
from undo_probe.figures.stream import Cells, asked, cells_of, chain
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

LENSES = {
    "own": "its own decoder",
    "original's": "the original’s decoder",
    "mapped": "the original’s, after the map",
    "tuned": "the original’s tuned lens",
    "tuned, mapped": "the tuned lens, after the map",
}


def depth_by_block(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Unlearning depth by block, as the states are and mapped to the original's basis, the twins dotted."""
    found = {
        kind: [r for r in readings_of(readings, "depth", "forget") if r.subset == f"{kind}, one block"]
        for kind in ("raw", "stitched", "junk removed")
    }
    titles = {"raw": "as the states are", "stitched": "mapped to the original’s basis",
              "junk removed": "junk direction removed"}  # fmt: skip
    shown = {titles[kind]: cells_of(rows) for kind, rows in found.items()}
    arms = [a for a in chain(arm for cells in shown.values() for arm, _ in cells) if _between(a)]
    shown = {title: cells for title, cells in shown.items() if any(arm in arms for arm, _ in cells)}
    if not shown:
        raise nothing("no depth by block yet", "undo-probe score RUN --also depth")
    words = words or TaskWords()
    return curves(
        "stream-depth",
        "From which block on the answer is gone",
        shown,
        arms,
        caption=(
            "The original answers while one block’s output is replaced by another model’s: 0 costs nothing, 1 costs "
            "as much as the matched oracle’s states do. Intervals are 95%"
            f"{asked(list(shown.values()), words)}. Look for the height of a solid line over its dotted twin, which "
            "knows everything: only that excess speaks of removal. In the mapped panel an affine map fitted on retain "
            "states (the stitched form) has taken the change of basis out first, so a twin should lie near 0 there. "
            "The last block’s depth is behaviour itself."
        ),
        opposite=(
            "a twin as deep as its student means that depth measures a change of basis here; a teacher near 0 in all "
            "but the last block has only been silenced at the end."
        ),
        table=_depth_table(readings),
        heading="",
        y_axis={"range": [-0.05, 1.05], "tickformat": ".1f"},
    )


def lenses(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """The answer's log-probability if the model stopped after each block, one panel a decoder."""
    found = readings_of(readings, "lens_log_probability", "forget")
    shown = {
        title: cells
        for subset, title in LENSES.items()
        if (cells := cells_of([r for r in found if r.subset == subset]))
    }
    if not shown:
        raise nothing("no lens readings yet", "undo-probe score RUN --also lens --also tuned_lens")
    arms = [a for a in chain(arm for cells in shown.values() for arm, _ in cells) if a.stage != "noised"]
    words = words or TaskWords()
    known = [
        r.value
        for cells in shown.values()
        for (arm, _), r in cells.items()
        if arm in arms and r.value is not None
    ]
    lowest = max(min(known), sorted(known)[len(known) // 10] - 1.0)
    return curves(
        "stream-lens",
        "What each layer would answer",
        shown,
        arms,
        caption=(
            f"Log-probability of {'the next token' if words.scored else 'the right answer'}, in bits a token, on "
            f"{said(words).rows.format('forget')} if the model stopped after each block; 0 is certainty. Intervals "
            f"are 95%{asked(list(shown.values()), words)}. The original’s decoder is the same for all "
            "models and cannot read another basis; after the map it can. The tuned lens was fitted once, on the "
            "original and on retain text. Look for a layer at which the teacher’s line still runs with the "
            f"original’s: there the answer is formed, and only later it is held back. {_lens_fit(readings)}"
        ),
        opposite=(
            "a student whose mapped line runs with the original’s up to the last block would have kept the answer "
            "inside; a twin that falls through the map means that the map, not the model, has lost it."
        ),
        table=_curve_table(shown, arms, labels(arms)),
        heading="bits a token",
        y_axis={"range": [lowest - 0.4, 0.4]},
    )


def _between(arm: Arm) -> bool:
    """Neither the original (0 by definition) nor the matched oracle (1), nor what is not taught yet."""
    return arm.stage in ("unlearned", "distilled") or (arm.stage == "original" and bool(arm.variant))


def curves(
    name: str,
    title: str,
    shown: Mapping[str, Cells],
    arms: Sequence[Arm],
    caption: str,
    opposite: str,
    table: "pd.DataFrame",
    heading: str,
    y_axis: dict[str, Any],
    columns: Sequence[str] = (),
) -> Figure:
    """One panel a kind of reading, a line an arm; across are layers, or what ``columns`` names in order."""
    names = labels(arms)
    grid = Panels([plain(key) for key in shown], columns=min(3, len(shown)), panel_height=260, bottom=110, gap=0.05,
                  row_gap=70, legend_rows=-(-len(arms) // 3))  # fmt: skip
    traces: list[dict[str, Any]] = []
    for index, cells in enumerate(shown.values()):
        for arm in arms:
            order = columns.index if columns else layer_order
            points = sorted((layer for a, layer in cells if a == arm), key=order)
            if points:
                across = points if columns else [short(layer) for layer in points]
                traces.append(_line(arm, names[arm], across, [cells[arm, layer] for layer in points], index))
    layout = grid.layout(axis(type="category", showgrid=False), axis(**y_axis), showlegend=True)
    layout["yaxis"]["title"] = axis(heading)["title"]  # of the first panel alone
    return Figure(name, title, draw(traces, layout), caption, opposite, table, grid.narrow())


def _line(
    arm: Arm, name: str, across: Sequence[str], readings: Sequence[Reading], index: int
) -> dict[str, Any]:
    style = look(arm)
    values = [r.value or 0.0 for r in readings]
    above = [(r.high if r.high is not None else v) - v for r, v in zip(readings, values, strict=True)]
    below = [v - (r.low if r.low is not None else v) for r, v in zip(readings, values, strict=True)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": across,
        "y": values,
        "error_y": {"array": above, "arrayminus": below, "color": style.color, "thickness": 1, "width": 0},
        "name": plain(name),
        "legendgroup": plain(name),
        "showlegend": index == 0,
        "line": {"color": style.color, "width": 1.6, "dash": style.dash},
        "marker": {"symbol": style.marker, "size": 8, "color": style.color},
        "hovertemplate": "%{fullData.name}, %{x}: <b>%{y:.2f}</b><extra></extra>",
        **axis_names(index),
    }


def _lens_fit(readings: "pd.DataFrame") -> str:
    """How much of the original's own answer the tuned lens misses on held-out retain rows."""
    fits = [r for r in readings_of(readings, "lens_fit", "retain") if r.value is not None]
    fits = sorted(fits, key=lambda r: layer_order(r.layer or ""))[:-1]
    if not fits:
        return ""
    each = "; ".join(
        f"{layer_label(r.layer or '')} {number(r.value)} ({number(r.control_value)})" for r in fits[:6]
    )
    return (
        "On held-out retain text it misses, in bits a token of the original’s final answer (the plain lens): "
        f"{each}."
    )


def _depth_table(readings: "pd.DataFrame") -> "pd.DataFrame":
    """Over all blocks and without the last, raw and stitched, with the excess over the twin."""
    import pandas as pd

    found = [r for r in readings_of(readings, "depth", "forget") if r.layer is None and r.value is not None]
    arms = [arm for arm in chain(r.arm for r in found)]
    names = labels(arms)
    lines = []
    for r in sorted((r for r in found if r.arm in names), key=lambda r: arms.index(r.arm)):
        kind, _, part = r.subset.partition(", ")
        excess = None if r.control_value is None or r.value is None else r.value - r.control_value
        beside = {} if kind == "junk removed" else {"twin": number(r.control_value), "excess": number(excess)}
        lines.append(
            {
                "model": names[r.arm],
                "states": kind,
                "over": part,
                "depth": with_interval(r.value, r.low, r.high),
            }
            | beside
            | {"n": str(r.n), "families": str(r.n_clusters)}
        )
    return pd.DataFrame(lines).fillna("–")


def _curve_table(shown: Mapping[str, Cells], arms: Sequence[Arm], names: Mapping[Arm, str]) -> "pd.DataFrame":
    import pandas as pd

    layers = sorted({layer for cells in shown.values() for _, layer in cells}, key=layer_order)
    lines = []
    for arm in arms:
        for layer in layers:
            here = {title: cells[arm, layer] for title, cells in shown.items() if (arm, layer) in cells}
            if here:
                values = {title: with_interval(r.value, r.low, r.high) for title, r in here.items()}
                lines.append({"model": names[arm], "layer": layer_label(layer), **values})
    return pd.DataFrame(lines).fillna("–")
