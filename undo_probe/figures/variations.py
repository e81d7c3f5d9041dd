"""The sweep with other settings: what other noise, other distillation and further rounds leave."""

from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import GREY, LENGTHS, STORY_VARIANTS, in_order, labels, look, plain
from undo_probe.figures.said import said
from undo_probe.figures.tables import last_step, nothing, number, readings_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

_ROW = 26
Rows = dict[Arm, tuple[Reading, float | None, float | None]]


def variations(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """What the attack brings back from students made otherwise, beside the sweep's own at the same alpha.

    Left: forget accuracy after the attack (filled, with its interval) and before it (hollow). Right: retain
    accuracy before it.
    """
    reached = last_step(readings_of(readings, "relearned", "forget"))
    before = {r.arm: r.value for r in readings_of(readings, "accuracy", "forget") if r.subset == "V"}
    retain = {r.arm: r.value for r in readings_of(readings, "accuracy", "retain") if r.subset == "all"}
    others = [arm for arm in in_order(reached) if _other(arm)]
    if not others:
        raise nothing(
            "no students made otherwise in this run (arms.variations, arms.rounds, arms.serial)",
            "undo-probe run with one of these",
        )
    strengths = sorted({arm.alpha for arm in others if arm.alpha is not None})
    own = {arm.alpha: arm for arm in reached if arm.stage == "distilled" and not arm.variant}
    rows: Rows = {}
    for alpha in strengths:
        group = [own[alpha]] if alpha in own else []
        group += sorted(
            (arm for arm in others if arm.alpha == alpha), key=lambda arm: reached[arm].value or 0
        )
        rows |= {arm: (reached[arm], before.get(arm), retain.get(arm)) for arm in group}
    names, scored = labels(rows), said(words).scored
    panels = Panels(
        ("forget: after the attack, and before", "retain"),
        columns=2,
        panel_height=_ROW * len(rows) + 20,
        gap=0.08,
    )
    layout = panels.layout(
        axis(range=[-0.03, 1.03], tickformat=".0%"),
        axis(tickvals=list(range(len(rows))), ticktext=[plain(names[arm]) for arm in rows],
             range=[len(rows) - 0.5, -0.5], showgrid=False),
    )  # fmt: skip
    return Figure(
        name="variations",
        title="Other noise, other distillation",
        plotly=draw(_traces(rows, names), layout),
        caption=(
            f"One line a student. Filled: {scored.format('forget')} after the attack, with their 95% interval; hollow: "
            f"before it. Right: {scored.format('retain')} before it. The first line of each α is the sweep's own "
            "student. Look for lines whose interval lies apart from that one's, at equal retain accuracy."
        ),
        opposite=(
            "were all lines of one α alike, it would not matter how the weights were damaged or what the student was "
            "shown; a line further right with the same retain accuracy is a weaker way to remove."
        ),
        table=_table(rows, names),
        narrow=panels.narrow(),
    )


def _other(arm: Arm) -> bool:
    return (
        arm.stage == "distilled"
        and arm.alpha is not None
        and arm.variant not in STORY_VARIANTS
        and not LENGTHS.match(arm.variant)
        and not arm.variant.startswith("noise ")
    )


def _traces(rows: Rows, names: dict[Arm, str]) -> list[dict[str, Any]]:
    traces = []
    for place, (arm, (after, before, retain)) in enumerate(rows.items()):
        color, name = look(arm).color, plain(names[arm])
        value = after.value or 0.0
        high, low = (value if limit is None else limit for limit in (after.high, after.low))
        shape = {"type": "scatter", "mode": "markers", "y": [place], "showlegend": False}
        traces += [
            {**shape, "x": [before], "marker": {"symbol": "circle-open", "size": 8, "color": GREY},
             "hovertemplate": f"{name}<br>before the attack <b>%{{x:.2f}}</b><extra></extra>", **axis_names(0)},
            {**shape, "x": [value], "marker": {"symbol": "circle", "size": 9, "color": color},
             "error_x": {"array": [high - value], "arrayminus": [value - low], "color": color, "thickness": 1.5,
                         "width": 0},
             "hovertemplate": f"{name}<br>attack reaches <b>%{{x:.2f}}</b><extra></extra>", **axis_names(0)},
            {**shape, "x": [retain], "marker": {"symbol": "square", "size": 8, "color": color},
             "hovertemplate": f"{name}<br>retain <b>%{{x:.2f}}</b><extra></extra>", **axis_names(1)},
        ]  # fmt: skip
    return traces


def _table(rows: Rows, names: dict[Arm, str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "model": names[arm],
                "attack reaches (95% interval)": with_interval(after.value, after.low, after.high),
                "before": number(before),
                "retain": number(retain),
            }
            for arm, (after, before, retain) in rows.items()
        ]
    )
