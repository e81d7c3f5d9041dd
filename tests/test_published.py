"""The published settings are in the preset, and what a model of that size costs is said without training it."""

import math
import time

import pytest

from undo_probe import estimate as estimating
from undo_probe.estimate import Estimate, estimate
from undo_probe.models import build
from undo_probe.presets import override, preset
from undo_probe.published import ROW
from undo_probe.tasks import build_task
from undo_probe.training import learning_rate

PAPER = preset("paper-arithmetic")


def test_a_step_reads_as_many_tokens_as_the_published_one() -> None:
    """15 x 24 rows of 256 in pretraining and distillation, 40 rows in unlearning, 15 in the attack."""
    assert build_task(PAPER.task, 0).n_ctx == ROW
    unlearn, attack = PAPER.unlearn, PAPER.attack
    for settings, published in (
        (PAPER.original, 15 * 24 * 256),
        (PAPER.distill, 15 * 24 * 256),
        (unlearn.maxent, 40 * 256),
        (unlearn.graddiff, 20 * 2 * 256),
        (unlearn.rmu, 40 * 256),
    ):
        assert settings.batch_size * settings.accumulate * ROW == pytest.approx(published, rel=0.01)
    assert attack.batch_size * ROW == pytest.approx(15 * 256, rel=0.01)


def test_the_blocks_have_the_size_of_the_published_ones() -> None:
    """Of theirs: 8 heads of 128 with 4 key-value heads, and a gated MLP of width 3072."""
    theirs = 14 * (768 * 128 * (8 + 8 + 4 + 4) + 3 * 768 * 3072)
    one = build(PAPER.model.model_copy(update={"n_layers": 1}), 17, ROW, seed=0)
    ours = 14 * sum(p.numel() for name, p in one.named_parameters() if "blocks.0" in name and ".W_" in name)
    assert ours == pytest.approx(theirs, rel=0.001)
    assert theirs == pytest.approx(328.8e6 - 196.6e6, rel=0.001)


def test_rates_follow_the_published_schedules() -> None:
    original, distill = PAPER.original, PAPER.distill
    assert (original.steps, distill.steps, distill.eval_every) == (1000, 1000, 20)
    assert learning_rate(original, 49) == learning_rate(original, 999) == 4e-4
    assert learning_rate(original, 0) == 4e-4 / 50
    assert learning_rate(distill, 50) == 7e-4
    assert learning_rate(distill, 1000) == pytest.approx(7e-5)
    assert {original.weight_decay, distill.weight_decay} == {0.0}
    assert len(PAPER.attack.learning_rates) == 10
    assert {0, 5, 40, 500} <= set(PAPER.attack.eval_steps)  # 40 and 500 are the paper's reporting points
    # MaxEnt's labelled tokens: 0.01 % of a corpus of 1e9
    maxent = PAPER.unlearn.maxent
    assert maxent.steps * maxent.batch_size * ROW / 1e9 == pytest.approx(1.02e-4, rel=0.01)


SMALL = preset(
    "smoke",
    'unlearn.also=["rmu"]',
    "original.accumulate=3",
    "unlearn.maxent.sharpness=0.1",
    'attack.also=["mixed"]',
)


def guess(rows: int = 64) -> Estimate:
    """The estimate of a small run, made as if its model were too large to try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimating, "LARGE", 0)
        return estimate(override(SMALL, f"original.batch_size={rows}"))


@pytest.fixture(scope="module")
def extrapolated() -> Estimate:
    return guess()


def test_a_model_that_is_not_tried_costs_what_a_tried_one_does(extrapolated: Estimate) -> None:
    tried = estimate(SMALL)
    assert not tried.note
    for one, other in zip(extrapolated.lines, tried.lines, strict=True):
        assert (one.what, one.models, one.steps, one.tokens) == (
            other.what,
            other.models,
            other.steps,
            other.tokens,
        )
        # RMU reads the last token too, so the share of attention is a little another
        assert one.flops == pytest.approx(other.flops, rel=0.05 if one.what == "RMU" else 1e-6)


def test_it_says_what_it_assumed_and_how_much_memory_the_rows_take(extrapolated: Estimate) -> None:
    assert "Not tried in full: times assume that every stage computes" in extrapolated.text(workers=2)
    assert "float32 copies of the model" in extrapolated.note
    weights = 7 * 4 * extrapolated.parameters
    more = guess(rows=128).peak_bytes
    each = (more - extrapolated.peak_bytes) / 64
    # a row's states are kept, some tens a layer, and not the weights again with every row
    n_ctx = build_task(SMALL.task, 0).n_ctx
    assert 10 < each / (4 * 2 * n_ctx * 32) < 40
    assert extrapolated.peak_bytes - 64 * each < 1.5 * weights


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(600, "10 minutes"), (4 * 3600, "4 hours"), (1000 * 86400, "1,000 days"), (10000, "167 minutes")],
)
def test_long_times_are_said_in_units_that_can_be_read(seconds: float, said: str) -> None:
    text = Estimate((estimating.Line("all", 1, 1, 1, 1.0, seconds),), 1, 1).text(workers=1)
    assert f"at most {said} with 1 processes" in text


@pytest.mark.slow
def test_the_published_preset_is_priced_in_a_minute_or_so() -> None:
    start = time.process_time()
    found = estimate(PAPER)
    assert time.process_time() - start < 150
    assert found.parameters == pytest.approx(132e6, rel=0.01)
    lines = {line.what: line for line in found.lines}
    tokens = 1000 * 15 * 24 * 256
    assert lines["original and oracles"].tokens == pytest.approx(2.5 * tokens, rel=0.01)
    # six FLOPs a parameter and token, and a little for attention
    assert lines["original and oracles"].flops == pytest.approx(6 * 132e6 * 2.5 * tokens, rel=0.15)
    assert 4 * 7 * 132e6 < found.peak_bytes < 64 * 2**30
    assert math.isfinite(found.seconds)
    assert found.seconds > 3600


WMDP = preset("paper-wmdp")


def test_a_step_of_wmdp_reads_as_many_tokens_as_the_published_one() -> None:
    """Unlearning 4 x 10 rows of 256, distillation 10 x 11 of 1024, the attack 20 of 256; 338M tokens are distilled."""
    unlearn, distill, n_ctx = WMDP.unlearn, WMDP.distill, getattr(WMDP.task, "n_ctx", 0)
    for settings, published in (
        (unlearn.maxent, 4 * 10 * 256),
        (unlearn.rmu, 4 * 10 * 256),
        (unlearn.sam, 4 * 10 * 256),
        (distill, 10 * 11 * 1024),
    ):
        assert settings.batch_size * settings.accumulate * n_ctx == published
    assert WMDP.attack.batch_size * n_ctx == 20 * 256
    assert distill.steps * distill.batch_size * distill.accumulate * n_ctx == pytest.approx(338e6, rel=0.001)
    labelled = unlearn.maxent.steps * unlearn.maxent.batch_size * unlearn.maxent.accumulate * n_ctx
    assert labelled == pytest.approx(0.92e6, rel=0.01)


def test_wmdp_follows_the_published_schedules() -> None:
    unlearn, distill = WMDP.unlearn, WMDP.distill
    assert (WMDP.noise.alphas, WMDP.noise.beta) == ((0.25,), 0.0)
    assert {unlearn.maxent.steps, unlearn.rmu.steps} == {90}
    assert learning_rate(unlearn.maxent, 0) == learning_rate(unlearn.maxent, 89) == 2e-5
    assert (distill.steps, distill.stop, distill.warmup) == (3000, "never", 50)
    assert learning_rate(distill, 50) == 2e-5
    assert learning_rate(distill, 3000) == pytest.approx(2e-6)
    assert WMDP.attack.eval_steps == (0, 10, 25, 50, 150, 500)
    # (1 - a) forget + a retain
    assert unlearn.maxent.retain_weight == pytest.approx(0.25 / 0.75)
    assert (unlearn.rmu.c, unlearn.rmu.retain_weight, unlearn.rmu.layer) == (80.0, 1.0, 14)
    assert unlearn.rmu.blocks is not None
    assert max(unlearn.rmu.blocks) == unlearn.rmu.layer


@pytest.mark.slow
def test_wmdp_is_priced_offline_without_the_model_or_the_questions() -> None:
    found = estimate(override(WMDP, "device=cpu"))
    assert found.parameters == pytest.approx(2_614_341_888, rel=1e-3)
    lines = {line.what: line for line in found.lines}
    assert "original and oracles" not in lines
    tokens = 3000 * 10 * 11 * 1024
    assert lines["students"].models == 2
    assert lines["students"].tokens == 2 * tokens
    # eight FLOPs a parameter and token (a teacher's pass beside the student's three), and some for attention
    assert lines["students"].flops == pytest.approx(8 * 2.614e9 * 2 * tokens, rel=0.1)
    assert found.peak_bytes > 7 * 4 * 2.6e9
    for text in ("was not read and not tried", "1,273 of WMDP-Bio, 14,042 of MMLU are expected"):
        assert text in found.text(workers=1)
