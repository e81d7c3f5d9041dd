"""Collapse of irrelevant representations: what many inputs share is taken out of a weight's gradient.

CIR (arXiv 2509.11816) removes from the inputs of every linear map, and from the gradients at its outputs, the direction
of their mean and their leading principal components; RepSelect (arXiv 2606.17168) takes both from the singular vectors
of the gradient itself, and removes them softly. What is left of the update is particular to its own rows.

A weight acts from the right here, ``y = a W``: its gradient is the sum over tokens of ``a_t`` by ``g_t``, and removing
the same directions from every ``a_t`` and ``g_t`` is one projection of the finished gradient on each side.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe import linalg
from undo_probe.errors import UndoProbeError
from undo_probe.linear_maps import Loss, linear_maps, token_vectors
from undo_probe.models import HookedTransformer, as_matrix, from_matrix

Rows = tuple[Int[Tensor, "row pos"], Bool[Tensor, "row read"]]
"""Token ids, and which positions' vectors count."""
Softness = Literal["hard", "soft"]


@dataclass(frozen=True, eq=False)
class Side:
    """Directions to take out of vectors of one kind, and how much of each: 1 is all of it.

    ``inverted``, it takes out everything else.
    """

    basis: Float[Tensor, "width k"]
    weight: Float[Tensor, " k"]
    inverted: bool = False

    def remove(self, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """``v - Q diag(w) Q' v`` for each row, or ``Q diag(w) Q' v``; the argument stays as it is."""
        basis = self.basis.to(vectors)
        inside = ((vectors @ basis) * self.weight.to(vectors)) @ basis.T
        return inside if self.inverted else vectors - inside

    def only(self, first: int, end: int) -> "Side":
        """Takes out all but the directions from ``first`` on, before ``end``."""
        return Side(self.basis[:, first:end], self.weight[first:end], inverted=True)


@dataclass(frozen=True, eq=False)
class Bases:
    """What is taken out, by weight: of inputs (``activations``) and of output gradients (``gradients``).

    A weight that stands on one side only is collapsed on that side only; ``weights`` are all that are updated.
    """

    weights: tuple[str, ...]
    activations: dict[str, Side]
    gradients: dict[str, Side]

    def collapse(self, name: str, gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """One weight's gradient with its shared directions gone."""
        matrix = as_matrix(name, gradient)
        if name in self.activations:
            matrix = self.activations[name].remove(matrix.T).T
        if name in self.gradients:
            matrix = self.gradients[name].remove(matrix)
        return from_matrix(name, matrix, gradient.shape)


def collapse_gradients(gradients: Mapping[str, Tensor], bases: Bases) -> dict[str, Tensor]:
    """Gradients with both sides' shared directions gone: ``(I - Qa Wa Qa') G (I - Qg Wg Qg')``.

    Args:
        gradients: by parameter name; parameters that are no linear map of ``bases`` (biases, norms, embeddings) are
            left out of the result, for CIR never updates them.
        bases: see :func:`collapse_bases`.

    Returns:
        New tensors. Equal to the sum of collapsed vectors over the same tokens (:func:`token_gradients`).

    Raises:
        UndoProbeError: a weight of ``bases`` has no gradient.
    """
    lacking = [name for name in bases.weights if gradients.get(name) is None]
    if lacking:
        raise UndoProbeError(
            f"there is no gradient for {lacking[0]}: give those of all {len(bases.weights)} weights of the bases"
        )
    return {name: bases.collapse(name, gradients[name]) for name in bases.weights}


def collapse_bases(
    model: HookedTransformer,
    batches: Iterable[Rows],
    loss: Loss,
    k_act: int,
    k_grad: int,
    *,
    weights: Sequence[str] = (),
    softness: Softness = "hard",
    dtype: torch.dtype = torch.float32,
    at_most: bool = False,
    band: tuple[int, int] | None = None,
) -> Bases:
    """The shared directions of every linear map: that of the mean, and ``k - 1`` principal components.

    One pass of forward and backward over the batches; statistics are streamed, vectors are not kept. Components are
    about the mean, and joined with its direction by QR.

    Args:
        model: left as it is, its gradients too.
        batches: tokens, and the positions whose vectors count: leave out padding, and the first token, whose states are
            like no other's.
        loss: of the model on tokens, one number.
        k_act: directions of inputs, the mean's counted; 0 leaves that side alone.
        k_grad: directions of output gradients.
        weights: endings of the weights that are updated; all of them if empty.
        softness: ``hard`` takes out all of each direction; ``soft`` the share ``1 - s_k / s_i``, s being standard
            deviations, and all of the mean's.
        dtype: of the statistics, float32 or float64; eigenvalue problems are solved in float64.
        at_most: where fewer directions carry variance, take out those: of tokens that all end in the same word, the
            first block's inputs have only a few.
        band: takes out all but the directions from the first number on, before the second, the mean's being number 0;
            with ``k_act`` and ``k_grad`` as large as its end.

    Raises:
        UndoProbeError: more directions than the vectors have, or nothing to collapse.
    """
    if min(k_act, k_grad) < 0:
        raise UndoProbeError(f"k_act is {k_act} and k_grad {k_grad}: give 0 or more directions")
    maps = linear_maps(model, weights)
    inputs, outputs = _Streams(dtype, k_act), _Streams(dtype, k_grad)
    for tokens, kept in batches:
        vectors = token_vectors(model, maps, tokens, kept, loss)
        inputs.update(vectors.inputs)
        outputs.update(vectors.gradients)
    read, written = inputs.sides(softness, at_most, band), outputs.sides(softness, at_most, band)
    return Bases(
        tuple(each.weight for each in maps),
        {each.weight: read[each.inputs] for each in maps if each.inputs in read},
        {each.weight: written[each.outputs] for each in maps if each.outputs in written},
    )


class _Streams:
    """A streamed PCA for every place at which vectors arrive; none if no direction is wanted."""

    def __init__(self, dtype: torch.dtype, k: int) -> None:
        self.dtype, self.k = dtype, k
        self.seen: dict[Any, linalg.StreamedPCA] = {}

    def update(self, vectors: Mapping[Any, Float[Tensor, "token width"]]) -> None:
        if not self.k:
            return
        for place, rows in vectors.items():
            if place not in self.seen:
                self.seen[place] = linalg.StreamedPCA(rows.shape[1], rows.device, self.dtype)
            self.seen[place].update(rows)

    def sides(self, softness: Softness, at_most: bool, band: tuple[int, int] | None) -> dict[Any, Side]:
        if self.k and not self.seen:
            raise UndoProbeError("there is nothing to collapse: no batch was given")
        if band is None:
            return {place: side_of(seen, self.k, softness, at_most) for place, seen in self.seen.items()}
        # all directions together have no order any more
        return {
            place: side_of(seen, min(self.k, len(seen.mean) - 1), softness, at_most=True).only(*band)
            for place, seen in self.seen.items()
        }


def side_of(seen: linalg.StreamedPCA, k: int, softness: Softness = "hard", at_most: bool = False) -> Side:
    """The direction of the mean and ``k - 1`` components of streamed vectors, as an orthonormal basis.

    ``k`` as wide as the vectors is everything. A mean inside the components' span, or one that is zero up to rounding,
    leaves one direction fewer; with ``at_most``, so do components without variance.

    Raises:
        UndoProbeError: fewer directions carry variance.
    """
    width = len(seen.mean)
    if k >= width:
        return Side(
            torch.eye(width, dtype=seen.mean.dtype, device=seen.mean.device), seen.mean.new_ones(width)
        )
    total = float(seen.covariance().diagonal().sum()) if seen.n > 1 else 0.0
    if k == 1 or (at_most and not total > 0):
        lost = linalg.is_rounding(seen.mean.norm(), total)
        mean = seen.mean[:, None][:, :0] if lost else linalg.orthonormal_basis(seen.mean[:, None])
        return Side(mean, mean.new_ones(mean.shape[1]))
    found = seen.components(k - 1, at_most)
    basis = found.basis_with_mean()
    weight = basis.new_ones(basis.shape[1])
    if softness == "soft":
        spread = found.variances.clamp_min(0).sqrt()
        weight[-len(spread) :] = 1 - spread[-1] / spread
    return Side(basis, weight)


def gradient_bases(
    gradients: Mapping[str, Tensor], k: int, weights: Sequence[str] = (), softness: Softness = "soft"
) -> Bases:
    """Both sides' directions from the gradient itself: its leading singular vectors (RepSelect).

    Args:
        gradients: accumulated over the forget rows, by parameter name.
        k: singular vectors, at most the smaller side of each matrix.
        weights: names of the weights that are updated; all matrices in ``gradients`` if empty.
        softness: ``soft`` takes out ``1 - s_k / s_i`` of each, s being singular values.

    Raises:
        UndoProbeError: ``k`` is not positive, or a gradient is zero.
    """
    if k < 1:
        raise UndoProbeError(f"k is {k}: give at least one singular vector")
    names = tuple(weights) or tuple(name for name, found in gradients.items() if found.ndim >= 2)
    read, written = {}, {}
    for name in names:
        matrix = as_matrix(name, gradients[name].detach()).double()
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        if not values[0] > 0:
            raise UndoProbeError(f"the gradient of {name} is zero: nothing can be taken out of it")
        kept = min(k, len(values))
        weight = torch.ones(kept, dtype=values.dtype, device=values.device)
        if softness == "soft":
            weight = 1 - values[kept - 1] / values[:kept].clamp_min(torch.finfo(values.dtype).tiny)
        like = gradients[name].dtype
        read[name] = Side(left[:, :kept].to(like), weight.to(like))
        written[name] = Side(right[:kept].T.to(like), weight.to(like))
    return Bases(names, read, written)


def token_gradients(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    kept: Bool[Tensor, "row read"],
    loss: Loss,
    bases: Bases,
) -> dict[str, Tensor]:
    """The collapsed update token by token: the sum of ``a'_t`` by ``g'_t`` over the kept tokens only.

    An ordinary gradient also holds what tokens that are left out got through attention; where that matters (the first
    token, padding before a row), this is the exact form, and with nothing left out it equals
    :func:`collapse_gradients`.

    Raises:
        UndoProbeError: as :func:`token_vectors`.
    """
    maps = [each for each in linear_maps(model) if each.weight in bases.weights]
    vectors, parameters = token_vectors(model, maps, tokens, kept, loss), dict(model.named_parameters())
    found = {}
    for each in maps:
        rows, gradients = vectors.inputs[each.inputs], vectors.gradients[each.outputs]
        if each.weight in bases.activations:
            rows = bases.activations[each.weight].remove(rows)
        if each.weight in bases.gradients:
            gradients = bases.gradients[each.weight].remove(gradients)
        found[each.weight] = from_matrix(each.weight, rows.T @ gradients, parameters[each.weight].shape)
    return found
