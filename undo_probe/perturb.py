"""What damages weights: noise by parameter name, rounding and pruning of one matrix; pure functions."""

import math
import re

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.config import NoiseRule
from undo_probe.errors import UndoProbeError
from undo_probe.models import as_matrix
from undo_probe.randomness import generator


def flat_shape(name: str, tensor: Tensor) -> tuple[int, int] | None:
    """(fan_in, fan_out) of a weight as the matrix it is, or None for biases and norm parameters.

    Decided by name: HookedTransformer stores attention matrices per head, and attention biases as matrices
    (``b_Q`` is head x d_head).
    """
    leaf = name.rpartition(".")[2]
    if not leaf.startswith(("W_", "_W_")):
        return None
    fan_in, fan_out = as_matrix(name, tensor).shape
    return fan_in, fan_out


def is_gain(name: str) -> bool:
    """Whether the parameter is a norm's gain, which starts at one."""
    parts = name.split(".")
    return parts[-1] == "w" and (parts[-2].startswith("ln") or parts[-2] in ("q_norm", "k_norm"))


def damage(
    parameters: dict[str, Tensor],
    rule: NoiseRule,
    alpha: float,
    seed: int,
    init_std: float | None = None,
    before: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The parameters after ``rule`` at strength ``alpha``, wherever the rule applies.

    Args:
        parameters: name to tensor; a tied tensor appears once.
        rule: how, and where.
        alpha: 0 changes nothing; 1 leaves only noise, or prunes everything.
        seed: every tensor has its own stream, so a subset of parameters gets the same noise.
        init_std: deviation of the model's own initial weights, for ``draw = "init"``.
        before: the parameters before unlearning, for ``top_delta``.

    Raises:
        UndoProbeError: alpha outside 0..1, a layer or head that the model lacks, or one of the last two
            arguments is needed and missing.
    """
    _check_share("alpha", alpha)
    if rule.rule == "prune":
        changed = {
            name: tensor.clone() if flat_shape(name, tensor) is None else prune(tensor, alpha)
            for name, tensor in parameters.items()
        }
    else:
        if rule.draw == "init" and init_std is None:
            raise UndoProbeError("draw is 'init', but the model does not say how its weights were drawn")
        spread = init_std if rule.draw == "init" else None
        changed = shrink_and_perturb(parameters, alpha, rule.beta, seed, rule.gains, spread)
    if rule.rule == "jitter":
        changed = {name: jitter(name, tensor, changed[name], seed) for name, tensor in parameters.items()}
    for name, mask in touched(parameters, rule, before).items():
        if mask is not None:
            changed[name] = torch.where(mask, changed[name], parameters[name])
    return changed


def shrink_and_perturb(
    parameters: dict[str, Tensor],
    alpha: float,
    beta: float,
    seed: int,
    gains: str = "one",
    init_std: float | None = None,
) -> dict[str, Tensor]:
    """UNDO's noise: ``(1 - alpha) W + alpha beta N`` (arXiv 2506.06278).

    N is Xavier-uniform, U(-b, b) with ``b = sqrt(6 / (fan_in + fan_out))`` of the flattened matrix, for weight
    matrices and embeddings, and zero for biases. With ``init_std`` N is normal with that deviation instead, as
    HookedTransformer draws its weights: at beta 1 this goes toward a fresh model. A norm's gain shrinks toward
    ``gains``: ``one`` is what the reference does to Gemma, whose stored gain is an offset from one; ``zero``
    scales the gain itself.

    Raises:
        UndoProbeError: alpha or beta outside 0..1, or an unknown ``gains``.
    """
    _check_share("alpha", alpha)
    _check_share("beta", beta)
    if gains not in ("one", "zero"):
        raise UndoProbeError(f"gains is {gains!r}: expected 'one' (a norm's initial gain) or 'zero'")
    noised = {}
    for name, tensor in parameters.items():
        fans = flat_shape(name, tensor)
        if fans is not None:
            draw = _noise(tensor.shape, fans, init_std, generator(seed, "noise", name))
            noised[name] = (1 - alpha) * tensor + alpha * beta * draw.to(tensor)
        elif is_gain(name) and gains == "one":
            noised[name] = (1 - alpha) * tensor + alpha
        else:
            noised[name] = (1 - alpha) * tensor
    return noised


def jitter(name: str, tensor: Tensor, like: Tensor, seed: int) -> Tensor:
    """A weight matrix moved as far as ``like`` lies from it, in a random direction; others as they are."""
    fans = flat_shape(name, tensor)
    if fans is None:
        return tensor.clone()
    way = _noise(tensor.shape, fans, None, generator(seed, "jitter", name)).to(tensor)
    return tensor + way * ((like - tensor).norm() / way.norm())


def _check_share(label: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UndoProbeError(f"{label} is {value:g}: expected a number from 0 to 1")


def _noise(
    shape: torch.Size, fans: tuple[int, int], init_std: float | None, source: torch.Generator
) -> Tensor:
    if init_std is not None:
        return torch.randn(shape, generator=source) * init_std
    bound = math.sqrt(6 / sum(fans))
    return torch.rand(shape, generator=source) * (2 * bound) - bound


def touched(
    parameters: dict[str, Tensor], rule: NoiseRule, before: dict[str, Tensor] | None = None
) -> dict[str, Tensor | None]:
    """Name to a mask of the entries that the rule may change; None where that is all of them."""
    where: dict[str, Tensor | None] = dict.fromkeys(parameters)
    if rule.layers is not None or rule.heads is not None:
        _check_places(parameters, rule)
        where = {name: _in_place(name, tensor, rule) for name, tensor in parameters.items()}
    if rule.top_delta is None:
        return where
    if before is None:
        raise UndoProbeError("top_delta needs the model before unlearning: give it as `before`")
    moved = _most_moved(parameters, before, rule.top_delta)
    return {name: moved[name] if mask is None else mask & moved[name] for name, mask in where.items()}


def _check_places(parameters: dict[str, Tensor], rule: NoiseRule) -> None:
    layers = {int(found[1]) for name in parameters if (found := re.match(r"blocks\.(\d+)\.", name))}
    wrong = sorted(set(rule.layers or ()) - layers)
    if wrong:
        raise UndoProbeError(f"layers has {wrong[0]}, but the model has layers 0..{max(layers)}")
    for head in rule.heads or ():
        layer, _, number = head.partition(".")
        query = parameters.get(f"blocks.{layer}.attn.W_Q")
        if query is None or int(number) >= len(query):
            size = f"{len(layers)} layers of {len(parameters['blocks.0.attn.W_Q'])} heads"
            raise UndoProbeError(f"heads has {head!r} (layer.head), but the model has {size}")
        if f"blocks.{layer}.attn._W_K" in parameters:
            raise UndoProbeError("heads cannot be noised one by one where several share keys: use layers")


def _in_place(name: str, tensor: Tensor, rule: NoiseRule) -> Tensor:
    """Whole blocks, or of attention only the slices of single heads; the head is the first axis."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    if rule.layers is not None:
        return mask | name.startswith(tuple(f"blocks.{layer}." for layer in rule.layers))
    if name.rpartition(".")[2] in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
        for head in rule.heads or ():
            layer, _, number = head.partition(".")
            if name.startswith(f"blocks.{layer}."):
                mask[int(number)] = True
    return mask


def _most_moved(parameters: dict[str, Tensor], before: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The ``share`` of all entries that unlearning moved furthest: localised UNDO's weight-delta mask."""
    moved = torch.cat([(tensor - before[name]).abs().flatten() for name, tensor in parameters.items()])
    chosen = torch.zeros(len(moved), dtype=torch.bool)
    chosen[moved.cpu().argsort(descending=True, stable=True)[: round(share * len(moved))]] = True
    parts = chosen.to(moved.device).split([tensor.numel() for tensor in parameters.values()])
    return {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}


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


def prune(matrix: Float[Tensor, "..."], share: float) -> Float[Tensor, "..."]:
    """The weight with the ``share`` of its entries that are smallest in absolute value set to zero.

    Exactly ``round(share * entries)`` are; among equals the first go.

    Raises:
        UndoProbeError: a share outside 0..1.
    """
    _check_share("share", share)
    order = matrix.abs().flatten().argsort(stable=True)
    kept = matrix.flatten().clone()
    kept[order[: round(share * matrix.numel())]] = 0
    return kept.view_as(matrix)
