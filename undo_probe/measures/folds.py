"""Splits of rows by family, and labels shuffled within strata."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

from undo_probe.errors import UndoProbeError
from undo_probe.randomness import derive_seed

INNER_PARTS = 4
"""One part in four of a fold's training families chooses the penalty."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Row numbers of one fold; no family is in two of the three."""

    fit: Int[np.ndarray, " fit"]
    choose: Int[np.ndarray, " choose"]
    test: Int[np.ndarray, " test"]

    @property
    def train(self) -> Int[np.ndarray, " train"]:
        """All rows the final probe of the fold is trained on."""
        return np.concatenate([self.fit, self.choose])


def deal_families(families: Shaped[np.ndarray, " row"], parts: int, seed: int) -> Int[np.ndarray, " row"]:
    """The part (0 to ``parts - 1``) of each row: whole families, dealt at random to the emptiest part.

    Raises:
        UndoProbeError: fewer families than parts.
    """
    names, member, sizes = np.unique(families, return_inverse=True, return_counts=True)
    if len(names) < parts:
        raise UndoProbeError(
            f"{len(names)} families cannot be divided into {parts} parts: use fewer folds or more families"
        )
    part_of = np.empty(len(names), dtype=int)
    filled = np.zeros(parts)
    for family in np.random.default_rng(derive_seed(seed, "deal families", parts)).permutation(len(names)):
        part_of[family] = filled.argmin()
        filled[filled.argmin()] += sizes[family]
    return part_of[member]


def family_folds(families: Shaped[np.ndarray, " row"], folds: int, seed: int) -> list[Fold]:
    """Folds of whole families; within each, a part of the training families is set aside for choices."""
    part = deal_families(families, folds, seed)
    return [
        held_out_fold(families, np.flatnonzero(part == number), derive_seed(seed, "fold", number))
        for number in range(folds)
    ]


def held_out_fold(families: Shaped[np.ndarray, " row"], test: Int[np.ndarray, " test"], seed: int) -> Fold:
    """The fold that tests on given rows and trains on all others."""
    rest = np.setdiff1d(np.arange(len(families)), test)
    inner = deal_families(families[rest], INNER_PARTS, seed)
    return Fold(fit=rest[inner > 0], choose=rest[inner == 0], test=test)


def shuffle_within(
    labels: Int[np.ndarray, "row target"], strata: Shaped[np.ndarray, " row"], seed: int
) -> Int[np.ndarray, "row target"]:
    """Labels permuted among the rows of each stratum, every target by itself."""
    draw = np.random.default_rng(derive_seed(seed, "shuffle labels"))
    shuffled = labels.copy()
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        for target in range(labels.shape[1]):
            shuffled[rows, target] = labels[draw.permutation(rows), target]
    return shuffled


def sample_families(
    families: Shaped[np.ndarray, " row"], max_rows: int, seed: int
) -> Int[np.ndarray, " kept"]:
    """Row numbers of randomly drawn whole families, at most ``max_rows`` rows, in their old order."""
    names, member, sizes = np.unique(families, return_inverse=True, return_counts=True)
    order = np.random.default_rng(derive_seed(seed, "sample families")).permutation(len(names))
    kept = order[np.cumsum(sizes[order]) <= max_rows]
    return np.flatnonzero(np.isin(member, kept))


def codes(labels: Sequence[Shaped[np.ndarray, " row"]]) -> tuple[Int[np.ndarray, "row target"], int]:
    """Label columns as class numbers from 0, and the largest number of classes of any column."""
    columns = [np.unique(np.asarray(column), return_inverse=True)[1] for column in labels]
    matrix = np.stack(columns, axis=1)
    return matrix, int(matrix.max()) + 1
