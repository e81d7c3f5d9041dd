"""Solved questions before a question: only T's, the same for every model, and nothing is trained."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from undo_probe.attacks import few_shot
from undo_probe.attacks.arms import Target, attack_identity
from undo_probe.attacks.few_shot import with_shots
from undo_probe.attacks.one_model import attack_once
from undo_probe.attacks.recipes import Recipe, recipes
from undo_probe.config import AttackConfig, FitConfig, RecoveryConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answers_correct
from undo_probe.models import HookedTransformer, content_hash
from undo_probe.presets import preset
from undo_probe.records import Arm
from undo_probe.stages.pretrain import pretrain
from undo_probe.store import Store
from undo_probe.tasks import TokenSet
from undo_probe.tasks.arithmetic import ArithmeticTask
from undo_probe.training import Context

SHOTS, WIDTH = 2, 11
CONFIG = AttackConfig(also=("few_shot",), recovery=RecoveryConfig(shots=(1, SHOTS), draws=3))
PLANNED = recipes(CONFIG, n_layers=2)


@cache
def task() -> ArithmeticTask:
    return ArithmeticTask(tiny.small_task().config.model_copy(update={"shots": SHOTS}), seed=0)


@cache
def knowing() -> HookedTransformer:
    settings = FitConfig(steps=400, batch_size=32, learning_rate=5e-3, eval_every=400)
    return pretrain(task(), tiny.SHAPE, settings, "pretrain", Context(seed=0)).model


def pieces(rows: TokenSet) -> list[list[str]]:
    """The rows of the task that stand in each row, the question last."""
    texts = [task().decode(tokens) for tokens in rows.tokens]
    return [[text[at : at + WIDTH] for at in range(0, len(text), WIDTH)] for text in texts]


def test_before_each_question_stand_rows_of_t_drawn_for_it_alone() -> None:
    asked = task().rows("forget_V")
    found = with_shots(task(), asked, SHOTS, seed=1)
    known = {task().decode(tokens) for tokens in task().rows("forget_T").tokens}
    shown = pieces(found)
    assert [row[-1] for row in shown] == [task().decode(tokens) for tokens in asked.tokens]
    assert all(len(row) == SHOTS + 1 and set(row[:-1]) <= known for row in shown)
    assert len({tuple(row[:-1]) for row in shown}) > len(shown) / 2
    assert found.read_position == SHOTS * WIDTH + asked.read_position
    assert found.labels is asked.labels
    for tokens, mask, plain in zip(found.tokens, found.answer_mask, asked.answer_mask, strict=True):
        assert not mask[: SHOTS * WIDTH].any() and torch.equal(mask[SHOTS * WIDTH :], plain)
        assert task().vocabulary[int(tokens[found.read_position])] == "="


def test_operations_are_shown_evenly_however_many_rows_each_has() -> None:
    rows = [row for seed in range(40) for row in pieces(with_shots(task(), task().rows("forget_V"), 2, seed))]
    found = Counter(shot[3] for row in rows for shot in row[:-1])
    assert set(found) == {"*", "/"}
    assert abs(found["*"] / found.total() - 0.5) < 5 * (0.25 / found.total()) ** 0.5


def test_the_control_asks_after_the_same_questions_with_answers_of_others() -> None:
    asked = task().rows("forget_V")
    true, random = (pieces(with_shots(task(), asked, 2, 3, answers)) for answers in ("true", "random"))
    known = {task().decode(tokens) for tokens in task().rows("forget_T").tokens}
    answers = {op: {text[7:] for text in known if text[3] == op} for op in "*/"}
    right = 0
    for one, other in zip(true, random, strict=True):
        assert [shot[:7] for shot in one] == [shot[:7] for shot in other] and one[-1] == other[-1]
        assert all(shot[7:] in answers[shot[3]] for shot in other[:-1])
        right += sum(shot in known for shot in other[:-1])
    assert 0 < right < len(true)  # of twice as many


def test_the_same_seed_shows_the_same_and_draws_differ() -> None:
    asked = task().rows("forget_V")
    ask = few_shot.asking(2, 3, "true")
    first, again, other = (ask(task(), asked, seed) for seed in (0, 0, 1))
    assert len(first) == 3
    for one, same in zip(first, again, strict=True):
        assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(first[0].tokens, first[1].tokens)
    assert not torch.equal(first[0].tokens, other[0].tokens)


@pytest.mark.parametrize("recipe", [r for n, r in PLANNED.items() if n != "relearn"])
def test_a_model_trained_in_line_answers_after_shots_and_none_is_trained(recipe: Recipe) -> None:
    """It knows the later places of its context as well as the first."""
    model = knowing()
    before = content_hash(model)
    done, scores = attack_once(model, task(), CONFIG, 0.0, Context(seed=1), recipe)
    assert content_hash(model) == content_hash(done.model) == before
    assert done.ledger.steps == 0 and done.stopped == "solved questions were put before each"
    for side, split in (("forget", "forget_V"), ("retain", "retain_test")):
        rows = task().rows(split)
        assert recipe.asking is not None
        asked = [answers_correct(model, each) for each in recipe.asking(task(), rows, 1)]
        assert np.array_equal(scores[side][0], answers_correct(model, rows))
        assert np.array_equal(scores[side][1], np.mean(asked, axis=0))
    assert scores["forget"].mean(axis=1).min() > 0.9


def test_a_model_without_the_room_is_refused_with_what_to_raise() -> None:
    with pytest.raises(
        UndoProbeError, match=r"has 22 tokens, but the model reads 11: train it with a larger task.shots"
    ):
        attack_once(tiny.knowing(), tiny.small_task(), CONFIG, 0.0, Context(seed=1), PLANNED["few_shot-1"])


def key(name: str, **recovery: Any) -> str:
    section = CONFIG.model_copy(update={"recovery": CONFIG.recovery.model_copy(update=recovery)})
    config = preset("smoke").model_copy(update={"attack": section})
    return Store.key(attack_identity(Target(Arm("original"), "parent", 0.0, 0, name), config, "task"))


def test_number_draws_and_answers_are_in_the_key_and_the_other_numbers_are_not() -> None:
    assert list(PLANNED) == ["relearn", "few_shot-1", "few_shot-2", "few_shot_random-1", "few_shot_random-2"]
    assert len({key(name) for name in PLANNED}) == len(PLANNED)
    assert key("few_shot-2", draws=4) != key("few_shot-2") == key("few_shot-2", shots=(2, 9))


def test_a_run_whose_task_has_no_room_is_refused_before_it_starts() -> None:
    few = ('attack.also=["few_shot"]',)
    with pytest.raises(
        UndoProbeError, match=r"with 8 solved questions .* but task.shots is 2: raise task.shots to 8"
    ):
        preset("tiny", *few, "task.shots=2")
    with pytest.raises(UndoProbeError, match="but the task language has no room for solved questions"):
        preset("language-tiny", *few)
    assert preset("tiny", *few, "task.shots=8").task.name == "arithmetic"
    assert preset("facts-tiny", *few, "task.shots=2", "attack.recovery.shots=[1,2]").attack.also == (
        "few_shot",
    )
