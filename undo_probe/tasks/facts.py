"""Facts that a pretrained model knows, some to forget and some to keep: shipped relations, or the user's own rows.

A row is a statement up to its answer, the answer, and filling, which no earlier place sees. A row counts as answered
where the right answer is likelier than the wrong ones beside it, by the log-probability of their tokens alone (metric
``choice``): for a small model an exact match is too much to ask. A space before an answer is part of it; facts whose
tokens change where prompt and answer meet are left out and counted.

A family is an entity: all that is asked of it on one side. Two things are *held out*: entities, dealt into splits, and
one wording of each fact, drawn, which no training set of that fact has. Every split asks in it, but ``retain_train``
and those that end in ``_trained``; a fact with one wording is asked as it was trained. With a known set
(:func:`undo_probe.measures.known.known`) only facts that the model knows are left, and the held-out wording is one in
which it answers.

The task is made for a model that is loaded. One trained here meets every fact; its oracle knows no held-out retain one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed
from undo_probe.records import TaskWords
from undo_probe.task_config import FactsConfig, FactSource
from undo_probe.tasks.dealing import dealt
from undo_probe.tasks.fact import Answers, Fact, floor, read_facts
from undo_probe.tasks.fact_rows import Asked, Kept, redrawn, token_set, width
from undo_probe.tasks.invented import TRAINED
from undo_probe.tasks.known_set import Known, read_known
from undo_probe.tasks.passages import load_passages, text_set
from undo_probe.tasks.pool import Pool, Pooled, by_side, even_sides
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS, Metric, TokenSet, check_disjoint
from undo_probe.tasks.questions import Question, families
from undo_probe.tasks.reader import Reader, source_reader, trained_reader
from undo_probe.tasks.relations import shipped

SIDES = ("forget", "retain")
MIXTURES: dict[str, tuple[str, ...]] = {
    "pretrain": (*(f"{name}{TRAINED}" for name in (*FORGET_SPLITS, *RETAIN_SPLITS)), "retain_text"),
    "matched": (*(f"{name}{TRAINED}" for name in RETAIN_SPLITS), "forget_redrawn", "retain_text"),
    "retain": ("retain_train", "retain_text"),
    "unlearn": tuple(f"forget_{name}{TRAINED}" for name in "TVD"),
    "distill": ("retain_train", "retain_text", *(f"forget_{name}{TRAINED}" for name in "TVD")),
    "attack": (f"forget_T{TRAINED}",),
    "attack_mixed": ("retain_train", "retain_text", f"forget_T{TRAINED}"),
}


class FactsTask(Pooled):
    """Facts with their splits drawn from ``seed``.

    ``facts`` counts what was left out: copies, retain facts that are forgotten or like a forgotten one, those whose
    tokens ``merge`` with the prompt's, that are too long, and that the model does not know. ``known_model`` is the hash
    of the model that the known set was measured on, where there is one.
    """

    name: str = "facts"
    metric: Metric = "choice"
    probe_targets: tuple[str, ...] = ()

    def __init__(self, config: FactsConfig, seed: int) -> None:
        """Reads the facts, and the neutral text where there is some.

        Raises:
            UndoProbeError: something is missing or not readable, or a split would be empty.
        """
        self.config, self._seed = config, seed
        self.facts: dict[str, dict[str, int]] = {}
        kept = self._chosen()
        self._all, self.reader = kept, _reader(config, kept)
        known = read_known(config.known) if config.known else None
        self.known_model: str = "" if known is None else known.model
        if known is not None:
            kept = {side: self._known(side, found, known) for side, found in kept.items()}
        asked: dict[str, list[Asked]] = {}
        kept = self._written(kept, asked)
        self.d_vocab: int = self.reader.size
        self.n_ctx: int = config.n_ctx
        self.vocabulary: tuple[str, ...] = tuple(
            self.reader.tokenizer.id_to_token(token) or "" for token in range(self.reader.size)
        )
        self.forget_operations, self.retain_operations = (
            tuple(dict.fromkeys(each.fact.relation for each in kept[side])) for side in SIDES
        )
        self._sets = self._splits(kept, asked, known)
        self._floors = _floors(self._sets)
        trained = len(self._sets[f"forget_V{TRAINED}"]) > len(self._sets["forget_V"])
        self.extra_splits: tuple[str, ...] = (f"forget_V{TRAINED}",) if trained else ()
        self.words = _words(self.forget_operations, self.retain_operations)
        text = None if config.retain_text is None else load_passages(config.retain_text, config, self.reader)
        if text is not None:
            self.neutral: str = "retain_text"
            self._sets[self.neutral] = text_set("retain_text", text, config.n_ctx)
        self._pools = {name: _pool(names, self._sets) for name, names in MIXTURES.items()}
        places = (
            "text",
            "cache",
            "tokenizer",
            "tokenizer_revision",
            "known",
            "forget",
            "retain",
            "retain_text",
        )
        self.fingerprint = digest(
            {
                "task": config.identity(*places),
                "facts": {
                    name: digest([part.tokens.tolist(), part.options.tolist(), part.families.tolist()])
                    for name, part in self._sets.items()
                    if name != "forget_redrawn" and part.options is not None
                },
                "known_of": self.known_model,
                "text": "" if text is None else text.content,
                "tokenizer": self.reader.content,
                "split_seed": seed,
                "rows": 1,
            }
        )

    def context_features(self, rows: TokenSet) -> np.ndarray:
        """Nothing: nothing is probed."""
        return np.zeros((len(rows), 0), dtype=np.float32)

    def chance(self) -> dict[str, float]:
        """By relation, the score of whoever picks the most frequent of the answers offered, without the prompt."""
        return self._floors

    def decode(self, tokens: Int[Tensor, " pos"]) -> str:
        """The text of ``tokens``."""
        return self.reader.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def every_wording(self) -> list[list[Asked]]:
        """All facts in all their wordings with all answers of their relation: what a known set is measured on.

        Facts that do not fit a row, or whose tokens merge, are left out; the known set of a run does not count here.
        """
        answers = Answers(each.fact for side in SIDES for each in self._all[side])
        asked = (self._asked(each, answers, None)[0] for side in SIDES for each in self._all[side])
        return [wordings for wordings in asked if wordings]

    def as_questions(self) -> dict[str, list[dict[str, Any]]]:
        """The facts of both sides as rows that the task ``choice`` reads, with the same answers to choose from."""
        found: dict[str, list[dict[str, Any]]] = {}
        for side, names in (("forget", FORGET_SPLITS), ("retain", RETAIN_SPLITS)):
            labels = pd.concat([self._sets[name].labels for name in names]).drop_duplicates("question")
            columns = (labels[name].tolist() for name in ("question", "offered", "answer", "operation"))
            named = ("question", "choices", "answer", "subject")
            found[side] = [dict(zip(named, line, strict=True)) for line in zip(*columns, strict=True)]
        return found

    def _chosen(self) -> dict[str, list[Kept]]:
        """The facts of both sides, each once, with their families; retain has none that is to be forgotten."""
        config = self.config
        read = {side: _side(getattr(config, side), side, config.text) for side in SIDES}
        both = [*read["forget"], *read["retain"]]
        family = families([_question(fact) for fact in both], config.near_duplicates)
        forgotten = set(family[: len(read["forget"])].tolist())
        kept: dict[str, list[Kept]] = {side: [] for side in SIDES}
        seen: set[str] = set()
        for at, fact in enumerate(both):
            side = "forget" if at < len(read["forget"]) else "retain"
            if fact.name in seen:
                self._left_out(side, "copies")
            elif side == "retain" and not fact.entity and family[at] in forgotten:
                self._left_out(side, "like_a_forgotten_one")
            else:
                kept[side].append(Kept(fact, f"{side}:{fact.entity or both[family[at]].name}"))
            seen.add(fact.name)
        return kept

    def _left_out(self, side: str, why: str, count: int = 1) -> None:
        counts = self.facts.setdefault(side, {})
        counts[why] = counts.get(why, 0) + count

    def _written(
        self, kept: Mapping[str, Sequence[Kept]], asked: dict[str, list[Asked]]
    ) -> dict[str, list[Kept]]:
        """The facts that can be asked; how, is put into ``asked`` by name."""
        # wrong answers are those of facts that are used: that a model knows an answer must not point at it
        answers = Answers(each.fact for side in SIDES for each in kept[side])
        for side in SIDES:
            for each in kept[side]:
                asked[each.fact.name], why = self._asked(each, answers, self.config.candidates)
                if why:
                    self._left_out(side, why)
        return {side: [each for each in kept[side] if asked[each.fact.name]] for side in SIDES}

    def _asked(self, kept: Kept, answers: Answers, candidates: int | None) -> tuple[list[Asked], str]:
        """A fact in all its wordings; or none, and why."""
        fact = kept.fact
        wrong = answers.wrong(fact, None if candidates is None else candidates - 1, self._seed)
        # in the order of the alphabet the place of the right one carries nothing
        texts = sorted([fact.answer, *wrong])
        found = []
        for wording, prompt in enumerate(fact.prompts):
            before, *after = self.reader.encode([prompt, *(f"{prompt} {text}" for text in texts)])
            written = [tokens[len(before) :] if tokens[: len(before)] == before else [] for tokens in after]
            start = [*self.reader.start, *before]
            room, right = self.config.n_ctx - len(start), written[texts.index(fact.answer)]
            offered = [at for at, tokens in enumerate(written) if 0 < len(tokens) <= room]
            why = {"merged": not right, "too_long": len(right) > room, "no_other_answer": len(offered) < 2}
            if any(why.values()):
                return [], next(reason for reason, holds in why.items() if holds)
            shown = [texts[at] for at in offered]
            options = [written[at] for at in offered]
            found.append(Asked(kept, wording, start, options, shown, shown.index(fact.answer)))
        return found, ""

    def _known(self, side: str, found: Sequence[Kept], known: Known) -> list[Kept]:
        """The facts that the model answers in most of their wordings."""
        for relation in dict.fromkeys(each.fact.relation for each in found):
            names = {each.fact.name for each in found if each.fact.relation == relation}
            if not any(name in known.right and known.knows(name) for name in names):
                raise UndoProbeError(
                    f"none of the {len(names)} {side} facts of {relation} is known, and task.known "
                    f"({self.config.known}) has {len(names & set(known.right))} of them: measure these with "
                    "`undo-probe known`, or choose others"
                )
        left = [each for each in found if each.fact.name in known.right and known.knows(each.fact.name)]
        measured = sum(each.fact.name in known.right for each in found)
        for why, count in (("not_measured", len(found) - measured), ("not_known", measured - len(left))):
            if count:
                self._left_out(side, why, count)
        return left

    def _splits(
        self,
        kept: Mapping[str, Sequence[Kept]],
        asked: Mapping[str, list[Asked]],
        known: Known | None,
    ) -> dict[str, TokenSet]:
        """The rows of every split: one a fact in its held-out wording, and in ``_trained`` those in the others."""
        config = self.config
        parts: dict[str, list[Asked]] = {}
        shares = config.forget_shares, config.retain_shares
        for name, members in dealt(kept, *shares, self._seed, config.fold).items():
            held, trained = parts.setdefault(name, []), parts.setdefault(f"{name}{TRAINED}", [])
            for each in members:
                wordings = asked[each.fact.name]
                at = self._held_out(each.fact, known)
                held.append(wordings[at])
                trained += [one for one in wordings if one.wording != at] or wordings
            self._refuse_empty(name, members)
        parts["retain_train"] = parts[f"retain_train{TRAINED}"]
        most = width([one for part in parts.values() for one in part])
        sets = {
            name: token_set(name, part, config.n_ctx, self.reader.pad, most) for name, part in parts.items()
        }
        check_disjoint({name: sets[name] for name in (*FORGET_SPLITS, *RETAIN_SPLITS)})
        every = [one for name in FORGET_SPLITS for one in parts[f"{name}{TRAINED}"]]
        any_answer = [one for asked_once in every for one in redrawn(asked_once)]
        sets["forget_redrawn"] = token_set("forget_redrawn", any_answer, config.n_ctx, self.reader.pad, most)
        return sets

    def _held_out(self, fact: Fact, known: Known | None) -> int:
        """The wording kept for testing: drawn, where there is a known set among those that the model answers."""
        right = [True] * len(fact.prompts) if known is None else known.right[fact.name]
        choice = [at for at, answered in enumerate(right) if answered]
        return choice[derive_seed(self._seed, "wording", fact.name) % len(choice)]

    def _refuse_empty(self, name: str, members: Sequence[Kept]) -> None:
        """Refuses a split without facts, and a retain split that lacks a relation."""
        side = name.partition("_")[0]
        wanted = self.retain_operations if side == "retain" else ()
        lacking = [relation for relation in wanted if all(each.fact.relation != relation for each in members)]
        if lacking or not members:
            left_out = self.facts.get(side, {})
            raise UndoProbeError(
                f"the split {name} has no fact{' of ' + lacking[0] if lacking else ''}: {len(self._all[side])} {side} "
                f"facts were read, of which {sum(left_out.values())} were left out ({left_out}); give more facts, or "
                f"raise its share (task.{side}_shares) or task.n_ctx"
            )


def _side(source: FactSource, side: str, folder: str) -> list[Fact]:
    """The facts of one side, of the groups that are asked for."""
    if not source.relations:
        found = read_facts(source, folder)
    else:
        found = [fact for relation in dict.fromkeys(source.relations) for fact in shipped(relation)]
    if not source.groups:
        return found
    for relation in dict.fromkeys(fact.relation for fact in found):
        there = sorted({fact.group for fact in found if fact.relation == relation} - {""})
        if not set(source.groups) <= set(there):
            raise UndoProbeError(
                f"task.{side}.groups is {list(source.groups)}, but the facts of {relation} have the groups "
                f"{', '.join(there) or 'none'}"
            )
    return [fact for fact in found if fact.group in source.groups]


def _question(fact: Fact) -> Question:
    """What makes facts near duplicates, where they do not say what they are about."""
    text = fact.entity and f"{fact.relation} {fact.entity}" or fact.prompts[0]
    return Question(text, (fact.answer,), 0)


def _reader(config: FactsConfig, kept: Mapping[str, Sequence[Kept]]) -> Reader:
    """The tokenizer that is named, or one trained on the facts of both sides."""
    if config.tokenizer:
        return source_reader(config.tokenizer, config.tokenizer_revision)
    texts = [
        [f"{prompt} {each.fact.answer}" for each in kept[side] for prompt in each.fact.prompts]
        for side in SIDES
    ]
    return trained_reader(texts, config.vocab)


def _floors(sets: Mapping[str, TokenSet]) -> dict[str, float]:
    asked = [sets[name].labels for name in (*FORGET_SPLITS, "retain_train", *RETAIN_SPLITS[1:])]
    labels = pd.concat(asked, ignore_index=True).drop_duplicates(["operation", "family", "text"])
    return {
        str(relation): floor(part["offered"].tolist(), part["text"].tolist())
        for relation, part in labels.groupby("operation")
    }


def _pool(names: Sequence[str], sets: Mapping[str, TokenSet]) -> Pool:
    """As many forget as retain rows, of a side as many of each relation; neutral text counts as one."""
    parts = [sets[name] for name in names if name in sets]
    groups = by_side(parts)
    sides = {
        side: sorted({str(group) for part in groups for group in part if str(group).startswith(side)})
        for side in SIDES
    }
    shares = even_sides(sides["retain"], sides["forget"])
    return Pool(parts, groups, [*sides["retain"], *sides["forget"]], shares=shares)


def _words(forget: Sequence[str], retain: Sequence[str]) -> TaskWords:
    return TaskWords(
        forget=f"the facts to forget ({', '.join(forget)})",
        retain=f"the facts to keep ({', '.join(retain)})",
        read_at="the last word of the prompt",
        read_mark="last",
        prompt="nothing",
        family="All facts of one side about one entity.",
        strata_note="A fact counts as answered where the right answer is likelier than the wrong ones beside it, by "
        "the log-probability of the whole answer, whatever else the model would rather say. Facts are asked in a "
        "wording that no training set of theirs had; beside it, V in the wordings that it had.",
        operations={relation: relation for relation in (*retain, *forget)},
        strata={f"V{TRAINED}": "V in trained wordings"},
        targets={},
    )
