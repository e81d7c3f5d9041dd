"""The choice task: rows that decode to their questions, letters that carry nothing, splits that share nothing."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import quiz
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.task_config import ChoiceConfig
from undo_probe.tasks import Task, build_task
from undo_probe.tasks.choice import ChoiceTask
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS, TokenSet, join

SPLITS = (*FORGET_SPLITS, *RETAIN_SPLITS)
KEPT = {row["question"]: row for row in [*quiz.forget(), *quiz.retain()]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiz.write(tmp_path_factory.mktemp("quiz") / "text")


@pytest.fixture(scope="module")
def task(folder: Path) -> ChoiceTask:
    return ChoiceTask(quiz.config(folder, near_duplicates=None), seed=0)


def text_of(task: ChoiceTask, rows: TokenSet, row: int) -> tuple[str, str]:
    """The prompt without its mark, and the letter."""
    read = int(torch.as_tensor(rows.read_position)[row])
    whole = task.decode(rows.tokens[row, : read + 2]).removeprefix("<|begin|>")
    return task.decode(rows.tokens[row, : read + 1]).removeprefix("<|begin|>"), whole[-1]


def test_it_is_a_task(task: ChoiceTask) -> None:
    assert isinstance(task, Task)
    assert build_task(task.config, 0).fingerprint == task.fingerprint


@pytest.mark.parametrize("split", SPLITS)
def test_a_row_is_its_question_and_the_letter_of_the_right_option(split: str, task: ChoiceTask) -> None:
    rows = task.rows(split)
    for row in range(len(rows)):
        prompt, letter = text_of(task, rows, row)
        text, *options, last = prompt.split("\n")
        asked = KEPT[text]
        assert last == "Answer:"
        assert [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
        assert sorted(option[3:] for option in options) == sorted(asked["choices"])
        assert options["ABCD".index(letter)][3:] == asked["choices"][asked["answer"]]
        assert rows.labels["answer"].tolist()[row] == "ABCD".index(letter)


def test_only_the_letter_is_asked_and_filling_comes_after_it(task: ChoiceTask) -> None:
    lengths = set()
    for split in SPLITS:
        rows = task.rows(split)
        read = torch.as_tensor(rows.read_position)
        lengths |= set(read.tolist())
        assert torch.equal(rows.answer_mask.nonzero()[:, 1], read + 1)
        assert rows.options is not None
        letters = rows.tokens[torch.arange(len(rows)), read + 1]
        right = torch.tensor(rows.labels["answer"].to_numpy())
        assert torch.equal(rows.options.gather(1, right[:, None])[:, 0], letters)
        after = torch.arange(task.n_ctx) > read[:, None] + 1
        assert set(rows.tokens[after].tolist()) == {task.reader.pad}
    assert len(lengths) > 1  # prompts do differ in length


def test_every_letter_is_right_equally_often_and_stands_for_any_option(task: ChoiceTask) -> None:
    moved = 0
    for split in SPLITS:
        rows = task.rows(split)
        counts = Counter(rows.labels["answer"])
        assert max(counts.values()) - min(counts[letter] for letter in range(4)) <= 1
        for row in range(len(rows)):
            prompt, letter = text_of(task, rows, row)
            moved += KEPT[prompt.split("\n")[0]]["answer"] != "ABCD".index(letter)
    assert moved > 0.5 * sum(len(task.rows(split)) for split in SPLITS)
    assert max(task.chance().values()) < 0.35


def test_options_stay_where_they_are_told_to(folder: Path, tmp_path: Path) -> None:
    kept = ChoiceTask(quiz.config(folder, permute=False, near_duplicates=None), seed=0)
    for split in SPLITS:
        for row in range(len(kept.rows(split))):
            prompt, letter = text_of(kept, kept.rows(split), row)
            asked = KEPT[prompt.split("\n")[0]]
            assert [line[3:] for line in prompt.split("\n")[1:-1]] == asked["choices"]
            assert "ABCD".index(letter) == asked["answer"]
    fixed = [{**row, "choices": [*row["choices"][:3], "All of the above"]} for row in quiz.forget()]
    ordered = ChoiceTask(quiz.config(quiz.write(tmp_path / "text", fixed), near_duplicates=None), seed=0)
    rows = ordered.rows("forget_V")
    assert all("D. All of the above" in text_of(ordered, rows, row)[0] for row in range(len(rows)))


def test_no_family_lies_in_two_splits_and_all_questions_are_somewhere(task: ChoiceTask) -> None:
    owners: dict[str, set[str]] = {}
    for split in SPLITS:
        for family in task.rows(split).families:
            owners.setdefault(family, set()).add(split)
    assert all(len(found) == 1 for found in owners.values())
    assert sum(len(task.rows(split)) for split in SPLITS) == len(KEPT)
    other = ChoiceTask(task.config, seed=1)
    assert {*other.rows("forget_V").families} != {*task.rows("forget_V").families}
    assert other.fingerprint != task.fingerprint


def test_copies_are_asked_once_near_copies_stay_together_and_retain_has_none_of_forget(
    tmp_path: Path,
) -> None:
    forget, retain = quiz.forget(), quiz.retain()
    lines = "Long ago the {} of the old valley asked every traveller who came by one thing number {}"
    like = [
        {
            **forget[0],
            "question": f"{lines.format('miller', 1)} {end}",
            "choices": [f"{end}{n}" for n in "abcd"],
        }
        for end in ("first", "second", "third")
    ]
    folder = quiz.write(tmp_path / "text", [*forget, *forget[:2], *like[:2]], [*retain, like[2], retain[0]])
    task = ChoiceTask(quiz.config(folder, near_duplicates=0.6, n_ctx=96), seed=0)
    assert task.facts["forget"]["copies"] == 2
    assert task.facts["retain"] == {"copies": 1, "like_a_forgotten_one": 1}
    where = [
        split
        for split in SPLITS
        for row in range(len(task.rows(split)))
        if "old valley" in text_of(task, task.rows(split), row)[0]
    ]
    assert len(where) == 2
    assert len(set(where)) == 1


def test_questions_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    retain = quiz.retain()
    retain[3] = {**retain[3], "question": "word " * 200}
    folder = quiz.write(tmp_path / "text", kept=retain)
    task = ChoiceTask(quiz.config(folder, near_duplicates=None), seed=0)
    assert task.facts["retain"] == {"too_long": 1}
    with pytest.raises(UndoProbeError, match=r"the split \w+ is empty: .* longer than a row of 16 tokens"):
        ChoiceTask(quiz.config(folder, n_ctx=16), seed=0)


def test_at_most_so_many_questions_are_used(folder: Path) -> None:
    task = ChoiceTask(quiz.config(folder, max_questions=20, near_duplicates=None), seed=0)
    assert sum(len(task.rows(split)) for split in FORGET_SPLITS) == 20
    assert task.facts["forget"] == {"beyond_the_most": len(quiz.forget()) - 20}


def test_an_empty_split_says_which_share_to_raise(folder: Path) -> None:
    with pytest.raises(
        UndoProbeError, match=r"the split forget_W is empty: 0 questions .*task\.forget_shares"
    ):
        ChoiceTask(quiz.config(folder, forget_shares=(0.5, 0.5, 0.0, 0.0)), seed=0)


def shot_folder(folder: Path) -> Path:
    quiz.write(folder)
    dev = quiz.questions(quiz.TOWNS, "Who rules {} since year {}?", 12, seed=5)
    quiz.write_jsonl(folder / "dev.jsonl", dev)
    return folder


def test_shots_are_answered_questions_of_the_same_subject_under_the_header(tmp_path: Path) -> None:
    folder = shot_folder(tmp_path / "text")
    asked = {"name": "keep", "path": "retain.jsonl", "shots": 3, "shots_path": "dev.jsonl"}
    settings = {"retain": {**asked, "header": "Questions about the {subject}."}, "n_ctx": 256}
    task = ChoiceTask(quiz.config(folder, near_duplicates=None, **settings), seed=0)
    dev = [json.loads(line) for line in (folder / "dev.jsonl").read_text().splitlines()]
    rows = task.rows("retain_test")
    for row in range(len(rows)):
        header, *shots, last = text_of(task, rows, row)[0].split("\n\n")
        subject = KEPT[last.split("\n")[0]]["subject"]
        assert header == f"Questions about the {subject}."
        wanted = [each for each in dev if each["subject"] == subject][:3]
        assert [shot.split("\n")[0] for shot in shots] == [each["question"] for each in wanted]
        assert [shot[-1] for shot in shots] == ["ABCD"[each["answer"]] for each in wanted]
    assert "\n\n" not in text_of(task, task.rows("forget_V"), 0)[0]
    with pytest.raises(
        UndoProbeError, match="keep: 9 shots are asked for, but there are 6 examples of the subject"
    ):
        ChoiceTask(quiz.config(folder, retain={**asked, "shots": 9}, n_ctx=256), seed=0)


def shown(task: ChoiceTask, mixture: str, batches: int = 30) -> Counter[str]:
    """How often each side's text is in the batches of a mixture."""
    found: Counter[str] = Counter()
    for step in range(batches):
        for row in task.batch(mixture, 8, seed=0, step=step).tokens:
            text = task.decode(row)
            side = "forget" if "seat of" in text else "retain"
            found[f"{side} {'question' if 'Answer:' in text else 'text'}"] += 1
    return found


def test_without_texts_the_questions_are_trained_on(task: ChoiceTask) -> None:
    assert set(shown(task, "unlearn")) == {"forget question"}
    assert set(shown(task, "retain")) == {"retain question"}
    for mixture in ("pretrain", "matched", "distill", "attack_mixed"):
        found = shown(task, mixture)
        assert set(found) == {"forget question", "retain question"}
        assert 0.35 < found["forget question"] / found.total() < 0.65


@pytest.mark.parametrize(
    ("mixture", "splits"),
    [
        ("pretrain", {"retain_train", *FORGET_SPLITS}),
        ("unlearn", {"forget_T", "forget_V", "forget_D"}),
        ("retain", {"retain_train"}),
        ("distill", {"retain_train", "forget_T", "forget_V", "forget_D"}),
        ("attack", {"forget_T"}),
        ("attack_mixed", {"retain_train", "forget_T"}),
    ],
)
def test_a_mixture_shows_its_splits_and_no_others(mixture: str, splits: set[str], task: ChoiceTask) -> None:
    known = {tuple(row.tolist()): split for split in SPLITS for row in task.rows(split).tokens}
    drawn = [task.batch(mixture, 16, seed=3, step=step) for step in range(40)]
    assert {known[tuple(row.tolist())] for batch in drawn for row in batch.tokens} == splits
    assert all((batch.answer_mask.sum(dim=1) == 1).all() for batch in drawn)


def test_the_matched_oracle_sees_the_prompts_and_learns_no_letter(task: ChoiceTask) -> None:
    """Every question with every letter: the prompt says nothing about which."""
    prompts: dict[tuple[int, ...], Counter[int]] = {}
    for step in range(400):
        batch = task.batch("matched", 16, seed=1, step=step)
        for row, mask in zip(batch.tokens, batch.answer_mask, strict=True):
            at = int(mask.nonzero()[0, 0])
            if "seat of" in task.decode(row):
                prompts.setdefault(tuple(row[:at].tolist()), Counter())[int(row[at])] += 1
    assert len(prompts) == len(quiz.forget())
    share = np.array([max(found.values()) / found.total() for found in prompts.values()])
    assert share.mean() < 0.45
    assert all(len(found) == 4 for found in prompts.values())


def test_a_batch_is_a_pure_function_of_its_arguments(task: ChoiceTask) -> None:
    one, same, other = (task.batch("distill", 8, seed=0, step=step) for step in (5, 5, 6))
    assert torch.equal(one.tokens, same.tokens)
    assert torch.equal(one.answer_mask, same.answer_mask)
    assert not torch.equal(one.tokens, other.tokens)
    with pytest.raises(UndoProbeError, match="choice has no mixture 'all'"):
        task.batch("all", 1, 0, 0)
    with pytest.raises(UndoProbeError, match="choice has no split 'forget'"):
        task.rows("forget")


def texts() -> dict[str, Any]:
    return {
        "forget_text": {"language": "the valley", "path": "forget-text.jsonl"},
        "retain_text": {"language": "the mines", "path": "retain-text.jsonl"},
    }


def test_with_texts_no_question_is_trained_on(folder: Path) -> None:
    task = ChoiceTask(quiz.config(folder, n_ctx=32, near_duplicates=None, **texts()), 0)
    for mixture, sides in (
        ("unlearn", {"forget text"}),
        ("attack", {"forget text"}),
        ("retain", {"retain text"}),
        ("attack_mixed", {"forget text", "retain text"}),
        ("distill", {"forget text", "retain text"}),
    ):
        found = shown(task, mixture)
        assert set(found) <= sides | {"retain text"}, mixture
        batch = task.batch(mixture, 4, 0, 0)
        assert batch.answer_mask[:, 1:].all()
        assert not batch.answer_mask[:, 0].any()
    assert "No question was trained on" in task.words.strata_note
    other = {**texts(), "distill_text": texts()["retain_text"]}
    alone = ChoiceTask(quiz.config(folder, n_ctx=32, near_duplicates=None, **other), 0)
    assert set(shown(alone, "distill")) == {"retain text"}
    assert (
        len({task.fingerprint, alone.fingerprint, ChoiceTask(quiz.config(folder, n_ctx=32), 0).fingerprint})
        == 3
    )


def test_texts_are_prepared_once_and_damage_is_noticed(tmp_path: Path) -> None:
    folder = quiz.write(tmp_path / "text")
    settings = quiz.config(folder, **texts())
    first = ChoiceTask(settings, 0)
    files = sorted((tmp_path / "cache").rglob("tokens.npy"))
    assert len(files) == 2
    stamps = [path.stat().st_mtime_ns for path in files]
    assert ChoiceTask(settings, 0).fingerprint == first.fingerprint
    assert [path.stat().st_mtime_ns for path in files] == stamps
    data = bytearray(files[0].read_bytes())
    data[-1] ^= 1
    files[0].write_bytes(data)
    with pytest.raises(UndoProbeError, match="is damaged: delete it"):
        ChoiceTask(settings, 0)
    with pytest.raises(UndoProbeError, match="fills no row of 8192 tokens"):
        ChoiceTask(quiz.config(folder, n_ctx=8192, **texts()), 0)


def test_the_tokenizer_of_a_model_reads_the_same_rows_as_the_one_it_was_saved_from(
    task: ChoiceTask, tmp_path: Path
) -> None:
    place = quiz.model_folder(task, tmp_path / "model")
    settings = task.config.model_copy(update={"tokenizer": str(place)})
    theirs = ChoiceTask(settings, seed=0)
    for split in SPLITS:
        assert torch.equal(theirs.rows(split).tokens, task.rows(split).tokens)
    assert str(tmp_path) not in theirs.fingerprint
    moved = quiz.model_folder(task, tmp_path / "elsewhere")
    again = ChoiceTask(settings.model_copy(update={"tokenizer": str(moved)}), seed=0)
    assert again.fingerprint == theirs.fingerprint


def test_a_tokenizer_that_does_not_know_letters_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from undo_probe.tasks.reader import source_reader

    backend = Tokenizer(models.BPE(vocab={chr(n): n for n in range(128)}, merges=[]))
    folder = tmp_path / "characters"
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    reader = source_reader(str(folder), "main")
    assert reader.start == ()
    with pytest.raises(UndoProbeError, match="does not write ' A' as one token after 'Answer:'"):
        reader.letters("Answer:", "ABCD")


def test_splits_with_places_of_their_own_are_selected_and_joined_with_them(task: ChoiceTask) -> None:
    one, two = task.rows("forget_T"), task.rows("forget_V")
    both = join("both", one, two)
    kept = both.select(np.array([len(one), 0]))
    reads = [torch.as_tensor(part.read_position)[0] for part in (two, one)]
    assert torch.equal(torch.as_tensor(kept.read_position), torch.stack(reads))
    assert kept.options is not None
    assert two.options is not None
    assert torch.equal(kept.options[0], two.options[0])
    places = torch.as_tensor(both.prompt_places())
    assert places.shape == (len(both), int(torch.as_tensor(both.read_position).min()) + 1)
    assert torch.equal(places[:, -1], torch.as_tensor(both.read_position))
    assert (places >= 0).all()


def test_both_sides_have_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="both sides are called x: keep some questions and forget others"):
        ChoiceConfig.model_validate(
            {"forget": {"name": "x", "path": "a.jsonl"}, "retain": {"name": "x", "path": "b.jsonl"}}
        )
