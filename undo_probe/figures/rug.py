"""The Persian Rug: its picture, which is cosmetic, and its loss beside that of other codes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from undo_probe.errors import UndoProbeError
from undo_probe.figures.figure import Figure
from undo_probe.figures.heat import AROUND_ZERO, colors
from undo_probe.figures.layout import Panels, axis, axis_names, draw, heading, page
from undo_probe.figures.look import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION, plain

if TYPE_CHECKING:
    import pandas as pd

MOST_SHOWN = 128
LINES = {
    "linear": ("best linear map", GREY, "dot"),
    "rug": ("Persian Rug (theory)", BLUE, "solid"),
    "digon": ("digons", VERMILION, "dash"),
    "hull": ("best mixture of these codes", INK, "dot"),
    "bayes": ("best decoder of each output", GREEN, "dashdot"),
    "oracle": ("the same, told what is on", PURPLE, "longdash"),
}
"""Column of the table to legend, colour and dash."""


def carpet(panels: Mapping[str, Float[np.ndarray, "n_s n_s"]]) -> Figure:
    """Matrices W with a mean diagonal of one, side by side: the rug, and frames that have no pattern.

    Raises:
        UndoProbeError: no matrix, or one with more than :data:`MOST_SHOWN` rows.
    """
    import pandas as pd

    largest = max((len(matrix) for matrix in panels.values()), default=0)
    if not 2 <= largest <= MOST_SHOWN:
        raise UndoProbeError(
            f"a carpet of {largest} features: expected matrices of 2 to {MOST_SHOWN} rows, so that a cell is seen"
        )
    titles = [plain(name) for name in panels]
    grid = Panels(titles, len(titles), panel_height=300, bottom=16)
    most = max(float(np.abs(matrix - np.diag(np.diag(matrix))).max()) for matrix in panels.values())
    traces = [_cloth(matrix, most, at) for at, matrix in enumerate(panels.values())]
    y_axis = axis(showgrid=False, showticklabels=False, autorange="reversed")
    layout = grid.layout(axis(showgrid=False, showticklabels=False), y_axis)
    return Figure(
        name="carpet",
        title="The Persian Rug, and why its pattern is cosmetic",
        plotly=draw(traces, layout),
        caption=(
            "W = W_out W_in. Rows of a Hadamard matrix give entries that depend only on the bits in which two feature "
            "numbers differ, so every block of two, four, eight is [[B, C], [C, B]]: the carpet. Look at the numbers "
            "below: a frame without any pattern has the same diagonal and the same noise between features, and these "
            "two are all that the loss depends on."
        ),
        opposite=(
            "if the pattern mattered, the mean noise in a row, and so the loss, would differ between the first two "
            "panels, which share nothing else."
        ),
        table=pd.DataFrame([_facts(name, matrix) for name, matrix in panels.items()]),
        narrow=unlabelled(grid.narrow()),
    )


def unlabelled(narrow: dict[str, Any]) -> dict[str, Any]:
    """The changes for a phone without those that number a matrix's rows."""
    return {name: value for name, value in narrow.items() if not name.endswith("showticklabels")}


def _cloth(matrix: Float[np.ndarray, "n_s n_s"], most: float, index: int) -> dict[str, Any]:
    return {
        "type": "heatmap", "z": np.round(matrix, 3).tolist(), "showscale": False,
        "hovertemplate": "output %{y}, input %{x}: <b>%{z:.3f}</b><extra></extra>",
        **colors(AROUND_ZERO, -most, most), **axis_names(index),
    }  # fmt: skip


def _facts(name: str, matrix: Float[np.ndarray, "n_s n_s"]) -> dict[str, Any]:
    diagonal = np.diag(matrix)
    rest = matrix - np.diag(diagonal)
    noise = (rest**2).sum(1) / diagonal**2
    return {
        "frame": name,
        "diagonal, mean": float(diagonal.mean()),
        "its deviation": float(diagonal.std()),
        "noise in a row (s), mean": float(noise.mean()),
        "its deviation over rows": float(noise.std()),
        "largest entry off the diagonal": float(np.abs(rest).max()),
        "different values": len(np.unique(np.round(matrix, 4))),
    }


def rug_loss(table: "pd.DataFrame") -> Figure:
    """Loss over the variance of a feature, against r.

    Columns ``r`` and ``p`` (one value), any of :data:`LINES`, and ``trained`` where there is such a thing.

    Raises:
        UndoProbeError: a column is missing, or there are several p.
    """
    known = [name for name in LINES if name in table.columns]
    if not known or not {"r", "p"} <= set(table.columns) or len(set(table["p"])) != 1:
        raise UndoProbeError(
            f"the table has the columns {', '.join(map(str, table.columns))}: expected r, one p, and losses among "
            f"{', '.join(LINES)}"
        )
    table = table.sort_values("r")
    p = float(table["p"].iloc[0])
    scale = p / 3 - p * p / 4
    traces = [
        {
            "type": "scatter", "mode": "lines", "x": table["r"].tolist(), "y": (table[name] / scale).tolist(),
            "name": LINES[name][0], "line": {"color": LINES[name][1], "dash": LINES[name][2], "width": 2},
            "hovertemplate": "%{fullData.name}: <b>%{y:.3g}</b> at r = %{x:.3g}<extra></extra>",
        }
        for name in known
    ]  # fmt: skip
    if "trained" in table.columns:
        found = table.dropna(subset="trained")
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": "trained", "x": found["r"].tolist(),
                "y": (found["trained"] / scale).tolist(), "marker": {"color": ORANGE, "symbol": "diamond", "size": 9},
                "hovertemplate": "trained: <b>%{y:.3g}</b> at r = %{x:.3g}<extra></extra>",
            }
        )  # fmt: skip
    y_axis = axis(type="log", exponentformat="power", nticks=6)
    layout = page(420, xaxis=axis("dimensions over features, r"), yaxis=y_axis, showlegend=True,
                  annotations=[heading("loss over the variance of a feature")])  # fmt: skip
    layout["margin"] = {**layout["margin"], "t": 44, "b": 110}
    return Figure(
        name="rug-loss",
        title=f"What a code of r n features costs, for features that are on {p:.3g} of the time",
        plotly=draw(traces, layout),
        caption=(
            "Look where the rug leaves the linear map: from r of about p ln(1/p) on, the ReLU removes most of the "
            "noise between features. Digons, two features of opposite sign on one direction, are not symmetric and "
            "beat it near r = 1/2."
        ),
        opposite=(
            "a rug that ran along the linear map would say that the ReLU buys nothing; trained models on the rug at "
            "every r, that its symmetry is what training ends in."
        ),
        table=table,
        narrow={"margin.b": 170},
    )
