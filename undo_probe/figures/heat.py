"""Heat maps: arms down, layers or positions across, the number in every cell where there is room for it."""

from collections.abc import Sequence
from typing import Any

from undo_probe.figures.layout import Panels, axis, axis_names
from undo_probe.figures.look import layer_label
from undo_probe.records import Reading

READ = "="
"""How readings name the position at which the answer is read, whatever token stands there."""
MOVED = ("#F3F6FA", "#C3DDF0", "#7DB8DF", "#2C7FB8", "#083D66")  # pale: where the original is; dark: far
AROUND_ZERO = ("#7F3B08", "#E0923B", "#F7F5F2", "#8F86BF", "#3B1668")
GREYS = ("#F6F6F7", "#D5D5DA", "#A6A6AE", "#6B6B74", "#333338")
CENTRES = {"norm_ratio": 1.0, "change": 0.0}
"""Measures that can be far on either side, and where they are not."""
ROW = 21
ROOMY = 8
"""Columns of which two decimals still fit on a phone."""
MOST_WRITTEN = 12


def at_read(readings: Sequence[Reading]) -> list[Reading]:
    """The readings at the position where the answer is read, or all where none is named so."""
    known = [reading for reading in readings if reading.value is not None]
    return [reading for reading in known if reading.subset == READ] or known


def colors(stops: Sequence[str], low: float, high: float) -> dict[str, Any]:
    """A colour scale of evenly spaced stops."""
    scale = [[place / (len(stops) - 1), color] for place, color in enumerate(stops)]
    return {"colorscale": scale, "zmin": low, "zmax": high}


def distance_colors(values: Sequence[Sequence[float | None]], measure: str) -> dict[str, Any]:
    """Dark is far from the original in every panel; some measures can be far on either side."""
    known = [value for row in values for value in row if value is not None]
    if measure in ("cosine", "cka"):
        return colors(MOVED[::-1], min(0.0, *known), 1.0)
    if measure in CENTRES:
        centre = CENTRES[measure]
        most = max(0.1, most_of([abs(value - centre) for value in known]))
        return colors(AROUND_ZERO, centre - most, centre + most)
    return colors(MOVED, 0.0, max(1e-9, most_of(known)))


def most_of(values: Sequence[float]) -> float:
    """Where a scale ends: one far arm must not leave all others pale, and every cell says its number anyway."""
    return sorted(values)[int(0.9 * (len(values) - 1))] if values else 0.0


def short(layer: str) -> str:
    """A column's name: ``emb`` for the embedding, a number for the state after that block."""
    label = layer_label(layer)
    return {"embedding": "emb"}.get(label, label.removeprefix("after block "))


def heat(
    values: list[list[float | None]], columns: Any, rows: list[str], index: int, shown: str = ".2f"
) -> dict[str, Any]:
    """A trace on panel ``index``; the text's colour is plotly's, the one that stands out from the cell."""
    few = len(values[0]) <= MOST_WRITTEN if values else True
    return {
        "type": "heatmap",
        "z": values,
        "x": columns,
        "y": rows,
        "showscale": False,
        "texttemplate": f"%{{z:{shown}}}" if few else "",
        "textfont": {"size": 11},
        "xgap": 2,
        "ygap": 2,
        "hoverongaps": False,
        "hovertemplate": f"%{{y}}, %{{x}}: <b>%{{z:{'.3f' if shown == '.2f' else shown}}}</b><extra></extra>",
        **axis_names(index),
    }


def map_layout(grid: Panels, rows: int, **x_axis: Any) -> dict[str, Any]:
    """The layout of panels that share their rows, the first row on top."""
    y_axis = axis(showgrid=False, range=[rows - 0.5, -0.5])
    layout = grid.layout(axis(showgrid=False, showdividers=False, tickangle=0, **x_axis), y_axis)
    layout["margin"] = {**layout["margin"], "l": 128}
    return layout
