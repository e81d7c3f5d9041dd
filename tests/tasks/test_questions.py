"""Questions: every form a file may have gives the same ones, and what is none is named with its place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import quiz

from undo_probe.errors import UndoProbeError
from undo_probe.task_config import QuestionSource
from undo_probe.tasks.questions import Question, families, question_of, read_questions

ROWS = quiz.forget(6)


def source(**changes: Any) -> QuestionSource:
    return QuestionSource.model_validate({"name": "quiz", **changes})


def write(folder: Path, kind: str) -> None:
    table = pd.DataFrame(ROWS)
    if kind == "x.parquet":
        table.to_parquet(folder / kind)
    elif kind == "x.csv":
        table.assign(choices=table["choices"].map(json.dumps)).to_csv(folder / kind, index=False)
    elif kind == "python.csv":
        table.to_csv(folder / kind, index=False)  # lists as Python writes them
    elif kind == "letters.jsonl":
        quiz.write_jsonl(folder / kind, [{**row, "answer": "abcd"[row["answer"]]} for row in ROWS])
    else:
        quiz.write_jsonl(folder / kind, ROWS)


@pytest.mark.parametrize("kind", ["x.jsonl", "x.parquet", "x.csv", "python.csv", "letters.jsonl"])
def test_every_form_of_file_gives_the_same_questions(kind: str, tmp_path: Path) -> None:
    write(tmp_path, kind)
    found = read_questions(source(path=kind), str(tmp_path))
    assert [question.text for question in found] == [row["question"] for row in ROWS]
    assert [list(question.choices) for question in found] == [row["choices"] for row in ROWS]
    assert [question.answer for question in found] == [row["answer"] for row in ROWS]
    assert [question.subject for question in found] == [row["subject"] for row in ROWS]


def published(folder: Path, subset: str, splits: tuple[str, ...]) -> Path:
    """A local folder that ``datasets`` reads as it reads the hub's: columns and types of ``cais/mmlu``."""
    from datasets import ClassLabel, Dataset, Features, List, Value

    kinds = Features(
        {
            "question": Value("string"),
            "subject": Value("string"),
            "choices": List(Value("string")),
            "answer": ClassLabel(names=["A", "B", "C", "D"]),
        }
    )
    (folder / subset).mkdir(parents=True)
    for number, split in enumerate(splits):
        rows = quiz.questions(quiz.METALS, "Pit {} {}?", 8, seed=number)
        Dataset.from_list(rows, features=kinds).to_parquet(str(folder / subset / f"{split}-0.parquet"))
    lines = [f"  - split: {split}\n    path: {subset}/{split}-*" for split in splits]
    header = "\n".join(["---", "configs:", f"- config_name: {subset}", "  data_files:", *lines, "---", ""])
    (folder / "README.md").write_text(header)
    return folder


def test_a_data_set_with_the_published_columns_is_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = published(tmp_path / "mmlu", "all", ("test", "dev"))
    asked = source(dataset=str(folder), subset="all", shots=2)
    test, dev = read_questions(asked, ""), read_questions(asked, "", shots=True)
    wanted = quiz.questions(quiz.METALS, "Pit {} {}?", 8, seed=0)
    assert [question.answer for question in test] == [row["answer"] for row in wanted]
    assert [question.text for question in test] == [row["question"] for row in wanted]
    assert [question.choices for question in dev] != [question.choices for question in test]


GOOD = {"question": "Which?", "choices": ["one", "two"], "answer": 1}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": None}, r"line 3 has no 'question' \(it has question, choices, answer\)"),
        ({"question": 7}, "line 3 holds a int where text was expected"),
        ({"choices": ["one"]}, "line 3 has 1 choices for the question 'Which\\?': expected 2 to 10"),
        ({"choices": "one, two"}, "choices is 'one, two': expected a list of texts"),
        ({"choices": ["one", None]}, "line 3 holds a NoneType where text was expected"),
        ({"answer": 2}, "answer is '2': expected 0 to 1, or a letter up to B"),
        ({"answer": "C"}, "answer is 'C': expected 0 to 1"),
        ({"answer": -1}, "answer is '-1'"),
        ({"answer": "two"}, "answer is 'two'"),
        ({"answer": float("nan")}, "answer is 'nan'"),
    ],
)
def test_what_is_no_question_is_named_with_its_place(changes: dict[str, Any], said: str) -> None:
    assert question_of(GOOD, "line 3").answer == 1
    with pytest.raises(UndoProbeError, match=said):
        question_of({**GOOD, **changes}, "line 3")


def test_a_missing_file_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        UndoProbeError, match=r"no questions at 'x\.jsonl' below task\.text .*: expected a \.jsonl"
    ):
        read_questions(source(path="x.jsonl"), str(tmp_path))
    with pytest.raises(UndoProbeError, match="task.text is empty: give your folder"):
        read_questions(source(path="x.jsonl"), "")
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UndoProbeError, match="the questions quiz are empty"):
        read_questions(source(path="x.jsonl"), str(tmp_path))


def test_a_source_has_one_place_and_says_where_its_shots_are() -> None:
    for changes, said in (
        ({}, "needs? either a path below task.text or a dataset"),
        ({"path": "a.jsonl", "dataset": "b"}, "either a path below task.text or a dataset"),
        ({"path": "a.jsonl", "shots": 2}, "have 2 shots: say where in shots_path"),
    ):
        with pytest.raises(ValueError, match=said):
            source(**changes)


def question(text: str, *choices: str) -> Question:
    return Question(text, choices or ("oak wood", "birch wood", "pine wood", "elm wood"), 0)


def test_copies_and_near_copies_are_one_family() -> None:
    base = "Which of these trees did the old carpenter of the village use for doors?"
    asked = [
        question(base),
        question(base.upper()),
        question(base, "pine wood", "elm wood", "oak wood", "birch wood"),  # the options in another order
        question(base.replace("doors", "gates")),
        question("Which of these boats did the young sailor of the harbour take to sea?", "a", "b", "c", "d"),
    ]
    assert families(asked, 0.5).tolist() == [0, 0, 0, 0, 4]
    assert families(asked, None).tolist() == [0, 0, 0, 3, 4]
    assert families(asked[::-1], 0.5).tolist() == [0, 1, 1, 1, 1]


def test_a_chain_of_near_copies_is_one_family() -> None:
    words = [f"word{n}" for n in range(30)]
    asked = [question(" ".join(words[start : start + 16]), "a", "b") for start in (0, 6, 12)]
    assert families(asked, 0.5).tolist() == [0, 0, 0]
    assert families([asked[0], asked[2]], 0.5).tolist() == [0, 1]


def test_words_that_every_question_begins_with_make_no_family() -> None:
    draw = np.random.default_rng(0)
    rest = [" ".join(f"w{n}" for n in draw.integers(10**6, size=4)) for _ in range(100)]
    asked = [question(f"Which of the following is true of {text}", f"{text[:3]}", "b") for text in rest]
    assert len(set(families(asked, 0.5).tolist())) == 100


def test_an_option_that_speaks_of_others_keeps_their_order() -> None:
    assert not question("?").ordered
    for choice in ("All of the above", "both A and B", "None of these", "A, C"):
        assert question("?", "one", "two", choice).ordered
    assert not question("?", "vitamin A", "a B").ordered
