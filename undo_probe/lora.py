"""Training through few numbers: low-rank adapters, and a random subspace of all weights.

Both are context managers on a model that the caller owns (:func:`undo_probe.training.fit` gives its copy):
inside, only the adapter is trained and every weight reads as the adapted one; on leaving, the adapted weights
are written into the model and nothing else is left. Both are scaled so that an Adam step of rate ``r`` moves a
weight by about ``r`` at first, whatever the rank or dimension: rates then mean the same as in full fine-tuning.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import parametrize

from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, as_matrix, block_matrices, from_matrix, ties
from undo_probe.randomness import generator


class _LowRank(torch.nn.Module):
    """W + down up / sqrt(rank); ``up`` starts at zero, so nothing is changed before the first step."""

    def __init__(self, name: str, weight: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        fan_in, fan_out = as_matrix(name, weight).shape
        drawn = torch.randn(fan_in, rank, generator=generator(seed, "lora", name))
        self.name, self.scale = name, rank**-0.5
        self.down = torch.nn.Parameter(drawn.to(weight))
        self.up = torch.nn.Parameter(torch.zeros(rank, fan_out).to(weight))

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return weight + from_matrix(self.name, self.scale * (self.down @ self.up), weight.shape)


class _Along(torch.nn.Module):
    """theta + P z: one tensor's rows of P; ``place`` (z) is shared by all tensors."""

    directions: Tensor

    def __init__(
        self, directions: Float[Tensor, "entry dimension"], place: Float[Tensor, " dimension"]
    ) -> None:
        super().__init__()
        self.register_buffer("directions", directions, persistent=False)
        self.place = place

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return weight + (self.directions @ self.place).view_as(weight)


def low_rank(model: HookedTransformer, rank: int, seed: int) -> AbstractContextManager[None]:
    """LoRA (arXiv 2106.09685): only a rank-``rank`` change of each weight matrix of the blocks is trained.

    Attention weights count as one matrix with their heads side by side. ``down`` is drawn from N(0, 1), so
    with the factor ``1 / sqrt(rank)`` the size of a step does not depend on the rank.

    Raises:
        UndoProbeError: a rank below 1, or a model that ties some of these weights.
    """
    names = block_matrices(model)
    _check("rank", rank, model, names)
    weights = {name: model.get_parameter(name) for name in names}
    parts = {name: _LowRank(name, p, rank, seed) for name, p in weights.items() if p.requires_grad}
    return _installed(model, parts)


def subspace(model: HookedTransformer, dimension: int, seed: int) -> AbstractContextManager[None]:
    """A random subspace (arXiv 1804.08838): theta0 + P z, and only the ``dimension`` numbers z are trained.

    P has a column of independent normal numbers for each entry of z, over all trainable parameters together;
    columns are normalised, and stretched by ``sqrt(parameters / dimension)``.

    Raises:
        UndoProbeError: a dimension below 1, or a model that ties some of its weights.
    """
    free = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _check("dimension", dimension, model, list(free))
    drawn = {
        name: torch.randn(p.numel(), dimension, generator=generator(seed, "subspace", name))
        for name, p in free.items()
    }
    norms = sum((block.square().sum(dim=0) for block in drawn.values()), torch.zeros(dimension)).sqrt()
    stretch = math.sqrt(sum(p.numel() for p in free.values()) / dimension)
    first = next(iter(free.values()))
    place = torch.nn.Parameter(torch.zeros(dimension).to(first))
    parts = {name: _Along((block * (stretch / norms)).to(free[name]), place) for name, block in drawn.items()}
    return _installed(model, parts)


def _check(what: str, size: int, model: HookedTransformer, adapted: Sequence[str]) -> None:
    if size < 1:
        raise UndoProbeError(f"{what} is {size}: expected at least 1")
    pairs = [pair for pair in ties(model) if set(pair) & set(adapted)]
    if pairs:
        raise UndoProbeError(
            f"{pairs[0][0]} and {pairs[0][1]} are one tensor in this model: adapting one would untie them; "
            "train a model without tied weights this way"
        )


@contextmanager
def _installed(model: HookedTransformer, parts: Mapping[str, torch.nn.Module]) -> Iterator[None]:
    """Reads each named weight through its part, with all else frozen; merges and restores on leaving."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    homes = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in parts}
    try:
        for name, (module, leaf) in homes.items():
            parametrize.register_parametrization(module, leaf, parts[name])
        yield
    finally:
        for module, leaf in homes.values():
            if parametrize.is_parametrized(module, leaf):
                parametrize.remove_parametrizations(module, leaf)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
