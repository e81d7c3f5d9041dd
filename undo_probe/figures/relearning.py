"""What an attacker gets back: accuracy on held-out forget families over relearning steps."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import NARROW_LEGEND, Panels, axis, axis_names, draw, heading, page, spread
from undo_probe.figures.look import INK, faint, in_order, labels, look, plain, teacher_method
from undo_probe.figures.said import said
from undo_probe.figures.tables import Line, lines_of, nothing, number, readings_of, step_of
from undo_probe.records import Arm, TaskWords

if TYPE_CHECKING:
    import pandas as pd

ATTACK = "undo-probe attack"
_HEIGHT = 500


def relearning(
    curves: "pd.DataFrame", readings: "pd.DataFrame | None" = None, words: TaskWords | None = None
) -> Figure:
    """The lead figure: for each arm the most that any rate and any earlier step gave back.

    Args:
        curves: The table of a run's curves.
        readings: The table of its readings, for intervals where the curves carry none.
        words: What the run's task is called; arithmetic's words if not given.
    """
    speak = said(words)
    share = speak.scored.format("forget")
    lines = _ordered(lines_of(curves, "cumulative_max"))
    if not lines:
        raise nothing("no relearning curves yet", ATTACK)
    lines = lines if readings is None else [_with_intervals(line, readings) for line in lines]
    names = labels([line.arm for line in lines])
    main = {line.arm for line in lines if _is_main(line.arm, teacher_method(line.arm for line in lines))}
    # room for the longest name and its share, in pixels of the figures' font
    beside = max(178, round(24 + 6.8 * max(len(plain(name)) + len(" 100%") for name in names.values())))
    layout = page(_HEIGHT, margin={"l": 44, "r": beside, "t": 40, "b": 50}, hovermode="x")
    layout["xaxis"] = _step_axis(lines)
    layout["yaxis"] = axis(range=[-0.02, 1.03], dtick=0.25, tickformat=".0%")
    layout["annotations"] = [
        heading(f"{share}, in families that the attacker never saw"),
        *_end_labels(lines, names),
    ]
    bands = [_band(line) for line in lines if line.arm in main]
    drawn = [_trace(line, plain(names[line.arm]), {}, thin=line.arm not in main) for line in lines]
    below = 56 + 20 * -(-len(lines) // 2)  # two names a row, all of them: nothing to scroll in a figure
    legend = {
        "showlegend": True, "height": _HEIGHT - 86 + below, "margin.b": below, "legend.maxheight": 1, **NARROW_LEGEND
    }  # fmt: skip
    return Figure(
        name="relearning",
        title="What fine-tuning on other forget families brings back",
        plotly=draw([*bands, *drawn], layout),
        caption=(
            "Each line is the running maximum over steps and learning rates, chosen on one half of the held-out "
            "families and read on the other; bands are 95% intervals over families. Look for the gap between a "
            f"model and the matched oracle, {speak.matched}: what climbs above "
            "it was hidden, not removed. A twin had the same noise but was taught by the original; it should stay high."
        ),
        opposite=(
            "had unlearning removed the capability, its line would lie on the oracles’; had noise and distillation "
            "done nothing, the UNDO lines would lie on the unlearned one, whatever their α."
        ),
        table=step_table(lines, names),
        narrow={"margin.r": 12, "annotations": [heading(f"held out: {share}")], **legend},
    )


def _with_intervals(line: Line, readings: "pd.DataFrame") -> Line:
    """The line with the intervals of the ``relearned`` readings where its own are missing."""
    known = {
        step_of(r): r for r in readings_of(readings, "relearned", "forget") if r.arm.name == line.arm.name
    }
    lows = [
        known[s].low if low is None and s in known else low
        for s, low in zip(line.steps, line.lows, strict=True)
    ]
    highs = [
        known[s].high if h is None and s in known else h for s, h in zip(line.steps, line.highs, strict=True)
    ]
    return replace(line, lows=tuple(lows), highs=tuple(highs))


def attacks(curves: "pd.DataFrame") -> Figure:
    """The same attack seen in other ways: each rate by itself, the oracle's rate, a utility limit, and retain."""
    panels = _attack_panels(curves)
    if not panels:
        raise nothing("no curves of single learning rates yet", ATTACK)
    grid = Panels([title for title, _ in panels], columns=min(4, len(panels)), panel_height=190, gap=0.03, bottom=80,
                  narrow_columns=2, legend_rows=3)  # fmt: skip
    everything = [line for _, lines in panels for line in lines]
    names = labels(in_order(line.arm for line in everything))
    x_axis = {**_step_axis(everything, sparse=True), "title": None, "automargin": False}
    layout = grid.layout(
        x_axis, axis(range=[-0.03, 1.05], dtick=0.5, tickformat=".0%"), showlegend=True, hovermode="closest"
    )
    traces: list[dict[str, Any]] = []
    seen: set[Arm] = set()
    for index, (_, lines) in enumerate(panels):
        for line in lines:
            first = line.arm not in seen
            seen.add(line.arm)
            traces.append(_trace(line, plain(names[line.arm]), axis_names(index), first, thin=True))
    return Figure(
        name="attacks",
        title="The same attack, one learning rate at a time",
        plotly=draw(traces, layout),
        caption=(
            "Across each panel: steps of the attack; “oracle’s rate” is the one that lifts the matched oracle most. "
            "Look for the order of the models: a verdict that rests on one learning rate would show one order in one "
            "panel and another elsewhere. “Retain kept” leaves out attacked models that lost more than a tenth of "
            "their retain accuracy; the last panel shows that loss."
        ),
        opposite="a model that looks robust in most panels but climbs in one was only attacked too gently elsewhere.",
        table=_attack_table(panels, names),
        narrow=grid.narrow(),
    )


def _attack_panels(curves: "pd.DataFrame") -> list[tuple[str, list[Line]]]:
    single = _ordered(lines_of(curves, "rate"))
    rates = sorted({line.rate for line in single if line.rate is not None})
    oracle = _ordered(lines_of(curves, "oracle_rate"))
    chosen = next((line.rate for line in oracle if line.rate is not None), None)
    limited = _ordered(lines_of(curves, "cumulative_max_utility"))
    panels = [(f"rate {rate:g}", [line for line in single if line.rate == rate]) for rate in rates]
    if oracle:
        panels.append((f"oracle’s rate {chosen:g}" if chosen else "oracle’s rate", oracle))
    if limited:
        panels.append(("retain kept", limited))
    retain = _ordered(lines_of(curves, "rate", "retain"))
    shown = chosen if chosen in {line.rate for line in retain} else max(rates, default=None)
    kept = [line for line in retain if line.rate == shown]
    if kept:
        panels.append((f"retain at {shown:g}", kept))
    return panels


def _attack_table(panels: Sequence[tuple[str, list[Line]]], names: dict[Arm, str]) -> "pd.DataFrame":
    """Accuracy at the last step of every panel, one row an arm."""
    import pandas as pd

    rows: dict[str, dict[str, str]] = {}
    for title, lines in panels:
        for line in lines:
            row = rows.setdefault(names[line.arm], {"model": names[line.arm]})
            row[f"{title}, step {line.steps[-1]}"] = number(line.values[-1])
    return pd.DataFrame(list(rows.values())).fillna("–")


def step_table(lines: Sequence[Line], names: dict[Arm, str]) -> "pd.DataFrame":
    """One row an arm, one column a step, the interval at the last step."""
    import pandas as pd

    steps = sorted({step for line in lines for step in line.steps})
    if len(steps) > 12:
        steps = [steps[round(place * (len(steps) - 1) / 11)] for place in range(12)]
    rows: list[dict[str, object]] = []
    for line in lines:
        at = dict(zip(line.steps, line.values, strict=True))
        row: dict[str, object] = {"model": names[line.arm]}
        row |= {("before" if step == 0 else f"step {step}"): number(at.get(step)) for step in steps}
        known = line.lows[-1] is not None
        row["95% interval at the end"] = (
            f"{number(line.lows[-1])} to {number(line.highs[-1])}" if known else "–"
        )
        rows.append({**row, "n": line.n})
    return pd.DataFrame(rows)


def _ordered(lines: Sequence[Line]) -> list[Line]:
    order = {arm: place for place, arm in enumerate(in_order(line.arm for line in lines))}
    return sorted((line for line in lines if line.steps), key=lambda line: order[line.arm])


def _is_main(arm: Arm, method: str) -> bool:
    """The arms that tell the story, drawn strong and with their intervals; the others are controls."""
    if arm.stage == "unlearned":
        return not arm.variant and arm.method == (method or arm.method)
    return not arm.variant and arm.stage in ("original", "oracle_matched", "distilled")


def _place(step: int) -> float:
    return math.log2(1 + step)


def _step_axis(lines: Sequence[Line], sparse: bool = False) -> dict[str, Any]:
    last = max(line.steps[-1] for line in lines)
    ticks = [step for step in (0, 1, 2, 5, 10, 25, 50, 100, 200, 500, 1000, 2000, 5000) if step <= last]
    if sparse:
        ticks = [step for step in (0, 3, 15, 100, 1000) if step <= last]
    return axis(
        "steps of the attack (log scale)",
        tickvals=[_place(step) for step in ticks],
        ticktext=[str(step) for step in ticks],
        range=[-0.12, _place(last) + 0.1],
        showgrid=False,
    )


def _trace(
    line: Line, name: str, axes: dict[str, str], legend: bool = True, thin: bool = False
) -> dict[str, Any]:
    style = look(line.arm)
    return {
        "type": "scatter",
        "zorder": 1 if thin else 2,
        "mode": "lines+markers",
        "x": [_place(step) for step in line.steps],
        "y": list(line.values),
        "customdata": list(line.steps),
        "name": name,
        "legendgroup": name,
        "showlegend": legend,
        "line": {"color": style.color, "dash": style.dash, "width": style.width * (0.65 if thin else 1)},
        "marker": {"symbol": style.marker, "size": 5 if thin else 8, "color": style.color},
        "hovertemplate": "%{fullData.name}: <b>%{y:.0%}</b> after %{customdata} steps<extra></extra>",
        **axes,
    }


def _band(line: Line) -> dict[str, Any]:
    known = [
        (_place(step), low, high)
        for step, low, high in zip(line.steps, line.lows, line.highs, strict=True)
        if low is not None and high is not None
    ]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        "y": [high for _, _, high in known] + [low for _, low, _ in reversed(known)],
        "fill": "toself",
        "fillcolor": faint(look(line.arm).color, 0.1),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _end_labels(lines: Sequence[Line], names: dict[Arm, str]) -> list[dict[str, Any]]:
    """A name beside the end of each line, moved apart where lines end together, with a hair line to its line."""
    pixels = (_HEIGHT - 90) / 1.05
    places = spread([line.values[-1] for line in lines], 16.5 / pixels, 0.0, 1.02)
    return [
        {
            "x": _place(line.steps[-1]),
            "y": line.values[-1],
            "ax": 30,
            "ay": (line.values[-1] - place) * pixels,
            "text": f"{plain(names[line.arm])} <b>{line.values[-1]:.0%}</b>",
            "xanchor": "left",
            "showarrow": True,
            "arrowhead": 0,
            "arrowwidth": 1,
            "arrowcolor": look(line.arm).color,
            "startstandoff": 0,
            "standoff": 6,
            "font": {"size": 12, "color": INK},
        }
        for line, place in zip(lines, places, strict=True)
    ]
