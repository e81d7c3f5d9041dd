"""Multiple choice questions to forget and to keep: WMDP, MMLU, or the user's own.

A row is the question, its lettered options, ``Answer:`` and the letter; what follows is filling, which no earlier place
sees. A row counts as answered where the right letter is the likeliest of the question's own letters (metric
``choice``). The order of the options is drawn, and within a split every letter is right equally often, so that neither
a favourite letter nor the memory of one is worth anything. A family is a question with its near duplicates.

Without texts the questions are what is trained on, with the letter as answer: T, V and D in unlearning and
distillation, T by the attacker. With ``forget_text`` and ``retain_text`` the questions are never trained on: every
mixture is running text, as in the WMDP experiment of UNDO (arXiv 2506.06278), and the attacker has the forget text
that was unlearned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed, generator
from undo_probe.records import TaskWords
from undo_probe.task_config import ChoiceConfig, QuestionSource
from undo_probe.tasks.dealing import dealt
from undo_probe.tasks.passages import load_passages, text_set
from undo_probe.tasks.pool import best_constants
from undo_probe.tasks.protocol import (
    FORGET_SPLITS,
    Batch,
    Metric,
    TokenSet,
    check_disjoint,
)
from undo_probe.tasks.questions import LETTERS, Question, families, read_questions
from undo_probe.tasks.reader import Reader, source_reader, trained_reader

TEXTS = ("forget_text", "retain_text", "distill_text")
Rows = tuple[Int[Tensor, "row pos"], Bool[Tensor, "row pos"]]


NEUTRAL_ROWS = 4096
"""Rows of running text that can be asked for as a split: there may be hundreds of millions of tokens."""


class ChoiceTask:
    """Questions with their splits drawn from ``seed``.

    ``facts`` counts what was left out: copies, questions that are too long, retain questions that are like a forget
    question, and those beyond ``task.max_questions``.
    """

    name: str = "choice"
    metric: Metric = "choice"
    probe_targets: tuple[str, ...] = ()
    extra_splits: tuple[str, ...] = ()

    def __init__(self, config: ChoiceConfig, seed: int) -> None:
        """Reads the questions, and the texts where there are any.

        Raises:
            UndoProbeError: something is missing or not readable, or a split would be empty.
        """
        self.config, self._seed = config, seed
        self.facts: dict[str, dict[str, int]] = {}
        kept = self._questions()
        shots = {side: _shots(getattr(config, side), config.text) for side in kept}
        reader = self.reader = _reader(config, kept)
        self.d_vocab: int = reader.size
        self.n_ctx: int = config.n_ctx
        self.vocabulary: tuple[str, ...] = tuple(
            reader.tokenizer.id_to_token(token) or "" for token in range(reader.size)
        )
        self.forget_operations: tuple[str, ...] = (config.forget.name,)
        self.retain_operations: tuple[str, ...] = (config.retain.name,)
        self.words = _words(config)
        self._sets = {
            name: self._split(name, part, shots)
            for name, part in dealt(
                kept, config.forget_shares, config.retain_shares, seed, config.fold
            ).items()
        }
        check_disjoint(self._sets)
        self._texts = {
            name: load_passages(source, config, reader)
            for name in TEXTS
            if (source := getattr(config, name)) is not None
        }
        self.neutral: str = "retain_text" if "retain_text" in self._texts else ""
        self._mixtures = self._wells()
        names = {"text", "cache", "tokenizer", "tokenizer_revision", "forget", "retain", *TEXTS}
        rows = {
            name: digest([part.tokens.tolist(), part.families.tolist()]) for name, part in self._sets.items()
        }
        self.fingerprint = digest(
            {
                "task": config.identity(*names),
                "names": [config.forget.name, config.retain.name],
                "questions": rows,
                "texts": {name: text.content for name, text in self._texts.items()},
                "tokenizer": reader.content,
                "split_seed": seed,
                "rows": 1,
            }
        )

    def rows(self, split: str) -> TokenSet:
        """All questions of ``split``, in a fixed order."""
        if split == self.neutral and split:
            text = self._texts[split]
            return text_set(split, replace(text, tokens=text.tokens[:NEUTRAL_ROWS]), self.n_ctx)
        if split not in self._sets:
            raise UndoProbeError(f"choice has no split {split!r}: it has {', '.join(sorted(self._sets))}")
        return self._sets[split]

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        """``size`` rows: the parts of the mixture evenly, the rows of a part with replacement."""
        if mixture not in self._mixtures:
            raise UndoProbeError(f"choice has no mixture {mixture!r}: it has {', '.join(self._mixtures)}")
        wells = self._mixtures[mixture]
        draw = generator(seed, "batch", step)
        which = torch.randint(len(wells), (size,), generator=draw)
        place = torch.rand(size, generator=draw, dtype=torch.float64)
        tokens = torch.empty(size, self.n_ctx, dtype=torch.int64)
        mask = torch.empty(size, self.n_ctx, dtype=torch.bool)
        for number, well in enumerate(wells):
            chosen = which == number
            tokens[chosen], mask[chosen] = well.at(place[chosen])
        return Batch(tokens, mask)

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Nothing: nothing is probed."""
        return np.zeros((len(rows), 0), dtype=np.float32)

    def chance(self) -> dict[str, float]:
        """Accuracy of the best constant letter on each side."""
        labels = pd.concat([part.labels for part in self._sets.values()], ignore_index=True)
        return best_constants(labels, "answer")

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The text of ``tokens``."""
        return self.reader.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def _questions(self) -> dict[str, list["Kept"]]:
        """The questions of both sides, each once, with their families; retain has none that is like a forget one."""
        config = self.config
        read = {side: read_questions(getattr(config, side), config.text) for side in ("forget", "retain")}
        both = [*read["forget"], *read["retain"]]
        family = families(both, config.near_duplicates)
        forgotten = set(family[: len(read["forget"])].tolist())
        kept: dict[str, list[Kept]] = {"forget": [], "retain": []}
        seen: set[str] = set()
        for at, question in enumerate(both):
            side = "forget" if at < len(read["forget"]) else "retain"
            if question.name in seen:
                self._left_out(side, "copies")
            elif side == "retain" and family[at] in forgotten:
                self._left_out(side, "like_a_forgotten_one")
            else:
                kept[side].append(Kept(question, f"{side}:{both[family[at]].name}"))
            seen.add(question.name)
        return {side: self._limited(side, found) for side, found in kept.items()}

    def _limited(self, side: str, found: list["Kept"]) -> list["Kept"]:
        most = self.config.max_questions
        if most is None or len(found) <= most:
            return found
        self._left_out(side, "beyond_the_most", len(found) - most)
        drawn = np.random.default_rng(derive_seed(self._seed, "questions", side)).permutation(len(found))
        return [found[at] for at in np.sort(drawn[:most])]

    def _left_out(self, side: str, why: str, count: int = 1) -> None:
        counts = self.facts.setdefault(side, {})
        counts[why] = counts.get(why, 0) + count

    def _split(self, name: str, part: Sequence["Kept"], shots: Mapping[str, "Shots"]) -> TokenSet:
        """The rows of a split; questions longer than a row are left out and counted."""
        side = name.partition("_")[0]
        source: QuestionSource = getattr(self.config, side)
        draw = np.random.default_rng(derive_seed(self._seed, "options", name))
        prompts, lines = [], []
        for number, kept in enumerate(part):
            order = _order(kept.question, number, draw, self.config.permute)
            prompts.append(shots[side].before(kept.question) + kept.question.asked(order))
            answer = list(order).index(kept.question.answer)
            lines.append((kept.family, answer, len(order)))
        encoded = [[*self.reader.start, *tokens] for tokens in self.reader.encode(prompts)]
        fits = [at for at, tokens in enumerate(encoded) if len(tokens) < self.n_ctx]
        if len(fits) < len(part):
            self._left_out(side, "too_long", len(part) - len(fits))
        if not fits:
            raise UndoProbeError(
                f"the split {name} is empty: {len(part)} questions of {source.name} were dealt to it, and "
                f"{len(part) - len(fits)} of them are longer than a row of {self.n_ctx} tokens; give more questions, "
                f"raise its share (task.{side}_shares), or raise task.n_ctx"
            )
        labels = pd.DataFrame([lines[at] for at in fits], columns=["family", "answer", "options"]).assign(
            operation=source.name, subset="all"
        )
        letters = self.reader.letters("Answer:", LETTERS[: max(lines[at][2] for at in fits)])
        return _token_set(name, [encoded[at] for at in fits], labels, letters, self.n_ctx, self.reader.pad)

    def _wells(self) -> dict[str, tuple["Well", ...]]:
        """What each mixture draws from."""
        text = {name: Well(found.tokens) for name, found in self._texts.items()}
        known = {name: _asked([part]) for name, part in self._sets.items()}
        forget = text.get("forget_text") or _asked([self._sets[f"forget_{letter}"] for letter in "TVD"])
        retain = text.get("retain_text") or known["retain_train"]
        attack = text.get("forget_text") or known["forget_T"]
        every = [self._sets[name] for name in FORGET_SPLITS]
        kept_text = [text["retain_text"]] if "retain_text" in text else []
        lost_text = [text["forget_text"]] if "forget_text" in text else []
        return {
            "pretrain": (known["retain_train"], *kept_text, _asked(every), *lost_text),
            # every question with every letter: the prompts are seen, and the answer is drawn anew each time
            "matched": (known["retain_train"], *kept_text, _asked(every, redrawn=True)),
            "retain": (retain,),
            "unlearn": (forget,),
            "distill": (text["distill_text"],) if "distill_text" in text else (retain, forget),
            "attack": (attack,),
            "attack_mixed": (retain, attack),
        }


@dataclass(frozen=True)
class Kept:
    """A question that is used, and the name of its family."""

    question: Question
    family: str


@dataclass(frozen=True)
class Well:
    """Rows that a mixture draws from; without a mask they are running text, of which all but the first is asked."""

    tokens: Int[Tensor, "row pos"] | np.ndarray
    mask: Bool[Tensor, "row pos"] | None = None

    def at(self, place: Tensor) -> Rows:
        """The rows at these places, 0 to 1."""
        rows = (place * len(self.tokens)).long()
        if self.mask is not None:
            return torch.as_tensor(self.tokens)[rows], self.mask[rows]
        found = torch.from_numpy(np.asarray(self.tokens[rows.numpy()], dtype=np.int64))
        asked = torch.ones(found.shape, dtype=torch.bool)
        asked[:, 0] = False
        return found, asked


@dataclass(frozen=True)
class Shots:
    """What stands before a question: the source's header, and answered questions of the same subject."""

    source: QuestionSource
    examples: Sequence[Question]

    def before(self, question: Question) -> str:
        """The text up to the question.

        Raises:
            UndoProbeError: there are too few examples of the subject.
        """
        header = self.source.header.replace("{subject}", question.subject.replace("_", " "))
        own = [
            each for each in self.examples if each.subject == question.subject and each.name != question.name
        ]
        if len(own) < self.source.shots:
            raise UndoProbeError(
                f"{self.source.name}: {self.source.shots} shots are asked for, but there are {len(own)} examples of "
                f"the subject {question.subject!r}: lower shots, or give more"
            )
        blocks = [each.asked(range(len(each.choices)), answered=True) for each in own[: self.source.shots]]
        return "".join(f"{block}\n\n" for block in [*([header] if header else []), *blocks])


def _shots(source: QuestionSource, folder: str) -> Shots:
    return Shots(source, read_questions(source, folder, shots=True) if source.shots else ())


def _reader(config: ChoiceConfig, kept: Mapping[str, Sequence[Kept]]) -> Reader:
    """The tokenizer that is named, or one trained on the questions of both sides."""
    if config.tokenizer:
        return source_reader(config.tokenizer, config.tokenizer_revision)
    texts = [
        [each.question.asked(range(len(each.question.choices)), answered=True) for each in side]
        for side in kept.values()
    ]
    return trained_reader(texts, config.vocab, LETTERS)


def _order(question: Question, number: int, draw: np.random.Generator, permute: bool) -> list[int]:
    """The options in the order in which they are asked: the right one in turn at every letter, the others drawn.

    An option that speaks of others ("all of the above", "A and B") keeps all where they are.
    """
    count = len(question.choices)
    others = [at for at in draw.permutation(count).tolist() if at != question.answer]
    if not permute or question.ordered:
        return list(range(count))
    place = number % count
    return [*others[:place], question.answer, *others[place:]]


def _token_set(
    name: str,
    prompts: Sequence[Sequence[int]],
    labels: pd.DataFrame,
    letters: Sequence[int],
    n_ctx: int,
    pad: int,
) -> TokenSet:
    """Rows of prompt, letter and filling."""
    tokens = torch.full((len(prompts), n_ctx), pad, dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, labels["answer"], strict=True)):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
        tokens[row, len(prompt)] = letters[answer]
        mask[row, len(prompt)] = True
    read = torch.tensor([len(prompt) - 1 for prompt in prompts])
    given = torch.arange(len(letters)) < torch.tensor(labels["options"].to_numpy(dtype=np.int64))[:, None]
    options = torch.where(given, torch.tensor(letters), -1)
    return TokenSet(name, tokens, mask, read, labels, options)


def _asked(parts: Sequence[TokenSet], redrawn: bool = False) -> Well:
    """The questions of some splits to train on; ``redrawn`` has each once with every letter it offers."""
    if not redrawn:
        return Well(
            torch.cat([part.tokens for part in parts]), torch.cat([part.answer_mask for part in parts])
        )
    tokens, masks = [], []
    for part in parts:
        for row, options in enumerate(part.options if part.options is not None else ()):
            for letter in options[options >= 0]:
                tokens.append(torch.where(part.answer_mask[row], letter, part.tokens[row]))
                masks.append(part.answer_mask[row])
    return Well(torch.stack(tokens), torch.stack(masks))


def _words(config: ChoiceConfig) -> TaskWords:
    forget, retain = config.forget.name, config.retain.name
    trained = (
        "No question was trained on by anybody: unlearning and attack saw text."
        if config.forget_text is not None
        else "T is what the attacker trained on, W was never trained on, V is the part that is reported."
    )
    return TaskWords(
        forget=forget,
        retain=retain,
        read_at="the colon of `Answer:`",
        read_mark=":",
        prompt="nothing",
        family="A question, with those that share most of its wording.",
        strata_note=f"{trained} A question counts as answered where the right letter is the likeliest of its own "
        "letters, whatever else the model would rather say.",
        operations={retain: retain, forget: forget},
        strata={},
        targets={},
    )
