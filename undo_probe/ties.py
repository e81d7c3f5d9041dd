"""An embedding that is also the unembedding, and one whose output is scaled: as the Hugging Face families have them.

HookedTransformer keeps both matrices apart, and the scale inside one of them: trained, noised and saved, it would
drift from what the family can hold. As in fused.py, a module keeps everything but its class.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

TIED: tuple[str, str] = ("embed.W_E", "unembed.W_U")
"""The names of the one matrix; the second, which is the first transposed, is no parameter any more."""


def ties(model: torch.nn.Module) -> list[tuple[str, str]]:
    """Pairs (first name, later name) of parameters that are one tensor; an unembedding is one transposed."""
    first: dict[int, str] = {}
    pairs = [TIED] if is_tied(model) else []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            pairs.append((owner, name))
    return pairs


def tie(model: torch.nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    """Makes one tensor of each pair that :func:`ties` named, in place."""
    for owner, name in pairs:
        if (owner, name) == TIED:
            _tie_unembedding(model)
            continue
        module, _, leaf = name.rpartition(".")
        model.get_submodule(module)._parameters[leaf] = model.get_parameter(owner)


def _tie_unembedding(model: Any) -> None:
    unembed = model.unembed
    if is_tied(model):
        return
    unembed.__class__ = _tied(type(unembed))
    del unembed._parameters["W_U"]
    # not as a submodule: the embedding's parameters would then have two names
    unembed.__dict__["_embedding"] = (model.embed,)


def is_tied(model: Any) -> bool:
    """Whether the unembedding is the embedding."""
    return "_embedding" in model.unembed.__dict__


def scale_embedding(model: Any, scale: float) -> None:
    """Multiplies what the embedding looks up, in place; the matrix stays as it is."""
    if scale == 1.0:
        return
    model.embed.__class__ = _scaled(type(model.embed))
    model.embed.scale = scale


def scale_of(model: Any) -> float:
    """What the embedding's output is multiplied by."""
    return getattr(model.embed, "scale", 1.0)


@cache
def _tied(base: Any) -> Any:
    class Tied(base):
        @property
        def W_U(self) -> Tensor:  # noqa: N802
            return self._embedding[0].W_E.T

    Tied.__name__ = Tied.__qualname__ = f"Tied{base.__name__}"
    return Tied


@cache
def _scaled(base: Any) -> Any:
    class Scaled(base):
        def forward(self, tokens: Tensor) -> Tensor:
            found = super().forward(tokens)
            # the factor in the states' own precision, as the family rounds it
            return found * torch.tensor(self.scale, dtype=found.dtype)

    Scaled.__name__ = Scaled.__qualname__ = f"Scaled{base.__name__}"
    return Scaled
