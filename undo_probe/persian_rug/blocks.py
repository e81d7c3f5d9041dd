"""The Hessian at a Persian Rug of Hadamard rows, whole: one small block for each way of breaking its symmetry.

Rename the features by ``i -> i xor k``: their law stays, and the rug stays up to signs of hidden units. So the Hessian
of the expected loss falls into n_s blocks, one for each character t of that group. In block t, row j of the encoder
and column j of the decoder, which hold the Hadamard row s_j, move along the Hadamard row ``s_j xor t``, and the bias
along row t: 2 n_d + 1 directions, where Lanczos would search 2 n_s n_d + n_s at once and fit the sample's noise. (Full
Lanczos on some thousand rows does: what it finds curves up on fresh rows.)

With X the Hadamard transform of x, and l' and l'' the derivatives of the loss at the pre-activations (see
:mod:`.hessian`), all blocks are made of one matrix and three smaller things,

    M[u, v] = E X_u X_v L_(u xor v),   m[u] = E X_u L_u,   g[u] = E X_u G_u,   E L_0,

L_k the mean of l'' times Hadamard row k, G the Hadamard transform of l'; and with the gains w_j of encoder and decoder

    encoder j, encoder k:  w_j w_k M[s_j xor t, s_k xor t]       encoder j, bias:  w_j m[s_j xor t]
    encoder j, decoder k:  w_j w_k M[s_j xor t, s_k]  (+ g[s_j xor t] where j = k)
    decoder j, decoder k:  w_j w_k M[s_j, s_k]                   decoder j, bias:  w_j m[s_j]      bias:  E L_0.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.autoencoder import Autoencoder
from undo_probe.persian_rug.engineered import features, walsh_hadamard, weights
from undo_probe.persian_rug.hessian import (
    CHUNK,
    Curvature,
    Direction,
    parameters,
    remeasured,
    slope_and_bend,
    width,
)
from undo_probe.randomness import generator

FITS = 60
"""Steps of L-BFGS: the gains are near one to begin with."""


@dataclass(frozen=True, eq=False)
class Woven:
    """A rug as ``W_in = diag(gain) H_s``, ``W_out = W_in^T``, H_s orthonormal Hadamard rows, and one bias for all."""

    n_s: int
    rows: Int[Tensor, " n_d"]
    gain: Float[Tensor, " n_d"]
    bias: float

    def model(self) -> Autoencoder:
        """It as an autoencoder, in float64."""
        model = Autoencoder(self.n_s, len(self.rows)).double()
        encoder = hadamard(self.n_s)[self.rows] * self.gain[:, None]
        with torch.no_grad():
            model.W_in.copy_(encoder)
            model.W_out.copy_(encoder.T)
            model.b.fill_(self.bias)
        return model


def hadamard(n_s: int) -> Float[Tensor, "n_s n_s"]:
    """The Sylvester-Hadamard matrix with orthonormal rows, in float64."""
    return walsh_hadamard(torch.eye(n_s, dtype=torch.float64)) * n_s**-0.5


def woven(n_s: int, r: float, p: float, seed: int = 0) -> Woven:
    """The rug with theory's parameters, as :func:`undo_probe.persian_rug.engineered.weights` makes it.

    Raises:
        UndoProbeError: n_s is no power of two, or the sizes make no rug.
    """
    if n_s & (n_s - 1):
        raise UndoProbeError(
            f"n_s is {n_s}: expected a power of two, for the rug has its symmetry only there"
        )
    made = weights(n_s, r, p, kind="hadamard", seed=seed)
    # the frame's rows, found by what they say to each Hadamard row
    said = made.frame.down(hadamard(n_s)).abs().amax(1)
    rows = said.argsort(descending=True)[: made.frame.n_d].sort().values
    return Woven(n_s, rows, torch.full((len(rows),), made.scale, dtype=torch.float64), float(made.bias[0]))


def settled(rug: Woven, p: float, rows: int = 8192, seed: int = 0) -> Woven:
    """The rug with its gains and its bias tuned: a critical point of the whole expected loss.

    Theory's parameters are those of n_s -> infinity; at a finite size the loss still slopes there, equally for what
    the symmetry makes equal: one gain for each Hadamard row, and one bias. A minimum among these is a critical
    point among all parameters (Palais' principle of symmetric criticality), up to sampling; every output counts, so
    a few thousand rows of features tune a few hundred numbers well.
    """
    from scipy.optimize import minimize

    encoder = rug.model().W_in.detach()
    x = features(rows, rug.n_s, p, generator(seed, "settle", rug.n_s, p)).double()
    unit = float(rug.gain.square().mean())

    def loss(at: np.ndarray) -> tuple[float, np.ndarray]:
        tuned = torch.from_numpy(at).requires_grad_(True)
        y = torch.relu((x @ encoder.T * tuned[:-1]) @ encoder + tuned[-1] * rug.bias)
        value = (y - x).square().sum(1).mean()
        (slope,) = torch.autograd.grad(value, tuned)
        return value.item() / unit, slope.numpy() / unit

    best = minimize(loss, np.ones(len(encoder) + 1), jac=True, method="L-BFGS-B", options={"maxiter": FITS})
    found = torch.from_numpy(best.x)
    return Woven(rug.n_s, rug.rows, rug.gain * found[:-1].clamp_min(0).sqrt(), rug.bias * float(found[-1]))


@dataclass(frozen=True, eq=False)
class Blocks:
    """The four ingredients of the module's docstring, from a sample."""

    rug: Woven
    pair: Float[Tensor, "n_s n_s"]
    single: Float[Tensor, " n_s"]
    residual: Float[Tensor, " n_s"]
    level: float

    def block(self, t: int) -> Float[Tensor, "direction direction"]:
        """Block t: encoder, decoder and bias, 2 n_d + 1 directions of unit length."""
        here, w = self.rug.rows, self.rug.gain
        there, both = here ^ t, w[:, None] * w
        cross = both * self.pair[there][:, here] + torch.diag(self.residual[there])
        sides = [both * self.pair[there][:, there], cross, (w * self.single[there])[:, None]]
        lower = [cross.T, both * self.pair[here][:, here], (w * self.single[here])[:, None]]
        last = [sides[2].T, lower[2].T, torch.tensor([[self.level]], dtype=w.dtype)]
        return torch.cat([torch.cat(each, dim=1) for each in (sides, lower, last)])

    def direction(self, t: int, v: Float[Tensor, " direction"]) -> Direction:
        """What a vector of block t does to the weights."""
        h, n_d = hadamard(self.rug.n_s), len(self.rug.rows)
        there = h[self.rug.rows ^ t]
        encoder, decoder, bias = v.split([n_d, n_d, 1])
        return Direction(encoder[:, None] * there, (decoder[:, None] * there).T, bias * h[t])


def blocks(rug: Woven, p: float, rows: int = 8192, seed: int = 0) -> Blocks:
    """The Hessian of the smoothed loss at a rug, in float64; M is made diagonal by diagonal of u xor v."""
    n, model = rug.n_s, rug.model()
    at, h = parameters(model), width(model, p)
    numbers, source = torch.arange(n), generator(seed, "blocks", n, p)
    pair = torch.zeros(n, n, dtype=torch.float64)
    single, residual, level = torch.zeros(n).double(), torch.zeros(n).double(), 0.0
    for begin in range(0, rows, CHUNK):
        x = features(min(CHUNK, rows - begin), n, p, source).double()
        slope, bend = slope_and_bend(x @ at.W_in.T @ at.W_out.T + at.b, x, h)
        wave, slopes, bends = (walsh_hadamard(each).T * n**-0.5 for each in (x, slope, bend))
        wave, bends = wave.contiguous(), bends.contiguous() * n**-0.5
        for k in range(n):
            pair[numbers, numbers ^ k] += (wave * wave[numbers ^ k]) @ bends[k]
        single += (wave * bends).sum(1)
        residual += (wave * slopes).sum(1)
        level += float(bends[0].sum())
    return Blocks(rug, pair / rows, single / rows, residual / rows, level / rows)


def rug_curvature(
    n_s: int, r: float, p: float, rows: int = 8192, seed: int = 0, settle: bool = True
) -> tuple[Autoencoder, Curvature]:
    """The exact rug, settled unless told not to, and the direction in which it curves down the most.

    All blocks are solved; the least eigenvalue's direction is measured again on rows that did not choose it.
    """
    rug = woven(n_s, r, p, seed)
    rug = settled(rug, p, rows, seed) if settle else rug
    found = blocks(rug, p, rows, seed)
    ends = [torch.linalg.eigvalsh(found.block(t))[[0, -1]] for t in range(n_s)]
    least, most = (torch.stack(ends)[:, end] for end in (0, 1))
    t = int(least.argmin())
    vectors = torch.linalg.eigh(found.block(t)).eigenvectors
    model, direction = rug.model(), found.direction(t, vectors[:, 0])
    return model, remeasured(model, direction, p, rows, seed, float(least[t]), float(most.max()))
