"""The original and both oracles differ only in what they are shown."""

import pytest
import tiny

from undo_probe.config import FitConfig
from undo_probe.models import content_hash
from undo_probe.stages import StageResult
from undo_probe.stages.pretrain import accuracy_rows, fresh, pretrain
from undo_probe.training import Context

QUICK = FitConfig(steps=150, batch_size=64, learning_rate=5e-3, eval_every=75)
TASK = tiny.small_task()


@pytest.fixture(scope="module")
def oracle() -> StageResult:
    return pretrain(TASK, tiny.SHAPE, QUICK, "retain", Context(seed=0))


@pytest.fixture(scope="module")
def oracle_matched() -> StageResult:
    return pretrain(TASK, tiny.SHAPE, QUICK, "matched", Context(seed=0))


def test_the_original_knows_every_trained_family() -> None:
    for split in ("forget_T", "forget_V", "forget_W", "forget_D", "retain_train"):
        assert tiny.accuracy(tiny.knowing(), split) > 0.9


def test_the_oracle_knows_retain_and_no_forget_row(oracle: StageResult) -> None:
    assert tiny.accuracy(oracle.model, "retain_train") > 0.9
    assert tiny.accuracy(oracle.model, "forget_T") < 0.2


def test_the_matched_oracle_has_seen_the_prompts_and_knows_no_answer(oracle_matched: StageResult) -> None:
    assert tiny.accuracy(oracle_matched.model, "retain_train") > 0.5
    chance = max(TASK.chance()[operation] for operation in TASK.forget_operations)
    for split in ("forget_T", "forget_V"):
        assert tiny.accuracy(oracle_matched.model, split) <= 1.5 * chance


def test_every_reference_starts_from_the_same_weights_at_one_seed() -> None:
    none = FitConfig(steps=0)
    starts = [
        pretrain(TASK, tiny.SHAPE, none, mixture, Context(seed=4)).model for mixture in ("pretrain", "retain")
    ]
    random = fresh(TASK, tiny.SHAPE, Context(seed=4))
    assert {content_hash(model) for model in starts} == {content_hash(random.model)}
    assert content_hash(fresh(TASK, tiny.SHAPE, Context(seed=5)).model) != content_hash(random.model)
    assert random.stopped == "not trained"
    assert random.ledger.flops == 0


def test_the_history_has_every_operation_at_every_look(oracle: StageResult) -> None:
    assert sorted({row["step"] for row in oracle.rows}) == [0, 75, 150]
    last = [row for row in oracle.rows if row["step"] == 150]
    for row, again in zip(last, accuracy_rows(oracle.model, TASK), strict=True):
        assert row == {"step": 150, **again}
    sides = {(row["task_split"], row["subset"]): row["n"] for row in last}
    assert sides["forget", "*"] + sides["forget", "/"] == len(TASK.rows("forget_D"))


def test_the_ledger_is_six_flops_a_parameter_and_token(oracle: StageResult) -> None:
    rows = QUICK.steps * QUICK.batch_size
    assert oracle.ledger.tokens == rows * TASK.n_ctx
    # forward once, backward twice
    assert oracle.ledger.flops == pytest.approx(3 * tiny.forward_flops(oracle.model, rows))
    assert oracle.ledger.labelled_tokens == 0
