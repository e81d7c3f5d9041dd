"""Questions of a task that is not there: rows of the right number and length, to price a run offline."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from undo_probe.randomness import generator
from undo_probe.records import TaskWords
from undo_probe.task_config import ChoiceConfig, QuestionSource
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS, Batch, Metric, TokenSet

# rows of the published data sets, by id, subset and split
PUBLISHED = {
    ("cais/wmdp", "wmdp-bio", "test"): 1273,
    ("cais/wmdp", "wmdp-chem", "test"): 408,
    ("cais/wmdp", "wmdp-cyber", "test"): 1987,
    ("cais/mmlu", "all", "test"): 14042,
    ("cais/mmlu", "all", "validation"): 1531,
}
UNKNOWN = 1000
_OPTIONS = 4


def is_here(config: ChoiceConfig) -> bool:
    """Whether questions, texts and tokenizer all lie on this machine."""
    texts = (config.forget_text, config.retain_text, config.distill_text)
    named = [source.dataset for source in (config.forget, config.retain, *texts) if source is not None]
    return all(Path(place).expanduser().is_dir() for place in [*named, config.tokenizer] if place)


def expected_rows(source: QuestionSource, most: int | None) -> int:
    """How many questions a source is thought to have."""
    count = PUBLISHED.get((source.dataset, source.subset, source.split), UNKNOWN)
    return count if most is None else min(count, most)


class StandIn:
    """A choice task with random tokens; of its batches and splits only the sizes mean anything."""

    name: str = "choice"
    metric: Metric = "choice"
    probe_targets: tuple[str, ...] = ()
    extra_splits: tuple[str, ...] = ()
    neutral: str = ""
    vocabulary: tuple[str, ...] = ()
    fingerprint: str = ""
    words: TaskWords = TaskWords()

    def __init__(self, config: ChoiceConfig, d_vocab: int, n_ctx: int) -> None:
        """Splits of ``config``, with tokens and rows of other sizes."""
        self.d_vocab, self.n_ctx = d_vocab, n_ctx
        self.forget_operations: tuple[str, ...] = (config.forget.name,)
        self.retain_operations: tuple[str, ...] = (config.retain.name,)
        sides = (
            (config.forget, FORGET_SPLITS, config.forget_shares),
            (config.retain, RETAIN_SPLITS, config.retain_shares),
        )
        self.expected = {source.name: expected_rows(source, config.max_questions) for source, _, _ in sides}
        self._sets = {
            name: self._rows(name, source.name, round(self.expected[source.name] * share / sum(shares)))
            for source, names, shares in sides
            for name, share in zip(names, shares, strict=True)
        }

    def rows(self, split: str) -> TokenSet:
        """As many rows as are expected, all alike."""
        return self._sets[split]

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        """Random tokens, of which all but the first are asked."""
        tokens = torch.randint(self.d_vocab, (size, self.n_ctx), generator=generator(seed, mixture, step))
        mask = torch.ones(tokens.shape, dtype=torch.bool)
        mask[:, 0] = False
        return Batch(tokens, mask)

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Nothing."""
        return np.zeros((len(rows), 0), dtype=np.float32)

    def chance(self) -> dict[str, float]:
        """That of four options."""
        return dict.fromkeys((*self.forget_operations, *self.retain_operations), 1 / _OPTIONS)

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The numbers of the tokens."""
        return " ".join(map(str, tokens.tolist()))

    def _rows(self, split: str, operation: str, count: int) -> TokenSet:
        count = max(2, count)
        # one row, shown so many times: nothing is held
        tokens = torch.arange(self.n_ctx)[None].remainder(self.d_vocab).expand(count, -1)
        mask = (torch.arange(self.n_ctx) == self.n_ctx - 1)[None].expand(count, -1)
        labels = pd.DataFrame(
            {
                "operation": operation,
                "subset": "all",
                "answer": 0,
                "family": [f"{split} {n}" for n in range(count)],
            }
        )
        return TokenSet(
            split, tokens, mask, self.n_ctx - 2, labels, torch.arange(_OPTIONS)[None].expand(count, -1)
        )
