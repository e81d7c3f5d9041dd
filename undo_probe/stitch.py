"""Affine maps from one model's states to another's: what is left of a difference once the basis is removed.

A map is fitted on retain states only, so it cannot put back what a model lost. Where forget states are made of what
retain states are made of, a model that holds the knowledge in another basis looks like the original through it; where
they are not, it looks as if it had lost the knowledge: an original of another seed, measured the same way, says which.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undo_probe.errors import UndoProbeError

PENALTIES = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridge penalties that are tried, in units of the states' mean variance a dimension."""

KEPT = 0.99
"""The span of the fit: the fewest principal components that hold this share of its states' variance."""


@dataclass(frozen=True, eq=False)
class Stitch:
    """An affine map ``(h - centre) @ weight + target``, and the span of the states that it was fitted on."""

    centre: Float[Tensor, " d_in"]
    weight: Float[Tensor, "d_in d_out"]
    target: Float[Tensor, " d_out"]
    span: Float[Tensor, "d_in k"]
    penalty: float
    n: int

    def __call__(self, states: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The states in the other model's basis, computed in float64, in their own dtype."""
        wide = (states.double() - self.centre) @ self.weight + self.target
        return wide.to(states.dtype)

    def explained(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"]) -> float:
        """Share of the variance of ``y`` (about its own mean) that the map of ``x`` explains; at most 1.

        Raises:
            UndoProbeError: all rows of ``y`` are equal.
        """
        y = y.double()
        total = float((y - y.mean(0)).square().sum())
        if not total > 0:
            raise UndoProbeError("all target states are equal: there is no variance to explain")
        return 1 - float((self(x.double()) - y).square().sum()) / total

    def outside(self, states: Float[Tensor, "row d_in"]) -> Float[Tensor, " row"]:
        """Squared distance from the span over the mean squared distance from the centre, a value a row.

        Its mean is the share of the states' variance (about the fit's centre) that the map has seen too little
        of to be trusted; of states like those of the fit it is about ``1 - KEPT``.
        """
        centred = states.double() - self.centre
        rest = centred - (centred @ self.span) @ self.span.T
        return rest.square().sum(-1) / centred.square().sum(-1).mean().clamp_min(
            torch.finfo(torch.double).tiny
        )


def fit_stitch(
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "_ d_out"],
    choose: Bool[Tensor, " row"],
    penalties: Sequence[float] = PENALTIES,
) -> Stitch:
    """Ridge from ``x`` to ``y``: the penalty that does best on the rows of ``choose``, then a fit on all rows.

    Solved in float64, by one eigendecomposition for all penalties.

    Args:
        x: states to be mapped.
        y: states of the other model on the same tokens.
        choose: rows that choose the penalty; they should share no family with the rest.
        penalties: in units of the mean variance of a dimension of ``x``.

    Raises:
        UndoProbeError: rows do not match, none is left on either side of ``choose``, or ``x`` does not vary.
    """
    if len(x) != len(y) or not 0 < int(choose.sum()) < len(x) - 1:
        raise UndoProbeError(
            f"a map needs the same rows of both models and some on either side: got {len(x)} and {len(y)} rows, "
            f"{int(choose.sum())} of them to choose the penalty"
        )
    x, y = x.detach().double(), y.detach().double()
    part = _Ridge(x[~choose], y[~choose])
    scores = [float((part.predict(x[choose], p) - y[choose]).square().sum()) for p in penalties]
    penalty = penalties[scores.index(min(scores))]
    whole = _Ridge(x, y)
    return Stitch(whole.x_mean, whole.weight(penalty), whole.y_mean, whole.span(), penalty, len(x))


class _Ridge:
    """Sufficient statistics of a ridge regression, with every penalty a matrix product away."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        centred = x - self.x_mean
        values, self.vectors = torch.linalg.eigh(centred.T @ centred / len(x))
        self.values = values.clamp_min(0)
        if not float(self.values[-1]) > 0:
            raise UndoProbeError("all states are equal here: a map cannot be fitted to them")
        self.cross = self.vectors.T @ (centred.T @ (y - self.y_mean) / len(x))

    def weight(self, penalty: float) -> Tensor:
        return self.vectors @ (self.cross / (self.values + penalty * self.values.mean())[:, None])

    def predict(self, x: Tensor, penalty: float) -> Tensor:
        return (x - self.x_mean) @ self.weight(penalty) + self.y_mean

    def span(self) -> Tensor:
        """The fewest leading components that hold ``KEPT`` of the variance, as columns."""
        shares = self.values.flip(0).cumsum(0) / self.values.sum()
        count = int((shares < KEPT).sum()) + 1
        return self.vectors[:, -count:]
