"""Measures: what a model still holds, read from its states and behaviour.

A measure reports plain numbers: :class:`ItemScores` with one value a row, or a :class:`Statistic` that is no
mean over rows. The scorecard adds the arm, the intervals of means and the normalisation.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from undo_probe.errors import UndoProbeError

__all__ = ["ItemScores", "Statistic", "cluster_error"]


@dataclass(frozen=True, eq=False)
class ItemScores:
    """One measured value a row, to be averaged with an interval over families.

    The same rows in the same order for every model, so that two models are compared pairwise.
    ``task_split`` is ``forget`` or ``retain``; ``layer`` is a hook name.
    """

    measure: str
    task_split: str
    subset: str
    layer: str | None
    unit: str
    values: Shaped[np.ndarray, " row"]
    families: Shaped[np.ndarray, " _"]
    control: str = ""
    control_value: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses values that no mean can be taken of."""
        if len(self.values) != len(self.families) or not len(self.values):
            raise UndoProbeError(
                f"{self.measure}: {len(self.values)} values for {len(self.families)} rows; give one a row"
            )
        if not np.isfinite(self.values).all():
            raise UndoProbeError(
                f"{self.measure} at {self.layer}: some values are not finite; leave those rows out"
            )


@dataclass(frozen=True)
class Statistic:
    """A measured number that is no mean over rows, with its own interval."""

    measure: str
    task_split: str
    subset: str
    layer: str | None
    unit: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    n_clusters: int
    control: str = ""
    control_value: float | None = None
    note: str = ""


def cluster_error(values: Shaped[np.ndarray, " row"], families: Shaped[np.ndarray, " row"]) -> float:
    """Standard error of the mean when whole families were drawn, not rows; NaN for one family."""
    _, member = np.unique(families, return_inverse=True)
    count = int(member.max()) + 1
    if count < 2:
        return float("nan")
    sums = np.bincount(member, weights=values - values.mean(), minlength=count)
    return float(np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values))
