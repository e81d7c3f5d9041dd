"""The small protocol behind which every task hides its text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.records import TaskWords

if TYPE_CHECKING:
    import pandas as pd

FORGET_SPLITS = ("forget_T", "forget_V", "forget_W", "forget_D")
RETAIN_SPLITS = ("retain_train", "retain_dev", "retain_test")
Metric = Literal["exact", "bits", "choice"]
"""How a row is scored: see :func:`undo_probe.evaluation.row_scores`."""


@dataclass(frozen=True)
class TokenSet:
    """Complete rows of one split: prompt, answer, padding.

    ``answer_mask`` is True at the tokens of the answer, its end mark included. The answer's first token is
    predicted at ``read_position``, the last token of the prompt (one number, or one a row where prompts differ in
    length); nothing after it is seen there. Where a row is running text, all of it is answer, and ``read_position`` is
    the last place that predicts something. ``options`` are the tokens that a question lets choose from, with -1 where
    it has fewer, and in the labels ``answer`` is the number of the right one; where answers have several tokens, the
    tokens of each, filled up with -1.
    ``labels`` has one line a row: ``operation``, ``family`` (the cluster of every interval), ``subset``
    (stratum, ``all`` where there is none) and what probes are trained to read.
    """

    name: str
    tokens: Int[Tensor, "row pos"]
    answer_mask: Bool[Tensor, "row pos"]
    read_position: int | Int[Tensor, " row"]
    labels: "pd.DataFrame"
    options: Int[Tensor, "row option"] | Int[Tensor, "row option token"] | None = None

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
        rows = (
            np.flatnonzero(keep) if keep.dtype == bool else np.array(keep)
        )  # torch wants one it may write to
        if not len(rows):
            raise UndoProbeError(
                f"no row of {self.name} is left: choose a selection that holds at least one row"
            )
        labels = self.labels.iloc[rows].reset_index(drop=True)
        read = self.read_position if isinstance(self.read_position, int) else self.read_position[rows]
        options = None if self.options is None else self.options[rows]
        return TokenSet(self.name, self.tokens[rows], self.answer_mask[rows], read, labels, options)

    def evenly(self, most: int) -> "TokenSet":
        """At most so many rows, evenly spread over the split; all of them where they are no more."""
        if len(self) <= most:
            return self
        return self.select(np.linspace(0, len(self) - 1, most).round().astype(int))

    def prompt_places(self) -> list[int] | Int[Tensor, "row place"]:
        """The positions of the prompt; of prompts that differ in length, as many of each as the shortest has."""
        if isinstance(self.read_position, int):
            return list(range(self.read_position + 1))
        shortest = int(self.read_position.min()) + 1
        return self.read_position[:, None] + torch.arange(1 - shortest, 1)


def join(name: str, *parts: TokenSet) -> TokenSet:
    """Several splits as one, in order; where a split reads at one position, all must read at the same."""
    import pandas as pd

    return TokenSet(
        name,
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.answer_mask for part in parts]),
        _joined_positions([part.read_position for part in parts]),
        pd.concat([part.labels for part in parts], ignore_index=True),
        None if parts[0].options is None else torch.cat([_options(part) for part in parts]),
    )


def _options(part: TokenSet) -> Tensor:
    if part.options is None:
        raise UndoProbeError(f"cannot join {part.name}, whose rows have no options, with questions that have")
    return part.options


def _joined_positions(positions: "list[int | Tensor]") -> "int | Tensor":
    each = [position for position in positions if not isinstance(position, int)]
    if len(each) == len(positions):
        return torch.cat(each)
    if each or len(set(positions)) != 1:
        shown = sorted(
            {str(position) if isinstance(position, int) else "one a row" for position in positions}
        )
        raise UndoProbeError(f"cannot join splits that read at different positions: [{', '.join(shown)}]")
    return positions[0]


def check_disjoint(sets: Mapping[str, TokenSet]) -> None:
    """Two splits that share a family would let an attack teach what it claims to reveal."""
    seen: dict[str, str] = {}
    for name, part in sets.items():
        for family in np.unique(part.families):
            if seen.setdefault(family, name) != name:
                raise UndoProbeError(
                    f"the family {family} lies in {seen[family]} and in {name}: splits must be disjoint"
                )


def answers_end(answer_mask: Bool[Tensor, "row pos"]) -> int:
    """How many positions there are up to the end of the last answer; behind it is filling alone."""
    return int(answer_mask.any(dim=0).nonzero().max()) + 1


@dataclass(frozen=True)
class Batch:
    """Rows for one training step; ``answer_mask`` as in :class:`TokenSet`."""

    tokens: Int[Tensor, "row pos"]
    answer_mask: Bool[Tensor, "row pos"]

    def without_filling(self) -> "Batch":
        """The rows as long as the longest of them; nothing before is changed by what follows it."""
        end = answers_end(self.answer_mask)
        return Batch(self.tokens[:, :end], self.answer_mask[:, :end])


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
    labels to be read from states has no ``probe_targets``, and then nothing is probed. ``neutral`` is the split of
    running text about nothing in particular, empty where there is none.
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
    neutral: str
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
