"""The plain page every figure is drawn on: type, axes, panels that stack on a phone, labels beside lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from undo_probe.figures.look import GRID, INK, PAPER, SOFT

NARROW_LEGEND: dict[str, Any] = {"legend.xref": "container", "legend.yref": "container", "legend.x": 0, "legend.y": 0,
                                 "legend.yanchor": "bottom"}  # fmt: skip
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis: no zoom (a page must scroll under a finger), hair-line grid, title in soft ink."""
    return {
        "title": {"text": title, "font": {"size": 13, "color": SOFT}, "standoff": 10},
        "fixedrange": True,
        "gridcolor": GRID,
        "gridwidth": 1,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 12, "color": SOFT},
        "automargin": True,
        **more,
    }


def page(height: int, **more: Any) -> dict[str, Any]:
    """The layout that all figures share."""
    return {
        "height": height,
        "autosize": True,
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": FONT, "size": 13, "color": INK},
        "margin": {"l": 56, "r": 16, "t": 16, "b": 52},
        "dragmode": False,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": SOFT,
            "font": {"family": FONT, "size": 12, "color": INK},
        },
        "showlegend": False,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": -0.16,
            "yanchor": "top",
            "font": {"size": 12},
        },
        "template": "none",
        **more,
    }


def heading(text: str, shift: int = -40) -> dict[str, Any]:
    """What the vertical axis shows, written across above it, where it reads without turning the head."""
    return {
        "text": text,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "xshift": shift,
        "yshift": 10,
        "showarrow": False,
        "font": {"size": 13, "color": SOFT},
    }


def draw(traces: list[dict[str, Any]], layout: dict[str, Any]) -> Any:
    """The plotly figure; plotly is imported here, when the first figure is made."""
    from plotly import graph_objects

    return graph_objects.Figure(data=traces, layout=layout)


@dataclass(frozen=True)
class Panels:
    """Small multiples: where each panel lies on a wide page and on a phone.

    Heights are of one panel in pixels. ``gap`` is the share of the width left between two columns.
    """

    titles: Sequence[str]
    columns: int
    panel_height: int
    narrow_columns: int = 1
    gap: float = 0.05
    row_gap: int = 62
    top: int = 34
    bottom: int = 50
    labels_in_first_column: bool = True
    legend_rows: int = 0
    narrow_title_shift: int = 0

    def height(self, columns: int) -> int:
        """The figure's height in pixels with so many columns."""
        rows = -(-len(self.titles) // columns)
        return rows * self.panel_height + (rows - 1) * self.row_gap + self.top + self.bottom

    def domains(self, columns: int) -> list[tuple[list[float], list[float]]]:
        """The x and y domain of each panel, left to right and top to bottom."""
        rows = -(-len(self.titles) // columns)
        inner = self.height(columns) - self.top - self.bottom
        width = (1 - (columns - 1) * self.gap) / columns
        found: list[tuple[list[float], list[float]]] = []
        for index in range(len(self.titles)):
            row, column = divmod(index, columns)
            left = column * (width + self.gap)
            upper = 1 - row * (self.panel_height + self.row_gap) / inner
            lower = max(0.0, upper - self.panel_height / inner) if rows > 1 else 0.0
            found.append(([left, min(1.0, left + width)], [lower, upper]))
        return found

    def layout(self, x_axis: dict[str, Any], y_axis: dict[str, Any], **more: Any) -> dict[str, Any]:
        """The layout of the wide page; panel ``i`` draws on the axes :func:`axis_names` gives."""
        margin = {"l": 56, "r": 12, "t": self.top, "b": self.bottom}
        layout = page(self.height(self.columns), margin=margin)
        for index, (x, y) in enumerate(self.domains(self.columns)):
            suffix = _suffix(index)
            shown = {} if not self._hides_labels(index, self.columns) else {"showticklabels": False}
            layout[f"xaxis{suffix}"] = {**x_axis, "domain": x, "anchor": f"y{suffix}"}
            layout[f"yaxis{suffix}"] = {**y_axis, "domain": y, "anchor": f"x{suffix}", **shown}
        layout["annotations"] = [self._title(index) for index in range(len(self.titles))]
        layout["legend"] = {**layout["legend"], "yref": "container", "y": 0, "yanchor": "bottom"}
        return {**layout, **more}

    def narrow(self) -> dict[str, Any]:
        """The changes for a phone, by dotted name: fewer columns, and room below for the legend's rows."""
        below = self.bottom + 24 * self.legend_rows
        height = self.height(self.narrow_columns) + 24 * self.legend_rows
        changes: dict[str, Any] = {"height": height, "margin.b": below, **NARROW_LEGEND}
        for index, (x, y) in enumerate(self.domains(self.narrow_columns)):
            suffix = _suffix(index)
            changes[f"xaxis{suffix}.domain"] = x
            changes[f"yaxis{suffix}.domain"] = y
            changes[f"annotations.{index}.xshift"] = self.narrow_title_shift
            changes[f"yaxis{suffix}.showticklabels"] = not self._hides_labels(index, self.narrow_columns)
        return changes

    def _hides_labels(self, index: int, columns: int) -> bool:
        return self.labels_in_first_column and index % columns > 0

    def _title(self, index: int) -> dict[str, Any]:
        suffix = _suffix(index)
        return {
            "text": f"<b>{self.titles[index]}</b>",
            "xref": f"x{suffix} domain",
            "yref": f"y{suffix} domain",
            "x": 0,
            "y": 1,
            "xanchor": "left",
            "yanchor": "bottom",
            "yshift": 6,
            "showarrow": False,
            "font": {"size": 13, "color": INK},
        }


def axis_names(index: int) -> dict[str, str]:
    """The axes of panel ``index``, for its traces."""
    return {"xaxis": f"x{_suffix(index)}", "yaxis": f"y{_suffix(index)}"}


def _suffix(index: int) -> str:
    return "" if index == 0 else str(index + 1)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels near ``values``, at least ``gap`` apart, between ``low`` and ``high``, in their order."""
    order = sorted(range(len(values)), key=lambda at: values[at])
    gap = min(gap, (high - low) / max(1, len(values) - 1))
    groups: list[tuple[list[int], float]] = []
    for at in order:
        groups.append(([at], values[at]))
        while len(groups) > 1 and _overlap(groups[-2], groups[-1], gap):
            (first, a), (second, b) = groups[-2:]
            joined = [*first, *second]
            groups[-2:] = [(joined, (a * len(first) + b * len(second)) / len(joined))]
    places = [0.0] * len(values)
    for members, centre in groups:
        half = gap * (len(members) - 1) / 2
        centre = min(max(centre, low + half), high - half)
        for rank, at in enumerate(members):
            places[at] = centre - half + gap * rank
    return _apart([places[at] for at in order], order, gap, high)


def _overlap(lower: tuple[list[int], float], upper: tuple[list[int], float], gap: float) -> bool:
    return upper[1] - lower[1] < gap * (len(lower[0]) + len(upper[0])) / 2


def _apart(sorted_places: list[float], order: list[int], gap: float, high: float) -> list[float]:
    """The places again after groups were pushed in from the ends, once up and once down."""
    for at in range(1, len(sorted_places)):
        sorted_places[at] = max(sorted_places[at], sorted_places[at - 1] + gap)
    if sorted_places:
        sorted_places[-1] = min(sorted_places[-1], high)
    for at in range(len(sorted_places) - 2, -1, -1):
        sorted_places[at] = min(sorted_places[at], sorted_places[at + 1] - gap)
    placed = [0.0] * len(order)
    for place, at in zip(sorted_places, order, strict=True):
        placed[at] = place
    return placed


Box = tuple[float, float, float, float]


def beside(
    points: Sequence[tuple[float, float]], widths: Sequence[float], taken: Sequence[Box]
) -> list[tuple[int, int]]:
    """Offsets for names beside points, so that no name covers a point, a bar or another name.

    Args:
        points: Places in pixels, y downward.
        widths: Of the names, in pixels.
        taken: Boxes (left, top, right, bottom) that names keep off.

    Returns:
        For each point the offset of its name: right of the point where the first number is positive.
    """
    placed: list[Box] = list(taken)
    found: list[tuple[int, int]] = []
    for (x, y), width in zip(points, widths, strict=True):
        boxes = [(offset, _name_box(x, y, width, offset)) for offset in _OFFSETS]
        offset, box = next(
            (pair for pair in boxes if not any(_covers(pair[1], other) for other in placed)), boxes[0]
        )
        placed.append(box)
        found.append(offset)
    return found


_OFFSETS = [
    (side * (12 + 5 * far), height * (11 + 16 * far))
    for far in range(6)
    for side, height in ((1, 1), (1, -1), (-1, -1), (-1, 1))
]


def _name_box(x: float, y: float, width: float, offset: tuple[int, int]) -> Box:
    left = x + offset[0] if offset[0] > 0 else x + offset[0] - width
    return left, y + offset[1] - 8, left + width, y + offset[1] + 8


def _covers(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
