"""Whole families dealt into splits."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from undo_probe.randomness import derive_seed
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS


@runtime_checkable
class Member(Protocol):
    """What is dealt: anything that belongs to a family."""

    @property
    def family(self) -> str:
        """The name that members of a family share."""
        ...


AnyMember = TypeVar("AnyMember", bound=Member)


def dealt(
    kept: Mapping[str, Sequence[AnyMember]],
    forget_shares: Sequence[float],
    retain_shares: Sequence[float],
    seed: int,
) -> dict[str, list[AnyMember]]:
    """Split to members: the families of ``forget`` and ``retain``, in a drawn order, by the shares of the families."""
    plans = {"forget": (FORGET_SPLITS, forget_shares), "retain": (RETAIN_SPLITS, retain_shares)}
    found: dict[str, list[AnyMember]] = {}
    for side, (names, shares) in plans.items():
        own = sorted({each.family for each in kept[side]})
        order = np.random.default_rng(derive_seed(seed, "split", side)).permutation(len(own))
        edges = np.round(np.cumsum(shares) / np.sum(shares) * len(own)).astype(int)
        for name, start, end in zip(names, [0, *edges[:-1]], edges, strict=True):
            chosen = {own[at] for at in order[start:end]}
            found[name] = [each for each in kept[side] if each.family in chosen]
    return found
