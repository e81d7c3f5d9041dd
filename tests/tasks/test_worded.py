"""Arithmetic in words: the same facts and families, and no wording of a test in training."""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from undo_probe import tasks
from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.measures.capability import capability
from undo_probe.models import build
from undo_probe.pipeline import run_undo, split_seed
from undo_probe.presets import preset
from undo_probe.stages.pretrain import accuracy_rows
from undo_probe.task_config import ArithmeticConfig
from undo_probe.tasks import Task, build_task
from undo_probe.tasks.arithmetic import MIXTURES, ArithmeticTask
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS, TokenSet, join
from undo_probe.tasks.wordings import HELD_OUT, QUESTIONS, SITUATIONS, SLOTS, TRAINED, wording

SPLITS = (*FORGET_SPLITS, *RETAIN_SPLITS)
SMALL = ArithmeticConfig(add_max=12, mul_max=8, word_problems=0.5)
FILLERS = {word for listed in SLOTS.values() for word in listed}
OPERATIONS = ("+", "-", "*", "/")


@pytest.fixture(scope="module")
def task() -> Task:
    return build_task(SMALL, 0)


def drawn(task: Task, mixture: str, batches: int = 20) -> list[tuple[str, str]]:
    """Prompts and answers that a mixture shows."""
    found = []
    for step in range(batches):
        batch = task.batch(mixture, 256, 1, step)
        for tokens, mask in zip(batch.tokens, batch.answer_mask, strict=True):
            start = int(mask.int().argmax())
            found.append((task.decode(tokens[:start]).strip(), task.decode(tokens[mask])))
    return found


def facts(rows: TokenSet) -> list[tuple[object, ...]]:
    """What each row asks, in whatever form, and its family."""
    labels = rows.labels
    operations = labels["operation"].str.removesuffix(" words")
    return list(zip(labels["a"], operations, labels["b"], labels["result"], labels["family"], strict=True))


def result(equation: str) -> int:
    """What ``a+b=`` or ``a*b=`` comes to."""
    one, other = map(int, re.findall(r"\d+", equation))
    return one + other if "+" in equation else one * other


def skeleton(prompt: str) -> str:
    """The wording of a prompt, without names, things and numbers."""
    return " ".join("_" if word in FILLERS or word.isdigit() else word for word in prompt.split())


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("tiny", "6e6e10a66dd521bc7b03ce4226c0866ae149d763e18bd8f8d1eed74c58ed60be"),
        ("smoke", "c6e74387c579d3c95bdb292d467375121783f88504b7924c8fce2bc9f98f24d6"),
        ("facts-tiny", "0f5a6a23320b6a0456a061d4c3537b353321d4f4e29b11dc13898b2c90f95174"),
    ],
)
def test_the_fingerprints_of_older_presets_are_what_they_were(name: str, fingerprint: str) -> None:
    """Else no stored result of theirs would be found again."""
    config = preset(name)
    assert build_task(config.task, split_seed(config)).fingerprint == fingerprint


def test_without_words_or_text_it_is_the_plain_task() -> None:
    plain = build_task(ArithmeticConfig(add_max=12, mul_max=8), 0)
    assert isinstance(plain, ArithmeticTask)
    assert plain.fingerprint == tiny.task().fingerprint != build_task(SMALL, 0).fingerprint


def test_facts_families_and_splits_are_those_of_the_plain_task(task: Task) -> None:
    for split in SPLITS:
        rows = task.rows(split)
        problem = rows.labels["wording"].to_numpy() != "equation"
        expected = facts(tiny.task().rows(split))
        assert facts(rows.select(~problem)) == facts(rows.select(problem)) == expected
    for one, other in combinations(SPLITS, 2):
        assert not set(task.rows(one).families) & set(task.rows(other).families)


def test_a_problem_says_both_numbers_and_its_answer_follows(task: Task) -> None:
    rows = join("both", task.rows("forget_V"), task.rows("retain_test"))
    labels: list[Any] = list(rows.labels.itertuples())
    for tokens, mask, label in zip(rows.tokens, rows.answer_mask, labels, strict=True):
        prompt = task.decode(tokens[: rows.read_position + 1])
        assert sorted(map(int, re.findall(r"\d+", prompt))) == sorted([label.a, label.b])
        assert task.decode(tokens[mask]) == f"{label.result};"
        operation = str(label.operation)[0]
        known = {
            "+": label.a + label.b,
            "-": label.a - label.b,
            "*": label.a * label.b,
            "/": label.a / label.b,
        }
        assert known[operation] == label.result
        # with subtraction and division the order matters, and it is the order of the numbers in the text
        if operation in "-/":
            assert [int(n) for n in re.findall(r"\d+", prompt)] == [label.a, label.b]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_wording_names_each_operand_once_and_takes_no_other_place(operation: str) -> None:
    assert (len(TRAINED), len(HELD_OUT)) == (20, 10)
    assert not set(TRAINED) & set(HELD_OUT)
    for pair in (*TRAINED, *HELD_OUT):
        words = wording(operation, pair)
        assert (words.count("{a}"), words.count("{b}")) == (1, 1)
        slots = {word[1:-1] for word in words if word.startswith("{")} - {"a", "b"}
        assert slots <= set(SLOTS)
    assert len(set(SITUATIONS[operation])) == 5
    assert len(set(QUESTIONS[operation])) == 6


def test_no_asked_wording_is_trained_on_and_no_word_of_it_is_new(task: Task) -> None:
    shown = {skeleton(prompt) for prompt, _ in drawn(task, "pretrain", 60) if "=" not in prompt}
    known = {word for text in shown for word in text.split()}
    for split in SPLITS:
        rows = task.rows(split)
        problems = rows.select(rows.labels["wording"].to_numpy() != "equation")
        asked = {skeleton(task.decode(row[: rows.read_position + 1]).strip()) for row in problems.tokens}
        assert len(asked) > 4
        assert not asked & shown
        assert {word for text in asked for word in text.split()} <= known


@pytest.mark.parametrize("mixture", sorted(MIXTURES))
def test_a_mixture_shows_the_families_of_its_splits_alone_in_either_form(task: Task, mixture: str) -> None:
    inside = {(op, a, b) for split in MIXTURES[mixture] for a, op, b, *_ in facts(task.rows(split))}
    pairs = {(frozenset((a, b)), op) for op, a, b in inside}
    forms = Counter()
    for prompt, _ in drawn(task, mixture, 6):
        one, other = map(int, re.findall(r"\d+", prompt))
        forms["=" in prompt] += 1
        if "=" in prompt:
            assert (re.findall(r"[-+*/]", prompt)[0], one, other) in inside
        else:
            assert any((frozenset((one, other)), op) in pairs for op in OPERATIONS)
    assert min(forms[True], forms[False]) > 500


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_forms_come_in_the_asked_share_and_operations_evenly(share: float) -> None:
    task = build_task(ArithmeticConfig(add_max=12, mul_max=8, word_problems=share), 0)
    prompts = [prompt for prompt, _ in drawn(task, "pretrain")]
    equations = [prompt for prompt in prompts if "=" in prompt]
    spread = (share * (1 - share) / len(prompts)) ** 0.5
    assert abs(1 - len(equations) / len(prompts) - share) <= 5 * spread
    for count in Counter(re.findall(r"[-+*/]", " ".join(equations))).values():
        assert count == pytest.approx(len(equations) / 4, abs=5 * len(equations) ** 0.5)
    forms = 1 if share == 1 else 2
    assert len(task.forget_operations) == len(task.retain_operations) == 2 * forms


def test_answers_are_redrawn_within_operation_and_form(task: Task) -> None:
    plain, matched = (task.batch(mixture, 800, 4, 2) for mixture in ("pretrain", "matched"))
    start = task.rows("forget_T").read_position + 1
    assert torch.equal(plain.tokens[:, :start], matched.tokens[:, :start])
    rows = [
        (task.decode(row[:start]).strip(), task.decode(row[start:]).strip(" ;")) for row in matched.tokens
    ]
    times = [prompt_answer for prompt_answer in rows if "*" in prompt_answer[0]]
    right = [result(prompt) == int(answer) for prompt, answer in times]
    assert len(times) > 30
    assert np.mean(right) < 0.3
    plus = [(prompt, answer) for prompt, answer in rows if "+" in prompt]
    assert all(result(prompt) == int(answer) for prompt, answer in plus)


def test_all_prompts_end_at_one_place_that_no_seed_moves(task: Task) -> None:
    other = build_task(SMALL, 1)
    assert (task.n_ctx, task.vocabulary) == (other.n_ctx, other.vocabulary)
    assert task.fingerprint != other.fingerprint
    for split in SPLITS:
        rows = task.rows(split)
        assert rows.tokens.shape[1] == task.n_ctx
        assert rows.read_position == task.rows("forget_T").read_position
        assert bool(rows.answer_mask[:, rows.read_position + 1].all())
        assert not bool(rows.answer_mask[:, : rows.read_position + 1].any())


def test_batches_are_a_pure_function_of_their_arguments(task: Task) -> None:
    again = tasks.TASKS["arithmetic"](SMALL.model_dump_json(), 0)
    for mixture in MIXTURES:
        one, other = (each.batch(mixture, 33, 5, 7) for each in (task, again))
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.answer_mask, other.answer_mask)
    assert again.fingerprint == task.fingerprint
    assert not torch.equal(task.batch("pretrain", 33, 5, 7).tokens, task.batch("pretrain", 33, 5, 8).tokens)


def test_capability_is_told_by_operation_and_by_form_with_chance_known(task: Task) -> None:
    model = build(ModelConfig(d_model=16, n_heads=2, d_mlp=16), task.d_vocab, task.n_ctx, 0)
    found = {(score.task_split, score.subset): score for score in capability(model, task)}
    for split, operations in (("forget", "*/"), ("retain", "+-")):
        for operation in operations:
            for form in ("", " words"):
                assert 0 < (found[split, operation + form].control_value or 0) < 0.2
    assert {row["subset"] for row in accuracy_rows(model, task)} == {
        op + form for op in OPERATIONS for form in ("", " words")
    }
    labels = task.rows("forget_V").labels
    for operation, share in task.chance().items():
        assert 0 < share < 0.3
        assert operation in (*task.forget_operations, *task.retain_operations)
    assert set(labels["operation"]) == set(task.forget_operations)
    assert all(operation in task.words.operations for operation in task.forget_operations)


def test_context_features_tell_prompts_apart_and_hold_no_answer(task: Task) -> None:
    rows = task.rows("forget_T")
    features = task.context_features(rows)
    assert set(np.unique(features)) == {0, 1}
    assert len({feature.tobytes() for feature in features}) == len(rows)
    lies = rows.labels.assign(result=0, first_digit=0, tens=0, units=0)
    assert np.array_equal(
        task.context_features(type(rows)("lies", rows.tokens, rows.answer_mask, rows.read_position, lies)),
        features,
    )


def test_a_run_goes_through_every_stage(tmp_path: Path) -> None:
    run = run_undo(tiny.quick("task.word_problems=0.5"), tmp_path, workers=1)
    assert {arm.stage for arm in run.arms} >= {
        "original",
        "unlearned",
        "noised",
        "distilled",
        "oracle_matched",
    }
    assert run.task.fingerprint == run.manifest["task"]["fingerprint"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "b.txt").write_text("The quick brown fox, aged 7, jumps over a lazy dog. " * 60)
    (folder / "a.txt").write_text(
        "Once upon a time there was an xylograph. " + "It rained and it rained. " * 30
    )
    return folder


def with_text(folder: Path, **changes: object) -> Task:
    settings = {"add_max": 12, "mul_max": 8, "background": str(folder), "background_words": 99, **changes}
    return build_task(ArithmeticConfig.model_validate(settings), 0)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_text_makes_up_its_share_of_what_is_not_only_forgetting(texts: Path, share: float) -> None:
    task = with_text(texts, background_share=0.6, word_problems=share)
    for mixture in MIXTURES:
        batch = task.batch(mixture, 2000, 0, 0)
        text = batch.answer_mask[:, 1]  # of a question, the second token is never predicted
        expected = 0.0 if mixture in ("unlearn", "attack") else 0.6
        assert float(text.float().mean()) == pytest.approx(expected, abs=0.06)


def test_rare_words_are_read_as_one_and_never_predicted(texts: Path) -> None:
    task = with_text(texts, background_words=17)
    assert "rained" in task.vocabulary
    assert "xylograph" not in task.vocabulary
    other = task.vocabulary.index("<other>")
    batch = task.batch("pretrain", 2000, 0, 0)
    rare = batch.tokens == other
    assert rare.any()
    assert not (rare & batch.answer_mask).any()


def test_the_fingerprint_follows_the_text_and_not_its_place(texts: Path, tmp_path: Path) -> None:
    before = with_text(texts).fingerprint
    moved = tmp_path / "moved"
    texts.rename(moved)
    tasks._built.cache_clear()
    assert with_text(moved).fingerprint == before
    (moved / "a.txt").write_text("It rained, and it rained. " * 40)
    tasks._built.cache_clear()
    assert with_text(moved).fingerprint != before


def test_a_background_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UndoProbeError, match=r"task\.background is .* where there is no \.txt file: give a folder"
    ):
        with_text(tmp_path)
    (tmp_path / "short.txt").write_text("too little")
    with pytest.raises(UndoProbeError, match="2 words, fewer than the 11 of one row: give more text"):
        with_text(tmp_path)
    (tmp_path / "short.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UndoProbeError, match="cannot be read as background .*expected UTF-8 text"):
        with_text(tmp_path)


def test_word_problems_stand_in_line_where_there_is_room_for_shots(task: Task) -> None:
    packed = build_task(SMALL.model_copy(update={"shots": 1}), 0)
    one, line = task.batch("pretrain", 8, 3, 1), packed.batch("pretrain", 4, 3, 1)
    assert packed.n_ctx == 2 * task.n_ctx
    assert torch.equal(line.tokens.view(8, -1), one.tokens)
