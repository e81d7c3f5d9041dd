"""What a sparse autoencoder became: its symmetry, the noise between its features, and the code each feature has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtr
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.autoencoder import Autoencoder
from undo_probe.persian_rug.engineered import features
from undo_probe.persian_rug.limits import excess_moments
from undo_probe.persian_rug.theory import shares, variance
from undo_probe.randomness import generator

CHUNK = 1024
"""Rows of W that are made at a time."""
FAINT = 0.25
"""A feature is dropped where its diagonal entry is below this share of the upper quartile of all."""
FEW, NEAR = 4.0, 0.15
"""Fewer partners than this are no crowd; dimensionalities this far off, relatively, are called the same."""
NOTHING = "no feature reaches its own output: train the model, or start it at the rug"
CLASSES = ("rug", "digon", "private", "dropped", "other")
PURE = 0.8
"""Share of the features of one class from which on the model is called by it."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Statistics of each row of ``W = W_out W_in``, exact for independent features; the diagonal is left out of sums.

    ``noise`` is ``s_i = sum W_ij^2 / W_ii^2``, at best 1/r - 1; ``mean``, ``variance``, ``skew`` and ``kurtosis``
    (excess) are the interference's; ``lyapunov`` is ``sum E|W_ij (x_j - E x)|^3 / (sum var)^(3/2)``, which must go
    to zero for it to become Gaussian; ``partners`` is ``(sum W^2)^2 / sum W^4``, how many entries carry it: about
    n_s / 3 in a rug, 1 in a digon. ``dimensionality`` is ``W_ii^2 / sum_j W_ij^2`` over all j, which for tied
    weights is that of Toy Models of Superposition (arXiv 2209.10652), zero where W_ii is not positive.
    """

    diagonal: Float[Tensor, " n_s"]
    bias: Float[Tensor, " n_s"]
    noise: Float[Tensor, " n_s"]
    mean: Float[Tensor, " n_s"]
    variance: Float[Tensor, " n_s"]
    skew: Float[Tensor, " n_s"]
    kurtosis: Float[Tensor, " n_s"]
    lyapunov: Float[Tensor, " n_s"]
    partners: Float[Tensor, " n_s"]
    dimensionality: Float[Tensor, " n_s"]
    partner: Int[Tensor, " n_s"]


def rows_of(model: Autoencoder, p: float) -> Rows:
    """The statistics of every row, in float64; W is made :data:`CHUNK` rows at a time."""
    p = float(shares("p", p))
    encoder, decoder = model.W_in.detach().double(), model.W_out.detach().double()
    found = [_statistics(decoder[at], encoder, at, p) for at in _chunks(len(decoder))]
    joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    return Rows(bias=model.b.detach().double(), **joined)


def _chunks(n_s: int) -> Iterator[Tensor]:
    yield from torch.arange(n_s).split(CHUNK)


def _statistics(decoder: Tensor, encoder: Tensor, at: Tensor, p: float) -> dict[str, Tensor]:
    v = float(variance(p))
    skew, kurtosis = (float(each) for each in excess_moments(p))
    w = decoder @ encoder
    here = torch.arange(len(at))
    diagonal = w[here, at].clone()
    w[here, at] = 0.0
    square = w.square().sum(1)
    tiny = torch.finfo(w.dtype).tiny
    fourth = w.pow(4).sum(1) / square.square().clamp_min(tiny)
    return {
        "diagonal": diagonal,
        "noise": square / diagonal.square().clamp_min(tiny),
        "mean": p / 2 * w.sum(1),
        "variance": v * square,
        "skew": skew * w.pow(3).sum(1) / square.pow(1.5).clamp_min(tiny),
        "kurtosis": kurtosis * fourth,
        "lyapunov": absolute_third(p) / v**1.5 * w.abs().pow(3).sum(1) / square.pow(1.5).clamp_min(tiny),
        "partners": 1 / fourth.clamp_min(tiny),
        "partner": w.abs().argmax(1),
        "dimensionality": diagonal.clamp_min(0).square() / (diagonal.square() + square).clamp_min(tiny),
    }


def absolute_third(p: float) -> float:
    """``E |x - E x|^3`` of a feature: at zero with probability 1 - p, uniform otherwise, around c = p/2."""
    c = float(shares("p", p, closed=True)) / 2
    return (1 - p) * c**3 + p * (c**4 + (1 - c) ** 4) / 4


def classes(rows: Rows, r: float) -> list[str]:
    """The code of each feature: rug, digon, private, dropped, or other.

    ``dropped``: its diagonal entry is faint beside the others'. ``digon``: it and its partner are each other's, and
    their dimensionalities add up to 1, the one direction that they share: 1/2 each where they are of equal length,
    but training ends in unequal ones (:func:`undo_probe.persian_rug.rivals.best_pair`). ``private``: dimensionality
    1. ``rug``: the ratio of dimensions to features that are not dropped, with noise from more than a few others.
    Sums and values are met within :data:`NEAR`.
    """
    faint = rows.diagonal <= FAINT * float(rows.diagonal.clamp_min(0).quantile(0.75))
    r = float(shares("r", r)) * len(faint) / max(1, int((~faint).sum()))
    mutual = rows.partner[rows.partner] == torch.arange(len(rows.partner))
    both = rows.dimensionality + rows.dimensionality[rows.partner]
    pair = mutual & ~faint[rows.partner] & ((both - 1).abs() < NEAR) & (rows.partners < FEW)
    private = rows.dimensionality > 1 - NEAR
    rug = ((rows.dimensionality / r - 1).abs() < NEAR) & (rows.partners >= FEW)
    tests = (("dropped", faint), ("digon", pair), ("private", private), ("rug", rug))
    return [next((name for name, found in tests if found[at]), "other") for at in range(len(faint))]


@dataclass(frozen=True)
class Diagnosis:
    """A model's symmetry and phase.

    ``spread`` holds the deviation over rows of the diagonal, the bias and the interference's mean (all relative to
    the mean diagonal) and variance (relative to its mean); ``excess`` is the mean s_i over 1/r - 1, r being the ratio
    of dimensions to features that are not dropped (not a number where they are no fewer); ``shares`` the share of
    features of each class; ``phase`` the class of :data:`PURE` of the features that are not dropped, else ``mixed``.
    """

    phase: str
    shares: dict[str, float]
    spread: dict[str, float]
    diagonal: float
    bias: float
    excess: float
    kurtosis: float
    skew: float
    lyapunov: float


def diagnose(model: Autoencoder, p: float) -> Diagnosis:
    """The state of a trained or made autoencoder; nothing is drawn.

    ``kurtosis`` and ``skew`` are medians over rows, ``lyapunov`` the largest ratio; dropped features count in
    ``shares`` only.

    Raises:
        UndoProbeError: no diagonal entry is positive, so nothing is represented.
    """
    n_d, n_s = model.W_in.shape
    rows = rows_of(model, p)
    if float(rows.diagonal.max()) <= 0:
        raise UndoProbeError(NOTHING)
    named = classes(rows, n_d / n_s)
    kept = torch.tensor([name != "dropped" for name in named])
    counts = {name: named.count(name) / n_s for name in CLASSES}
    diagonal, floor = float(rows.diagonal[kept].mean()), int(kept.sum()) / n_d - 1

    def spread(values: Tensor, unit: float) -> float:
        return float(values[kept].std() / unit)

    return Diagnosis(
        phase=phase_of(counts),
        shares=counts,
        spread={
            "diagonal": spread(rows.diagonal, diagonal),
            "bias": spread(rows.bias, diagonal),
            "interference_mean": spread(rows.mean, diagonal),
            "interference_variance": spread(rows.variance, float(rows.variance[kept].mean())),
        },
        diagonal=diagonal,
        bias=float(rows.bias[kept].mean()),
        excess=float(rows.noise[kept].mean()) / floor if floor > 0 else float("nan"),
        kurtosis=float(rows.kurtosis[kept].median()),
        skew=float(rows.skew[kept].median()),
        lyapunov=float(rows.lyapunov[kept].max()),
    )


def phase_of(counts: Mapping[str, float]) -> str:
    """The class of :data:`PURE` of the features that are not dropped, from the share of each; else ``mixed``."""
    best = max(("rug", "digon", "private"), key=lambda name: counts[name])
    return best if counts[best] > 0 and counts[best] >= PURE * (1 - counts["dropped"]) - 1e-9 else "mixed"


def histogram(rows: Rows, bins: int = 50) -> tuple[Any, Any]:
    """Counts and edges of the features' dimensionality on [0, 1]: r in a rug, 1/2 digon, 1 private, 0 dropped."""
    return np.histogram(rows.dimensionality.numpy(), bins=bins, range=(0.0, 1.0))


@dataclass(frozen=True)
class Normality:
    """Kolmogorov and Smirnov's distance to the normal of the sample's own mean and deviation, and its p-value."""

    distance: float
    p_value: float


def normality(sample: Float[Tensor, " n"], draws: int = 999, seed: int = 0) -> Normality:
    """Lilliefors' test by simulation: is the sample normal, with mean and deviation unknown?

    The tables of the plain test hold for a normal named beforehand; with mean and deviation taken from the sample
    itself the distance is smaller, and plain p-values far too large. So ``draws`` normal samples of the same length
    are treated alike, and the p-value is ``(1 + those at least as far) / (1 + draws)``.

    Raises:
        UndoProbeError: fewer than 8 values, or all alike.
    """
    values = sample.detach().double()
    if len(values) < 8 or float(values.std()) == 0:
        raise UndoProbeError(
            f"a test of normality on {len(values)} values: expected at least 8 that are not all alike"
        )
    found = float(_distance(values[None])[0])
    far = int((_null(len(values), draws, seed) >= found).sum())
    return Normality(found, (1 + far) / (1 + draws))


def not_normal(
    model: Autoencoder, p: float, rows: int = 16, samples: int = 1000, seed: int = 0, level: float = 0.05
) -> float:
    """The share of features whose interference :func:`normality` tells from normal at ``level``.

    Of at most ``rows`` features that reach their own output, evenly spread; of true normals the share is the level.
    The published figures show one row's p-value from the plain test, whose mean and deviation are the sample's own.

    Raises:
        UndoProbeError: no diagonal entry is positive.
    """
    reached = torch.nonzero((model.W_out * model.W_in.T).sum(1) > 0).flatten().tolist()
    if not reached:
        raise UndoProbeError(NOTHING)
    chosen = [reached[at] for at in np.linspace(0, len(reached) - 1, min(rows, len(reached))).astype(int)]
    x = features(samples, model.W_in.shape[1], p, generator(seed, "not normal"))
    noise = torch.stack([interference(model, x, row) for row in chosen])
    moving = noise[noise.std(1) > 0]
    null = _null(samples, 999, seed)
    far = (null[None] >= _distance(moving)[:, None]).sum(1)
    # noise that never moves is as far from normal as there is
    return 1 - float(((1 + far) / (1 + len(null)) >= level).sum()) / len(chosen)


@lru_cache(maxsize=8)
def _null(n: int, draws: int, seed: int) -> Float[Tensor, " draw"]:
    """The distances of normal samples of one length."""
    source = generator(seed, "normality", n)
    parts = [
        _distance(torch.randn(len(at), n, generator=source, dtype=torch.float64))
        for at in torch.arange(draws).split(100)
    ]
    return torch.cat(parts)


def _distance(samples: Tensor) -> Tensor:
    ordered = ((samples - samples.mean(1, keepdim=True)) / samples.std(1, keepdim=True)).sort(1).values
    below = torch.from_numpy(ndtr(ordered.numpy()))
    n = samples.shape[1]
    ranks = torch.arange(1, n + 1, dtype=samples.dtype)
    return torch.maximum((ranks / n - below).amax(1), (below - (ranks - 1) / n).amax(1))


def interference(model: Autoencoder, x: Float[Tensor, "sample n_s"], row: int) -> Float[Tensor, " sample"]:
    """What all other features add to one pre-activation, in float64: sample it, then test it by :func:`normality`."""
    w = (model.W_out[row] @ model.W_in).detach().double()
    return x.double() @ w - x[:, row].double() * w[row]
