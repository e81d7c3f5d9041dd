"""Every attack side by side: what each brings back from the models of the story."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import GRID, in_order, labels, look, plain, teacher_method
from undo_probe.figures.said import said
from undo_probe.figures.tables import last_step, nothing, readings_of, step_of, with_interval
from undo_probe.records import Arm, Reading, TaskWords

if TYPE_CHECKING:
    import pandas as pd

_AFTER = "after_"
_LABELS = {
    "before": "before any attack",
    "relearn": "relearning on T",
    "mixed": "T and retain rows",
    "retain_only": "retain rows alone",
    "noised": "noise, then T",
    "few_shot": "solved questions, best number",
    "few_shot_random": "the same, solved at random",
}
_OF_NUMBER = {
    "dose": "{} of T’s families",
    "lora": "T, LoRA rank {}",
    "subspace": "T, subspace of {}",
    "block": "T, block {} alone",
    "quantised": "{}-bit weights",
    "pruned": "pruned by {}",
    "few_shot": "{} solved before it",
    "few_shot_random": "{} solved at random",
}
Found = dict[str, dict[Arm, Reading]]


def recoveries(readings: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """A panel a model and a row an attack; the original and the matched oracle under the same attack beside it."""
    found = attacks_found(readings)
    if not any(attack not in ("before", "relearn") for attack in found):
        raise nothing(
            "no attacks beside relearning in this run (attack.also)",
            'undo-probe run tiny attack.also=["mixed","lora"]',
        )
    arms = in_order(arm for row in found.values() for arm in row)
    shown, anchors = _shown(arms), [arm for arm in arms if _is_anchor(arm)]
    names = labels(arms)
    shown = shown or anchors[:1]
    grid = Panels(
        [plain(names[arm]) for arm in shown], columns=min(3, len(shown)), panel_height=22 * len(found) + 12,
        gap=0.03, bottom=70, legend_rows=2,
    )  # fmt: skip
    traces: list[dict[str, Any]] = []
    for index, arm in enumerate(shown):
        marks = [*(anchor for anchor in anchors if anchor != arm), arm]
        traces += [
            _trace(each, found, plain(names[each]), index, each == arm, each == arm or index == 0)
            for each in marks
        ]
    return Figure(
        name="recoveries",
        title="The same models under every attack",
        plotly=draw(traces, _layout(grid, list(found))),
        caption=(
            f"Each row is an attack, each panel a model; across: {said(words).scored.format('forget')}, held out, at "
            "the attack’s end, with 95% intervals over families. The small marks are the original and the matched "
            "oracle under the same attack. Look for the row in which a model lies furthest above the matched oracle: "
            "its robustness is that of its weakest row, and one attack withstood says little about the next."
        ),
        opposite=(
            "a model from which the knowledge is gone lies on the matched oracle’s mark in every row; a matched oracle "
            "that rises with it in a row shows that the attack teaches rather than reveals."
        ),
        table=_table(found, [*anchors, *(arm for arm in shown if arm not in anchors)], names),
        narrow=grid.narrow(),
    )


def attacks_found(readings: "pd.DataFrame") -> Found:
    """Attack to arm to its reading at the end of the attack, in the order in which they were asked for."""
    relearned = readings_of(readings, "relearned", "forget")
    before = {r.arm: r for r in relearned if step_of(r) == 0 and r.value is not None}
    found: Found = {"before": before, "relearn": last_step(relearned)}
    measures = [m for m in dict.fromkeys(readings["measure"]) if str(m).startswith(_AFTER)]
    for measure in measures:
        ends = [r for r in readings_of(readings, measure, "forget") if step_of(r) >= 0 or r.subset == "V"]
        found[measure.removeprefix(_AFTER)] = {r.arm: r for r in ends if r.value is not None}
    return {attack: row for attack, row in found.items() if row}


def _is_anchor(arm: Arm) -> bool:
    return not arm.variant and arm.stage in ("original", "oracle_matched")


def _shown(arms: Sequence[Arm]) -> list[Arm]:
    """The teacher and its students; without students every unlearned model."""
    method = teacher_method(arms)
    own = [arm for arm in arms if not arm.variant and arm.stage in ("unlearned", "distilled")]
    return [arm for arm in own if arm.stage == "distilled" or arm.method == (method or arm.method)]


def label_of(attack: str) -> str:
    """The attack for a reader: ``T, LoRA rank 4``."""
    kind = attack.rpartition("-")[0]
    return _OF_NUMBER[kind].format(number_of(attack)) if kind in _OF_NUMBER else _LABELS.get(attack, attack)


def number_of(attack: str) -> str:
    """The number that an attack's name ends in, for a reader: ``4``, or ``30%``; empty where it has none."""
    kind, _, number = attack.rpartition("-")
    return f"{float(number):.0%}" if kind == "pruned" else number if kind else ""


def _layout(grid: Panels, attacks: list[str]) -> dict[str, Any]:
    x_axis = axis(range=[-0.04, 1.06], dtick=0.5, tickformat=".0%", automargin=False)
    y_axis = axis(
        range=[len(attacks) - 0.4, -0.6], tickvals=list(range(len(attacks))),
        ticktext=[plain(label_of(attack)) for attack in attacks], gridcolor=GRID,
    )  # fmt: skip
    return grid.layout(x_axis, y_axis, showlegend=True)


def _trace(arm: Arm, found: Found, name: str, panel: int, strong: bool, legend: bool) -> dict[str, Any]:
    """One arm's points in one panel; its interval only where it is the panel's own."""
    points = [(at, attack, row[arm]) for at, (attack, row) in enumerate(found.items()) if arm in row]
    values = [reading.value or 0.0 for _, _, reading in points]
    style = look(arm)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": values,
        "y": [at for at, _, _ in points],
        "customdata": [plain(label_of(attack)) for _, attack, _ in points],
        "name": name,
        "legendgroup": name,
        "showlegend": legend,
        "cliponaxis": False,
        "marker": {"symbol": style.marker, "size": 10 if strong else 6, "color": style.color},
        "hovertemplate": "%{fullData.name}, %{customdata}: <b>%{x:.0%}</b><extra></extra>",
        **axis_names(panel),
    }
    if strong:
        limits = [(v if r.low is None else r.low, v if r.high is None else r.high)
                  for v, (_, _, r) in zip(values, points, strict=True)]  # fmt: skip
        trace["error_x"] = {
            "array": [high - value for value, (_, high) in zip(values, limits, strict=True)],
            "arrayminus": [value - low for value, (low, _) in zip(values, limits, strict=True)],
            "color": style.color, "thickness": 1.3, "width": 0,
        }  # fmt: skip
    return trace


def _table(found: Found, arms: Sequence[Arm], names: dict[Arm, str]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for attack, row in found.items():
        cells = {names[arm]: _cell(row.get(arm)) for arm in arms}
        rows.append({"attack": label_of(attack), **cells, "n": max(reading.n for reading in row.values())})
    return pd.DataFrame(rows)


def _cell(reading: Reading | None) -> str:
    return "–" if reading is None else with_interval(reading.value, reading.low, reading.high)
