"""Pure tensor maths: projections, streamed PCA, principal angles, CKA, Procrustes.

Nothing here knows of models. Statistics are accumulated in float64 unless a wider type is not available on
the device; eigenvalue problems are solved in float64 (in float32 the subspace error is a thousand times
larger).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError

WIDE, LANCZOS_SHARE = 768, 16
"""From this width on, and for at most this part of it, single components are cheaper than all of them."""
LANCZOS_STEPS, RESTARTS, CONVERGED = 10, 12, 1e-9
"""Products of the matrix before a restart, and restarts before giving up; what may be left, of the largest value."""
PANEL = 512
"""Rows of a scatter matrix that are added to at once: of wider ones only what lies right of the diagonal is summed."""
DEPENDENT = 1e-10
"""A vector whose part outside the span of the earlier ones is below this share of its norm adds nothing."""


def orthonormal_basis(vectors: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
    """An orthonormal basis of the columns, by QR in float64; column 0 keeps its direction.

    Raises:
        UndoProbeError: the columns are zero, not finite, linearly dependent, or more than the dimension.
    """
    d_model, k = vectors.shape
    if not 1 <= k <= d_model:
        raise UndoProbeError(f"got {k} vectors of {d_model} dimensions: give between 1 and {d_model} vectors")
    wide = vectors.detach().double()
    norms = wide.norm(dim=0)
    if not bool(torch.isfinite(wide).all()) or bool((norms == 0).any()):
        raise UndoProbeError(
            "a zero vector, NaN or infinity cannot span a subspace: check how the vectors were made"
        )
    q, r = torch.linalg.qr(wide / norms)
    diagonal = r.diagonal()
    if bool((diagonal.abs() < DEPENDENT).any()):
        rank = int(torch.linalg.matrix_rank(wide / norms))
        raise UndoProbeError(
            f"the {k} vectors span only {rank} dimensions: drop those that are combinations of others"
        )
    return (q * diagonal.sign()).to(vectors.dtype)


def project(
    vectors: Float[Tensor, "*rows d_model"], basis: Float[Tensor, "d_model k"]
) -> Float[Tensor, "*rows d_model"]:
    """The part of each vector inside the span of an orthonormal basis."""
    return (vectors @ basis) @ basis.T


def project_out(
    vectors: Float[Tensor, "*rows d_model"], basis: Float[Tensor, "d_model k"]
) -> Float[Tensor, "*rows d_model"]:
    """The part of each vector outside the span of an orthonormal basis; the argument is left as it is."""
    return vectors - project(vectors, basis)


def projection_share(
    vectors: Float[Tensor, "*rows d_model"], basis: Float[Tensor, "d_model k"]
) -> Float[Tensor, "*rows"]:
    """Squared norm inside the span over squared norm, in [0, 1]; 0 for a zero vector."""
    total = vectors.square().sum(-1)
    inside = (vectors @ basis).square().sum(-1)
    return torch.where(total > 0, (inside / total.clamp_min(torch.finfo(total.dtype).tiny)).clamp(0, 1), 0.0)


@dataclass(frozen=True, eq=False)
class PCA:
    """Principal components about the mean, in descending order of variance (n - 1 in the denominator)."""

    mean: Float[Tensor, " d_model"]
    basis: Float[Tensor, "d_model k"]
    variances: Float[Tensor, " k"]
    total_variance: float
    n: int

    def first(self, k: int) -> "PCA":
        """The leading ``k`` of these components, or all if they are fewer."""
        return replace(self, basis=self.basis[:, :k], variances=self.variances[:k])

    def basis_with_mean(self) -> Float[Tensor, "d_model joined"]:
        """The mean direction first, then the components orthogonal to it (joined by QR).

        Where the mean lies in their span already (or is zero up to rounding) this is the components' own basis.
        """
        norm = self.mean.norm()
        if is_rounding(norm, self.total_variance) or project_out(self.mean / norm, self.basis).norm() < 1e-7:
            return self.basis
        return orthonormal_basis(torch.cat([self.mean[:, None], self.basis], dim=1))


def is_rounding(norm: Float[Tensor, ""], total_variance: float) -> bool:
    """Whether a mean of this norm has no direction but that of its rounding errors.

    Gradients at an attention's keys are an example: they sum to zero, for a constant added to all keys changes nothing.
    """
    return float(norm) <= torch.finfo(norm.dtype).eps ** 0.75 * total_variance**0.5


class StreamedPCA:
    """Mean and covariance of vectors that arrive in batches; the data is never kept.

    Chan's merge of centred moments, in float64: unlike the sum of outer products minus the outer product of
    the mean it does not cancel when one coordinate has a large mean. Memory is d_model squared.
    """

    def __init__(
        self, d_model: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float64
    ) -> None:
        """Starts empty; ``dtype`` is that of the accumulators, float32 or wider."""
        if dtype not in (torch.float32, torch.float64):
            raise UndoProbeError(f"statistics in {dtype} lose their digits: choose float32 or float64")
        self.n = 0
        self.mean: Float[Tensor, " d_model"] = torch.zeros(d_model, device=device, dtype=dtype)
        self._scatter = torch.zeros(d_model, d_model, device=device, dtype=dtype)

    def update(self, batch: Float[Tensor, "*rows d_model"]) -> "StreamedPCA":
        """Takes in a batch of vectors of any leading shape."""
        rows = batch.detach().flatten(0, -2) if batch.ndim > 1 else batch.detach()[None]
        if not len(rows):
            return self
        rows = rows.to(self._scatter)
        mean = rows.mean(0)
        centred = rows - mean
        for start in range(0, rows.shape[1], PANEL):
            panel = slice(start, start + PANEL)
            self._scatter[panel, start:].addmm_(centred[:, panel].T, centred[:, start:])
        self._shift(len(rows), mean)
        return self

    def merge(self, other: "StreamedPCA") -> "StreamedPCA":
        """Takes in all that another one has seen."""
        if other.n:
            self._scatter += other._scatter.to(self._scatter)
            self._shift(other.n, other.mean.to(self.mean))
        return self

    def _shift(self, n: int, mean: Tensor) -> None:
        """Moves the mean towards that of ``n`` more vectors, whose scatter about their own mean is in already."""
        total = self.n + n
        step = mean - self.mean
        self._scatter.addr_(step, step, alpha=self.n * n / total)
        self.mean = self.mean + step * (n / total)
        self.n = total

    def covariance(self) -> Float[Tensor, "d_model d_model"]:
        """The unbiased covariance."""
        if self.n < 2:
            raise UndoProbeError(f"a covariance needs at least 2 vectors, this one has seen {self.n}")
        found = self._scatter / (self.n - 1)
        if len(found) <= PANEL:
            return found
        # copied first: to add the transposed view itself takes longer
        mirrored = found.triu_().T.contiguous()
        mirrored.diagonal().zero_()
        return found.add_(mirrored)

    def components(self, k: int, at_most: bool = False) -> PCA:
        """The ``k`` leading principal components, by Lanczos' method where they are few in a wide space.

        With ``at_most``, only those that carry variance; at least one must.

        Raises:
            UndoProbeError: fewer than ``k`` directions carry variance, or none at all.
        """
        covariance = self.covariance().double()
        width, total = len(covariance), float(covariance.diagonal().clamp_min(0).sum())
        few = width >= WIDE and LANCZOS_SHARE * k <= width and k < self.n
        values, vectors = _leading(covariance, k) if few else _all(covariance)
        floor = values[0].clamp_min(0) * width * torch.finfo(values.dtype).eps
        rank = int((values > floor).sum())
        k = min(k, max(rank, 1)) if at_most else k
        if not 1 <= k <= rank:
            found = rank if rank < len(values) or not few else f"{rank} or more"
            raise UndoProbeError(
                f"asked for {k} principal components: {self.n} vectors of width {width} have {found}"
            )
        vectors = vectors[:, :k]
        # Fixed signs, so that equal data gives equal numbers: the largest entry is positive.
        signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        kept = (vectors * signs).to(self.mean.dtype)
        return PCA(self.mean, kept, values[:k].to(self.mean.dtype), total, self.n)


def _all(covariance: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0), vectors.flip(1)


def _leading(covariance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` largest eigenvalues with their vectors: block Lanczos, restarted from what it found.

    Rayleigh-Ritz in the span of ``X, AX, ..., A^s X`` (Golub and Underwood 1977) with more columns in X than are
    wanted: a block of products costs little more than one, and converges by the gap behind the block.
    """
    width, block = len(covariance), k + max(10, k // 2)
    # a fixed start, so that equal data gives equal numbers; of no particular direction
    start = np.random.default_rng(0).standard_normal((width, block))
    front = torch.linalg.qr(torch.from_numpy(start).to(covariance)).Q
    for _ in range(RESTARTS):
        basis, products = front, covariance @ front
        newest = products
        while basis.shape[1] + block <= min(width, LANCZOS_STEPS * block):
            for _again in range(2):  # once leaves rounding behind
                newest = newest - basis @ (basis.T @ newest)
            newest = torch.linalg.qr(newest).Q
            basis = torch.cat([basis, newest], dim=1)
            newest = covariance @ newest
            products = torch.cat([products, newest], dim=1)
        inner = basis.T @ products
        values, turn = torch.linalg.eigh((inner + inner.T) / 2)
        values, turn = values.flip(0)[:block], turn.flip(1)[:, :block]
        front = basis @ turn
        left = products @ turn[:, :k] - front[:, :k] * values[:k]
        if float(left.norm(dim=0).max()) <= CONVERGED * float(values[0]):
            return values[:k], front[:, :k]
        front = torch.linalg.qr(front).Q
    return _all(covariance)


def principal_angles(
    a: Float[Tensor, "d_model k"], b: Float[Tensor, "d_model m"]
) -> Float[Tensor, " angles"]:
    """Angles in radians between the spans of two orthonormal bases, ascending, min(k, m) of them.

    Small angles come from sines and large ones from cosines (Björck and Golub 1973): the arc cosine alone
    has no digits below 1e-8.
    """
    a, b = a.double(), b.double()
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    inner = a.T @ b
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(b - a @ inner).clamp(max=1.0).flip(0)
    return torch.where(cosines.square() > 0.5, sines.asin(), cosines.acos())


def linear_cka(x: Float[Tensor, "row d_x"], y: Float[Tensor, "_ d_y"], debiased: bool = True) -> float:
    """Centred kernel alignment with linear kernels; 1 for equal up to rotation and scale.

    The biased form lies in [0, 1] and is far from 0 for independent data unless rows are many times the
    dimension. The debiased one uses the unbiased HSIC U-statistic (Song et al. 2012) in all three places:
    about 0 for independent data, and possibly slightly negative.

    Raises:
        UndoProbeError: rows do not match, are fewer than 4, or all rows of one side are equal.
    """
    x, y = _centred_pair(x, y)
    if debiased:
        return _cka_value(_hsic(x, y), _hsic(x, x), _hsic(y, y))
    # Of X'Y and YY' take the smaller way round; linear kernels need no row-by-row matrix.
    return _cka_value((x.T @ y).square().sum(), (x.T @ x).square().sum(), (y.T @ y).square().sum())


def cka_without_groups(
    x: Float[Tensor, "row d_x"], y: Float[Tensor, "row d_y"], groups: Int[np.ndarray, " row"]
) -> Float[np.ndarray, " group"]:
    """Debiased linear CKA with each group of rows left out in turn (for a jackknife over families).

    Exactly what :func:`linear_cka` gives on the remaining rows, in one pass over all groups.

    Args:
        x: rows of one model.
        y: the same rows of another.
        groups: number of each row's group, 0 to G - 1.
    """
    x, y = _centred_pair(x, y)
    member = torch.from_numpy(np.ascontiguousarray(groups)).long()
    parts = [_hsic_without(a, b, member) for a, b in ((x, y), (x, x), (y, y))]
    return (parts[0] / (parts[1] * parts[2]).clamp_min(0).sqrt()).numpy()


def procrustes_distance(x: Float[Tensor, "row d_x"], y: Float[Tensor, "_ d_y"]) -> float:
    """Squared distance after the best rotation, both centred and of unit Frobenius norm; in [0, 2].

    0 exactly when one is a rotation, shift and scaling of the other; symmetric.
    """
    x, y = _centred_pair(x, y)
    if len(x) < min(
        x.shape[1], y.shape[1]
    ):  # in a basis of what the rows span, which the best rotation undoes
        x, y = (torch.linalg.qr(side.T, mode="r")[1].T for side in (x, y))
    overlap = torch.linalg.svdvals((x / x.norm()).T @ (y / y.norm())).sum()
    return float((2 - 2 * overlap).clamp(0, 2))


def _centred_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if len(x) != len(y) or len(x) < 4:
        raise UndoProbeError(
            f"both sides need the same rows, at least 4, to be compared: got {len(x)} and {len(y)}"
        )
    pair = []
    for side in (x, y):
        wide = side.detach().double().cpu()
        centred = wide - wide.mean(0)
        if float(centred.norm()) <= 1e-12 * float(wide.norm()):
            raise UndoProbeError("all rows of one side are equal, so there is nothing to compare")
        pair.append(centred)
    return pair[0], pair[1]


def _cka_value(cross: Tensor, left: Tensor, right: Tensor) -> float:
    product = float(left) * float(right)
    # An unbiased self-HSIC can come out at or below 0 when rows hold nothing but noise.
    return float(cross) / product**0.5 if product > 0 and float(left) > 0 else float("nan")


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased HSIC of linear kernels, computed in feature space (no row-by-row matrix)."""
    own_x, own_y = x.square().sum(1), y.square().sum(1)
    rows_x, rows_y = x @ x.sum(0) - own_x, y @ y.sum(0) - own_y
    trace = (x.T @ y).square().sum() - (own_x * own_y).sum()
    return _u_statistic(len(x), trace, rows_x.sum(), rows_y.sum(), (rows_x * rows_y).sum())


def _u_statistic(n, trace, sum_x, sum_y, product):  # noqa: ANN001, ANN202  (numbers or tensors alike)
    return (trace + sum_x * sum_y / ((n - 1) * (n - 2)) - 2 * product / (n - 2)) / (n * (n - 3))


def _hsic_without(x: Tensor, y: Tensor, member: Tensor) -> Tensor:
    """The unbiased HSIC with each group left out, from sums over all rows less those of the group."""
    count = int(member.max()) + 1

    def grouped(values: Tensor) -> Tensor:
        return torch.zeros(count, *values.shape[1:], dtype=values.dtype).index_add_(0, member, values)

    # |C - C_g|^2 of the cross products C = X'Y, multiplied out: no group needs a matrix of its own
    cross = x.T @ y
    sizes = torch.bincount(member, minlength=count).tolist()
    order = member.argsort()
    within = [
        ((a @ a.T) * (b @ b.T)).sum()
        for a, b in zip(x[order].split(sizes), y[order].split(sizes), strict=True)
    ]
    trace = cross.square().sum() - 2 * grouped(((x @ cross) * y).sum(1)) + torch.stack(within)
    own_x, own_y = x.square().sum(1), y.square().sum(1)
    trace = trace - ((own_x * own_y).sum() - grouped(own_x * own_y))
    keep = torch.ones(len(x), count, dtype=x.dtype)
    keep[torch.arange(len(x)), member] = 0
    rows_x = (x @ (x.sum(0) - grouped(x)).T - own_x[:, None]) * keep
    rows_y = (y @ (y.sum(0) - grouped(y)).T - own_y[:, None]) * keep
    n = keep.sum(0)
    return _u_statistic(n, trace, rows_x.sum(0), rows_y.sum(0), (rows_x * rows_y).sum(0))
