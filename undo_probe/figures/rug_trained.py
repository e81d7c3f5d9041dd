"""What training makes of a Persian Rug: losses over the grid, symmetry, the plateau, and the way down from it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from undo_probe.errors import UndoProbeError
from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import AROUND_ZERO, GREYS, colors
from undo_probe.figures.layout import NARROW_LEGEND, Panels, axis, axis_names, draw, heading, page
from undo_probe.figures.look import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, plain
from undo_probe.figures.rug import unlabelled
from undo_probe.figures.tables import nothing

if TYPE_CHECKING:
    import pandas as pd

OTHER = {"r": "p", "p": "r"}
NAMES = {"r": "dimensions over features, r", "p": "how often a feature is on, p"}
DRAWN = {
    "linear": ("best linear map", GREY, "lines", "dot"),
    "rug": ("rug, theory", BLUE, "lines", "solid"),
    "woven": ("rug, made", SKY, "markers", "circle-open"),
    "trained": ("trained", ORANGE, "markers", "diamond"),
}
"""Column of the table to legend, colour, mode, and dash or marker."""
MAPS = {
    "spread_diagonal": "spread of the diagonal",
    "spread_bias": "spread of the bias",
    "spread_interference_mean": "spread of the noise’s mean",
    "spread_interference_variance": "spread of its variance",
    "lyapunov": "Lyapunov ratio",
    "not_normal": "rows of noise not normal",
    "over": "loss over the rug’s, log2",
}
"""Column to the panel's title."""
CORNER = 30
SIZES = (INK, BLUE, ORANGE, GREEN, PURPLE, VERMILION)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
TRAIN = "undo-probe rug train --figure-grid --out FOLDER"


def rug_slices(table: "pd.DataFrame", along: str) -> Figure:
    """Loss over the variance of a feature against r at fixed p, or against p at fixed r; a panel for each.

    Columns ``r``, ``p`` and any of :data:`DRAWN`; the fixed one has few values.

    Raises:
        UndoProbeError: ``along`` is neither r nor p, or there is nothing to draw.
    """
    if along not in OTHER or table.empty:
        raise UndoProbeError(f"along {along!r}, {len(table)} lines: expected r or p, and a table of losses")
    fixed = OTHER[along]
    values = sorted(set(table[fixed]))
    grid = Panels(
        [f"{fixed} = {value:.3g}" for value in values],
        min(3, len(values)),
        240,
        row_gap=84,
        legend_rows=2,
        labels_in_first_column=False,
    )
    traces: list[dict[str, Any]] = []
    for at, value in enumerate(values):
        here = table.loc[table[fixed] == value].sort_values(along)
        for name, look in DRAWN.items():
            found = here.dropna(subset=name) if name in here.columns else here.iloc[:0]
            if len(found):
                traces.append(_slice(found[along].tolist(), _relative(found, name), look, at, name))
    layout = grid.layout(axis(along), axis(type="log", exponentformat="power", nticks=5), showlegend=True)
    layout["margin"] = {**layout["margin"], "b": 84}
    return Figure(
        name=f"rug-along-{along}",
        title=f"Loss against {along}: theory, linear maps, made weights and training",
        plotly=draw(traces, layout),
        caption=(
            f"Loss over the variance of a feature, one panel for each {fixed}; across: {NAMES[along]}. Look whether "
            "the diamonds lie on the solid line (training ends on the rug), below it (it found a code without the "
            "symmetry) or above (it got stuck, or was too short)."
        ),
        opposite="diamonds on the dotted line: the ReLU would buy nothing over a linear map.",
        table=table,
        narrow=grid.narrow() | {"margin.b": 130, **NARROW_LEGEND},
    )


def _relative(found: "pd.DataFrame", name: str) -> list[float]:
    return (found[name] / (found["p"] / 3 - found["p"] ** 2 / 4)).tolist()


def _slice(
    x: list[float], y: list[float], look: tuple[str, str, str, str], index: int, group: str
) -> dict[str, Any]:
    label, color, mode, how = look
    style = {"line": {"color": color, "dash": how, "width": 2}} if mode == "lines" else {
        "marker": {"color": color, "symbol": how, "size": 8, "line": {"width": 1.6}}}  # fmt: skip
    return {
        "type": "scatter", "mode": mode, "x": x, "y": y, "name": label, "legendgroup": group, **style,
        "showlegend": index == 0, **axis_names(index),
        "hovertemplate": f"{label}: <b>%{{y:.3g}}</b> at %{{x:.3g}}<extra></extra>",
    }  # fmt: skip


def symmetry(table: "pd.DataFrame") -> Figure:
    """Heat maps over (r, p) of how far trained models of one size are from a rug.

    Columns ``n_s`` (one value), ``r``, ``p``, ``loss``, ``rug`` and those of :data:`MAPS`.

    Raises:
        UndoProbeError: nothing was trained, a column is missing, or there are several sizes.
    """
    if table.empty or "spread_diagonal" not in table:
        raise nothing("no trained grid with its symmetry is here", TRAIN)
    sizes = sorted(set(table["n_s"]))
    if len(sizes) != 1:
        raise UndoProbeError(f"models of n_s {sizes} in one map: give those of one size")
    table = table.assign(over=np.log2(table["loss"] / table["rug"]))
    shown = [name for name in MAPS if name in table]
    grid = Panels([MAPS[name] for name in shown], 3, 230, row_gap=84, narrow_title_shift=-20)
    traces = [_map(table, name, at) for at, name in enumerate(shown)]
    layout = grid.layout(axis("p", showgrid=False), axis("r", showgrid=False))
    return Figure(
        name=f"rug-symmetry-{sizes[0]}",
        title=f"How symmetric trained models of {sizes[0]} features are",
        plotly=draw(traces, layout),
        caption=(
            "Dimensions over features upwards, how often a feature is on across; each panel has its own scale, pale "
            "is a rug, and the table has the numbers. Look whether all panels are pale in the same place: equal "
            "diagonals, biases and noise are necessary, but only the Lyapunov ratio and the share of rows whose noise "
            "a test tells from normal (1000 values, level .05) say whether it is Gaussian, and a model may pass the "
            "first four and lose less than the rug (purple in the last panel: below it; brown: above)."
        ),
        opposite=(
            "dark parts that grow with the number of features: the symmetry would be an accident of small models."
        ),
        table=table.loc[:, ["r", "p", *shown]],
        narrow=grid.narrow(),
    )  # fmt: skip


def _map(table: "pd.DataFrame", name: str, index: int) -> dict[str, Any]:
    wide = table.pivot_table(name, "r", "p")
    values = wide.to_numpy(dtype=float)
    known = values[np.isfinite(values)]
    most = float(np.quantile(np.abs(known), 0.95)) or 1.0
    scale = colors(AROUND_ZERO[::-1], -most, most) if name == "over" else colors(GREYS, 0.0, most)
    return {
        "type": "heatmap", "z": [[None if not np.isfinite(v) else round(float(v), 4) for v in row] for row in values],
        "x": [float(v) for v in wide.columns], "y": [float(v) for v in wide.index], "showscale": False,
        "hovertemplate": "r = %{y:.2f}, p = %{x:.2f}: <b>%{z:.3g}</b><extra></extra>", **scale, **axis_names(index),
    }  # fmt: skip


def corner(panels: Mapping[str, tuple[Float[np.ndarray, "n_s n_s"], Float[np.ndarray, " n_s"]]]) -> Figure:
    """The first rows and columns of ``W = W_out W_in``, and the bias as one more column on the right.

    Raises:
        UndoProbeError: no matrix.
    """
    import pandas as pd

    if not panels:
        raise UndoProbeError("no matrix was given: expected names with (W, b)")
    cut = {name: (w[:CORNER, :CORNER], b[:CORNER]) for name, (w, b) in panels.items()}
    grid = Panels([plain(name) for name in cut], len(cut), 300, bottom=16)
    most = max(float(np.abs(np.hstack([w - np.diag(np.diag(w)), b[:, None]])).max()) for w, b in cut.values())
    traces = []
    for at, (w, b) in enumerate(cut.values()):
        shown = np.hstack([w, np.full((len(w), 1), np.nan), b[:, None]])
        cells = [[None if not np.isfinite(v) else round(float(v), 3) for v in row] for row in shown]
        traces.append(
            {
                "type": "heatmap", "z": cells, "showscale": False, "hoverongaps": False,
                "hovertemplate": "row %{y}, column %{x}: <b>%{z:.3f}</b><extra></extra>",
                **colors(AROUND_ZERO, -most, most), **axis_names(at),
            }
        )  # fmt: skip
    quiet = axis(showgrid=False, showticklabels=False)
    return Figure(
        name="rug-corner",
        title="A corner of W, with the bias beside it",
        plotly=draw(traces, grid.layout(quiet, {**quiet, "autorange": "reversed"})),
        caption=(
            "Rows are outputs; the column set apart on the right is the bias. Look at the diagonal and the bias: they "
            "are the same in every row, trained or made, although the entries off the diagonal share no pattern."
        ),
        opposite="a diagonal of different strengths, or a bias that follows the row: no symmetry between features.",
        table=pd.DataFrame([_row_facts(name, w, b) for name, (w, b) in panels.items()]),
        narrow=unlabelled(grid.narrow()),
    )  # fmt: skip


def _row_facts(name: str, w: Float[np.ndarray, "n_s n_s"], b: Float[np.ndarray, " n_s"]) -> dict[str, Any]:
    diagonal = np.diag(w)
    noise = ((w - np.diag(diagonal)) ** 2).sum(1) / diagonal**2
    numbers = {"diagonal": diagonal, "bias": b, "noise in a row (s)": noise}
    facts = {f"{key}, {word}": float(getattr(each, call)()) for key, each in numbers.items()
             for word, call in (("mean", "mean"), ("deviation", "std"))}  # fmt: skip
    return {"model": name, **facts}


def plateau(curves: "pd.DataFrame") -> Figure:
    """Loss over L* by step, in log time; columns ``name``, ``step``, ``loss``, and ``floor`` where one is known.

    Raises:
        UndoProbeError: there is no curve, or there are more than can be told apart.
    """
    names = list(dict.fromkeys(curves["name"])) if len(curves) else []
    if not names or len(names) > len(SIZES):
        raise UndoProbeError(
            f"{len(names)} curves: expected 1 to {len(SIZES)}, so that they can be told apart"
        )
    shown = curves.loc[curves["step"] > 0]
    traces: list[dict[str, Any]] = []
    for name, color, dash in zip(names, SIZES, DASHES, strict=False):
        own = shown.loc[shown["name"] == name]
        traces.append(
            {
                "type": "scatter", "mode": "lines", "x": own["step"].tolist(), "y": own["loss"].tolist(),
                "name": plain(name), "line": {"color": color, "dash": dash, "width": 2},
                "hovertemplate": "%{fullData.name}, step %{x}: <b>%{y:.3f}</b><extra></extra>",
            }
        )  # fmt: skip
    layout = page(400, xaxis=axis("step", type="log", dtick=1), showlegend=True, yaxis=axis(type="log", nticks=6),
                  annotations=[heading("loss over the rug’s, L*")])  # fmt: skip
    first, last = float(shown["step"].min()), float(shown["step"].max())
    levels = {1.0: "the rug", **({float(curves["floor"].iloc[0]): "digons"} if "floor" in curves else {})}
    layout["shapes"] = [_level(level, first, last) for level in levels]
    layout["annotations"] += [_level_name(text, level, last) for level, text in levels.items()]
    layout["margin"] = {**layout["margin"], "t": 44, "b": 110, "r": 60}
    return Figure(
        name="rug-plateau",
        title="Training passes the rug, and leaves it",
        plotly=draw(traces, layout),
        caption=(
            "Held-out loss by step, both on log scales. Look for the stretch at 1: the symmetric state that theory "
            "describes. What follows is a slow way down to codes in which features come in pairs."
        ),
        opposite="curves that end at 1 and stay there however long they run: the rug would be a minimum.",
        table=curves,
        narrow={"margin.b": 150},
    )


def _level(level: float, first: float, last: float) -> dict[str, Any]:
    return {"type": "line", "x0": first, "x1": last, "y0": level, "y1": level,
            "line": {"color": GREY, "dash": "dot", "width": 1}}  # fmt: skip


def _level_name(text: str, level: float, last: float) -> dict[str, Any]:
    return {"text": text, "x": np.log10(last), "y": np.log10(level), "xanchor": "left", "xshift": 4, "showarrow": False,
            "font": {"size": 12, "color": GREY}}  # fmt: skip


def descent(lines: "pd.DataFrame") -> Figure:
    """The loss along the eigenvector of the least eigenvalue; columns ``name``, ``share``, ``change``, ``error``.

    Raises:
        UndoProbeError: there is no line.
    """
    names = list(dict.fromkeys(lines["name"])) if len(lines) else []
    if not names or len(names) > len(SIZES):
        raise UndoProbeError(
            f"{len(names)} lines: expected 1 to {len(SIZES)}, so that they can be told apart"
        )
    traces: list[dict[str, Any]] = []
    for name, color, dash in zip(names, SIZES, DASHES, strict=False):
        own = lines.loc[lines["name"] == name].sort_values("share")
        traces.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": plain(name),
                "x": (100 * own["share"]).tolist(), "y": (100 * own["change"]).tolist(),
                "error_y": {"array": (200 * own["error"]).tolist(), "color": color, "thickness": 1},
                "line": {"color": color, "dash": dash, "width": 2},
                "hovertemplate": "%{fullData.name}, %{x:.0f} %: <b>%{y:.2f} %</b><extra></extra>",
            }
        )  # fmt: skip
    layout = page(380, xaxis=axis("step along the eigenvector, % of the length of all weights"), showlegend=True,
                  yaxis=axis(zeroline=True), annotations=[heading("change of the loss, %")])  # fmt: skip
    layout["margin"] = {**layout["margin"], "t": 44, "b": 120}
    return Figure(
        name="rug-descent",
        title="From the exact rug the loss falls to both sides",
        plotly=draw(traces, layout),
        caption=(
            "The plain loss on rows that chose neither the rug nor the direction, against the same rows at the rug; "
            "bars are two standard errors. Look at the sign close to the middle: below zero on both sides is a saddle."
        ),
        opposite="a parabola that opens upwards: the rug would be a minimum along its softest direction.",
        table=lines,
        narrow={"margin.b": 170},
    )  # fmt: skip


def dimensionality(panels: Mapping[str, Sequence[float]]) -> Figure:
    """Histograms of how much of a dimension each feature has to itself.

    Raises:
        UndoProbeError: nothing was given.
    """
    import pandas as pd

    if not panels:
        raise UndoProbeError("no dimensionalities were given: expected names with one number a feature")
    grid = Panels(
        [plain(name) for name in panels], min(3, len(panels)), 200, row_gap=84, labels_in_first_column=False
    )
    edges = np.linspace(0, 1, 41)
    counts = {
        name: np.histogram(np.asarray(values, dtype=float), edges)[0] for name, values in panels.items()
    }
    traces = [
        {
            "type": "bar", "x": ((edges[1:] + edges[:-1]) / 2).tolist(), "y": (each / each.sum()).tolist(),
            "width": 0.025, "marker": {"color": BLUE}, "showlegend": False, **axis_names(at),
            "hovertemplate": "%{x:.2f}: <b>%{y:.0%}</b> of the features<extra></extra>",
        }
        for at, each in enumerate(counts.values())
    ]  # fmt: skip
    layout = grid.layout(axis("dimensionality", range=[0, 1.02]), axis(tickformat=".0%", rangemode="tozero"))
    table = pd.DataFrame({"dimensionality up to": edges[1:], **{name: each for name, each in counts.items()}})
    return Figure(
        name="rug-dimensionality",
        title="How much of a dimension a feature has to itself",
        plotly=draw(traces, layout),
        caption=(
            "W_ii squared over the sum of its row's squares. Look for spikes: at r every feature is part of the rug, "
            "near 1/2 it shares a direction with one other, at 1 it has its own, at 0 it was dropped."
        ),
        opposite="one spike at r after long training, too: the symmetric code would be where training ends.",
        table=table,
        narrow=grid.narrow(),
    )
