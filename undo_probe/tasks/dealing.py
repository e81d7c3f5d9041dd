"""Whole families dealt into splits, and into folds of T and V."""

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int

from undo_probe.randomness import derive_seed
from undo_probe.task_config import FOLDS
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS


@runtime_checkable
class Member(Protocol):
    """What is dealt: anything that belongs to a family."""

    @property
    def family(self) -> str:
        """The name that members of a family share."""
        ...


AnyMember = TypeVar("AnyMember", bound=Member)


def by_shares(
    order: Int[np.ndarray, " item"], shares: Sequence[float], fold: int | None = None
) -> list[Int[np.ndarray, " _"]]:
    """What is in a drawn order, cut by shares.

    With a ``fold`` the first two parts, T and V, are dealt anew: V is that fold of :data:`FOLDS` of both, T the rest.
    Over all folds every one of them is once in V.
    """
    edges = np.round(np.cumsum(shares) / np.sum(shares) * len(order)).astype(int)
    parts = np.split(order, edges[:-1])
    if fold is None:
        return parts
    folds = np.array_split(np.concatenate(parts[:2]), FOLDS)
    return [np.concatenate([*folds[:fold], *folds[fold + 1 :]]), folds[fold], *parts[2:]]


def dealt(
    kept: Mapping[str, Sequence[AnyMember]],
    forget_shares: Sequence[float],
    retain_shares: Sequence[float],
    seed: int,
    fold: int | None = None,
) -> dict[str, list[AnyMember]]:
    """Split to members: the families of ``forget`` and ``retain``, in a drawn order, by the shares of the families.

    ``fold`` is one of ``forget``'s, see :func:`by_shares`.
    """
    plans = {"forget": (FORGET_SPLITS, forget_shares, fold), "retain": (RETAIN_SPLITS, retain_shares, None)}
    found: dict[str, list[AnyMember]] = {}
    for side, (names, shares, part) in plans.items():
        own = sorted({each.family for each in kept[side]})
        order = np.random.default_rng(derive_seed(seed, "split", side)).permutation(len(own))
        for name, places in zip(names, by_shares(order, shares, part), strict=True):
            chosen = {own[at] for at in places}
            found[name] = [each for each in kept[side] if each.family in chosen]
    return found
