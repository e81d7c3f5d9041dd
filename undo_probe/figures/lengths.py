"""Is it alpha, or the length of training? What the attack reaches over the steps of distillation."""

from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import NARROW_LEGEND, axis, draw, heading, page
from undo_probe.figures.look import INK, LENGTHS, SOFT, in_order, labels, look, plain
from undo_probe.figures.tables import last_step, lines_of, nothing, readings_of, with_interval
from undo_probe.records import Arm, Reading

if TYPE_CHECKING:
    import pandas as pd

_HEIGHT = 430
Points = dict[Arm, tuple[int, Reading]]


def lengths(curves: "pd.DataFrame", readings: "pd.DataFrame") -> Figure:
    """Accuracy the attack reaches against distillation steps: one line an alpha, through its other lengths.

    The filled marker is the student that the stop rule made; hollow ones are the same training cut short or
    gone on with; students at other learning rates stand alone, named.
    """
    steps: dict[Arm, int] = {}
    for line in lines_of(curves, "training", "retain"):
        steps[line.arm] = max(steps.get(line.arm, 0), *line.steps)
    reached = last_step(readings_of(readings, "relearned", "forget"))
    points = {arm: (steps[arm], reached[arm]) for arm in in_order(reached) if arm in steps and _belongs(arm)}
    if not any(arm.variant for arm in points):
        raise nothing(
            "no students of other lengths or rates in this run (arms.equal_steps, arms.times, arms.rates)",
            "undo-probe run small",
        )
    names = labels(points)
    traces = []
    for alpha in sorted({arm.alpha for arm in points if arm.alpha is not None}):
        own = [arm for arm in points if arm.alpha == alpha and not arm.variant.startswith("rate")]
        traces.append(_line(sorted(own, key=lambda arm: points[arm][0]), points, names))
    rates = [arm for arm in points if arm.variant.startswith("rate")]
    traces += [_rate(arm, *points[arm]) for arm in rates]
    return Figure(
        name="lengths",
        title="α, or how long the student was taught",
        plotly=draw(traces, _layout(points)),
        caption=(
            "Across: steps of distillation, on a log scale. Up: what the attack then brings back. Filled: where the "
            "stop rule ended training; hollow: the same training, shorter or longer. Look up a vertical line: at equal "
            "steps, a higher α should still lie lower. Named crosses repeat one α at another learning rate."
        ),
        opposite=(
            "one common curve for all α would say that only the number of steps matters; crosses as far apart as two "
            "neighbouring α would say that the learning rate does as much as α."
        ),
        table=_table(points, names),
        narrow={"margin.b": 150, "height": _HEIGHT + 60, **NARROW_LEGEND},
    )


def _belongs(arm: Arm) -> bool:
    again = not arm.variant or LENGTHS.match(arm.variant) is not None
    return arm.stage == "distilled" and arm.alpha is not None and again


def _line(own: list[Arm], points: Points, names: dict[Arm, str]) -> dict[str, Any]:
    student = next((arm for arm in own if not arm.variant), own[0])
    style = look(student)
    readings = [points[arm][1] for arm in own]
    values = [reading.value or 0.0 for reading in readings]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [max(1, points[arm][0]) for arm in own],
        "y": values,
        "error_y": {
            "array": [(r.high if r.high is not None else v) - v for r, v in zip(readings, values, strict=True)],
            "arrayminus": [
                v - (r.low if r.low is not None else v) for r, v in zip(readings, values, strict=True)
            ],
            "color": style.color, "thickness": 1, "width": 0,
        },
        "name": plain(names[student]),
        "line": {"color": style.color, "width": 1.6},
        "marker": {
            "symbol": [look(arm).marker if not arm.variant else "circle-open" for arm in own],
            "size": [12 if not arm.variant else 7 for arm in own], "color": style.color,
        },
        "text": [plain(names[arm]) for arm in own],
        "hovertemplate": "%{text}<br>%{x} steps, attack reaches <b>%{y:.2f}</b><extra></extra>",
    }  # fmt: skip


def _rate(arm: Arm, steps: int, reading: Reading) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers+text", "x": [max(1, steps)], "y": [reading.value], "showlegend": False,
        "name": plain(arm.label), "text": [f" {arm.variant}"], "textposition": "middle right",
        "textfont": {"size": 12, "color": INK},
        "marker": {"symbol": "cross-thin", "size": 10, "line": {"width": 2, "color": look(arm).color}},
        "hovertemplate": "%{fullData.name}<br>%{x} steps, attack reaches <b>%{y:.2f}</b><extra></extra>",
    }  # fmt: skip


def _layout(points: Points) -> dict[str, Any]:
    layout = page(_HEIGHT, margin={"l": 44, "r": 16, "t": 40, "b": 92}, showlegend=True)
    ticks = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    layout["xaxis"] = axis("steps of distillation", type="log", tickvals=ticks, showgrid=False)
    highest = max([0.5, *(r.high or r.value or 0.0 for _, r in points.values())])
    layout["yaxis"] = axis(range=[-0.03, min(1.05, highest + 0.08)], tickformat=".0%")
    layout["annotations"] = [heading("forget accuracy that the attack reaches")]
    layout["legend"] = {**layout["legend"], "y": -0.2, "font": {"size": 12, "color": SOFT}}
    return layout


def _table(points: Points, names: dict[Arm, str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "model": names[arm],
                "steps": str(steps),
                "attack reaches (95% interval)": with_interval(reading.value, reading.low, reading.high),
            }
            for arm, (steps, reading) in points.items()
        ]
    )
