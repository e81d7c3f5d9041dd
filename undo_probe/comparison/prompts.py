"""Prompts that a user has at hand, by split, as the task that comparing two models asks for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.measures.folds import deal_families
from undo_probe.records import TaskWords
from undo_probe.task_config import TextSource
from undo_probe.tasks.protocol import Batch, Metric, TokenSet
from undo_probe.tasks.text import SUFFIXES, documents

if TYPE_CHECKING:
    from undo_probe.tasks.reader import Reader

SPLITS = ("forget", "retain", "neutral")
NEUTRAL, FEWEST = 64, 8
"""Tokens of a row of neutral text at most and at least: a paragraph's first ones."""
WORDS = TaskWords(
    forget="what should be forgotten",
    retain="what should be kept",
    read_at="the last token of the prompt",
    read_mark="read",
    prompt="the text before it",
    family="Rows with the same prompt.",
    strata_note="",
    operations={},
    strata={},
    targets={},
    scored="the share of a uniform guess’s bits that the model saves on an answer",
)


class GivenPrompts:
    """Rows by split, as a :class:`~undo_probe.tasks.Task` that can be asked and compared on, not trained on.

    A row is a text, a pair of prompt and answer, or the same as token ids; a split may also be one tensor of rows. Of a
    text or a row of tokens everything after its first token is answer. Rows with one prompt are one family.
    """

    name: str = "prompts"
    metric: Metric = "bits"
    forget_operations: tuple[str, ...] = ("forget",)
    retain_operations: tuple[str, ...] = ("retain",)
    probe_targets: tuple[str, ...] = ()
    extra_splits: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ()
    words: TaskWords = WORDS

    def __init__(self, given: Mapping[str, Any], d_vocab: int, reader: "Reader | None" = None) -> None:
        """Encodes and pads the rows.

        Args:
            given: splits ``forget`` and ``retain``, and ``neutral`` if there is text of neither kind.
            d_vocab: of the models.
            reader: the tokenizer; needed for texts only.

        Raises:
            UndoProbeError: a split is unknown, missing or empty, or a row is no text, no tokens or no pair of them.
        """
        unknown = sorted(set(given) - set(SPLITS))
        missing = [split for split in SPLITS[:2] if not len(given.get(split, ()))]
        if unknown or missing:
            raise UndoProbeError(
                f"prompts by split need forget and retain, and may have neutral: {missing[0]!r} is missing or empty"
                if missing
                else f"prompts by split: {unknown[0]!r} is no split; expected {', '.join(SPLITS)}"
            )
        self.reader, self.d_vocab = reader, d_vocab
        rows = {
            split: [self._row(row, split) for row in given[split]] for split in given if len(given[split])
        }
        self.neutral: str = "neutral" if "neutral" in rows else ""
        self.n_ctx = max(len(prompt) + len(answer) for each in rows.values() for prompt, answer in each)
        self._sets = {split: self._token_set(split, each) for split, each in rows.items()}
        self.fingerprint = digest({split: found.tokens.tolist() for split, found in self._sets.items()})

    def rows(self, split: str) -> TokenSet:
        """A split by its own name or a task's: half of retain is what maps are fitted on, the other is held out."""
        if split in ("retain_train", "retain_test"):
            part = deal_families(self._sets["retain"].families, 2, 0)
            return self._sets["retain"].select(part == (0 if split == "retain_train" else 1))
        name = split.partition("_")[0]
        if name not in self._sets:
            raise UndoProbeError(
                f"there are no rows {split!r}: the prompts given are {', '.join(self._sets)}"
            )
        return self._sets[name]

    @property
    def splits(self) -> list[str]:
        """The splits that were given, forget first."""
        return [split for split in SPLITS if split in self._sets]

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        """Refused: these rows are for asking."""
        raise UndoProbeError(
            "prompts given by split can be compared on, not trained on: build a task for that"
        )

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Nothing is known beside the text."""
        return np.zeros((len(rows), 0))

    def chance(self) -> dict[str, float]:
        """A uniform guess saves nothing."""
        return {"forget": 0.0, "retain": 0.0}

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """Token ids as text; as numbers where no tokenizer was given."""
        ids = tokens.tolist()
        return (
            self.reader.tokenizer.decode(ids, skip_special_tokens=False)
            if self.reader
            else " ".join(map(str, ids))
        )

    def _row(self, row: Any, split: str) -> tuple[list[int], list[int]]:
        """Prompt and answer as token ids."""
        if isinstance(row, (tuple, list)) and len(row) == 2 and not isinstance(row[0], int):
            prompt, answer = (self._ids(part, split) for part in row)
            start = list(self.reader.start) if self.reader and isinstance(row[0], str) else []
            pair = start + prompt, answer
        else:
            ids = self._ids(row, split)
            start = list(self.reader.start) if self.reader and isinstance(row, str) else []
            pair = (start, ids) if start else (ids[:1], ids[1:])
        if not pair[0] or not pair[1]:
            raise UndoProbeError(
                f"a row of {split} has a prompt of {len(pair[0])} and an answer of {len(pair[1])} tokens: each needs "
                "one"
            )
        return pair

    def _ids(self, part: Any, split: str) -> list[int]:
        if isinstance(part, str):
            if self.reader is None:
                raise UndoProbeError(
                    f"the prompts of {split} are text and there is no tokenizer: give token ids, or tokenizer= a "
                    "Hugging Face folder or id"
                )
            return self.reader.encode([part])[0]
        ids = torch.as_tensor(part).tolist() if isinstance(part, (Tensor, np.ndarray, list, tuple)) else None
        if ids is None or not all(isinstance(token, int) and 0 <= token < self.d_vocab for token in ids):
            raise UndoProbeError(
                f"a row of {split} is {str(part)[:60]!r}: expected a text, token ids from 0 to {self.d_vocab - 1}, or "
                "a pair of prompt and answer"
            )
        return ids

    def _token_set(self, split: str, rows: Sequence[tuple[list[int], list[int]]]) -> TokenSet:
        import pandas as pd

        fill = self.reader.pad if self.reader else 0
        tokens = torch.full((len(rows), self.n_ctx), fill)
        mask = torch.zeros(len(rows), self.n_ctx, dtype=torch.bool)
        for number, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            tokens[number, :end] = torch.tensor(prompt + answer)
            mask[number, len(prompt) : end] = True
        # running text is read at the last place that predicts something, a question where its answer begins
        text = all(len(prompt) == len(rows[0][0]) for prompt, _ in rows) and len(rows[0][0]) <= 1
        ends = [len(prompt) + len(answer) - 2 if text else len(prompt) - 1 for prompt, answer in rows]
        read: int | Tensor = ends[0] if len(set(ends)) == 1 else torch.tensor(ends)
        families = [str(prompt if not text else prompt + answer) for prompt, answer in rows]
        codes = np.unique(families, return_inverse=True)[1]
        labels = pd.DataFrame(
            {"operation": split, "family": [f"{split} {code}" for code in codes], "subset": "all"}
        )
        return TokenSet(split, tokens, mask, read, labels)


def neutral_rows(
    given: Any, d_vocab: int, n_ctx: int, reader: "Reader | None" = None, most: int = 256
) -> TokenSet:
    """Rows of text that is neither forget nor retain.

    Args:
        given: texts or token rows, as a split of :class:`GivenPrompts`; or a file or folder of text, of which about
            ``most`` paragraphs are taken, evenly spread, :data:`NEUTRAL` tokens of each.
        d_vocab: of the models.
        n_ctx: tokens that the models read.
        reader: the tokenizer; needed for texts only.
        most: paragraphs.

    Raises:
        UndoProbeError: there is no text at that place, none that is long enough, or no tokenizer for it.
    """
    if isinstance(given, (str, Path)):
        if reader is None:
            raise UndoProbeError(
                "neutral text needs a tokenizer, and neither the task nor the models bring one: give tokenizer= a "
                "Hugging Face folder or id"
            )
        given = _paragraphs(Path(given).expanduser(), min(NEUTRAL, n_ctx), reader, most)
    return GivenPrompts(dict.fromkeys(SPLITS, given), d_vocab, reader).rows("neutral")


def _paragraphs(place: Path, width: int, reader: "Reader", most: int) -> list[list[int]]:
    """The beginnings of paragraphs as token ids."""
    inside = place.is_dir() and any(path.name.lower().endswith(SUFFIXES) for path in place.rglob("*"))
    if not place.is_file() and not inside:
        raise UndoProbeError(
            f"there is no text at {str(place)!r}: give neutral= a text file, or a folder of {', '.join(SUFFIXES)} files"
        )
    texts = documents(TextSource(language="neutral", path=place.name), str(place.parent))
    found = [part for text in texts for part in text.split("\n\n") if part.strip()]
    chosen = np.unique(np.linspace(0, len(found) - 1, min(len(found), 2 * most)).round().astype(int))
    rows = [[*reader.start, *ids][:width] for ids in reader.encode([found[at].strip() for at in chosen])]
    long = [row for row in rows if len(row) >= min(FEWEST, width)]
    if not long:
        raise UndoProbeError(f"no paragraph of {str(place)!r} has {FEWEST} tokens: give longer text")
    return long if len(long) <= most else [long[at * len(long) // most] for at in range(most)]
