"""The small protocol behind which every task hides its text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.records import TaskWords

if TYPE_CHECKING:
    import pandas as pd

FORGET_SPLITS = ("forget_T", "forget_V", "forget_W", "forget_D")
RETAIN_SPLITS = ("retain_train", "retain_dev", "retain_test")
Metric = Literal["exact", "bits"]
"""How a row is scored: see :func:`undo_probe.evaluation.row_scores`."""


@dataclass(frozen=True)
class TokenSet:
    """Complete rows of one split: prompt, answer, padding.

    ``answer_mask`` is True at the tokens of the answer, its end mark included. The answer's first token is
    predicted at ``read_position``, the last token of the prompt; nothing after it is seen there. Where a row is
    running text, all of it is answer, and ``read_position`` is the last place that predicts something.
    ``labels`` has one line a row: ``operation``, ``family`` (the cluster of every interval), ``subset``
    (stratum, ``all`` where there is none) and what probes are trained to read.
    """

    name: str
    tokens: Int[Tensor, "row pos"]
    answer_mask: Bool[Tensor, "row pos"]
    read_position: int
    labels: "pd.DataFrame"

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @property
    def families(self) -> np.ndarray:
        """The family of each row, shape (row,)."""
        return self.labels["family"].to_numpy()

    @property
    def operations(self) -> np.ndarray:
        """The operation (or relation) of each row, shape (row,)."""
        return self.labels["operation"].to_numpy()

    def select(self, keep: np.ndarray) -> "TokenSet":
        """The rows where ``keep`` is True (or the rows of an index array), in order."""
        rows = np.flatnonzero(keep) if keep.dtype == bool else keep
        if not len(rows):
            raise UndoProbeError(
                f"no row of {self.name} is left: choose a selection that holds at least one row"
            )
        labels = self.labels.iloc[rows].reset_index(drop=True)
        return TokenSet(self.name, self.tokens[rows], self.answer_mask[rows], self.read_position, labels)


def join(name: str, *parts: TokenSet) -> TokenSet:
    """Several splits as one, in order; all must read at the same position."""
    import pandas as pd
    import torch

    positions = {part.read_position for part in parts}
    if len(positions) != 1:
        raise UndoProbeError(f"cannot join splits that read at different positions: {sorted(positions)}")
    return TokenSet(
        name,
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.answer_mask for part in parts]),
        positions.pop(),
        pd.concat([part.labels for part in parts], ignore_index=True),
    )


def check_disjoint(sets: Mapping[str, TokenSet]) -> None:
    """Two splits that share a family would let an attack teach what it claims to reveal."""
    seen: dict[str, str] = {}
    for name, part in sets.items():
        for family in np.unique(part.families):
            if seen.setdefault(family, name) != name:
                raise UndoProbeError(
                    f"the family {family} lies in {seen[family]} and in {name}: splits must be disjoint"
                )


@dataclass(frozen=True)
class Batch:
    """Rows for one training step; ``answer_mask`` as in :class:`TokenSet`."""

    tokens: Int[Tensor, "row pos"]
    answer_mask: Bool[Tensor, "row pos"]


@runtime_checkable
class Task(Protocol):
    """What a stage, an attack or a measure needs to know of a task.

    Splits are ``forget_T`` (the attacker trains on it), ``forget_V`` (evaluated), ``forget_W`` (in
    pretraining only), ``forget_D`` (hyper-parameters are chosen on it), ``retain_train``, ``retain_dev``
    (stop rules look at it) and ``retain_test``. Mixtures are ``pretrain`` (everything), ``retain``,
    ``matched`` (everything, with the forget answers redrawn), ``unlearn`` (T, V and D), ``distill`` (T, V, D
    and retain), ``attack`` (T) and ``attack_mixed`` (T and retain). Where what is asked is a skill shown on whole
    documents, V and D are in none of them.

    Forget sets share no family with each other or with retain. ``extra_splits`` are asked for capability beside
    V, each as a stratum; ``words`` is what reports call all of this. ``metric`` is how a row is scored. A task without
    labels to be read from states has no ``probe_targets``, and then nothing is probed.
    """

    name: str
    d_vocab: int
    n_ctx: int
    vocabulary: tuple[str, ...]
    fingerprint: str
    metric: Metric
    forget_operations: tuple[str, ...]
    retain_operations: tuple[str, ...]
    probe_targets: tuple[str, ...]
    extra_splits: tuple[str, ...]
    words: TaskWords

    def rows(self, split: str) -> TokenSet:
        """All rows of a split."""
        ...

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        """The batch of one step: a pure function of its arguments."""
        ...

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """What a reader of the prompt alone knows, one-hot, shape (row, feature)."""
        ...

    def chance(self) -> dict[str, float]:
        """Score of the best answer that ignores the prompt, by operation."""
        ...

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """Token ids as text."""
        ...
