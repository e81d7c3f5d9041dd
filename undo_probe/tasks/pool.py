"""Rows made beforehand: by split, and by mixture as a pool from which the batch of any step is drawn."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.randomness import generator
from undo_probe.tasks.protocol import Batch, Metric, TokenSet


class Pooled:
    """What tasks share whose rows are all made beforehand: ``_sets`` by split, ``_pools`` by mixture."""

    name: str
    metric: Metric = "exact"
    neutral: str = ""
    _sets: Mapping[str, TokenSet]
    _pools: Mapping[str, "Pool"]

    def rows(self, split: str) -> TokenSet:
        """All rows of ``split``, in a fixed order."""
        if split not in self._sets:
            raise UndoProbeError(
                f"{self.name} has no split {split!r}: it has {', '.join(sorted(self._sets))}"
            )
        return self._sets[split]

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        """``size`` rows: the groups of the mixture by their shares, the rows of a group with replacement.

        Where the task has room for shots, each is as many rows in line as the context holds.
        """
        if mixture not in self._pools:
            raise UndoProbeError(f"{self.name} has no mixture {mixture!r}: it has {', '.join(self._pools)}")
        return self._pools[mixture].batch(size, seed, step)


def best_constants(labels: pd.DataFrame, label: str) -> dict[str, float]:
    """By operation, how often the most frequent value of a label comes: what a constant answer scores."""
    return {
        str(operation): float(part[label].value_counts(normalize=True).iloc[0])
        for operation, part in labels.groupby("operation")
    }


def by_side(parts: Sequence[TokenSet]) -> list[np.ndarray]:
    """Groups of :class:`Pool` where an operation may be on both sides: ``forget town``, ``retain town``."""
    return [
        np.array([f"{part.name.partition('_')[0]} {operation}" for operation in part.operations])
        for part in parts
    ]


def even_sides(retain: Sequence[str], forget: Sequence[str]) -> dict[str, float] | None:
    """Shares with which as many retain as forget rows are drawn; None where even groups give that by themselves."""
    if len(retain) == len(forget):
        return None
    return {name: 1 / len(side) for side in (retain, forget) for name in side}


class Pool:
    """Rows in named groups: groups are drawn evenly or by their shares, the rows of a group with replacement.

    Args:
        parts: the splits that make up the mixture.
        groups: the group of each row, one array a part, shape (row,).
        order: every group there may be; one without rows is left out.
        redrawn: groups in which a row gets the answer of another row of its group, drawn anew each time.
        shares: how often each group is drawn, in any unit; all alike unless given.
        packed: how many rows, each drawn by itself, stand in line in one row of a batch.
    """

    def __init__(
        self,
        parts: Sequence[TokenSet],
        groups: Sequence[np.ndarray],
        order: Sequence[str],
        redrawn: Collection[str] = (),
        shares: Mapping[str, float] | None = None,
        packed: int = 1,
    ) -> None:
        of_row = np.concatenate(groups)
        present = [name for name in order if (of_row == name).any()]
        members = [np.flatnonzero(of_row == name) for name in present]
        rows = torch.from_numpy(np.concatenate(members))
        self._tokens = torch.cat([part.tokens for part in parts])[rows]
        self._mask = torch.cat([part.answer_mask for part in parts])[rows]
        self._counts = torch.tensor([len(group) for group in members])
        self._starts = self._counts.cumsum(0) - self._counts
        self._redrawn = torch.tensor([name in redrawn for name in present])
        # where answers begin, which is asked only where some are redrawn
        self._prompt = int(parts[0].read_position) + 1 if redrawn else 0
        self._packed = packed
        self._edges: torch.Tensor | None = None
        if shares is not None:
            weight = torch.tensor([shares[name] for name in present], dtype=torch.float64)
            self._edges = weight.cumsum(0) / weight.sum()

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """``size`` rows: a pure function of the arguments."""
        draw = generator(seed, "batch", step)
        group = self._groups(size * self._packed, draw)
        row = self._rows_of(group, draw)
        tokens, mask = self._tokens[row], self._mask[row]
        if not self._redrawn.any():
            return Batch(tokens.view(size, -1), mask.view(size, -1))
        other = self._rows_of(group, draw)
        redrawn = self._redrawn[group][:, None]
        answers = torch.where(redrawn, self._tokens[other, self._prompt :], tokens[:, self._prompt :])
        masks = torch.where(redrawn, self._mask[other], mask)
        tokens = torch.cat([tokens[:, : self._prompt], answers], dim=1)
        return Batch(tokens.view(size, -1), masks.view(size, -1))

    def _groups(self, size: int, draw: torch.Generator) -> torch.Tensor:
        if self._edges is None:
            return torch.randint(len(self._counts), (size,), generator=draw)
        place = torch.rand(size, generator=draw, dtype=torch.float64)
        return torch.searchsorted(self._edges[:-1], place, right=True)

    def _rows_of(self, group: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        place = torch.rand(len(group), generator=draw, dtype=torch.float64)
        return self._starts[group] + (place * self._counts[group]).long()
