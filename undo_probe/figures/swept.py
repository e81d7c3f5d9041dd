"""A measure over the cells of a sweep: seeds as points, and their mean with Student's interval."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.errors import UndoProbeError
from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import Look, faint, in_order, look, plain
from undo_probe.figures.tables import number, reading_from_row, step_of, with_interval
from undo_probe.intervals import Interval, t_interval
from undo_probe.records import Arm, Reading

if TYPE_CHECKING:
    import pandas as pd

MOST_PANELS = 9
_COMMAND = "undo-probe sweep"


@dataclass(frozen=True)
class Headline:
    """One measure that a sweep is read by; ``step N`` stands for the last step of each cell."""

    name: str
    title: str
    measure: str
    split: str
    subset: str
    caption: str
    opposite: str
    survival: bool = False


_SEEDS = (
    " Each small ring is one seed, and the large marker with its bar their mean and 95% t interval over seeds; no bar "
    "where a cell has one seed. Three seeds show a direction; a claim needs six."
)
RETAIN = Headline(
    "retain", "What the models kept", "accuracy", "retain", "all",
    "Up: retain accuracy, before any attack. Look first for cells in which the original or the "
    "students are low: nothing else in such a cell says anything about unlearning." + _SEEDS,
    "students well below their teacher say that the price was paid in what should have stayed.",
)  # fmt: skip
FORGET = Headline(
    "forget", "What the models still say", "accuracy", "forget", "V",
    "Up: accuracy on forget rows that no attacker trains on, before any attack. Look for the unlearned model "
    "and its students near the matched oracle, in every cell." + _SEEDS,
    "a cell in which the unlearned model stays high was not unlearned; one in which the original is low had nothing "
    "to unlearn.",
)  # fmt: skip
RELEARNED = Headline(
    "relearned", "What the attack brings back", "relearned", "forget", "step N",
    "Up: the attack’s running maximum at its last step, chosen on the other half of the families. Look for students "
    "whose bars stay clear of the unlearned model’s, and move with the swept setting." + _SEEDS,
    "students as high as the unlearned model say that noise and distillation bought nothing there; bars that overlap "
    "all along the axis say that the setting does not matter, as far as these seeds can tell.",
)  # fmt: skip
SURVIVAL = Headline(
    "survival", "What survives, between the matched oracle and the original", "relearned", "forget", "step N",
    "Up: the same on the scale from the matched oracle (0) to the original (1), not clipped, where those two lie at "
    "least six standard errors apart; other seeds are left out. Look for students near 0." + _SEEDS,
    "students near the unlearned model’s level hid the knowledge; a mean near 0 whose bar reaches far up is no "
    "evidence of removal.",
    survival=True,
)  # fmt: skip
TRAINED_RETAIN = Headline(
    "trained-retain", "Retain accuracy when training ended", "training_accuracy", "retain", "all",
    "Up: accuracy on the retain rows kept for development, at the last look of each training." + _SEEDS,
    "students that end below their teacher did not recover what the noise took.",
)  # fmt: skip
TRAINED_FORGET = Headline(
    "trained-forget", "Forget accuracy when training ended", "training_accuracy", "forget", "all",
    "Up: accuracy on the forget rows kept for development, at the last look of each training." + _SEEDS,
    "an unlearned model that ends as high as the original was not unlearned.",
)  # fmt: skip
HEADLINES = {
    "distilled": (TRAINED_RETAIN, TRAINED_FORGET),
    "attack": (TRAINED_RETAIN, TRAINED_FORGET, RELEARNED),
    "score": (RETAIN, FORGET, RELEARNED, SURVIVAL),
}


@dataclass(frozen=True)
class Group:
    """The seeds of one model under one choice of the swept settings."""

    place: tuple[str, ...]
    role: str
    arm: Arm
    values: tuple[float, ...]
    interval: Interval


def groups_of(table: "pd.DataFrame", swept: Sequence[str], headline: Headline) -> list[Group]:
    """The headline's readings by model and swept settings other than the seed, in the table's order.

    Raises:
        UndoProbeError: there are none.
    """
    found: dict[tuple[tuple[str, ...], str], list[Reading]] = {}
    keys = [key for key in swept if key != "seed"]
    wanted = table.loc[(table["measure"] == headline.measure) & (table["task_split"] == headline.split)]
    for _, rows in wanted.groupby("cell", sort=False):
        readings = [reading_from_row(row) for row in rows.to_dict("records")]
        place = tuple(_text(rows.iloc[0][key]) for key in keys)
        for role, reading in _by_role(readings, headline).items():
            if _value(reading, headline) is not None:
                found.setdefault((place, role), []).append(reading)
    if not found:
        raise _nothing(headline, wanted.empty)
    return [_group(place, role, readings, headline) for (place, role), readings in found.items()]


def _nothing(headline: Headline, empty: bool) -> UndoProbeError:
    if empty or not headline.survival:
        return UndoProbeError(f"no readings of {headline.measure} in any cell yet: `{_COMMAND}` makes them.")
    return UndoProbeError(
        "survival has no scale in any cell: after the attack the original and the matched oracle lie too close "
        "together."
    )


def _by_role(readings: Sequence[Reading], headline: Headline) -> dict[str, Reading]:
    """What a model is in its run, to its reading: the same role in every cell, whatever the method is called."""
    teacher = {r.arm.method for r in readings if r.arm.stage == "distilled" and not r.arm.variant}
    last = max((step_of(reading) for reading in readings), default=-1)
    subset = f"step {last}" if headline.subset == "step N" else headline.subset
    roles = {}
    for reading in readings:
        arm = reading.arm
        role = _role(arm, teacher)
        # on survival's scale the two ends are what they are by definition
        at_the_end = headline.survival and arm.stage in ("original", "oracle_matched")
        if role and reading.subset == subset and not at_the_end:
            roles[role] = reading
    return roles


def _role(arm: Arm, teacher: set[str]) -> str:
    if arm.stage == "unlearned":
        return "Unlearned" if not arm.variant and arm.method in teacher else ""
    if arm.stage == "distilled":
        return arm.label if arm.variant in ("", "fresh") else ""
    return arm.label if arm.stage in ("original", "oracle_matched") and not arm.variant else ""


def _value(reading: Reading, headline: Headline) -> float | None:
    if not headline.survival:
        return reading.value
    return reading.survival if reading.gate == "ok" else None


def _group(place: tuple[str, ...], role: str, readings: list[Reading], headline: Headline) -> Group:
    values = [value for reading in readings if (value := _value(reading, headline)) is not None]
    # seeds that agree to the row still have a width: no less than one row of the smallest n
    resolution = 1 / max(1, min(reading.n for reading in readings))
    return Group(place, role, readings[0].arm, tuple(values), t_interval(values, resolution=resolution))


def swept(table: "pd.DataFrame", keys: Sequence[str], headline: Headline) -> Figure:
    """A headline measure over the swept key that has the most values; the others' values are panels.

    Args:
        table: The table of a sweep, ``sweep.parquet``.
        keys: The swept keys.
        headline: One of :data:`HEADLINES`.
    """
    groups = groups_of(table, keys, headline)
    others = [key for key in keys if key != "seed"]
    across = _across(groups, len(others))
    panels = list(dict.fromkeys(_rest(group.place, across) for group in groups))
    if len(panels) > MOST_PANELS:
        raise UndoProbeError(
            f"{len(panels)} combinations of {', '.join(_rest(tuple(others), across))} are more than a figure can hold; "
            "the table below has them all."
        )
    ticks = _in_order({group.place[across] for group in groups}) if others else [""]
    titles = [_panel_title(others, panel, across) for panel in panels]
    grid = Panels(
        titles, columns=min(3, len(panels)), panel_height=300, gap=0.04, row_gap=80, bottom=96, legend_rows=2
    )
    looks = _looks(groups)
    step = 0.7 / len(looks)
    traces, named = [], set()
    for group in sorted(groups, key=lambda group: list(looks).index(group.role)):
        at = ticks.index(group.place[across]) if others else 0
        x = at + step * (list(looks).index(group.role) + 0.5) - 0.35
        axes = axis_names(panels.index(_rest(group.place, across)))
        traces += _traces(group, looks[group.role], (x, x + step / 3), axes, group.role not in named)
        named.add(group.role)
    return Figure(
        name=f"sweep-{headline.name}",
        title=headline.title,
        plotly=draw(traces, _layout(grid, groups, ticks, others[across] if others else "", headline)),
        caption=f"Across: {others[across]}. {headline.caption}" if others else headline.caption,
        opposite=headline.opposite,
        table=_table(groups, others),
        narrow=grid.narrow(),
    )


def _across(groups: Sequence[Group], keys: int) -> int:
    """Which key goes along the axis."""
    return max(range(keys), key=lambda at: len({group.place[at] for group in groups}), default=0)


def _rest(place: tuple[str, ...], across: int) -> tuple[str, ...]:
    return place[:across] + place[across + 1 :]


def _panel_title(keys: Sequence[str], panel: tuple[str, ...], across: int) -> str:
    named = zip(_rest(tuple(keys), across), panel, strict=True)
    return plain(", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in named))


def _text(value: Any) -> str:
    """A cell of a swept column for a reader; numbers without trailing zeros."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:g}"


def _in_order(values: set[str]) -> list[str]:
    def place(value: str) -> tuple[bool, float, str]:
        try:
            return False, float(value), value
        except ValueError:
            return True, 0.0, value

    return sorted(values, key=place)


def _looks(groups: Sequence[Group]) -> dict[str, Look]:
    """Each role's appearance, in reading order."""
    arms: dict[str, Arm] = {}
    for group in groups:
        arms.setdefault(group.role, group.arm.replace(seed=0, checkpoint=""))
    order = in_order(arms.values())
    return {role: look(arm) for role, arm in sorted(arms.items(), key=lambda pair: order.index(pair[1]))}


def _traces(
    group: Group, style: Look, x: tuple[float, float], axes: dict[str, str], first: bool
) -> list[dict[str, Any]]:
    """The mean with its bar at the first place, the seeds at the second."""
    found = group.interval
    half = found.high - found.value if len(group.values) > 1 else 0.0
    hidden = {"showlegend": False, "legendgroup": group.role, **axes}
    rings = {
        **hidden, "type": "scatter", "mode": "markers", "x": [x[1]] * len(group.values), "y": list(group.values),
        "marker": {"symbol": "circle-open", "size": 6, "color": faint(style.color, 0.75)},
        "name": plain(group.role), "hovertemplate": "%{fullData.name}, one seed: <b>%{y:.2f}</b><extra></extra>",
    }  # fmt: skip
    mean = {
        **hidden, "type": "scatter", "mode": "markers", "x": [x[0]], "y": [found.value], "showlegend": first,
        "error_y": {"array": [half], "color": style.color, "thickness": 1.3, "width": 0},
        "marker": {"symbol": style.marker, "size": 10, "color": style.color}, "name": plain(group.role),
        "hovertemplate": f"%{{fullData.name}}, {len(group.values)} seeds: <b>%{{y:.2f}}</b><extra></extra>",
    }  # fmt: skip
    return [mean, rings] if len(group.values) > 1 else [mean]


def _layout(
    grid: Panels, groups: Sequence[Group], ticks: Sequence[str], name: str, headline: Headline
) -> dict[str, Any]:
    shown = {"tickvals": list(range(len(ticks))), "ticktext": [plain(tick) for tick in ticks]}
    x_axis = axis(name, range=[-0.55, len(ticks) - 0.45], showgrid=False, **shown)
    if headline.survival:
        values = [value for group in groups for value in group.values]
        y_axis = axis(range=[min(-0.2, *values) - 0.05, max(1.2, *values) + 0.05])
    else:
        y_axis = axis(range=[-0.03, 1.05], tickformat=".0%")
    return grid.layout(x_axis, y_axis, showlegend=True)


def _table(groups: Sequence[Group], keys: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "model": group.role,
                **dict(zip(keys, group.place, strict=True)),
                "mean (95% interval over seeds)": _mean(group),
                "seeds": str(len(group.values)),
                "each seed": ", ".join(number(value) for value in group.values),
            }
            for group in groups
        ]
    )


def _mean(group: Group) -> str:
    found = group.interval
    return with_interval(found.value, found.low, found.high) if len(group.values) > 1 else number(found.value)


def swept_table(table: "pd.DataFrame", keys: Sequence[str], headlines: Sequence[Headline]) -> "pd.DataFrame":
    """Every headline measure of every model and choice of settings in one line, as means over seeds."""
    import pandas as pd

    others = [key for key in keys if key != "seed"]
    lines: dict[tuple[tuple[str, ...], str], dict[str, str]] = {}
    for headline in headlines:
        try:
            groups = groups_of(table, keys, headline)
        except UndoProbeError:  # the figure says why there is nothing
            continue
        for group in groups:
            line = lines.setdefault((group.place, group.role), dict(zip(others, group.place, strict=True)))
            seeds = str(len(group.values))
            fewer = "" if line.setdefault("seeds", seeds) == seeds else f"\n{seeds} of the seeds"
            line[f"{headline.title[:1].lower()}{headline.title[1:]}"] = _mean(group) + fewer
    return pd.DataFrame([{"model": role, **line} for (_, role), line in lines.items()])
