"""A language to forget and one to keep: the first experiment of UNDO (arXiv 2506.06278), on the user's own text.

A row is a beginning mark and running text; every token after the mark is asked, and a row's score is in bits. A
family is a document, or a few short ones that share a row.

A language is a skill, so what is *held out* are documents: V, D and both held-out parts of retain are in no mixture at
all, as the paper's validation documents are not. That an attack on T brings V down can then not be memory of V. T is
pretrained on, unlearned, distilled on and attacked with; W is only pretrained on. Capability is reported for all three.
"""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed, generator
from undo_probe.records import TaskWords
from undo_probe.task_config import LanguageConfig
from undo_probe.tasks.corpus import BOS, SIDES, Split, characters_begun, load_corpus
from undo_probe.tasks.protocol import Batch, Metric, TokenSet
from undo_probe.tasks.reader import Reader

MIXTURES: dict[str, tuple[str, ...]] = {
    "pretrain": ("retain_train", "forget_T", "forget_W"),
    "matched": ("retain_train", "forget_T", "forget_W"),
    "retain": ("retain_train",),
    "unlearn": ("forget_T",),
    "distill": ("retain_train", "forget_T"),
    "attack": ("forget_T",),
    "attack_mixed": ("retain_train", "forget_T"),
}


class LanguageTask:
    """Two languages with their documents dealt into splits by ``seed``.

    Sides of a mixture are drawn evenly, and all rows are equally long: a batch has as many tokens of each language.

    ``matched`` redraws every forget token by itself, from all forget tokens of the mixture: the oracle meets the same
    tokens as often as the original and learns how frequent each is, and nothing of how they follow one another. It
    can at best score :meth:`chance` on the forget language. (Shuffling each row instead would keep what a document is
    about.) Forget text may hold words of the retain language, which the oracle then reads as well as anybody.
    """

    name: str = "language"
    metric: Metric = "bits"
    probe_targets: tuple[str, ...] = ()
    extra_splits: tuple[str, ...] = ()
    neutral: str = ""

    def __init__(self, config: LanguageConfig, seed: int) -> None:
        """Reads and tokenises the text, or opens what was prepared from the same text before.

        Raises:
            UndoProbeError: the text is missing, not readable, or too little.
        """
        self.config, self._seed = config, seed
        corpus = load_corpus(config, seed)
        check_families(corpus.splits)
        self._splits, self.facts = corpus.splits, corpus.facts
        mark = int(corpus.tokenizer.token_to_id(BOS) or 0)
        self.reader = Reader(corpus.tokenizer, (mark,), mark)
        self.d_vocab: int = self.reader.size
        self.n_ctx: int = config.n_ctx
        self.vocabulary: tuple[str, ...] = tuple(
            self.reader.tokenizer.decode([token], skip_special_tokens=False) for token in range(self.d_vocab)
        )
        self.forget_operations: tuple[str, ...] = (config.forget.language,)
        self.retain_operations: tuple[str, ...] = (config.retain.language,)
        self.words = _words(config)
        self._begun = characters_begun(self.reader.tokenizer)
        self._sets = {name: self._asked(name, split) for name, split in self._splits.items()}
        kept = config.model_dump(mode="json", exclude={"text", "cache", "retain", "forget"})
        self.fingerprint = digest(
            {
                "task": {**kept, "languages": [config.retain.language, config.forget.language]},
                "text": corpus.text_hash,
                "tokenizer": corpus.tokenizer_hash,
                "split_seed": seed,
                "rows": 1,
            }
        )

    def rows(self, split: str) -> TokenSet:
        """The rows of ``split`` that are evaluated: all, or ``task.eval_rows`` drawn once."""
        if split not in self._sets:
            raise UndoProbeError(f"language has no split {split!r}: it has {', '.join(sorted(self._sets))}")
        return self._sets[split]

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        """``size`` rows out of all of the mixture's, sides drawn evenly, rows with replacement."""
        if mixture not in MIXTURES:
            raise UndoProbeError(f"language has no mixture {mixture!r}: it has {', '.join(MIXTURES)}")
        draw = generator(seed, "batch", step)
        parts = {side: [self._splits[n] for n in MIXTURES[mixture] if n.startswith(side)] for side in SIDES}
        sides = [side for side in SIDES if parts[side]]
        side = torch.randint(len(sides), (size,), generator=draw).numpy()
        place = torch.rand(size, generator=draw, dtype=torch.float64).numpy()
        tokens = np.empty((size, self.n_ctx), dtype=np.int64)
        for number, name in enumerate(sides):
            chosen = side == number
            tokens[chosen] = _at(parts[name], place[chosen])
            if mixture == "matched" and name == "forget":
                tokens[chosen, 1:] = _redrawn(parts[name], int(chosen.sum()), draw)
        return _batch(tokens)

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Nothing: there is no prompt that could give an answer away, and nothing is probed."""
        return np.zeros((len(rows), 0), dtype=np.float32)

    def chance(self) -> dict[str, float]:
        """Score of each language's token frequencies, the best guess that ignores all other tokens."""
        found = {}
        for side, language in zip(SIDES, (*self.retain_operations, *self.forget_operations), strict=True):
            parts = [split.tokens[:, 1:] for name, split in self._splits.items() if name.startswith(side)]
            counts = sum(np.bincount(part.ravel(), minlength=self.d_vocab) for part in parts)
            share = np.asarray(counts, dtype=float)
            share = share[share > 0] / share.sum()
            found[language] = 1 + float((share * np.log2(share)).sum()) / math.log2(self.d_vocab)
        return found

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The text of ``tokens``."""
        return self.reader.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def _asked(self, name: str, split: Split) -> TokenSet:
        """The evaluated rows of a split, with the characters that begin in each."""
        count, limit = len(split.tokens), self.config.eval_rows
        chosen = np.arange(count)
        if count > limit:
            draw = np.random.default_rng(derive_seed(self._seed, "evaluated rows", name))
            chosen = np.sort(draw.permutation(count)[:limit])
        tokens = split.tokens[chosen].astype(np.int64)
        source = self.config.forget if name.startswith("forget") else self.config.retain
        labels = pd.DataFrame(
            {
                "operation": source.language,
                "family": [split.names[number] for number in split.family[chosen]],
                "subset": "all",
                "characters": self._begun[tokens].sum(axis=1),
            }
        )
        batch = _batch(tokens)
        return TokenSet(name, batch.tokens, batch.answer_mask, self.n_ctx - 2, labels)


def check_families(splits: Mapping[str, Split]) -> None:
    """Refuses a family in two splits, in the rows that are drawn as in those that are evaluated."""
    seen: dict[str, str] = {}
    for name, split in splits.items():
        for family in split.names:
            if seen.setdefault(family, name) != name:
                raise UndoProbeError(
                    f"the family {family} lies in {seen[family]} and in {name}: splits must be disjoint"
                )


def _at(parts: list[Split], place: Shaped[np.ndarray, " row"]) -> Shaped[np.ndarray, "row pos"]:
    """The rows at these places, 0 to 1, of several splits one after another."""
    ends = np.cumsum([len(part.tokens) for part in parts])
    number = (place * ends[-1]).astype(np.int64)
    which = np.searchsorted(ends, number, side="right")
    rows = [parts[w].tokens[n - (ends[w] - len(parts[w].tokens))] for w, n in zip(which, number, strict=True)]
    return np.stack(rows) if rows else np.empty((0, parts[0].tokens.shape[1]), dtype=np.int64)


def _redrawn(parts: list[Split], rows: int, draw: torch.Generator) -> Shaped[np.ndarray, "row token"]:
    """So many rows of tokens, each drawn by itself from all tokens of the splits but the first of every row."""
    n_ctx = parts[0].tokens.shape[1]
    place = torch.rand(2, rows, n_ctx - 1, generator=draw, dtype=torch.float64).numpy()
    ends = np.cumsum([len(part.tokens) for part in parts])
    number = (place[0] * ends[-1]).astype(np.int64)
    column = 1 + (place[1] * (n_ctx - 1)).astype(np.int64)
    tokens = np.empty(number.shape, dtype=np.int64)
    for part, end in zip(parts, ends, strict=True):
        here = (number >= end - len(part.tokens)) & (number < end)
        tokens[here] = part.tokens[number[here] - (end - len(part.tokens)), column[here]]
    return tokens


def _batch(tokens: Shaped[np.ndarray, "row pos"]) -> Batch:
    """Rows in which all but the beginning mark is asked."""
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    mask[:, 0] = False
    return Batch(torch.from_numpy(tokens), mask)


def _words(config: LanguageConfig) -> TaskWords:
    forget, retain = config.forget.language, config.retain.language
    return TaskWords(
        forget=forget,
        retain=retain,
        read_at=f"the last but one of a row's {config.n_ctx} tokens",
        read_mark="last",
        prompt="nothing",
        family="A document, or a few short ones that share a row of tokens.",
        strata_note="T was pretrained on, unlearned and attacked with, W only pretrained on, V never shown to any "
        "model: what T has beyond V is memory of documents, not the language.",
        operations={retain: retain, forget: forget},
        strata={},
        targets={},
        scored="Nothing is asked here that is right or wrong. Wherever this page speaks of accuracy, it means the "
        "share of a uniform guess’s bits that the model saves on the next token of running text: 100% is certainty, "
        "0% a uniform guess over the vocabulary, less is worse than that; token frequencies alone score above 0%. "
        "Differences of shares are differences of cross-entropy. Probes are absent: running text has no answer that "
        "one place of it should hold.",
    )
