"""Weights: how far and in which directions training moved them, and whether two models lie in one valley."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.patching import plain_bits
from undo_probe.measures.stitches import asked_rows
from undo_probe.models import HookedTransformer, as_matrix, clone, weights
from undo_probe.tasks.protocol import Task, TokenSet

POINTS = 9
"""Inner points of the straight line between two models at which the loss is taken."""

ENERGY = 0.9

Change = Mapping[str, Float[Tensor, "..."]]
"""Parameter name to what was added to it, float64."""


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a matrix's change, in short.

    ``stable_rank`` is the squared Frobenius norm over the squared largest singular value, from 1 to the rank;
    ``rank_90`` how many singular values hold 90 % of the squared norm.
    """

    values: tuple[float, ...]
    stable_rank: float
    rank_90: int


def weight_measures(
    model: HookedTransformer,
    original: HookedTransformer,
    task: Task,
    related: bool,
    changes: Mapping[str, tuple[Change, Change]] | None = None,
) -> list[ItemScores | Statistic]:
    """Distance from the original's weights, the shape of the change, and the barrier between the two models.

    Args:
        model: the model to place.
        original: where it is placed from.
        task: gives the rows of the barrier: V and held-out retain.
        related: whether the model was trained on from the original's weights. Two trainings from different initial
            weights number their neurons differently, so a line between them crosses a barrier whatever they know.
        changes: pairs of changes whose cosine is wanted, by what they are called.

    Returns:
        ``weight_distance`` (relative L2) of all weights and by tensor; ``change_stable_rank`` and ``change_rank_90``
        of every matrix; ``change_cosine``; ``barrier`` in bits a token, a value a row, forget and retain.
    """
    total = weight_change(model, original)
    distances = weight_distances(model, original)
    found: list[ItemScores | Statistic] = [_number("weight_distance", *each) for each in distances.items()]
    for name in matrices(total):
        if float(total[name].norm()) > 0:
            shape = spectrum(as_matrix(name, total[name]))
            found.append(_number("change_stable_rank", name, shape.stable_rank, "directions"))
            found.append(_number("change_rank_90", name, float(shape.rank_90), "directions"))
    for name, (a, b) in (changes or {}).items():
        found.append(_number("change_cosine", name, cosine(a, b), "cosine"))
    for split in ("forget", "retain"):
        found.append(
            barrier(original, model, asked_rows(task, split), split) if related else _unrelated(split)
        )
    return found


def weight_distances(model: HookedTransformer, original: HookedTransformer) -> dict[str, float]:
    """Relative L2 of all weights together (``all weights``) and of each tensor; a tied tensor once.

    Raises:
        UndoProbeError: the models' tensors differ in name or shape.
    """
    new, old = _alike(model, original)
    moved = {name: float((new[name].double() - old[name].double()).norm()) for name in new}
    sizes = {name: float(old[name].double().norm()) for name in new}
    together = float(np.hypot.reduce([*moved.values()]) / np.hypot.reduce([*sizes.values()]))
    # a bias that starts at 0 has no size to compare with
    return {"all weights": together} | {name: moved[name] / sizes[name] for name in new if sizes[name] > 0}


def weight_change(after: HookedTransformer, before: HookedTransformer) -> dict[str, Tensor]:
    """``after`` less ``before``, tensor by tensor, in float64; a tied tensor once.

    Raises:
        UndoProbeError: the models' tensors differ in name or shape.
    """
    new, old = _alike(after, before)
    return {name: new[name].double() - old[name].double() for name in new}


def _alike(
    after: HookedTransformer, before: HookedTransformer
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    new, old = weights(after), weights(before)
    if {n: t.shape for n, t in new.items()} != {n: t.shape for n, t in old.items()}:
        raise UndoProbeError("the two models have different tensors: compare weights of models of one shape")
    return new, old


def matrices(change: Change) -> list[str]:
    """Names of the weight matrices among the tensors: embeddings, blocks, unembedding."""
    return [name for name in change if name.rpartition(".")[2].startswith(("W_", "_W_"))]


def spectrum(matrix: Float[Tensor, "fan_in fan_out"]) -> Spectrum:
    """The singular values of a change.

    Raises:
        UndoProbeError: the matrix is zero.
    """
    values = torch.linalg.svdvals(matrix.double())
    energy = values.square()
    if not float(energy[0]) > 0:
        raise UndoProbeError("this matrix did not change, so its change has no rank")
    shares = energy.cumsum(0) / energy.sum()
    rank = int((shares < ENERGY).sum()) + 1
    return Spectrum(tuple(values.tolist()), float(energy.sum() / energy[0]), rank)


def cosine(a: Change, b: Change) -> float | None:
    """Cosine between two changes of all weights, in [-1, 1]; None where one of them is zero.

    Of independent changes in n dimensions it is about 0, give or take ``n ** -0.5``.
    """
    lengths = [np.hypot.reduce([float(t.norm()) for t in change.values()]) for change in (a, b)]
    if not min(lengths) > 0:
        return None
    product = sum(float((a[name] * b[name]).sum()) for name in a)
    return product / lengths[0] / lengths[1]


def interpolated(a: HookedTransformer, b: HookedTransformer, share: float) -> HookedTransformer:
    """A copy whose weights lie on the line from ``a`` (0) to ``b`` (1)."""
    between = clone(a)
    theirs = dict(b.named_parameters())
    with torch.no_grad():
        for name, parameter in between.named_parameters():
            parameter.lerp_(theirs[name].to(parameter), share)
    return between


def path_bits(
    a: HookedTransformer, b: HookedTransformer, rows: TokenSet, shares: Sequence[float]
) -> Float[np.ndarray, "share row"]:
    """Cost of each answer in bits a token at points of the line from ``a`` to ``b``."""
    return np.stack([-plain_bits(interpolated(a, b, share), rows) for share in shares])


def barrier(a: HookedTransformer, b: HookedTransformer, rows: TokenSet, split: str) -> ItemScores:
    """Linear mode connectivity: how far the loss on the line between two models rises above the line of losses.

    The largest excess over the inner points (Frankle et al., arXiv 1912.05671), as a value a row at the point where
    the mean is largest; negative where the loss lies below throughout. The point is chosen on the same rows.
    """
    shares = np.linspace(0, 1, POINTS + 2)
    bits = path_bits(a, b, rows, shares.tolist())
    inner = shares[1:-1, None]
    excess = bits[1:-1] - ((1 - inner) * bits[0] + inner * bits[-1])
    highest = int(excess.mean(1).argmax())
    note = f"at {shares[highest + 1]:.1f} of the way from the original"
    subset = "V" if split == "forget" else "all"
    return ItemScores(
        "barrier", split, subset, None, "bits a token", excess[highest], rows.families, note=note
    )


def _number(measure: str, subset: str, value: float | None, unit: str = "ratio") -> Statistic:
    note = "" if value is not None else "one of the two changes is zero"
    return Statistic(measure, "forget", subset, None, unit, value, None, None, 1, 1, note=note)


def _unrelated(split: str) -> Statistic:
    note = "not applicable: trained from other initial weights, whose neurons are numbered differently"
    subset = "V" if split == "forget" else "all"
    return Statistic("barrier", split, subset, None, "bits a token", None, None, None, 0, 0, note=note)
