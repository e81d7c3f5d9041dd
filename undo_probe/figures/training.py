"""How the stages were trained: accuracy over training steps, one panel an arm."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from undo_probe.figures.figure import Figure
from undo_probe.figures.layout import Panels, axis, axis_names, draw
from undo_probe.figures.look import BLUE, ORANGE, SKY, VERMILION, in_order, labels, plain
from undo_probe.figures.tables import Line, lines_of, nothing, number
from undo_probe.records import TaskWords

if TYPE_CHECKING:
    import pandas as pd

_SPLITS = {
    "forget": tuple(zip((VERMILION, ORANGE) * 2, ("solid", "dash", "dot", "dashdot"), strict=True)),
    "retain": tuple(zip((BLUE, SKY) * 2, ("solid", "dash", "dot", "dashdot"), strict=True)),
}
MOST_PANELS = 24


def training(curves: "pd.DataFrame", words: TaskWords | None = None) -> Figure:
    """Training histories: forget and retain accuracy over the steps of each stage."""
    called = (words or TaskWords()).operations
    found = [(split, line) for split in _SPLITS for line in lines_of(curves, "training", split) if line.steps]
    splits, lines = [split for split, _ in found], [line for _, line in found]
    if not lines:
        raise nothing("no training histories yet", "undo-probe run")
    arms = in_order(line.arm for line in lines)[:MOST_PANELS]
    names = labels(arms)
    titles = [plain(names[arm]) for arm in arms]
    columns = min(4, len(arms))
    grid = Panels(titles, columns, panel_height=120, gap=0.04, bottom=76, narrow_columns=2, legend_rows=1)
    subsets = {
        split: list(dict.fromkeys(line.subset for s, line in found if s == split)) for split in _SPLITS
    }
    traces: list[dict[str, Any]] = []
    seen: set[str] = set()
    for line, split in zip(lines, splits, strict=True):
        if line.arm in arms:
            name = f"{split}: {plain(called.get(line.subset, line.subset))}"
            style = _SPLITS[split][min(3, subsets[split].index(line.subset))]
            traces.append(_trace(line, style, name, arms.index(line.arm), name not in seen))
            seen.add(name)
    layout = grid.layout(axis(nticks=4), axis(rangemode="tozero", nticks=4), showlegend=True)
    return Figure(
        name="training",
        title="How the stages were trained",
        plotly=draw(traces, layout),
        caption="Accuracy over training steps. Look for curves that are still rising where they end.",
        opposite="a stage that stopped at its cap while still rising was not trained long enough to be compared.",
        table=_table(lines, splits, names, called),
        narrow=grid.narrow(),
    )


def _trace(line: Line, style: tuple[str, str], name: str, index: int, legend: bool) -> dict[str, Any]:
    color, dash = style
    return {
        "type": "scatter", "mode": "lines", "x": list(line.steps), "y": list(line.values), "name": name,
        "legendgroup": name, "showlegend": legend, "line": {"color": color, "dash": dash, "width": 1.8},
        "hovertemplate": "%{fullData.name}: <b>%{y:.2f}</b> at step %{x}<extra></extra>", **axis_names(index),
    }  # fmt: skip


def _table(
    lines: list[Line], splits: list[str], names: dict[Any, str], called: Mapping[str, str]
) -> "pd.DataFrame":
    import pandas as pd

    rows = [
        {
            "model": names[line.arm],
            "side": split,
            "subset": called.get(line.subset, line.subset),
            "steps": str(line.steps[-1]),
            "at the start": number(line.values[0]),
            "at the end": number(line.values[-1]),
        }
        for line, split in zip(lines, splits, strict=True)
        if line.arm in names
    ]
    return pd.DataFrame(rows)
