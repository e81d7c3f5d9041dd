"""The tables and matrices that the figures of the Persian Rug are drawn from."""

from typing import TYPE_CHECKING

import numpy as np
import torch

from undo_probe.figures import Figure, carpet, rug_loss
from undo_probe.persian_rug.engineered import weights
from undo_probe.persian_rug.rivals import channel, digon_loss, linear_loss, lower_hull
from undo_probe.persian_rug.theory import optimum, shares, variance

if TYPE_CHECKING:
    import pandas as pd

POINTS = 60


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
