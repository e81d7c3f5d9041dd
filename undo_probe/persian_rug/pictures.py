"""The tables and matrices that the figures of the Persian Rug are drawn from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.figures import Figure, carpet, corner, dimensionality, rug_loss, rug_slices
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.diagnostics import rows_of
from undo_probe.persian_rug.engineered import measured_loss, weights
from undo_probe.persian_rug.rivals import channel, digon_loss, linear_loss, lower_hull
from undo_probe.persian_rug.theory import optimal_loss, optimum, shares, variance
from undo_probe.persian_rug.training import TrainedRug

if TYPE_CHECKING:
    import pandas as pd

POINTS = 60
ENDS = (0.002, 0.95)
"""Between which r and p the lines of a slice run."""


def theory_table(r: list[float] | None = None, p: float = 0.045) -> "pd.DataFrame":
    """Loss of the rug and of all that it is measured against, with its parameters, a line a ratio."""
    import pandas as pd

    ratios = np.asarray(np.geomspace(0.005, 0.95, POINTS) if r is None else r, dtype=np.float64)
    p = float(shares("p", p))
    best, other = optimum(ratios, p), channel(ratios, p)
    columns = {
        "r": ratios,
        "p": np.full_like(ratios, p),
        "a": best.a,
        "m": best.m,
        "tau": best.tau,
        "rug": best.loss,
        "rug_over_variance": best.loss / variance(p),
        "linear": linear_loss(ratios, p),
        "digon": digon_loss(ratios, p),
        "hull": lower_hull(ratios, p),
        "bayes": other.bayes,
        "oracle": other.oracle,
    }
    return pd.DataFrame(columns)


def loss_figure(p: float = 0.045, trained: "pd.DataFrame | None" = None) -> Figure:
    """Loss against r at one p; ``trained`` is the table of a grid, of which the lines of that p are drawn."""
    import pandas as pd

    table = theory_table(p=p)
    if trained is not None:
        own = trained.loc[np.isclose(trained["p"], p), ["r", "loss"]]
        lines = theory_table(own["r"].tolist(), p).assign(trained=own["loss"].to_numpy())
        table = pd.concat([table, lines], ignore_index=True)
    return rug_loss(table)


def carpet_figure(n_s: int = 64, r: float = 0.25, seed: int = 0) -> Figure:
    """The rug beside a harmonic and a Haar frame of the same sizes, each with a mean diagonal of one."""
    kinds = {"Hadamard rows": "auto", "Cosines and sines": "harmonic", "A random subspace": "haar"}
    panels = {name: _matrix(n_s, r, kind, seed) for name, kind in kinds.items()}
    return carpet(panels)


def _matrix(n_s: int, r: float, kind: str, seed: int) -> np.ndarray:
    made = weights(n_s, r, kind=kind, seed=seed).frame
    return (made.up(made.down(torch.eye(n_s))) * (n_s / made.n_d)).numpy()


def slices_figure(
    along: str,
    fixed: Sequence[float],
    trained: "pd.DataFrame | None" = None,
    n_s: int = 1024,
    rows: int = 256,
) -> Figure:
    """Loss along r or p at fixed values of the other: theory, linear maps, made weights of n_s, and trained models.

    ``trained`` is the table of a grid; of it the lines at the fixed values are drawn.
    """
    import pandas as pd

    other = {"r": "p", "p": "r"}.get(along, "")
    parts = []
    for value in fixed if other else ():
        smooth = np.unique(np.concatenate([np.geomspace(*ENDS, POINTS), np.linspace(*ENDS, POINTS)]))
        line = pd.DataFrame({along: smooth, other: value})
        parts.append(
            line.assign(rug=optimal_loss(line["r"], line["p"]), linear=linear_loss(line["r"], line["p"]))
        )
        parts.append(_made(pd.DataFrame({along: smooth[10 :: POINTS // 2], other: value}), n_s, rows))
        if trained is not None:
            own = trained.loc[np.isclose(trained[other], value), [along, "loss"]]
            parts.append(own.rename(columns={"loss": "trained"}).assign(**{other: value}))
    return rug_slices(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(), along)


def _made(places: "pd.DataFrame", n_s: int, rows: int) -> "pd.DataFrame":
    return places.assign(
        woven=[_woven(n_s, r, p, rows) for r, p in zip(places["r"], places["p"], strict=True)]
    )


def _woven(n_s: int, r: float, p: float, rows: int) -> float:
    try:
        return measured_loss(weights(n_s, r, p), n_s, p, rows).value
    except UndoProbeError:  # too few dimensions for a rug of this size: there is nothing to draw
        return np.nan


def corner_figure(made: TrainedRug) -> Figure:
    """The corner of a trained model's W, beside that of a rug of its sizes."""
    config = made.config
    rug = start(Autoencoder(config.n_s, config.n_d), "rug", config.p, config.seed)
    return corner({"trained": _product(made.model), "made from theory": _product(rug)})


def _product(model: Autoencoder) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return (model.W_out @ model.W_in).numpy(), model.b.numpy()


def dimensionality_figure(models: Mapping[str, tuple[Autoencoder, float]]) -> Figure:
    """Histograms of the dimensionality of features, from names with a model and its p."""
    return dimensionality(
        {name: rows_of(model, p).dimensionality.tolist() for name, (model, p) in models.items()}
    )
