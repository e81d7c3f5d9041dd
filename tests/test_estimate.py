"""The estimate counts what a run then counts, and leaves nothing behind."""

from pathlib import Path

import pytest
import quiz

from undo_probe import estimate as estimating
from undo_probe.errors import UndoProbeError
from undo_probe.estimate import Line, estimate
from undo_probe.presets import preset
from undo_probe.store import Run
from undo_probe.tasks.choice import ChoiceTask


@pytest.fixture(scope="module")
def lines(attacked: Run) -> dict[str, Line]:
    return {line.what: line for line in estimate(attacked.config).lines}


def spent(run: Run, *stages: str) -> tuple[int, int, float]:
    """Steps, tokens and FLOPs in the run's ledger."""
    ledgers = [run.entry(arm).ledger for arm in run.arms if arm.stage in stages]
    return tuple(sum(getattr(each, name) for each in ledgers) for name in ("steps", "tokens", "flops"))  # type: ignore[return-value]


def test_stages_of_fixed_length_cost_what_the_ledger_says(attacked: Run, lines: dict[str, Line]) -> None:
    found = lines["original and oracles"]
    expected = spent(attacked, "original", "oracle", "oracle_matched")
    assert (found.steps, found.tokens) == expected[:2]
    assert found.flops == pytest.approx(expected[2])
    unlearned = [arm for arm in attacked.arms if arm.stage == "unlearned" and not arm.variant]
    for arm in unlearned:
        ledger = attacked.entry(arm).ledger
        share = lines[arm.label].models
        assert lines[arm.label].flops == pytest.approx(share * ledger.flops)


def test_students_cost_at_most_what_is_said(attacked: Run, lines: dict[str, Line]) -> None:
    steps, tokens, flops = spent(attacked, "distilled")
    found = lines["students"]
    assert found.models == sum(arm.stage == "distilled" for arm in attacked.arms)
    assert found.steps >= steps
    assert found.flops / found.steps == pytest.approx(flops / steps)
    assert found.tokens / found.steps == pytest.approx(tokens / steps)


def test_attacks_are_counted_by_arm_rate_and_seed(attacked: Run, lines: dict[str, Line]) -> None:
    made = attacked.manifest["attacks"]
    assert lines["attacks"].models == len(made)
    ledgers = [attacked.store.entry(each["key"]).ledger for each in made]
    assert lines["attacks"].steps == sum(each.steps for each in ledgers)
    assert lines["attacks"].flops == pytest.approx(sum(each.flops for each in ledgers))


def test_further_attacks_are_counted_too() -> None:
    base, more = (
        {line.what: line for line in estimate(preset("smoke", *words)).lines}["attacks"]
        for words in ((), ('attack.also=["retain_only","quantised"]', "attack.recovery.bits=[4]"))
    )
    arms = base.models // len(preset("smoke").attack.learning_rates)
    assert (more.models, more.steps) == (2 * base.models + arms, 2 * base.steps)


def test_measures_beside_the_usual_ones_are_priced_by_their_forward_passes(
    attacked: Run, lines: dict[str, Line]
) -> None:
    more = attacked.config.model_copy(
        update={"score": attacked.config.score.model_copy(update={"also": ("weights", "depth")})}
    )
    found = {line.what: line for line in estimate(more).lines}
    depth, weights = found["score.also: depth"], found["score.also: weights"]
    assert depth.models == weights.models == len(attacked.arms)
    assert depth.flops > weights.flops > 0
    assert depth.seconds > 0
    rows = len(attacked.task.rows("forget_V")) + len(attacked.task.rows("retain_test"))
    assert weights.tokens == 11 * rows * len(attacked.arms) * attacked.task.n_ctx
    assert not [name for name in lines if name.startswith("score.also")]


def test_seconds_grow_with_the_steps() -> None:
    short, long = (estimate(preset("smoke", f"original.steps={steps}")) for steps in (100, 10_000))
    pair = [each.lines[0].seconds for each in (short, long)]
    assert 20 * pair[0] < pair[1]
    assert long.peak_bytes > 4 * long.parameters


def test_students_of_dependent_lengths_are_counted_by_their_cap() -> None:
    base, more = (
        {line.what: line for line in estimate(preset("smoke", *words)).lines}["students"]
        for words in ((), ("arms.times=[3]",))
    )
    alphas = len(preset("smoke").noise.alphas)
    assert more.models == base.models + alphas
    assert more.steps == base.steps + 3 * alphas * preset("smoke").distill.steps


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = estimate(preset("smoke")).text(workers=2)
    assert "with 2 processes" in text
    assert not list(tmp_path.iterdir())


def test_a_missing_device_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UndoProbeError, match="torch sees no CUDA device"):
        estimate(preset("smoke", "device=cuda"))


def test_a_source_too_large_to_try_costs_what_a_tried_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted from one and two blocks over few tokens, without building or reading the model."""
    quiz.write(tmp_path / "text")
    task = ChoiceTask(quiz.config(tmp_path / "text", near_duplicates=None), seed=0)
    place = quiz.model_folder(task, tmp_path / "model")
    words = (
        "task.name=choice", f"task.text={tmp_path / 'text'}", "task.near_duplicates=null", "task.n_ctx=48",
        f"original.source={place}", 'unlearn.rmu.tensors=["mlp.W_out"]', "unlearn.rmu.layer=1",
        "distill.batch_size=4", 'unlearn.also=["rmu","cir","repselect"]', 'unlearn.budget={"retain":0.1}',
        "unlearn.cir.batch_size=4", "unlearn.repselect.batch_size=4", "unlearn.repselect.adversary_steps=8",
    )  # fmt: skip
    config = preset("smoke", *words)
    tried = estimate(config)
    monkeypatch.setattr(estimating, "LARGE", 0)
    monkeypatch.setattr(estimating, "load_model", None)
    counted = estimate(config)
    assert counted.parameters == pytest.approx(tried.parameters, rel=1e-9)
    assert "was not read and not tried" in counted.note
    assert not tried.note
    for one, other in zip(counted.lines, tried.lines, strict=True):
        assert (one.what, one.models, one.steps, one.tokens) == (
            other.what,
            other.models,
            other.steps,
            other.tokens,
        )
        # attention grows with the row, and RMU reads the last token too: one row is not quite like another
        assert one.flops == pytest.approx(other.flops, rel=0.05)


def test_a_hub_model_without_questions_to_ask_is_not_priced() -> None:
    with pytest.raises(
        UndoProbeError, match="only with task.name=choice can a run that starts from it be priced"
    ):
        estimate(preset("smoke", "original.source=google/gemma-2-2b"))
