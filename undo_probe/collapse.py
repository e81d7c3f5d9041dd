"""Collapse of irrelevant representations: what many inputs share is taken out of a weight's gradient.

CIR (arXiv 2509.11816) removes from the inputs of every linear map, and from the gradients at its outputs, the direction
of their mean and their leading principal components; RepSelect (arXiv 2606.17168) takes both from the singular vectors
of the gradient itself, and removes them softly. What is left of the update is particular to its own rows.

A weight acts from the right here, ``y = a W``: its gradient is the sum over tokens of ``a_t`` by ``g_t``, and removing
the same directions from every ``a_t`` and ``g_t`` is one projection of the finished gradient on each side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe import linalg
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, as_matrix, from_matrix

Rows = tuple[Int[Tensor, "row pos"], Bool[Tensor, "row read"]]
"""Token ids, and which positions' vectors count."""
Loss = Callable[[HookedTransformer, Int[Tensor, "row pos"]], Tensor]
Softness = Literal["hard", "soft"]


@dataclass(frozen=True)
class LinearMap:
    """A weight and where its inputs and its outputs' gradients are met.

    ``inputs`` is a module with the name of the argument that the weight multiplies (empty for its first one), or a hook
    point with ``output``; ``outputs`` is the module whose output's gradient is that of the weight's outputs.
    """

    weight: str
    inputs: tuple[str, str]
    outputs: str


def linear_maps(model: HookedTransformer, wanted: Sequence[str] = ()) -> list[LinearMap]:
    """The linear maps of a model's blocks, in order.

    The inputs of a map are those of its module: ``ln2.hook_normalized`` comes before the norm's gain, and in a block
    with norms behind attention and MLP ``hook_mlp_out`` comes after one.

    Args:
        model: left as it is.
        wanted: endings of weight names such as ``mlp.W_out``; all of them if empty.

    Raises:
        UndoProbeError: no map has such an ending, or blocks keep a copy of their input for each head.
    """
    cfg = model.cfg
    if cfg.use_attn_in or cfg.use_split_qkv_input or cfg.act_fn == "solu_ln":
        raise UndoProbeError(
            "collapse needs one input a map: switch use_attn_in and use_split_qkv_input off, and take an activation "
            f"without a norm of its own (this one is {cfg.act_fn})"
        )
    known = set(dict(model.named_parameters()))
    maps = [each for layer in range(cfg.n_layers) for each in _block_maps(f"blocks.{layer}", known)]
    chosen = [each for each in maps if not wanted or each.weight.endswith(tuple(wanted))]
    missing = [ending for ending in wanted if not any(each.weight.endswith(ending) for each in maps)]
    if missing:
        endings = sorted({each.weight.split(".", 2)[2] for each in maps})
        raise UndoProbeError(f"no linear map ends in {missing[0]!r}: there are {', '.join(endings)}")
    return chosen


def _block_maps(block: str, known: set[str]) -> list[LinearMap]:
    attn, mlp = f"{block}.attn", f"{block}.mlp"
    # queries, keys and values read the same vectors, as do both halves of a gated MLP
    shared = {letter: "_" if f"{attn}._W_{letter}" in known else "" for letter in "KV"}
    gated = f"{mlp}.W_gate" in known
    maps = [
        LinearMap(f"{attn}.W_Q", (attn, "query_input"), f"{attn}.hook_q"),
        LinearMap(f"{attn}.{shared['K']}W_K", (attn, "query_input"), f"{attn}.hook_k"),
        LinearMap(f"{attn}.{shared['V']}W_V", (attn, "query_input"), f"{attn}.hook_v"),
        LinearMap(f"{attn}.W_O", (f"{attn}.hook_z", "output"), attn),
        LinearMap(f"{mlp}.W_gate", (mlp, ""), f"{mlp}.hook_pre"),
        LinearMap(f"{mlp}.W_in", (mlp, ""), f"{mlp}.hook_pre_linear" if gated else f"{mlp}.hook_pre"),
        LinearMap(f"{mlp}.W_out", (f"{mlp}.hook_post", "output"), mlp),
    ]
    return [each for each in maps if each.weight in known]


@dataclass(frozen=True)
class Recorded:
    """What one forward pass met: inputs by place, outputs by module or hook point."""

    inputs: dict[tuple[str, str], Float[Tensor, "row pos ..."]] = field(default_factory=dict)
    outputs: dict[str, Float[Tensor, "row pos ..."]] = field(default_factory=dict)


@contextmanager
def record(model: HookedTransformer, maps: Sequence[LinearMap]) -> Iterator[Recorded]:
    """Keeps inputs and outputs of linear maps while the block runs the model; no hook stays."""
    seen, handles = Recorded(), []

    def entering(place: tuple[str, str]) -> Callable[..., None]:
        def take(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.inputs[place] = kwargs[place[1]] if place[1] in kwargs else args[0]

        return take

    def leaving(found: dict[Any, Tensor], place: Any) -> Callable[..., None]:
        def take(_module: Any, _args: Any, output: Tensor) -> None:
            found[place] = output

        return take

    try:
        for place in dict.fromkeys(each.inputs for each in maps):
            module = model.get_submodule(place[0])
            if place[1] == "output":
                handles.append(module.register_forward_hook(leaving(seen.inputs, place)))
            else:
                handles.append(module.register_forward_pre_hook(entering(place), with_kwargs=True))
        for name in dict.fromkeys(each.outputs for each in maps):
            handles.append(model.get_submodule(name).register_forward_hook(leaving(seen.outputs, name)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def kept_places(
    answer_mask: Bool[Tensor, "row pos"], tokens: Literal["all", "answers"] = "all"
) -> Bool[Tensor, "row read"]:
    """Which places count of those that a model reads, all but a row's last.

    ``answers``: those that predict an answer token. ``all``: every place up to the last of these, so no padding, but
    the first, whose states are like no other's (and which is the beginning mark where there is one).
    """
    predicts = answer_mask[:, 1:]
    if tokens == "answers":
        return predicts
    kept = predicts.flip(1).cumsum(dim=1).flip(1) > 0
    kept[:, 0] = False
    return kept


@dataclass(frozen=True)
class Vectors:
    """Inputs and output gradients of linear maps, one row a token, heads side by side."""

    inputs: dict[tuple[str, str], Float[Tensor, "token d_in"]]
    gradients: dict[str, Float[Tensor, "token d_out"]]


def token_vectors(
    model: HookedTransformer,
    maps: Sequence[LinearMap],
    tokens: Int[Tensor, "row pos"],
    kept: Bool[Tensor, "row read"],
    loss: Loss,
) -> Vectors:
    """One forward and backward pass: what every map read, and the loss's gradient at what it wrote.

    The model's own gradients stay as they are. A kept token's gradient holds what comes back through attention, too.
    ``kept`` may be narrower than the tokens: a place that it does not reach is not kept.

    Raises:
        UndoProbeError: the loss does not depend on a map's outputs.
    """
    with record(model, maps) as seen, torch.enable_grad():
        value = loss(model, tokens)
        names = list(seen.outputs)
        found = torch.autograd.grad(value, [seen.outputs[name] for name in names], allow_unused=True)
    gradients = dict(zip(names, found, strict=True))
    lacking = [each.outputs for each in maps if gradients.get(each.outputs) is None]
    if lacking:
        raise UndoProbeError(
            f"the loss does not depend on {lacking[0]}: collapse only weights that lie before what it reads"
        )

    def rows(vectors: Tensor) -> Tensor:
        vectors = vectors.detach()
        return vectors[:, : kept.shape[1]][kept[:, : vectors.shape[1]]].flatten(1)

    return Vectors(
        {place: rows(vectors) for place, vectors in seen.inputs.items()},
        {name: rows(gradient) for name, gradient in gradients.items() if gradient is not None},
    )


@dataclass(frozen=True, eq=False)
class Side:
    """Directions to take out of vectors of one kind, and how much of each: 1 is all of it."""

    basis: Float[Tensor, "width k"]
    weight: Float[Tensor, " k"]

    def remove(self, vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """``v - Q diag(w) Q' v`` for each row; the argument stays as it is."""
        basis = self.basis.to(vectors)
        return vectors - ((vectors @ basis) * self.weight.to(vectors)) @ basis.T


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
    read, written = inputs.sides(softness, at_most), outputs.sides(softness, at_most)
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

    def sides(self, softness: Softness, at_most: bool = False) -> dict[Any, Side]:
        if self.k and not self.seen:
            raise UndoProbeError("there is nothing to collapse: no batch was given")
        return {place: side_of(seen, self.k, softness, at_most) for place, seen in self.seen.items()}


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
