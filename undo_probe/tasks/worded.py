"""Arithmetic in two forms, equations and word problems, with plain text between them where the user gives some.

The facts, families and splits are those of :mod:`undo_probe.tasks.arithmetic`: whatever the wording, a x b, b x a and
both quotients are one family. A digit is a token, and so is a word. Prompts are padded on the left, so that all end
at the same position. The operation of a word problem is ``+ words`` and so on: everything that is drawn, stopped by
or reported by operation is so by form too.

The rows of a split ask each of its facts as an equation and as one word problem, in a wording that is never trained
on. Mixtures show the same facts as equations and in several of the other wordings.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed
from undo_probe.records import TaskWords
from undo_probe.task_config import ArithmeticConfig
from undo_probe.tasks import arithmetic, background, wordings
from undo_probe.tasks.arithmetic import FORGET, MIXTURES, RETAIN, VOCABULARY
from undo_probe.tasks.pool import Pool, Pooled, best_constants
from undo_probe.tasks.protocol import TokenSet, check_disjoint, join

WORDS = " words"
"""Suffix of the operation of a word problem."""
VARIANTS = 8
"""Word problems in which a fact is shown in training, each in a wording of its own."""
TEXT = "text"
_ANSWER = 4
_WITH_TEXT = ("pretrain", "matched", "retain", "distill", "attack_mixed")


class WordedArithmeticTask(Pooled):
    """Arithmetic as :class:`undo_probe.tasks.arithmetic.ArithmeticTask`, asked in words too."""

    name: str = "arithmetic"
    probe_targets: tuple[str, ...] = ("first_digit", "tens", "units")
    extra_splits: tuple[str, ...] = ()

    def __init__(self, config: ArithmeticConfig, seed: int) -> None:
        """Builds all rows and splits.

        Raises:
            UndoProbeError: a split would be empty, or the background cannot be read.
        """
        self.config = config
        forms = (("", WORDS) if config.word_problems else ("",)) if config.word_problems < 1 else (WORDS,)
        self.forget_operations: tuple[str, ...] = tuple(op + form for form in forms for op in FORGET)
        self.retain_operations: tuple[str, ...] = tuple(op + form for form in forms for op in RETAIN)
        self.words = _words()
        text = [] if config.background is None else background.read_words(config.background)
        self.vocabulary: tuple[str, ...] = _vocabulary(config, text)
        self.d_vocab = len(self.vocabulary)
        prompt = _longest_prompt(config)
        self.n_ctx = (prompt + _ANSWER) * (config.shots + 1)
        table = arithmetic.split_facts(config, seed)
        rows = _Rows(self.vocabulary, prompt, forms, derive_seed(seed, "word problems"))
        self._sets = {str(name): rows.asked(str(name), part) for name, part in table.groupby("split")}
        check_disjoint(self._sets)
        shown = {str(name): rows.shown(str(name), part) for name, part in table.groupby("split")}
        plain = rows.plain(text) if text else None
        self._pools = {name: self._pool(name, shown, plain) for name in MIXTURES}
        settings = config.identity("background")
        what = {"task": settings, "split_seed": seed, "rows": "words 1", "background": digest(text)}
        self.fingerprint = digest(what)

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Operation with form, wording and every operand digit, one-hot."""
        digits = [rows.labels[name] // power % 10 for name in "ab" for power in (1, 10, 100)]
        columns = [rows.labels["operation"], rows.labels["wording"], *digits]
        hot = pd.concat([pd.get_dummies(column) for column in columns], axis=1).to_numpy(np.float32)
        return hot[:, hot.std(axis=0) > 0]

    def chance(self) -> dict[str, float]:
        """Accuracy of the best constant answer over all questions of each operation and form."""
        return best_constants(pd.concat([part.labels for part in self._sets.values()]), "result")

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The text of ``tokens``, with a space on either side of a word."""
        ids = tokens.tolist()
        words = [token >= len(VOCABULARY) for token in ids]
        between = [" " if one or other else "" for one, other in pairwise(words)]
        return "".join(self.vocabulary[token] + gap for token, gap in zip(ids, [*between, ""], strict=True))

    def _pool(self, mixture: str, shown: dict[str, TokenSet], plain: TokenSet | None) -> Pool:
        parts = [shown[name] for name in MIXTURES[mixture]]
        if plain is not None and mixture in _WITH_TEXT:
            parts.append(plain)
        groups = [part.operations for part in parts]
        redrawn = self.forget_operations if mixture == "matched" else ()
        order = (*self.retain_operations, *self.forget_operations, TEXT)
        shares = self._shares(set(np.concatenate(groups)))
        return Pool(parts, groups, order, redrawn, shares, self.config.shots + 1)

    def _shares(self, present: set[str]) -> dict[str, float]:
        """The share of each group in a batch."""
        text = self.config.background_share if TEXT in present else 0.0
        asked = [name for name in present if name != TEXT]
        worded = sum(name.endswith(WORDS) for name in asked)
        of_form = {True: self.config.word_problems, False: 1 - self.config.word_problems}
        shares = {
            name: (1 - text)
            * of_form[name.endswith(WORDS)]
            / (worded if name.endswith(WORDS) else len(asked) - worded)
            for name in asked
        }
        return {**shares, TEXT: text}


class _Rows:
    """Facts as rows of tokens."""

    def __init__(self, vocabulary: tuple[str, ...], prompt: int, forms: Sequence[str], seed: int) -> None:
        self.known = {word: index for index, word in enumerate(vocabulary)}
        self.prompt, self.forms, self.seed = prompt, forms, seed

    def asked(self, name: str, facts: pd.DataFrame) -> TokenSet:
        """Each fact as an equation and in one held-out wording."""
        return self._both(name, facts, wordings.HELD_OUT, 1)

    def shown(self, name: str, facts: pd.DataFrame) -> TokenSet:
        """Each fact as an equation and in several trained wordings."""
        return self._both(name, facts, wordings.TRAINED, VARIANTS)

    def _both(self, name: str, facts: pd.DataFrame, known: Sequence[tuple[int, int]], count: int) -> TokenSet:
        draw = np.random.default_rng(derive_seed(self.seed, name, len(known)))
        parts = []
        if "" in self.forms:
            texts = [
                list(f"{a:>3}{op}{b:>2}=")
                for a, op, b in zip(facts["a"], facts["operation"], facts["b"], strict=True)
            ]
            parts.append(self._token_set(name, facts, texts, ["equation"] * len(facts)))
        if WORDS in self.forms:
            parts += [
                self._worded(name, facts, known, column, draw)
                for column in _orders(facts, known, count, draw).T
            ]
        return join(name, *parts)

    def _worded(
        self,
        name: str,
        facts: pd.DataFrame,
        known: Sequence[tuple[int, int]],
        chosen: np.ndarray,
        draw: np.random.Generator,
    ) -> TokenSet:
        fillers = {
            slot: draw.integers(len(listed), size=len(facts)) for slot, listed in wordings.SLOTS.items()
        }
        texts, said = [], []
        for row, (a, op, b, which) in enumerate(
            zip(facts["a"], facts["operation"], facts["b"], chosen, strict=True)
        ):
            filled = {"{a}": list(str(a)), "{b}": list(str(b))}
            filled |= {f"{{{slot}}}": [wordings.SLOTS[slot][at[row]]] for slot, at in fillers.items()}
            words = wordings.wording(op, known[which])
            texts.append([token for word in words for token in filled.get(word, [word])])
            said.append(f"{op} {known[which][0]} {known[which][1]}")
        return self._token_set(name, facts.assign(operation=facts["operation"] + WORDS), texts, said)

    def _token_set(
        self, name: str, facts: pd.DataFrame, prompts: Sequence[list[str]], said: Sequence[str]
    ) -> TokenSet:
        """Prompts padded on the left, answers with an end mark and padded on the right."""
        answers = [f"{result};" for result in facts["result"]]
        lines = [
            [" "] * (self.prompt - len(prompt)) + prompt + list(answer.ljust(_ANSWER))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        tokens = torch.tensor([[self.known[word] for word in line] for line in lines])
        place = torch.arange(tokens.shape[1])[None]
        length = torch.tensor([len(answer) for answer in answers])[:, None]
        mask = (place >= self.prompt) & (place < self.prompt + length)
        labels = arithmetic.labels_of(facts)
        labels["wording"] = list(said)
        return TokenSet(name, tokens, mask, self.prompt - 1, labels)

    def plain(self, words: list[str]) -> TokenSet:
        """Text cut into rows; every token but the first is to be predicted, rare words are not."""
        length = self.prompt + _ANSWER
        other = self.known[background.OTHER]
        tokens = torch.tensor(
            [self.known.get(word, other) for word in words[: len(words) // length * length]]
        )
        if not len(tokens):
            raise UndoProbeError(
                f"task.background has {len(words)} words, fewer than the {length} of one row: give more text"
            )
        rows = tokens.view(-1, length)
        mask = rows != other
        mask[:, 0] = False
        labels = pd.DataFrame({"operation": [TEXT] * len(rows), "family": TEXT, "subset": "all"})
        return TokenSet(TEXT, rows, mask, self.prompt - 1, labels)


def _orders(
    facts: pd.DataFrame, known: Sequence[tuple[int, int]], count: int, draw: np.random.Generator
) -> np.ndarray:
    """``count`` different wordings for each fact, by number, shape (fact, count)."""
    every = np.tile(np.arange(len(known)), (len(facts), 1))
    return draw.permuted(every, axis=1)[:, :count]


def _vocabulary(config: ArithmeticConfig, text: list[str]) -> tuple[str, ...]:
    words = wordings.words() if config.word_problems else ()
    if text:
        words = (*words, background.OTHER, *background.common(text, config.background_words))
    return tuple(dict.fromkeys([*VOCABULARY, *words]))


def _longest_prompt(config: ArithmeticConfig) -> int:
    """Tokens of the longest prompt there can be, whatever is drawn."""
    longest = len("  6* 7=")
    if not config.word_problems:
        return longest
    top = {"+": (config.add_max, config.add_max), "-": (config.add_max, config.add_max)}
    top |= {"*": (config.mul_max, config.mul_max), "/": (config.mul_max**2, config.mul_max)}
    for operation, numbers in top.items():
        digits = sum(len(str(number)) for number in numbers)
        for pair in (*wordings.TRAINED, *wordings.HELD_OUT):
            longest = max(longest, len(wordings.wording(operation, pair)) - 2 + digits)
    return longest


def _words() -> TaskWords:
    plain = TaskWords()
    return plain.replace(
        read_at="the end of the question",
        read_mark="…",
        prompt="operation, wording and operands",
        operations={
            **plain.operations,
            **{op + WORDS: f"{name}, word problem" for op, name in plain.operations.items()},
        },
    )
