"""The Persian Rug itself: weights made from theory, with nothing fitted, that are never stored as a matrix.

``W = (a / r) P`` with P an orthogonal projector of rank n_d whose rows are alike. From rows of a Hadamard matrix
every row of W is a permutation of every other, so diagonal, interference and all its moments are equal exactly
(arXiv 2410.12101). The first row of the Hadamard matrix, all ones, is left out: the rows of W then sum to nought.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.linalg import orthonormal_basis
from undo_probe.persian_rug.theory import optimum, shares
from undo_probe.randomness import derive_seed, generator

FRAMES = ("hadamard", "harmonic", "haar")
DRAWS, LOOSE = 50, 2.0
"""Draws of rows before giving up, and how far above its expected value the coherence may lie."""
FINE = 1e-2
"""Below this p, one float32 draw has too few values under p to be uniform there."""


def walsh_hadamard(x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
    """``x H`` for the Sylvester-Hadamard matrix, entry (-1)^popcount(i & j), in n log2 n additions a row.

    Raises:
        UndoProbeError: n is no power of two.
    """
    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise UndoProbeError(f"a Walsh-Hadamard transform of {n} values: expected a power of two")
    shape, half = x.shape, 1
    while half < n:
        pairs = x.reshape(-1, n // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        x = torch.stack((first + second, first - second), dim=2)
        half *= 2
    return x.reshape(shape)


@dataclass(frozen=True, eq=False)
class Frame:
    """``n_d`` orthonormal rows in n_s dimensions; ``coherence`` is the largest |P_ij| / P_ii off the diagonal.

    ``down`` takes (row, n_s) to (row, n_d), ``up`` is its transpose. ``diagonal`` are the P_ii: all r but for Haar,
    where they only have that mean.
    """

    kind: str
    n_s: int
    n_d: int
    coherence: float
    diagonal: Float[Tensor, " n_s"]
    down: Callable[[Tensor], Tensor] = field(repr=False)
    up: Callable[[Tensor], Tensor] = field(repr=False)


def frame(n_s: int, n_d: int, kind: str = "auto", seed: int = 0) -> Frame:
    """Rows for a rug: ``hadamard`` where n_s is a power of two, ``harmonic`` for any other size, or ``haar``.

    Hadamard and harmonic rows are drawn again while two features lie too near each other: the first n_d rows, say,
    n_d a power of two, would make exact duplicates. Harmonic rows are pairs of a cosine and a sine, and where n_d
    is odd the alternating row, or for odd n_s the constant one. Haar is the span of Gaussian vectors, kept as a
    matrix.

    Raises:
        UndoProbeError: sizes or kind that make no rug.
    """
    if not 1 <= n_d < n_s:
        raise UndoProbeError(
            f"n_s = {n_s} features in n_d = {n_d} dimensions: expected at least 1 dimension, and more features"
        )
    power = n_s & (n_s - 1) == 0
    if kind == "auto":
        kind = "hadamard" if power else "harmonic"
    if kind not in FRAMES or (kind == "hadamard" and not power):
        raise UndoProbeError(
            f"the frame is {kind!r} for n_s = {n_s}: expected one of auto, {', '.join(FRAMES)}; "
            "hadamard needs a power of two"
        )
    if kind == "haar":
        return _haar(n_s, n_d, seed)
    for draw in range(DRAWS):
        made = (_hadamard if kind == "hadamard" else _harmonic)(n_s, n_d, seed, draw)
        if made.coherence < min(1 - 1e-6, LOOSE * expected_coherence(n_s, n_d)):
            return made
    raise UndoProbeError(
        f"{DRAWS} draws of {n_d} of {n_s} {kind} rows left two features too near each other: the sizes are too small "
        "for a rug, take more dimensions or kind='haar'"
    )


def expected_coherence(n_s: int, n_d: int) -> float:
    """``sqrt(2 ln(n_s) (1 - r) / n_d)``: the maximum of n_s Gaussian values of the off-diagonal's variance."""
    return math.sqrt(2 * math.log(n_s) * (1 - n_d / n_s) / n_d)


def _hadamard(n_s: int, n_d: int, seed: int, draw: int) -> Frame:
    source = generator(seed, "hadamard rows", n_s, n_d, draw)
    rows = (1 + torch.randperm(n_s - 1, generator=source)[:n_d]).sort().values
    scale = n_s**-0.5

    def down(x: Tensor) -> Tensor:
        return walsh_hadamard(x)[..., rows.to(x.device)] * scale

    def up(h: Tensor) -> Tensor:
        return walsh_hadamard(_scattered(h, rows, n_s)) * scale

    # P_ij depends on i xor j only: the first row says all
    return Frame("hadamard", n_s, n_d, _first_row_coherence(up, down, n_s), _even(n_s, n_d), down, up)


def _harmonic(n_s: int, n_d: int, seed: int, draw: int) -> Frame:
    source = generator(seed, "harmonic rows", n_s, n_d, draw)
    pairs = (n_s - 1) // 2
    found = (1 + torch.randperm(pairs, generator=source)[: n_d // 2]).sort().values
    alone = torch.tensor([n_s // 2 if n_s % 2 == 0 else 0] if n_d % 2 else [], dtype=torch.long)
    scale = (2 / n_s) ** 0.5

    def down(x: Tensor) -> Tensor:
        waves = torch.fft.rfft(x)
        both = waves[..., found.to(x.device)] * scale
        return torch.cat([both.real, both.imag, waves[..., alone.to(x.device)].real * n_s**-0.5], dim=-1)

    def up(h: Tensor) -> Tensor:
        cosine, sine, rest = h.split([len(found), len(found), len(alone)], dim=-1)
        waves = torch.complex(cosine, sine) * (n_s * scale / 2)
        waves = _scattered(waves, found, n_s // 2 + 1)
        return torch.fft.irfft(waves + _scattered(rest * n_s**0.5, alone, n_s // 2 + 1), n=n_s)

    return Frame("harmonic", n_s, n_d, _first_row_coherence(up, down, n_s), _even(n_s, n_d), down, up)


def _haar(n_s: int, n_d: int, seed: int) -> Frame:
    draw = torch.randn(n_s, n_d, generator=generator(seed, "haar rows", n_s, n_d))
    basis = orthonormal_basis(draw.double()).float()
    lengths = basis.square().sum(1)
    inner = (basis @ basis.T).fill_diagonal_(0.0).abs().amax(1)
    return Frame(
        "haar",
        n_s,
        n_d,
        float((inner / lengths).max()),
        lengths,
        lambda x: x @ basis.to(x),
        lambda h: h @ basis.T.to(h),
    )


def _even(n_s: int, n_d: int) -> Tensor:
    return torch.full((n_s,), n_d / n_s)


def _scattered(values: Tensor, places: Int[Tensor, " chosen"], width: int) -> Tensor:
    out = values.new_zeros(*values.shape[:-1], width)
    out[..., places.to(values.device)] = values
    return out


def _first_row_coherence(up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor], n_s: int) -> float:
    one = torch.zeros(1, n_s, dtype=torch.float64)
    one[0, 0] = 1.0
    row = up(down(one))[0]
    return float(row[1:].abs().max() / row[0])


@dataclass(frozen=True, eq=False)
class Rug:
    """A forward-engineered autoencoder: ``relu(W x + bias)`` with ``W = (a / r) P``, all parameters from theory.

    Encoder and decoder are balanced: each is sqrt(a / r) times the frame's rows, so decoder rows have squared norm a.
    """

    frame: Frame
    p: float
    a: float
    bias: Float[Tensor, " n_s"]

    @property
    def r(self) -> float:
        """Dimensions over features."""
        return self.frame.n_d / self.frame.n_s

    @property
    def scale(self) -> float:
        """What the rows of the frame are multiplied by, on either side."""
        return math.sqrt(self.a / self.r)

    def encode(self, x: Float[Tensor, "row n_s"]) -> Float[Tensor, "row n_d"]:
        """Hidden states."""
        return self.frame.down(x) * self.scale

    def decode(self, h: Float[Tensor, "row n_d"]) -> Float[Tensor, "row n_s"]:
        """Outputs."""
        return torch.relu(self.frame.up(h) * self.scale + self.bias.to(h))

    def __call__(self, x: Float[Tensor, "row n_s"]) -> Float[Tensor, "row n_s"]:
        """Outputs for features."""
        return self.decode(self.encode(x))

    def matrices(self) -> tuple[Float[Tensor, "n_d n_s"], Float[Tensor, "n_s n_d"]]:
        """Encoder and decoder as matrices, for sizes at which that is wanted."""
        encoder = self.encode(torch.eye(self.frame.n_s)).T.contiguous()
        return encoder, encoder.T.contiguous()


def weights(n_s: int, r: float, p: float = 0.045, *, kind: str = "auto", seed: int = 0) -> Rug:
    """The forward-engineered model of ``round(r n_s)`` dimensions for features of rate ``p``.

    a, m and tau are those of :func:`undo_probe.persian_rug.theory.optimum`. The interference of output i has the
    mean ``mu_i = (p/2) sum_{j != i} W_ij``, so the bias is ``a m - mu_i``; without the row of ones that is ``a (m +
    p/2)``.

    Raises:
        UndoProbeError: r or p is not between 0 and 1, or the sizes make no rug.
    """
    r, p = float(shares("r", r)), float(shares("p", p))
    made = frame(n_s, max(1, round(r * n_s)), kind, seed)
    ratio = made.n_d / n_s
    best = optimum(ratio, p)
    a = float(best.a)
    sums = made.up(made.down(torch.ones(1, n_s, dtype=torch.float64)))[0]
    mean = p / 2 * (a / ratio) * (sums - made.diagonal.double())
    return Rug(made, p, a, (a * float(best.m) - mean).float())


def features(
    rows: int, n_s: int, p: float, source: torch.Generator, device: str | torch.device = "cpu"
) -> Float[Tensor, "row n_s"]:
    """Sparse features: ``x_i`` is uniform on [0, 1] with probability p, else 0. One draw an entry serves both.

    ``source`` must be a generator of ``device``.
    """
    dtype = torch.float64 if p < FINE else torch.float32
    draw = torch.rand(rows, n_s, generator=source, dtype=dtype, device=device)
    return torch.where(draw < p, draw / p, 0.0).float()


class Measured(NamedTuple):
    """A mean over rows and its standard error."""

    value: float
    error: float


def measured_loss(
    model: Callable[[Tensor], Tensor],
    n_s: int,
    p: float,
    rows: int,
    seed: int = 0,
    chunk: int = 256,
    device: str = "cpu",
) -> Measured:
    """Mean square error a output on fresh features, over ``rows`` rows; for a :class:`Rug` or a trained model."""
    source = torch.Generator(device).manual_seed(derive_seed(seed, "held-out features", n_s, p))
    found = []
    with torch.no_grad():
        for start in range(0, rows, chunk):
            x = features(min(chunk, rows - start), n_s, p, source, device)
            found.append((model(x) - x).square().mean(1).double().cpu())
    losses = torch.cat(found)
    return Measured(float(losses.mean()), float(losses.std() / len(losses) ** 0.5))
