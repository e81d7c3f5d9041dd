"""How the loss curves at a code: the smallest eigenvalue of its Hessian, and what lies along that eigenvector.

The ReLU has a kink, and what autograd differentiates twice on a sample is not the curvature of the expected loss: at
a pre-activation of zero the slope jumps by -2 x where the feature x is on, a negative term that no sample hits. So
the Hessian here is that of the loss with noise of deviation ``h`` on every pre-activation,

    l(y, x) = E_z (relu(y + h z) - x)^2 = 2 h^2 I2(y / h) - 2 x h I1(y / h) + x^2,

smooth for any h, with I1 and I2 of :func:`undo_probe.persian_rug.theory.iterated`. In a rug y is Gaussian already,
and h a twentieth of its deviation moves that by a tenth of a percent.

Losses here are sums over outputs and means over rows: n_s times the loss of ``theory.py``.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.autoencoder import Autoencoder
from undo_probe.persian_rug.engineered import Measured, features
from undo_probe.persian_rug.theory import optimum
from undo_probe.randomness import derive_seed, generator

if TYPE_CHECKING:
    import pandas as pd

SOFT = 0.05
"""Deviation of the noise that smooths the kink, in units of the interference's."""
CHUNK = 2048
SURE = 2.0
"""How many standard errors away from zero is called so."""
SHARES = (-0.2, -0.1, -0.05, -0.02, -0.01, 0.01, 0.02, 0.05, 0.1, 0.2)


class Direction(NamedTuple):
    """A direction in the space of encoder, decoder and bias, or a gradient in it."""

    W_in: Float[Tensor, "n_d n_s"]
    W_out: Float[Tensor, "n_s n_d"]
    b: Float[Tensor, " n_s"]

    def flat(self) -> Float[Tensor, " parameter"]:
        """All entries in one row."""
        return torch.cat([part.reshape(-1) for part in self])

    def norm(self) -> float:
        """Euclidean length."""
        return float(self.flat().norm())


def parameters(model: Autoencoder) -> Direction:
    """The model's parameters in float64.

    Raises:
        UndoProbeError: the decoder is no relu.
    """
    if model.decoder != "relu":
        raise UndoProbeError(
            f"the decoder is {model.decoder!r}: the curvature is worked out for relu, which the rug is made for"
        )
    return Direction(*(each.detach().double() for each in (model.W_in, model.W_out, model.b)))


def shaped(flat: Tensor, like: Direction) -> Direction:
    """A row of numbers as a direction; the other way round from :meth:`Direction.flat`."""
    return Direction(
        *(p.view_as(q) for p, q in zip(flat.split([q.numel() for q in like]), like, strict=True))
    )


def moved(model: Autoencoder, direction: Direction, length: float) -> Autoencoder:
    """A copy of the model, ``length`` further along the direction."""
    changed = deepcopy(model)
    with torch.no_grad():
        for name, step in direction._asdict().items():
            changed.get_parameter(name).add_((length * step).to(changed.W_in))
    return changed


def width(model: Autoencoder, p: float) -> float:
    """The h of the module's docstring for a model of this size: :data:`SOFT` of a rug's interference."""
    n_d, n_s = model.W_in.shape
    best = optimum(n_d / n_s, p)
    return SOFT * float(best.a) * float(best.tau)


def slope_and_bend(y: Tensor, x: Tensor, h: float) -> tuple[Tensor, Tensor]:
    """First and second derivative of the smoothed loss by the pre-activation."""
    t = y / h
    below, density = torch.special.ndtr(t), torch.exp(-t * t / 2) / (2 * torch.pi) ** 0.5
    return 2 * h * (t * below + density) - 2 * x * below, 2 * below - 2 * x * density / h


@dataclass(frozen=True, eq=False)
class _Rows:
    """A chunk of the sample, with first and second derivative of the loss at every pre-activation."""

    x: Tensor
    h: Tensor
    slope: Tensor
    bend: Tensor


class Bowl:
    """A model's loss to second order on a fixed sample."""

    def __init__(self, model: Autoencoder, x: Float[Tensor, "row n_s"], h: float) -> None:
        """Everything that a product with the Hessian needs, for the smoothed loss of width ``h``."""
        self.at, self.rows = parameters(model), len(x)
        self.chunks = [self._row(part.double(), h) for part in x.split(CHUNK)]

    def _row(self, x: Tensor, h: float) -> _Rows:
        hidden = x @ self.at.W_in.T
        return _Rows(x, hidden, *slope_and_bend(torch.addmm(self.at.b, hidden, self.at.W_out.T), x, h))

    def gradient(self) -> Direction:
        """The gradient of the smoothed loss."""
        parts = [((c.slope @ self.at.W_out).T @ c.x, c.slope.T @ c.h, c.slope.sum(0)) for c in self.chunks]
        return Direction(*(torch.stack(each).sum(0) / self.rows for each in zip(*parts, strict=True)))

    def product(self, v: Direction) -> Direction:
        """The Hessian times a direction.

        The pre-activations move by ``dy = W_out dh + V_out h + v_b`` with ``dh = V_in x``, and each derivative of y by
        a parameter moves too: that second part weighs with the slope of the loss.
        """
        parts = []
        for c in self.chunks:
            dh, dy = self._moves(c, v)
            bent = c.bend * dy
            up = bent @ self.at.W_out + c.slope @ v.W_out
            parts.append((up.T @ c.x, bent.T @ c.h + c.slope.T @ dh, bent.sum(0)))
        return Direction(*(torch.stack(each).sum(0) / self.rows for each in zip(*parts, strict=True)))

    def along(self, v: Direction) -> Float[Tensor, " row"]:
        """``v^T H v`` of every row: their mean is the curvature along v, their spread its standard error."""
        found = []
        for c in self.chunks:
            dh, dy = self._moves(c, v)
            found.append((c.bend * dy * dy + 2 * c.slope * (dh @ v.W_out.T)).sum(1))
        return torch.cat(found)

    def _moves(self, c: _Rows, v: Direction) -> tuple[Tensor, Tensor]:
        dh = c.x @ v.W_in.T
        return dh, dh @ self.at.W_out.T + c.h @ v.W_out.T + v.b

    def end(self, which: str, seed: int, tolerance: float) -> tuple[float, Direction]:
        """The least (``SA``) or largest (``LA``) eigenvalue and its unit eigenvector, by Lanczos (ARPACK)."""
        from scipy.sparse.linalg import LinearOperator, eigsh

        size = sum(part.numel() for part in self.at)

        def apply(v: np.ndarray) -> np.ndarray:
            return self.product(shaped(torch.from_numpy(v.reshape(-1)), self.at)).flat().numpy()

        begin = np.random.default_rng(derive_seed(seed, "lanczos")).standard_normal(size)
        operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
        loose: Any = tolerance  # scipy's stub takes the default, 0, for an int
        values, vectors = eigsh(operator, k=1, which=which, v0=begin, tol=loose, ncv=min(size - 1, 40))
        return float(values[0]), shaped(torch.from_numpy(vectors[:, 0].copy()), self.at)


def gauge_share(model: Autoencoder, v: Direction) -> float:
    """Share of the direction's squared length along which the outputs stay as they are: W_in -> G W_in.

    W_out -> W_out G^-1 undoes it, so to first order these are ``(G W_in, -W_out G, 0)`` for any matrix G; the nearest
    one solves the Sylvester equation ``W_out^T W_out G + G W_in W_in^T = V_in W_in^T - W_out^T V_out``. At a critical
    point their curvature is zero, and that of G = 1 is the scale of encoder against decoder.
    """
    from scipy.linalg import solve_sylvester

    at = parameters(model)
    sides = (at.W_out.T @ at.W_out, at.W_in @ at.W_in.T, v.W_in @ at.W_in.T - at.W_out.T @ v.W_out)
    g = torch.from_numpy(solve_sylvester(*(each.numpy() for each in sides)))
    near = Direction(g @ at.W_in, -at.W_out @ g, torch.zeros_like(at.b))
    return (near.norm() / v.norm()) ** 2


@dataclass(frozen=True, eq=False)
class Curvature:
    """The direction in which a code curves down the most, and by how much.

    ``fitted`` is Lanczos' least eigenvalue on the sample that chose ``direction``, so too low; ``curvature`` is the
    same direction on fresh rows, ``slope`` the gradient along it there, both with standard errors. No direction
    curves down less than the least eigenvalue of the expected loss: that is ``curvature`` or below. ``largest`` is the
    largest eigenvalue, ``gauge`` the share of the direction that changes no output, ``gradient`` the gradient's
    length on the fresh rows (some of it sampling), all of the loss summed over outputs.
    """

    direction: Direction
    rows: int
    fitted: float
    curvature: Measured
    slope: Measured
    largest: float
    gauge: float
    gradient: float

    @property
    def negative(self) -> bool:
        """Whether the curvature lies :data:`SURE` standard errors below zero on rows that did not choose it."""
        return self.curvature.value + SURE * self.curvature.error < 0


def curvature(
    model: Autoencoder, p: float, rows: int = 8192, seed: int = 0, tolerance: float = 0.02
) -> Curvature:
    """The least eigenvalue of the Hessian at a model, by Lanczos on one sample, measured again on another.

    A sample's least eigenvalue lies below the expected one, for Lanczos fits its noise too; the second sample, of
    the same size, does not know the direction. ``tolerance`` is relative, on the eigenvalue: any direction that is
    found is measured, so a loose one costs sharpness and not truth.

    Raises:
        UndoProbeError: the decoder is no relu.
    """
    sample = features(rows, model.W_in.shape[1], p, generator(seed, "curvature", "choose", p))
    bowl = Bowl(model, sample, width(model, p))
    fitted, direction = bowl.end("SA", seed, tolerance)
    return remeasured(model, direction, p, rows, seed, fitted, bowl.end("LA", seed, tolerance)[0])


def remeasured(
    model: Autoencoder, direction: Direction, p: float, rows: int, seed: int, fitted: float, largest: float
) -> Curvature:
    """A direction that was chosen on other rows, measured on fresh ones."""
    sample = features(rows, model.W_in.shape[1], p, generator(seed, "curvature", "measure", p))
    fresh = Bowl(model, sample, width(model, p))
    down, slope = _measured(fresh.along(direction)), _slope(fresh, direction)
    share, length = gauge_share(model, direction), fresh.gradient().norm()
    return Curvature(direction, rows, fitted, down, slope, largest, share, length)


def _slope(bowl: Bowl, v: Direction) -> Measured:
    return _measured(torch.cat([(c.slope * bowl._moves(c, v)[1]).sum(1) for c in bowl.chunks]))


def _measured(values: Tensor) -> Measured:
    return Measured(float(values.mean()), float(values.std() / len(values) ** 0.5))


def along(
    model: Autoencoder,
    direction: Direction,
    p: float,
    shares: Sequence[float] = SHARES,
    rows: int = 16384,
    seed: int = 0,
) -> "pd.DataFrame":
    """The loss on the line through the model, to both sides, on rows that no one has seen.

    ``share`` is the length of the step over that of all weights; ``change`` is of the plain ReLU loss, the same rows
    at both ends, with its standard error, over the loss at the model.
    """
    import pandas as pd

    n_s = model.W_in.shape[1]
    source = generator(seed, "along", n_s, p)
    unit = parameters(model).norm() / direction.norm()
    others = [moved(model, direction, share * unit) for share in shares]
    before, after = [], [[] for _ in others]
    with torch.no_grad():
        for begin in range(0, rows, CHUNK):
            x = features(min(CHUNK, rows - begin), n_s, p, source)
            here = _squares(model, x)
            before.append(here)
            for kept, other in zip(after, others, strict=True):
                kept.append(_squares(other, x) - here)
    base = float(torch.cat(before).mean())
    lines = [(share, *_measured(torch.cat(kept) / base)) for share, kept in zip(shares, after, strict=True)]
    return pd.DataFrame(lines, columns=["share", "change", "error"]).assign(rows=rows)


def _squares(model: Autoencoder, x: Tensor) -> Tensor:
    x = x.to(model.W_in)
    return (model(x) - x).square().mean(1).double()


def falls(line: "pd.DataFrame") -> bool:
    """Whether the loss falls on both sides, each somewhere by :data:`SURE` standard errors."""
    sure = line[line["change"] + SURE * line["error"] < 0]
    return bool((sure["share"] < 0).any() and (sure["share"] > 0).any())
