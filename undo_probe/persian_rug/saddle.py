"""Is the rug a minimum of the loss, a saddle, or only a place that training passes? Curvature, a line, two descents."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.persian_rug.autoencoder import Autoencoder
from undo_probe.persian_rug.blocks import rug_curvature
from undo_probe.persian_rug.hessian import SURE, Curvature, along, falls, moved, parameters
from undo_probe.persian_rug.training import TrainedRug, rug_config, train

if TYPE_CHECKING:
    import pandas as pd

NUDGE = 0.05
"""How far along the direction the second descent begins, over the length of all weights."""


@dataclass(frozen=True, eq=False)
class Escape:
    """What was found at one exact rug, ``rug``.

    ``line`` is the loss along the direction (:func:`undo_probe.persian_rug.hessian.along`); ``exact`` and
    ``nudged`` are trainings on the same batches, from the rug and from :data:`NUDGE` beside it.
    """

    n_s: int
    r: float
    p: float
    seed: int
    rug: Autoencoder
    curvature: Curvature
    line: "pd.DataFrame"
    exact: TrainedRug
    nudged: TrainedRug

    @property
    def saddle(self) -> bool:
        """Whether the curvature is negative and the loss falls to both sides, on rows that did not choose the line."""
        return self.curvature.negative and falls(self.line)

    @property
    def verdict(self) -> str:
        """``saddle``; ``unstable under jitter`` where only the nudged descent ends lower; else ``not shown``."""
        if self.saddle:
            return "saddle"
        (low, error), (high, other) = self.nudged.loss, self.exact.loss
        return "unstable under jitter" if low + SURE * (error**2 + other**2) ** 0.5 < high else "not shown"

    def summary(self) -> dict[str, Any]:
        """One line of a table; losses over L*."""
        found, best = self.curvature, self.line.to_dict("records")[int(self.line["change"].argmin())]
        return {
            "n_s": self.n_s,
            "r": self.r,
            "p": self.p,
            "seed": self.seed,
            "rows": found.rows,
            "curvature": found.curvature.value,
            "error": found.curvature.error,
            "fitted": found.fitted,
            "largest": found.largest,
            "gauge": found.gauge,
            "lowest on the line": best["change"],
            "its error": best["error"],
            "at": best["share"],
            "exact": self.exact.loss.value / self.exact.theory,
            "nudged": self.nudged.loss.value / self.nudged.theory,
            "steps": self.exact.config.fit.steps,
            "verdict": self.verdict,
        }

    def curves(self) -> "pd.DataFrame":
        """Both descents: loss over L* by step."""
        import pandas as pd

        lines = [
            {"start": name, "step": step, "loss": loss / made.theory}
            for name, made in (("exact", self.exact), ("nudged", self.nudged))
            for step, loss in made.curve
        ]
        return pd.DataFrame(lines).assign(n_s=self.n_s, r=self.r, p=self.p, seed=self.seed)


def escape(
    n_s: int,
    r: float,
    p: float,
    *,
    seed: int = 0,
    rows: int = 16384,
    line_rows: int = 65536,
    steps: int = 400,
    learning_rate: float = 5e-4,
) -> Escape:
    """Settles an exact rug, finds where it curves down, walks along that line, and trains from it and from beside it.

    Args:
        n_s: features, a power of two.
        r: dimensions over features.
        p: how often a feature is on.
        seed: of the Hadamard rows and all samples.
        rows: of each sample for the curvature.
        line_rows: for the loss on the line.
        steps: of either descent (Adam, constant rate).
        learning_rate: of the descents.
    """
    model, found = rug_curvature(n_s, r, p, rows, seed)
    line = along(model, found.direction, p, rows=line_rows, seed=seed)
    fit = {
        "steps": steps, "learning_rate": learning_rate, "schedule": "constant",
        "eval_every": max(1, steps // 20), "batch_size": 384,
    }  # fmt: skip
    config = rug_config(n_s=n_s, r=r, p=p, seed=seed, fit=fit)
    beside = moved(model, found.direction, NUDGE * parameters(model).norm())
    exact, nudged = (train(config, begin=begin.float()) for begin in (model, beside))
    return Escape(n_s, r, p, seed, model, found, line, exact, nudged)
