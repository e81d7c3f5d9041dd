"""The linear maps of a model: where each weight's inputs and its outputs' gradients are met, and how they are read."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer

Loss = Callable[[HookedTransformer, Int[Tensor, "row pos"]], Tensor]


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
