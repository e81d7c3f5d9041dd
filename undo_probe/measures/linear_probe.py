"""Linear probes: exact multinomial logistic regression and ridge, many at once on the same inputs.

Penalties are per row: the loss is the mean over rows of -log p, plus ``penalty / 2`` times the squared
weights, the intercept free. In scikit-learn's terms ``C = 1 / (n penalty)`` and ``alpha = n penalty``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from torch import Tensor

from undo_probe.errors import UndoProbeError

MEMORY = 5
"""Gradient differences that the optimiser remembers; more did not pay."""


def fit_softmax(
    inputs: Sequence[Float[Tensor, "_ feature"]],
    labels: Sequence[Int[Tensor, "problem _"]],
    penalties: Float[Tensor, "problem feature"] | Float[Tensor, "fold problem feature"],
    n_classes: int,
    start: Float[Tensor, "fold problem feature+1 class"] | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 500,
) -> Float[Tensor, "fold problem feature+1 class"]:
    """Multinomial logistic regressions, many label vectors on each of several sets of rows, solved together.

    L-BFGS in the metric of Böhning's bound on the Hessian (1992). A step that does not lower the loss is
    shortened for that fold and problem alone.

    Args:
        inputs: standardised, one matrix a fold; folds may differ in their number of rows.
        labels: class numbers, a line a problem, one matrix a fold.
        penalties: per row, for every feature of every problem, the same for all folds or not; positive.
        n_classes: classes are 0 to ``n_classes - 1``.
        start: weights to start from, for example those of another penalty or of fewer rows.
        tolerance: a problem is solved when its next step is predicted to lower the loss by less, in nats.
        max_steps: limit on steps; what is unsolved then is returned as it is.

    Returns:
        Weights with the intercept as the last feature; it is -inf for a class that no row has.
    """
    loss = _Loss.of(inputs, labels, penalties.expand(len(inputs), -1, -1), n_classes)
    # Inside, the problem is the last axis: sums over classes and matrix products then need no copies.
    weights = torch.zeros_like(loss.target)
    if start is not None:
        weights = (
            start.to(weights).permute(0, 2, 3, 1).nan_to_num(neginf=0.0).where(loss.absent == 0, weights)
        )
    solved, absent = weights.clone(), loss.absent
    open_ = torch.arange(weights.shape[-1])
    value, slope = loss(weights)
    memory = _Memory()
    direction = -_through(loss.metric, slope)
    step = torch.ones_like(value)
    slack = 8 * torch.finfo(value.dtype).eps
    for _ in range(max_steps):
        # A step cut to nothing means that rounding hides any further descent.
        unsolved = (-_dot(slope, direction) > 2 * tolerance) & (step > 1e-6)
        keep = unsolved.amax((0, 1, 2)).nonzero()[:, 0]
        if len(keep) < len(open_):
            solved[..., open_] = weights
            if not len(keep):
                break
            open_, loss, memory = open_[keep], loss.only(keep), memory.only(keep)
            weights, value, slope, direction, step = (
                t[..., keep] for t in (weights, value, slope, direction, step)
            )
        move = step * direction
        new_value, new_slope = loss(weights + move)
        # A trial that overflowed has no finite loss and fails this comparison too.
        lower = new_value <= value + 1e-4 * _dot(slope, move) + slack * value.abs()
        memory.add(move.where(lower, 0.0), (new_slope - slope).where(lower, 0.0))
        weights = torch.where(lower, weights + move, weights)
        value, slope = new_value.where(lower, value), new_slope.where(lower, slope)
        direction = torch.where(lower, -memory.apply(slope, loss.metric), direction)
        step = torch.where(lower, 1.0, 0.3 * step)
    else:
        solved[..., open_] = weights
    solved[:, -1:] += absent
    return solved.permute(0, 3, 1, 2).contiguous()


@dataclass
class _Loss:
    """Value and gradient of the penalised losses of all open problems; axes are fold, ..., problem."""

    inputs: Tensor
    row_weights: Tensor
    target: Tensor
    penalty: Tensor
    absent: Tensor
    metric: Tensor

    @classmethod
    def of(
        cls, inputs: Sequence[Tensor], labels: Sequence[Tensor], penalties: Tensor, n_classes: int
    ) -> "_Loss":
        longest = max(len(part) for part in inputs)
        # Short folds are filled up with rows of weight 0.
        rows = torch.stack([_fill(torch.cat([x, x.new_ones(len(x), 1)], dim=1), longest) for x in inputs])
        row_weights = torch.stack([_fill(x.new_full((len(x), 1), 1 / len(x)), longest) for x in inputs])
        hot = [torch.nn.functional.one_hot(own.T, n_classes).mT.to(rows) for own in labels]
        target = [
            torch.einsum("nf,ncp->fcp", x[: len(h)], h) / len(h) for x, h in zip(rows, hot, strict=True)
        ]
        # Classes that no training row has stay at weight 0 and out of the normalisation.
        absent = torch.stack([torch.zeros_like(h[0]).masked_fill(h.sum(0) == 0, -torch.inf) for h in hot])
        penalty = torch.cat([penalties, penalties.new_zeros(*penalties.shape[:2], 1)], dim=2)
        # One metric for all problems of a fold: where their penalties differ it need not be a bound.
        typical = penalty.clamp_min(1e-9).log().mean(1).exp()
        bound = (rows * row_weights).mT @ rows / 2 + torch.diag_embed(typical)
        metric = torch.cholesky_inverse(torch.linalg.cholesky(bound))
        weights = row_weights[..., None]
        return cls(rows, weights, torch.stack(target), penalty.mT[:, :, None], absent[:, None], metric)

    def only(self, keep: Tensor) -> "_Loss":
        target, penalty, absent = (part[..., keep] for part in (self.target, self.penalty, self.absent))
        return _Loss(self.inputs, self.row_weights, target, penalty, absent, self.metric)

    def __call__(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        logits = _through(self.inputs, weights)
        logits += self.absent
        # No maximum is taken off: at accepted weights logits are small, and others are rejected.
        odds = logits.exp_()
        total = odds.sum(2, keepdim=True)
        odds *= self.row_weights / total
        pull = self.penalty * weights
        value = (total.log_() * self.row_weights).sum((1, 2), keepdim=True) - _dot(
            weights, self.target - pull / 2
        )
        return value, _through(self.inputs.mT, odds) - self.target + pull


def _through(matrices: Tensor, values: Tensor) -> Tensor:
    """Each fold's matrix times the first axis of its values."""
    return torch.bmm(matrices, values.flatten(2)).unflatten(2, values.shape[2:])


def _fill(rows: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(rows, (0, 0, 0, length - len(rows)))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


class _Memory:
    """Moves and gradient differences of the last steps, for the two-loop recursion."""

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor, Tensor]] = ()) -> None:
        self.pairs = list(pairs)

    def add(self, move: Tensor, change: Tensor) -> None:
        curvature = _dot(move, change)
        inverse = torch.where(curvature > 0, 1 / curvature.clamp_min(torch.finfo(curvature.dtype).tiny), 0.0)
        self.pairs = [*self.pairs[-MEMORY + 1 :], (move, change, inverse)]

    def only(self, keep: Tensor) -> "_Memory":
        return _Memory(
            [(move[..., keep], change[..., keep], inverse[..., keep]) for move, change, inverse in self.pairs]
        )

    def apply(self, slope: Tensor, metric: Tensor) -> Tensor:
        """The inverse Hessian as remembered, times the gradient; ``metric`` scaled is its first guess."""
        shares = []
        for move, change, inverse in reversed(self.pairs):
            share = inverse * _dot(move, slope)
            slope = torch.addcmul(slope, share, change, value=-1)
            shares.append(share)
        _, change, inverse = self.pairs[-1]
        scale = inverse * _dot(change, _through(metric, change))
        slope = _through(metric, slope) / torch.where(scale > 0, scale, 1.0)
        for (move, change, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            slope = torch.addcmul(slope, share - inverse * _dot(change, slope), move)
        return slope


def fit_ridge(
    inputs: Float[Tensor, "row feature"],
    targets: Float[Tensor, "row output"],
    penalties: Float[Tensor, " penalty"],
) -> Float[Tensor, "penalty feature+1 output"]:
    """Ridge regressions on shared inputs: every target and penalty from one eigendecomposition.

    Args:
        inputs: centred columns, float64.
        targets: for example one-hot labels; any number of label sets side by side.
        penalties: per row, positive.

    Returns:
        Weights with the intercept as the last feature.
    """
    values, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    mean = targets.mean(0)
    rotated = vectors.T @ (inputs.T @ (targets - mean)) / len(inputs)
    weights = vectors @ (rotated / (values.clamp_min(0)[:, None] + penalties[:, None, None]))
    return torch.cat([weights, mean.expand(len(penalties), 1, -1)], dim=1)


@dataclass(frozen=True, eq=False)
class Standardiser:
    """Centre and scale of each feature, from the rows a probe was trained on."""

    mean: Float[Tensor, " feature"]
    scale: Float[Tensor, " feature"]

    @classmethod
    def fit(cls, features: Float[Tensor, "row feature"], common: bool = False) -> "Standardiser":
        """Mean and deviation of each feature; ``common`` gives all one scale, which suits one-hot features.

        A feature that never changes keeps scale 1.
        """
        mean = features.mean(0)
        scale = (features - mean).square().mean(0).sqrt()
        if common:
            scale = scale.square().mean().sqrt().expand_as(mean)
        still = scale <= 1e-7 * (mean.abs() + 1)
        return cls(mean, torch.where(still, 1.0, scale))

    def __call__(self, features: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """Standardised features."""
        return (features - self.mean) / self.scale


@dataclass(frozen=True, eq=False)
class Probe:
    """A fitted linear probe: everything needed to read another model's activations with it."""

    weights: Float[Tensor, "weight class"]
    standardise: Standardiser
    classes: Shaped[np.ndarray, " class"]
    solver: str

    def scores(self, features: Float[Tensor, "row feature"]) -> Float[Tensor, "row class"]:
        """Logits (logistic) or regressed one-hot labels (ridge)."""
        return self.standardise(features.double()) @ self.weights[:-1] + self.weights[-1]

    def probabilities(self, features: Float[Tensor, "row feature"]) -> Float[Tensor, "row class"]:
        """Class probabilities; for ridge the regressed labels cut off at 0 and normalised."""
        scores = self.scores(features)
        if self.solver == "logistic":
            return torch.softmax(scores, dim=1)
        positive = scores.clamp_min(1e-6)
        return positive / positive.sum(1, keepdim=True)


class LinearProbe(ClassifierMixin, BaseEstimator):
    """A linear classifier on standardised inputs, with scikit-learn's interface.

    Args:
        solver: ``logistic`` (exact multinomial logistic regression) or ``ridge`` (closed form on one-hot
            labels, for sweeps).
        penalty: squared-weight penalty per row.
        tolerance: predicted decrease of the loss at which the logistic solver stops.
    """

    def __init__(
        self,
        solver: str = "logistic",
        penalty: float = 1e-2,
        tolerance: float = 1e-9,
    ) -> None:
        """Keeps the settings; they are checked by :meth:`fit`."""
        self.solver = solver
        self.penalty = penalty
        self.tolerance = tolerance

    def fit(self, X: Any, y: Any) -> "LinearProbe":  # noqa: N803  (scikit-learn's names)
        """Fits on arrays or tensors ``X`` (row, feature) and labels ``y`` (row,).

        Raises:
            UndoProbeError: fewer than two classes, rows that do not match, or an unknown solver.
        """
        features, labels = _features(X), np.asarray(y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        if len(features) != len(labels) or len(self.classes_) < 2:
            raise UndoProbeError(
                f"a probe needs one label a row and at least two classes: got {len(features)} rows, "
                f"{len(labels)} labels, {len(self.classes_)} classes"
            )
        if self.solver not in ("logistic", "ridge") or not self.penalty > 0:
            raise UndoProbeError(
                f"LinearProbe(solver={self.solver!r}, penalty={self.penalty}): "
                "the solver must be 'logistic' or 'ridge' and the penalty positive"
            )
        standardise = Standardiser.fit(features)
        inputs, target = standardise(features), torch.from_numpy(codes)
        if self.solver == "logistic":
            penalties = torch.full((1, inputs.shape[1]), self.penalty, dtype=inputs.dtype)
            weights = fit_softmax(
                [inputs], [target[None]], penalties, len(self.classes_), tolerance=self.tolerance
            )[0]
        else:
            hot = torch.nn.functional.one_hot(target).to(inputs)
            weights = fit_ridge(inputs, hot, torch.tensor([self.penalty], dtype=inputs.dtype))
        self.n_features_in_ = inputs.shape[1]
        self.probe_ = Probe(weights[0], standardise, self.classes_, self.solver)
        return self

    def predict(self, X: Any) -> Shaped[np.ndarray, " row"]:  # noqa: N803
        """The most probable class of each row."""
        probe = self._fitted()
        return probe.classes[probe.scores(_features(X)).argmax(1).numpy()]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "row class"]:  # noqa: N803
        """Class probabilities, columns in the order of ``classes_``."""
        return self._fitted().probabilities(_features(X)).numpy()

    def _fitted(self) -> Probe:
        if not hasattr(self, "probe_"):
            raise UndoProbeError("this LinearProbe was not fitted: call fit(X, y) first")
        return self.probe_


def _features(values: Any) -> Tensor:
    features = torch.as_tensor(values).detach().cpu().double()
    if features.ndim != 2 or not bool(torch.isfinite(features).all()):
        raise UndoProbeError(
            f"a probe reads finite numbers of shape (row, feature), got {tuple(features.shape)}"
        )
    return features
