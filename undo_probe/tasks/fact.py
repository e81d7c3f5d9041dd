"""Facts: what one is, how a user's rows are read as facts, and which wrong answers are offered beside the right one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.randomness import derive_seed
from undo_probe.task_config import FactSource
from undo_probe.tasks.questions import file_rows, listed, question_of
from undo_probe.tasks.text import normal, streamed

_ASKED = "{}\nAnswer:"
"""How a question is asked of a model that completes text."""


@dataclass(frozen=True)
class Fact:
    """An answer, and the prompts that it completes.

    ``entity`` is what it is about; facts of one ``group`` can be chosen together; wrong answers are taken from facts of
    the relation that are ``kin``, unless it has ``distractors`` of its own. ``question`` is it as a question.
    """

    prompts: tuple[str, ...]
    answer: str
    relation: str
    entity: str = ""
    group: str = ""
    kin: str = ""
    distractors: tuple[str, ...] = ()
    question: str = ""

    @cached_property
    def name(self) -> str:
        """The beginning of a hash that equal facts share."""
        return digest([self.relation, list(self.prompts), self.answer])[:16]


def read_facts(source: FactSource, folder: str) -> list[Fact]:
    """The facts of a user's file or data set, in their order.

    Raises:
        UndoProbeError: it is missing or damaged, or a row is no fact; says where.
    """
    rows = streamed(source, source.split) if source.dataset else file_rows(source.path, folder, "facts")
    found = [fact_of(row, where, source.title) for row, where in rows]
    if not found:
        raise UndoProbeError(f"the facts {source.title} are empty: expected at least one")
    return found


def fact_of(row: Any, where: str, relation: str) -> Fact:
    """The fact in a row: of prompt and answer, of multiple choice, or as in TOFU."""
    if not isinstance(row, dict):
        raise UndoProbeError(
            f"{where} holds a {type(row).__name__}: expected an object with prompt and answer"
        )
    if row.get("choices") is not None:
        return _of_choices(row, where, relation)
    first = "prompt" if row.get("prompt") is not None else "question"
    for column in (first, "answer"):
        if row.get(column) is None:
            raise UndoProbeError(
                f"{where} has no {column!r} (it has {', '.join(map(str, row))}): expected prompt and answer, or "
                "question and answer with or without choices"
            )
    others = _texts(row, "paraphrases" if first == "prompt" else "paraphrased_question", where)
    wordings = tuple(dict.fromkeys([normal(row[first], where), *others]))
    answer = normal(row["answer"], where)
    if not wordings[0] or not answer:
        raise UndoProbeError(f"{where} has an empty {first} or answer: fill it in, or remove that row")
    group = str(row.get("group") or "")
    wrong = _texts(row, "distractors", where) or _texts(row, "perturbed_answer", where)
    return Fact(
        prompts=wordings if first == "prompt" else tuple(_ASKED.format(text) for text in wordings),
        answer=answer,
        relation=relation,
        entity=str(row.get("entity") or ""),
        group=group,
        kin=group,
        distractors=tuple(dict.fromkeys(wrong)),
        question=wordings[0],
    )


def _of_choices(row: Any, where: str, relation: str) -> Fact:
    question = question_of(row, where)
    wrong = [choice for at, choice in enumerate(question.choices) if at != question.answer]
    return Fact(
        prompts=(_ASKED.format(question.text),),
        answer=question.choices[question.answer],
        relation=relation,
        group=question.subject,
        distractors=tuple(wrong),
        question=question.text,
    )


def _texts(row: Mapping[str, Any], column: str, where: str) -> list[str]:
    """The texts of a column that may be missing, or hold one text in place of a list."""
    given = row.get(column)
    if given is None or given == "":
        return []
    single = isinstance(given, str) and not given.lstrip().startswith("[")
    return [normal(text, where) for text in ([given] if single else listed(given, column, where))]


class Answers:
    """The answers of some facts, from which wrong ones are taken.

    Args:
        facts: of all relations.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self._of: dict[str, list[str]] = {}
        self._kin: dict[tuple[str, str], list[str]] = {}
        for fact in facts:
            self._of.setdefault(fact.relation, []).append(fact.answer)
            self._kin.setdefault((fact.relation, fact.kin), []).append(fact.answer)

    def wrong(self, fact: Fact, count: int | None, seed: int) -> list[str]:
        """Different wrong answers, none of them said in the prompt: the fact's own, else those of its kin first.

        Args:
            fact: whose answer is right.
            count: so many at most, drawn; None for all.
            seed: of the draw.
        """
        own, kin = fact.distractors, self._kin.get((fact.relation, fact.kin), [])
        tiers = [own] if own else [kin, self._of.get(fact.relation, [])]
        draw = np.random.default_rng(derive_seed(seed, "candidates", fact.name))
        found = {fact.answer.casefold(): fact.answer}
        for tier in tiers:
            given = sorted(set(tier))
            for at in draw.permutation(len(given)) if count is not None else range(len(given)):
                if count is not None and len(found) > count:
                    break
                if not re.search(rf"\b{re.escape(given[at])}\b", fact.prompts[0], re.IGNORECASE):
                    found.setdefault(given[at].casefold(), given[at])
        return list(found.values())[1:]


def floor(candidates: Sequence[Sequence[str]], right: Sequence[str]) -> float:
    """How often the answer that is right most often among ``right`` would be, were it chosen without reading a prompt.

    Equally frequent answers are drawn from.
    """
    often = {answer: right.count(answer) for answer in set(right)}
    total = 0.0
    for offered, answer in zip(candidates, right, strict=True):
        best = max(often.get(each, 0) for each in offered)
        likeliest = [each for each in offered if often.get(each, 0) == best]
        total += (answer in likeliest) / len(likeliest)
    return total / len(right)
