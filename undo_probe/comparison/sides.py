"""The rows of each split, where they are read, and a model's states there: harvested once, shared by all measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe.activations import harvest_points, residual_names
from undo_probe.comparison.prompts import SPLITS, GivenPrompts
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import LOGITS
from undo_probe.measures.capability import core
from undo_probe.measures.folds import sample_families
from undo_probe.measures.geometry import Halvings, halvings
from undo_probe.measures.probes import side_rows
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.tasks.protocol import Task, TokenSet

READ = "read"
"""The last token of the prompt, at which the answer is read; of running text, the last that predicts something."""
ANSWER = "answer"
"""A position's name for what is a mean over the tokens of the answer."""
MAX_POSITIONS, MAX_ANSWER = 8, 8
"""Prompt positions and answer tokens of a row that are looked at: evenly spread where there are more."""

States = Mapping[str, Float[Tensor, "row kept d_model"]]


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows of one split and the places at which both models are read.

    ``places`` are positions of the prompt, ``names`` what they are called; ``answers`` are the positions that predict
    the answer's tokens (``targets``), of which ``counts`` tells real ones from filling.
    """

    split: str
    rows: TokenSet
    names: list[str]
    places: Int[Tensor, "row place"]
    answers: Int[Tensor, "row token"]
    counts: Bool[Tensor, "row token"]
    targets: Int[Tensor, "row token"]
    halves: Halvings

    @property
    def families(self) -> np.ndarray:
        """The family of each row."""
        return self.rows.families

    def mean(self, values: Float[Tensor, "row token"]) -> np.ndarray:
        """The mean over each row's answer."""
        return ((values.double() * self.counts).sum(1) / self.counts.sum(1)).numpy()

    def chunks(self, d_vocab: int) -> list[slice]:
        """Rows whose logits are held at once."""
        size = max(1, LOGITS // (self.answers.shape[1] * d_vocab * 4))
        return [slice(start, start + size) for start in range(0, len(self.rows), size)]


@dataclass(frozen=True, eq=False)
class Side:
    """One model with its states in every split; hooks are paired with those of the model it is compared with."""

    model: HookedTransformer
    name: str
    asked: Sequence[Asked]

    @cached_property
    def states(self) -> dict[str, States]:
        """Split to the residual stream at the prompt's places, then at the answer's."""
        return {
            each.split: harvest_points(
                self.model,
                each.rows.tokens,
                residual_names(self.model),
                torch.cat([each.places, each.answers], dim=1),
                max(1, min(512, LOGITS // (each.rows.tokens.shape[1] * self.model.cfg.d_model * 4))),
            )
            for each in self.asked
        }

    def at_places(self, asked: Asked, hook: str) -> Float[Tensor, "row place d_model"]:
        """States at the prompt's places."""
        return self.states[asked.split][hook][:, : asked.places.shape[1]]

    def at_answers(self, asked: Asked, hook: str) -> Float[Tensor, "row token d_model"]:
        """States where the answer's tokens are predicted."""
        return self.states[asked.split][hook][:, asked.places.shape[1] :]

    @property
    def bytes(self) -> int:
        """Memory of the states."""
        return sum(
            state.numel() * state.element_size() for each in self.states.values() for state in each.values()
        )


def ask(task: Task, max_rows: int, seed: int, neutral: TokenSet | None = None) -> list[Asked]:
    """The rows of every split that the task has, at most ``max_rows`` each, whole families.

    Raises:
        UndoProbeError: one family is larger than ``max_rows``.
    """
    if isinstance(task, GivenPrompts):
        found = {split: task.rows(split) for split in task.splits}
    else:
        most = max(2 * max_rows, 64)  # what can be guessed goes, and is not counted beforehand
        found = {split: side_rows(task, split, most, seed) for split in SPLITS[:2]}
        found["forget"] = found["forget"].select(core(found["forget"]))
    if neutral is not None:
        found["neutral"] = neutral
    asked = []
    for split, rows in found.items():
        kept = sample_families(rows.families, max_rows, derive_seed(seed, "compare rows", split))
        if not len(kept):
            raise UndoProbeError(
                f"max_rows={max_rows} is less than one family of {split} rows: give at least "
                f"{int(np.unique(rows.families, return_counts=True)[1].min())}"
            )
        asked.append(places_of(split, _without_filling(rows.select(kept)), seed))
    return asked


def _without_filling(rows: TokenSet) -> TokenSet:
    """The rows without the columns behind every answer, which no model need read."""
    end = int(torch.nonzero(rows.answer_mask.any(0)).max()) + 1
    return replace(rows, tokens=rows.tokens[:, :end], answer_mask=rows.answer_mask[:, :end])


def places_of(split: str, rows: TokenSet, seed: int) -> Asked:
    """Where the rows of a split are read."""
    read = torch.as_tensor(rows.read_position).expand(len(rows))
    back = _spread(int(read.min()) + 1, MAX_POSITIONS) - int(read.min())
    together = isinstance(rows.read_position, int)
    names = [
        READ if offset == 0 else f"pos {int(read[0]) + offset}" if together else f"{READ} \u2212 {-offset}"
        for offset in back.tolist()
    ]
    answers, counts = answer_places(rows)
    targets = rows.tokens.gather(1, answers + 1)
    halves = halvings(rows.families, derive_seed(seed, "compare halves", split))
    return Asked(split, rows, names, read[:, None] + back, answers, counts, targets, halves)


def answer_places(rows: TokenSet) -> tuple[Int[Tensor, "row token"], Bool[Tensor, "row token"]]:
    """Positions that predict each row's answer, evenly spread where there are many; short answers are filled up."""
    each = [torch.nonzero(mask).flatten() for mask in rows.answer_mask[:, 1:]]
    chosen = [own[_spread(len(own), MAX_ANSWER)] for own in each]
    width = max(map(len, chosen))
    places = torch.stack(
        [torch.nn.functional.pad(own, (0, width - len(own)), value=int(own[0])) for own in chosen]
    )
    counts = torch.arange(width) < torch.tensor([len(own) for own in chosen])[:, None]
    return places, counts


def _spread(count: int, most: int) -> Int[Tensor, " kept"]:
    """``most`` of the numbers below ``count``, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
