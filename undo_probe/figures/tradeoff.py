"""What robustness costs: how much less the attack brings back, against the compute that it took."""

from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import NARROW_LEGEND, Box, axis, beside, draw, heading, page
from undo_probe.figures.look import BLUE, GREY, INK, PAPER, SOFT, in_order, labels, look, plain
from undo_probe.figures.tables import nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading

if TYPE_CHECKING:
    import pandas as pd

_HEIGHT = 430
_WIDTH = 880
Points = dict[Arm, tuple[float, Reading]]


def tradeoff(readings: "pd.DataFrame") -> Figure:
    """Robustness against compute over alpha, with unlearning alone, data filtering and Unlearn-and-Distill."""
    robust = {
        reading.arm: reading for reading in readings_of(readings, "robustness") if reading.value is not None
    }
    shares = {reading.arm: reading.value for reading in readings_of(readings, "compute_share")}
    points = {
        arm: (share, robust[arm])
        for arm, share in shares.items()
        if share is not None and arm in robust and arm.variant in ("", "b", "fresh")
    }
    points = {arm: points[arm] for arm in in_order(points)}
    for arm, reading in robust.items():
        if arm.stage == "oracle" and not arm.variant and arm not in points:
            points[arm] = (1.0, reading)
    unscaled = readings_of(readings, "robustness") if not points else []
    if any(reading.gate == "no oracle" for reading in unscaled):
        raise UndoProbeError(f"robustness has no scale in this run: {unscaled[0].note}.")
    if unscaled:
        raise UndoProbeError(
            "robustness has no scale in this run: after the attack the unlearned model and the matched oracle lie too "
            "close together."
        )
    if not points:
        raise nothing("no readings of robustness and compute yet", "undo-probe score")
    names = {
        arm: f"{name} (data filtering)" if arm.stage == "oracle" else name
        for arm, name in labels(points).items()
    }
    traces = [_chord(), *_path(points), *(_point(arm, *points[arm], plain(names[arm])) for arm in points)]
    layout = _layout(points)
    layout["annotations"] += _names(points, names, layout)
    return Figure(
        name="tradeoff",
        title="How much robustness each unit of compute buys",
        plotly=draw(traces, layout),
        caption=(
            "Across: the compute of unlearning, noise and distillation, teacher passes included, as a share of "
            "what training without the forget data took to meet the same stop rule. Up: how far the attack’s result "
            "moved from the unlearned model’s (0) to the matched oracle’s (1), with 95% intervals. Look for points "
            "above the dashed chord: they buy more robustness than the same share of a clean retraining."
        ),
        opposite=(
            "points on or under the chord, or right of 100%, say that leaving the data out and training afresh would "
            "have been as good or cheaper; a flat path says that α bought nothing."
        ),
        table=_table(points, names),
        narrow=_narrow(),
        wide_from=800,
    )


def _narrow() -> dict[str, Any]:
    """On a phone the names move from beside the points to a legend below."""
    changes = {
        "xaxis.title.text": "compute, as a share of training afresh",
        "annotations": _ends(inside=True),
    }
    return {
        **changes,
        "margin.r": 12,
        "showlegend": True,
        "height": _HEIGHT + 40,
        "margin.b": 170,
        **NARROW_LEGEND,
    }


def _layout(points: Points) -> dict[str, Any]:
    readings = [reading for _, reading in points.values()]
    lowest = min([-0.12, *(r.low for r in readings if r.low is not None)])
    highest = max([1.12, *(r.high for r in readings if r.high is not None)])
    furthest = max(1.1, *(share for share, _ in points.values()))
    layout = page(_HEIGHT, margin={"l": 44, "r": 120, "t": 40, "b": 54})
    title = "compute, as a share of training afresh without the data"
    layout["xaxis"] = axis(title, range=[-0.04, 1.04 * furthest], tickformat=".0%", showgrid=False)
    layout["yaxis"] = axis(range=[lowest - 0.05, highest + 0.05], tickvals=[0, 0.25, 0.5, 0.75, 1])
    line = {"color": SOFT, "width": 1}
    layout["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at, "y1": at, "line": line} for at in (0, 1)
    ]
    layout["annotations"] = _ends()
    return layout


def _ends(inside: bool = False) -> list[dict[str, Any]]:
    """The heading, and what the two ends of the scale stand for: in the margin, or on their lines."""
    found = [heading("robustness to relearning")]
    for at, text in ((0, "unlearning alone"), (1, "matched oracle")):
        place: dict[str, Any] = {"x": 1.01, "xanchor": "left"}
        if inside:
            place = {"x": 1 - at, "xanchor": ("right", "left")[at], "yanchor": "bottom"}
        soft = {"size": 12, "color": SOFT}
        found.append({"xref": "paper", "y": at, "text": text, "showarrow": False, "font": soft, **place})
    return found


def _names(points: Points, names: dict[Arm, str], layout: dict[str, Any]) -> list[dict[str, Any]]:
    """A name beside each point, off the other points, their bars and each other, with a hair line where far."""
    (left, right), (low, high) = layout["xaxis"]["range"], layout["yaxis"]["range"]
    across, up = _WIDTH / (right - left), (_HEIGHT - 94) / (high - low)

    def box(share: float, reading: Reading) -> Box:
        middle = reading.value or 0.0
        top, bottom = (middle if limit is None else limit for limit in (reading.high, reading.low))
        x, y = (share - left) * across, (high - middle) * up
        return x - 7, min((high - top) * up, y - 7), x + 7, max((high - bottom) * up, y + 7)

    places = [((share - left) * across, (high - (r.value or 0.0)) * up) for share, r in points.values()]
    shown = [plain(names[arm]) for arm in points]
    ends = [(_WIDTH, (high - at) * up - 9, _WIDTH + 120, (high - at) * up + 9) for at in (0, 1)]
    taken = [*ends, *(box(*point) for point in points.values())]
    offsets = beside(places, [6.7 * len(name) for name in shown], taken)
    return [
        {
            "x": share, "y": reading.value, "ax": dx, "ay": dy, "text": name, "showarrow": True, "arrowhead": 0,
            "xanchor": "left" if dx > 0 else "right", "arrowwidth": 0.8, "standoff": 7, "bgcolor": PAPER,
            "arrowcolor": look(arm).color if abs(dy) > 11 else PAPER, "font": {"size": 12, "color": INK},
        }
        for (arm, (share, reading)), name, (dx, dy) in zip(points.items(), shown, offsets, strict=True)
    ]  # fmt: skip


def _chord() -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip", "showlegend": False,
        "line": {"color": GREY, "width": 1, "dash": "dash"},
    }  # fmt: skip


def _path(points: Points) -> list[dict[str, Any]]:
    """The line through UNDO's points, in the order of alpha."""
    along = [arm for arm in points if arm.stage == "distilled" and arm.alpha is not None and not arm.variant]
    along.sort(key=lambda arm: arm.alpha or 0.0)
    return [
        {
            "type": "scatter", "mode": "lines", "hoverinfo": "skip", "showlegend": False,
            "x": [points[arm][0] for arm in along], "y": [points[arm][1].value for arm in along],
            "line": {"color": BLUE, "width": 1.5},
        }
    ]  # fmt: skip


def _point(arm: Arm, share: float, reading: Reading, name: str) -> dict[str, Any]:
    style = look(arm)
    value = reading.value or 0.0
    up = 0.0 if reading.high is None else reading.high - value
    down = 0.0 if reading.low is None else value - reading.low
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [share],
        "y": [value],
        "error_y": {"array": [up], "arrayminus": [down], "color": style.color, "thickness": 1.3, "width": 0},
        "marker": {"symbol": style.marker, "size": 11, "color": style.color},
        "cliponaxis": False,
        "name": name,
        "hovertemplate": "%{fullData.name}<br>robustness <b>%{y:.2f}</b>, compute %{x:.0%}<extra></extra>",
    }


def _table(points: Points, names: dict[Arm, str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "model": names[arm],
                "compute, share of data filtering": f"{share:.0%}",
                "robustness (95% interval)": with_interval(reading.value, reading.low, reading.high),
                "robustness per unit of compute": number(
                    None if not share else (reading.value or 0.0) / share
                ),
            }
            for arm, (share, reading) in points.items()
        ]
    )
