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
