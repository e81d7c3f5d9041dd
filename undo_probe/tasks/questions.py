"""Multiple choice questions: read from files or data sets, checked, and put into families of near duplicates."""

import ast
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.task_config import QuestionSource
from undo_probe.tasks.text import json_rows, normal, parquet_rows, read_text, streamed

LETTERS = "ABCDEFGHIJ"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv")
_FIXED = re.compile(
    r"\b(all|none|both|neither|any) of (the|these|those)\b|\b[A-J](,| and| or| &) [A-J]\b", re.IGNORECASE
)
_RUN, _FEWEST, _COMMON = 3, 4, 64


@dataclass(frozen=True)
class Question:
    """A question with its options; ``answer`` is the number of the right one."""

    text: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Its words and those of its options, whose order does not count, in small letters."""
        parts = [self.text, *sorted(self.choices)]
        return tuple(word for part in parts for word in re.findall(r"\w+", part.lower()))

    @cached_property
    def name(self) -> str:
        """The beginning of a hash that equal questions share."""
        return digest([self.text.lower().split(), sorted(choice.lower().split() for choice in self.choices)])[
            :16
        ]

    @property
    def ordered(self) -> bool:
        """Whether an option speaks of others, so that their order must stay."""
        return any(_FIXED.search(choice) for choice in self.choices)

    def asked(self, order: Sequence[int], answered: bool = False) -> str:
        """The prompt with the options in this order, up to ``Answer:`` or with the letter."""
        lines = [self.text, *(f"{LETTERS[at]}. {self.choices[number]}" for at, number in enumerate(order))]
        letter = f" {LETTERS[list(order).index(self.answer)]}" if answered else ""
        return "\n".join([*lines, f"Answer:{letter}"])


def read_questions(source: QuestionSource, folder: str, shots: bool = False) -> list[Question]:
    """All questions of a source, or those that its shots are taken from, in their order.

    Raises:
        UndoProbeError: the file or data set is missing or damaged, or a row is no question; says where.
    """
    if source.dataset:
        rows = streamed(source, source.shots_split if shots else source.split)
    else:
        rows = file_rows(source.shots_path if shots else source.path, folder, "questions")
    found = [question_of(row, where) for row, where in rows]
    if not found:
        raise UndoProbeError(f"the questions {source.name} are empty: expected at least one")
    return found


def question_of(row: Any, where: str) -> Question:
    """The question in a row with the columns of ``cais/wmdp`` and ``cais/mmlu``."""
    if not isinstance(row, dict):
        raise UndoProbeError(
            f"{where} holds a {type(row).__name__}: expected an object with question, choices and answer"
        )
    for column in ("question", "choices", "answer"):
        if row.get(column) is None:
            raise UndoProbeError(f"{where} has no {column!r} (it has {', '.join(map(str, row))})")
    text = normal(row["question"], where)
    choices = tuple(normal(choice, where) for choice in listed(row["choices"], "choices", where))
    if not text or not 2 <= len(choices) <= len(LETTERS):
        raise UndoProbeError(
            f"{where} has {len(choices)} choices for the question {text[:40]!r}: expected 2 to 10"
        )
    return Question(text, choices, _answer(row["answer"], len(choices), where), str(row.get("subject") or ""))


def listed(texts: Any, column: str, where: str) -> list[Any]:
    """What a column holds as a list, which in .csv is written as text."""
    if isinstance(texts, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                texts = parse(texts)
                break
            except (ValueError, SyntaxError):
                continue
    if not isinstance(texts, (list, tuple, np.ndarray)):
        raise UndoProbeError(f"{where}: {column} is {str(texts)[:60]!r}: expected a list of texts")
    return list(texts)


def _answer(answer: Any, count: int, where: str) -> int:
    """The number of the right option: given as such, as text, or as a letter."""
    text = str(answer).strip()
    number = LETTERS.find(text.upper()) if len(text) == 1 and text.isalpha() else -1
    if re.fullmatch(r"\d+(\.0)?", text):
        number = int(float(text))
    if not 0 <= number < count:
        raise UndoProbeError(
            f"{where}: answer is {text[:20]!r}: expected 0 to {count - 1}, or a letter up to {LETTERS[count - 1]}"
        )
    return number


def file_rows(path: str, folder: str, what: str) -> Iterator[tuple[Any, str]]:
    """The rows of a user's file, each with where it stands; ``what`` they are is said where there is none.

    Raises:
        UndoProbeError: there is no such file, or it is none that can be read.
    """
    file = Path(folder).expanduser() / path
    if not file.is_file() or not file.name.lower().endswith(SUFFIXES):
        where = f"below task.text ({folder})" if folder else "here (task.text is empty: give your folder)"
        raise UndoProbeError(
            f"there are no {what} at {path!r} {where}: expected a {', '.join(SUFFIXES)} file"
        )
    if file.name.lower().endswith(".parquet"):
        return parquet_rows(file)
    if file.name.lower().endswith(".csv"):
        reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
        return ((row, f"row {number} of {file}") for number, row in enumerate(reader, 1))
    return json_rows(file)


def families(questions: Sequence[Question], share: float | None) -> Int[np.ndarray, " question"]:
    """The family of each question, numbered by its first member.

    Equal questions, and those that have ``share`` of the three-word runs of the shorter one in common, belong
    together, and so does what either is like. Runs that many questions have ("which of the following") say nothing.
    """
    parent = np.arange(len(questions))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = int(parent[at])
        return at

    first: dict[str, int] = {}
    for at, question in enumerate(questions):
        parent[root(at)] = root(first.setdefault(question.name, at))
    for one, other in _alike(questions, share) if share is not None else ():
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(at) for at in range(len(questions))], dtype=np.int64)


def _alike(questions: Sequence[Question], share: float) -> Iterator[tuple[int, int]]:
    runs = [{q.words[at : at + _RUN] for at in range(len(q.words) - _RUN + 1)} for q in questions]
    having: dict[tuple[str, ...], list[int]] = {}
    for at, own in enumerate(runs):
        for run in own:
            having.setdefault(run, []).append(at)
    for at, own in enumerate(runs):
        telling = {run for run in own if len(having[run]) <= _COMMON}
        met: dict[int, int] = {}
        for run in telling:
            for other in having[run]:
                if other < at:
                    met[other] = met.get(other, 0) + 1
        for other, count in met.items():
            shorter = min(len(own), len(runs[other]))
            if shorter >= _FEWEST and count >= share * shorter:
                yield at, other
