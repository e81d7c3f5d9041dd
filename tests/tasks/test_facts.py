"""The task facts: rows that decode to statements, answers fairly offered, entities and wordings held out."""

from pathlib import Path
from typing import Any

import atlas
import pytest
import quiz
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.task_config import FactsConfig
from undo_probe.tasks import Task, TokenSet, build_task, facts
from undo_probe.tasks.choice import ChoiceTask
from undo_probe.tasks.facts import MIXTURES, FactsTask
from undo_probe.tasks.known_set import write_known
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS
from undo_probe.tasks.questions import read_questions
from undo_probe.tasks.reader import Reader

SPLITS = (*FORGET_SPLITS, *RETAIN_SPLITS)
KEPT = {row["entity"]: row for row in atlas.forget()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return atlas.write(tmp_path_factory.mktemp("atlas") / "text")


@pytest.fixture(scope="module")
def task(folder: Path) -> FactsTask:
    return FactsTask(atlas.config(folder), seed=0)


def statement(task: FactsTask, rows: TokenSet, row: int) -> tuple[str, str]:
    """The prompt without its mark, and the answer with the space before it."""
    mask = rows.answer_mask[row]
    read = int(torch.as_tensor(rows.read_position)[row])
    prompt = task.decode(rows.tokens[row, : read + 1]).removeprefix("<|begin|>")
    return prompt, task.decode(rows.tokens[row, mask])


def test_it_is_a_task(task: FactsTask) -> None:
    assert isinstance(task, Task)
    assert build_task(task.config, 0).fingerprint == task.fingerprint
    assert FactsTask(task.config, 1).fingerprint != task.fingerprint
    assert task.facts == {}


@pytest.mark.parametrize("split", FORGET_SPLITS)
def test_a_row_is_a_statement_and_its_answer_which_alone_is_asked(split: str, task: FactsTask) -> None:
    for name in (split, f"{split}_trained"):
        rows = task.rows(name)
        for row in range(len(rows)):
            prompt, answer = statement(task, rows, row)
            fact = KEPT[rows.families[row].partition(":")[2]]
            assert prompt in (fact["prompt"], *fact["paraphrases"])
            assert answer == f" {fact['answer']}"
            places = rows.answer_mask[row].nonzero()[:, 0]
            assert places[0] == torch.as_tensor(rows.read_position)[row] + 1
            assert set(rows.tokens[row, int(places[-1]) + 1 :].tolist()) <= {task.reader.pad}


def test_the_right_answer_is_among_those_offered_and_its_place_says_nothing(task: FactsTask) -> None:
    places = set()
    for split in SPLITS:
        rows = task.rows(split)
        assert rows.options is not None
        assert rows.options.shape[1] == 4
        for row in range(len(rows)):
            offered = [task.decode(each[each >= 0]).strip() for each in rows.options[row]]
            assert offered == sorted(set(offered)) == rows.labels["offered"].tolist()[row]
            right = int(rows.labels["answer"].tolist()[row])
            places.add(right)
            assert f" {offered[right]}" == statement(task, rows, row)[1]
    assert places == {0, 1, 2, 3}
    assert task.chance() == pytest.approx({"seats": 0.25, "ores": 0.25})


def test_entities_lie_in_one_split_and_the_wording_that_is_asked_was_not_trained(task: FactsTask) -> None:
    owners: dict[str, set[str]] = {}
    for split in SPLITS:
        rows = task.rows(split)
        for family in rows.families:
            owners.setdefault(family, set()).add(split)
    assert all(len(found) == 1 for found in owners.values())
    assert len(owners) == 64
    assert any(f"forget:{family.partition(':')[2]}" in owners for family in owners if family[0] == "r")
    held = {statement(task, task.rows("forget_V"), row)[0] for row in range(len(task.rows("forget_V")))}
    trained = task.rows("forget_V_trained")
    assert not held & {statement(task, trained, row)[0] for row in range(len(trained))}
    assert len(trained) == 2 * len(held)
    assert len({*task.rows("forget_V").labels["wording"]}) > 1


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_shows_its_splits_and_no_others(mixture: str, task: FactsTask) -> None:
    named = [name for name in MIXTURES[mixture] if name in task._sets]
    others = [name for name in task._sets if name not in (*named, "forget_redrawn")]
    known = {tuple(row.tolist()): name for name in (*others, *named) for row in task.rows(name).tokens}
    drawn = [task.batch(mixture, 16, seed=3, step=step) for step in range(60)]
    assert {known[tuple(row.tolist())] for batch in drawn for row in batch.tokens} == set(named)


def test_sides_are_drawn_evenly_and_neutral_text_is_kept_beside_the_facts(folder: Path) -> None:
    text = {"language": "weather", "path": "text.jsonl"}
    task = FactsTask(atlas.config(folder, retain_text=text), seed=0)
    shown = {"forget": 0, "retain": 0, "text": 0}
    for step in range(40):
        batch = task.batch("distill", 16, seed=0, step=step)
        for tokens, mask in zip(batch.tokens, batch.answer_mask, strict=True):
            whole = task.decode(tokens)
            if mask[1:].all():
                shown["text"] += 1
                assert not any(word in whole for word in (*quiz.METALS, *quiz.TOWNS))
            else:
                shown["retain" if any(metal in whole for metal in quiz.METALS) else "forget"] += 1
    assert 0.42 < shown["forget"] / 640 < 0.58
    assert 0.17 < shown["text"] / 640 < 0.33
    assert task.fingerprint != FactsTask(atlas.config(folder), 0).fingerprint


def test_the_matched_oracle_sees_the_prompts_and_learns_no_answer(task: FactsTask) -> None:
    rows = task.rows("forget_redrawn")
    by_prompt: dict[str, set[str]] = {}
    for row in range(len(rows)):
        prompt, answer = statement(task, rows, row)
        by_prompt.setdefault(prompt, set()).add(answer)
    assert all(len(answers) == 4 for answers in by_prompt.values())


def test_facts_are_limited_to_groups(folder: Path) -> None:
    north = FactsTask(atlas.config(folder, forget={**atlas.SETTINGS["forget"], "groups": ("north",)}), 0)
    assert sum(len(north.rows(split)) for split in FORGET_SPLITS) == 16
    with pytest.raises(
        UndoProbeError, match=r"task\.forget\.groups is \['west'\], but .* seats .* north, south"
    ):
        FactsTask(atlas.config(folder, forget={**atlas.SETTINGS["forget"], "groups": ("west",)}), 0)


@pytest.mark.slow
def test_a_capital_elsewhere_can_be_kept_while_those_of_a_continent_are_forgotten() -> None:
    sides = {
        "forget": {"relations": ["capital"], "groups": ["South America"]},
        "retain": {"relations": ["capital"]},
    }
    task = FactsTask(FactsConfig.model_validate({**sides, "vocab": 400, "n_ctx": 48, "candidates": 3}), 0)
    forgotten = {*task.rows("forget_T").labels["group"]}
    assert forgotten == {"South America"}
    assert "South America" not in {*task.rows("retain_train").labels["group"]}
    assert task.facts["retain"]["copies"] == sum(len(task.rows(split)) for split in FORGET_SPLITS)


def test_what_does_not_fit_is_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    rows = [*atlas.forget(), atlas.forget()[0], {"prompt": "far " * 60 + "is", "answer": "Away"}]
    long = atlas.write(tmp_path / "text")
    quiz.write_jsonl(long / "seats.jsonl", rows)
    assert FactsTask(atlas.config(long), 0).facts == {"forget": {"copies": 1, "too_long": 1}}
    with pytest.raises(UndoProbeError, match=r"the split forget_\w has no fact.*too_long.*or task\.n_ctx"):
        FactsTask(atlas.config(folder, n_ctx=8), 0)


def merging(*_: object) -> Reader:
    """A tokenizer of characters in which the last letter of a prompt and the space of an answer are one token."""
    from tokenizers import Tokenizer, models

    vocab = {chr(n): n for n in range(128)} | {"s ": 128}
    return Reader(Tokenizer(models.BPE(vocab=vocab, merges=[("s", " ")])), (), 0)


def test_facts_whose_tokens_merge_with_the_prompt_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_reader", merging)
    folder = atlas.write(tmp_path / "text")
    bad = [{"prompt": f"Gold of {n} is", "answer": "Away"} for n in "abc"]
    good = [{"prompt": f"Roads go from {n} to", "answer": f"Away {n}"} for n in "abcdefghijkl"]
    quiz.write_jsonl(folder / "seats.jsonl", [*bad, *good])
    quiz.write_jsonl(
        folder / "ores.jsonl", [{"prompt": f"Ore {n} for", "answer": f"Tin {n}"} for n in "abcdefghijkl"]
    )
    task = FactsTask(atlas.config(folder, n_ctx=48, near_duplicates=None), 0)
    assert task.facts == {"forget": {"merged": 3}}
    # one wording: what is asked is what was trained
    assert torch.equal(task.rows("forget_V").tokens, task.rows("forget_V_trained").tokens)
    assert task.extra_splits == ()


def known_file(task: FactsTask, place: Path, right: Any) -> Path:
    lines = [
        {"fact": w[0].kept.fact.name, "right": right(w[0].kept.fact), "relation": w[0].kept.fact.relation}
        for w in task.every_wording()
    ]
    write_known(place, "a model", lines)
    return place


def test_only_known_facts_are_asked_in_a_wording_that_is_known(
    folder: Path, task: FactsTask, tmp_path: Path
) -> None:
    def right(fact: Any) -> list[bool]:
        return [False, fact.group == "north", True]

    place = known_file(task, tmp_path / "known.json", right)
    left = FactsTask(atlas.config(folder, known=str(place)), 0)
    assert left.facts == {"forget": {"not_known": 16}, "retain": {"not_known": 16}}
    for split in SPLITS:
        labels = left.rows(split).labels
        assert {*labels["group"]} == {"north"}
        assert split == "retain_train" or {*labels["wording"]} <= {1, 2}
        north = {row["answer"] for row in [*atlas.forget(), *atlas.retain()] if row["group"] == "north"}
        assert all(set(offered) <= north for offered in labels["offered"])
    assert left.known_model == "a model"
    assert str(tmp_path) not in left.fingerprint
    moved = known_file(task, tmp_path / "moved.json", right)
    assert FactsTask(atlas.config(folder, known=str(moved)), 0).fingerprint == left.fingerprint
    assert left.fingerprint != task.fingerprint


def test_a_known_set_that_does_not_fit_is_refused(folder: Path, task: FactsTask, tmp_path: Path) -> None:
    place = known_file(task, tmp_path / "known.json", lambda fact: [fact.relation == "ores"] * 3)
    with pytest.raises(
        UndoProbeError, match=r"none of the 32 forget facts of seats is known, and .* has 32 of them"
    ):
        FactsTask(atlas.config(folder, known=str(place)), 0)
    place.write_text(place.read_text().replace("false", "true", 1))
    with pytest.raises(UndoProbeError, match="is no known set, or was changed: make it again"):
        FactsTask(atlas.config(folder, known=str(place)), 0)
    with pytest.raises(UndoProbeError, match="there is no such file: make it with `undo-probe known`"):
        FactsTask(atlas.config(folder, known=str(tmp_path / "none.json")), 0)


def test_the_same_facts_are_questions_of_the_choice_task(task: FactsTask, tmp_path: Path) -> None:
    for side, rows in task.as_questions().items():
        quiz.write_jsonl(tmp_path / f"{side}.jsonl", rows)
    choice = ChoiceTask(quiz.config(tmp_path, n_ctx=96, near_duplicates=None), 0)
    read = read_questions(choice.config.forget, str(tmp_path))
    assert len(read) == 32
    by_prompt = {row["prompt"]: row for row in atlas.forget()}
    assert all(each.choices[each.answer] == by_prompt[each.text]["answer"] for each in read)
    assert len(choice.rows("forget_V")) > 0
