"""What damages weights: noise by parameter name, rounding and pruning of one matrix; pure functions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.randomness import generator


def flat_shape(name: str, tensor: Tensor) -> tuple[int, int] | None:
    """(fan_in, fan_out) of a weight as the matrix it is, or None for biases and norm parameters.

    Decided by name: HookedTransformer stores attention matrices per head (``W_Q`` is head x d_model x d_head,
    ``W_O`` head x d_head x d_model) and attention biases as matrices (``b_Q`` is head x d_head).
    """
    leaf = name.rpartition(".")[2]
    if not leaf.startswith("W_"):
        return None
    if leaf in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
        heads, d_model, d_head = tensor.shape
        return d_model, heads * d_head
    if leaf == "W_O":
        heads, d_head, d_model = tensor.shape
        return heads * d_head, d_model
    fan_in, fan_out = tensor.shape
    return fan_in, fan_out


def is_gain(name: str) -> bool:
    """Whether the parameter is a norm's gain, which starts at one."""
    parts = name.split(".")
    return parts[-1] == "w" and parts[-2].startswith("ln")


def shrink_and_perturb(
    parameters: dict[str, Tensor], alpha: float, beta: float, seed: int, gains: str = "one"
) -> dict[str, Tensor]:
    """UNDO's noise: ``(1 - alpha) W + alpha beta N`` (arXiv 2506.06278).

    N is Xavier-uniform, U(-b, b) with ``b = sqrt(6 / (fan_in + fan_out))`` of the flattened matrix, for weight
    matrices and embeddings, and zero for biases. A norm's gain shrinks toward ``gains``: ``one`` is what the
    reference does to Gemma, whose stored gain is an offset from one; ``zero`` scales the gain itself.

    Args:
        parameters: name to tensor; a tied tensor appears once.
        alpha: 0 changes nothing, 1 leaves only noise.
        beta: scale of the noise.
        seed: every tensor has its own stream, so a subset of parameters gets the same noise.
        gains: ``one`` or ``zero``.

    Raises:
        UndoProbeError: alpha or beta outside 0..1, or an unknown ``gains``.
    """
    for label, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise UndoProbeError(f"{label} is {value:g}: expected a number from 0 to 1")
    if gains not in ("one", "zero"):
        raise UndoProbeError(f"gains is {gains!r}: expected 'one' (a norm's initial gain) or 'zero'")
    noised = {}
    for name, tensor in parameters.items():
        fans = flat_shape(name, tensor)
        if fans is not None:
            bound = math.sqrt(6 / sum(fans))
            draw = torch.rand(tensor.shape, generator=generator(seed, "noise", name)) * (2 * bound) - bound
            noised[name] = (1 - alpha) * tensor + alpha * beta * draw.to(tensor)
        elif is_gain(name) and gains == "one":
            noised[name] = (1 - alpha) * tensor + alpha
        else:
            noised[name] = (1 - alpha) * tensor
    return noised


def quantise(matrix: Float[Tensor, "fan_in fan_out"], bits: int) -> Float[Tensor, "fan_in fan_out"]:
    """Round to nearest on a symmetric grid of ``bits`` bits, one scale for each output column.

    The grid is ``scale * (-m .. m)`` with ``m = 2^(bits - 1) - 1`` and ``scale`` the column's largest absolute weight
    over m, kept in bfloat16 as stored formats keep theirs short: every product is then exact in float32, so
    rounding twice changes nothing. The error is at most half a step.

    Raises:
        UndoProbeError: fewer than 2 or more than 8 bits.
    """
    if not 2 <= bits <= 8:
        raise UndoProbeError(f"bits is {bits}: expected a whole number from 2 to 8")
    most = 2 ** (bits - 1) - 1
    scale = (matrix.abs().amax(dim=0) / most).bfloat16().to(matrix.dtype)
    step = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (matrix / step).round().clamp(-most, most) * scale


def prune(matrix: Float[Tensor, "fan_in fan_out"], share: float) -> Float[Tensor, "fan_in fan_out"]:
    """The matrix with the ``share`` of its entries that are smallest in absolute value set to zero.

    Exactly ``round(share * entries)`` are; among equals the first go.

    Raises:
        UndoProbeError: a share outside 0..1.
    """
    if not 0 <= share <= 1:
        raise UndoProbeError(f"share is {share:g}: expected a number from 0 to 1")
    order = matrix.abs().flatten().argsort(stable=True)
    kept = matrix.flatten().clone()
    kept[order[: round(share * matrix.numel())]] = 0
    return kept.view_as(matrix)
