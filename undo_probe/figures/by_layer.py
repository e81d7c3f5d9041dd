"""Lines over a model's layers, with intervals: one panel a measure, the same layers on every axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import short
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import faint, layer_label, plain
from undo_probe.figures.tables import with_interval

if TYPE_CHECKING:
    import pandas as pd

MOST_TICKS = 12


@dataclass(frozen=True)
class Series:
    """One line of a panel; ``thin`` ones are what it is read against."""

    name: str
    color: str
    dash: str
    layers: Sequence[str]
    values: Sequence[float | None]
    lows: Sequence[float | None] = ()
    highs: Sequence[float | None] = ()
    thin: bool = False


Lines = Sequence[tuple[str, Sequence[Series]]]
"""Title and lines of each panel."""


def series(
    named: tuple[str, str, str], rows: "pd.DataFrame", layers: Sequence[str], column: str = "value", thin: bool = False
) -> Series:  # fmt: skip
    """A line from one column of a table with a row a layer; ``named`` is its name, colour and dash."""
    at = {row["layer"]: row for row in rows.to_dict("records")}
    found = [at[layer] for layer in layers if layer in at]
    limits = (
        [[known(row[name]) for row in found] for name in ("low", "high")] if column == "value" else [(), ()]
    )
    values = [known(row[column]) for row in found]
    return Series(*named, [row["layer"] for row in found], values, *limits, thin=thin)


def known(value: Any) -> float | None:
    """A cell as a number; None for a missing one."""
    return None if value is None or value != value else float(value)


def line_figure(
    name: str, title: str, panels: Lines, layers: Sequence[str], caption: str, opposite: str, missing: str
) -> Figure:
    """Panels of lines over the same layers, at most two side by side.

    Raises:
        UndoProbeError: there is no panel; ``missing`` says why.
    """
    if not panels:
        raise UndoProbeError(f"nothing was measured for “{title}” ({missing}).")
    names = list(dict.fromkeys(line.name for _, each in panels for line in each))
    grid = Panels([plain(panel) for panel, _ in panels], columns=min(2, len(panels)), panel_height=190, bottom=74,
                  row_gap=70, legend_rows=len(names) // 2 + 1, labels_in_first_column=False)  # fmt: skip
    at = {layer: index for index, layer in enumerate(layers)}
    seen: set[str] = set()
    traces = []
    for index, (_, each) in enumerate(panels):
        for line in each:
            traces += _traces(line, at, index, line.name not in seen)
            seen.add(line.name)
    step = max(1, -(-len(at) // MOST_TICKS))
    shown = list(at.items())[::step]
    ticks = {
        "tickvals": [place for _, place in shown],
        "ticktext": [plain(short(layer)) for layer, _ in shown],
    }
    x_axis = axis(showgrid=False, range=[-0.3, len(at) - 0.7], **ticks)
    layout = grid.layout(x_axis, axis(nticks=5), showlegend=True)
    return Figure(name, title, draw(traces, layout), caption, opposite, _table(panels), grid.narrow())


def _traces(line: Series, at: Mapping[str, int], index: int, legend: bool) -> list[dict[str, Any]]:
    x = [at[layer] for layer in line.layers]
    band = []
    kept = [
        (place, low, high)
        for place, low, high in zip(x, line.lows, line.highs, strict=False)
        if low is not None and high is not None
    ]
    if kept:
        around = [*kept, *reversed(kept)]
        ends = [high for _, _, high in kept] + [low for _, low, _ in reversed(kept)]
        band.append({
            "type": "scatter", "x": [place for place, _, _ in around], "y": ends, "fill": "toself", "mode": "lines",
            "line": {"width": 0}, "fillcolor": faint(line.color, 0.16), "hoverinfo": "skip", "showlegend": False,
            **axis_names(index),
        })  # fmt: skip
    stroke = {"color": line.color, "dash": line.dash, "width": 1.3 if line.thin else 2.2}
    return [*band, {
        "type": "scatter", "mode": "lines" if line.thin else "lines+markers", "x": x, "y": list(line.values),
        "name": plain(line.name), "legendgroup": line.name, "showlegend": legend, "line": stroke,
        "marker": {"size": 5, "color": line.color}, "text": [plain(layer_label(layer)) for layer in line.layers],
        "hovertemplate": f"{plain(line.name)}, %{{text}}: <b>%{{y:.3f}}</b><extra></extra>", **axis_names(index),
    }]  # fmt: skip


def _table(panels: Lines) -> "pd.DataFrame":
    import pandas as pd

    lines = []
    for panel, each in panels:
        for line in each:
            none = [None] * len(line.layers)
            limits = zip(line.values, line.lows or none, line.highs or none, strict=True)
            for layer, (middle, low, high) in zip(line.layers, limits, strict=True):
                value = with_interval(middle, low, high, 3)
                lines.append(
                    {"measure": panel, "line": line.name, "layer": layer_label(layer), "value": value}
                )
    return pd.DataFrame(lines)
