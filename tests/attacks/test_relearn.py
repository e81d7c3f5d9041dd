"""Relearning: trained on T alone, judged on V, alike for every arm, and told as a whole curve."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.attacks import arms, one_model
from undo_probe.attacks import relearn as relearn_model
from undo_probe.attacks.arms import Target, attack, attack_identity, attack_tables, attacked_arms, run_attack
from undo_probe.attacks.envelope import AttackTable
from undo_probe.attacks.one_model import attack_once, attack_table, bracketed_attack_table, core_rows
from undo_probe.attacks.recipes import Recipe
from undo_probe.config import AttackConfig
from undo_probe.evaluation import answers_correct
from undo_probe.files import read_json
from undo_probe.models import content_hash
from undo_probe.store import Run, Store
from undo_probe.tasks import Batch
from undo_probe.tasks.protocol import answers_end
from undo_probe.training import Context

TASK = tiny.small_task()
SHORT = AttackConfig(learning_rates=(1e-3, 3e-3), steps=30, batch_size=32, eval_steps=(0, 10, 30))


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.folder, folder)
    return Run(folder)


def test_the_attack_brings_back_what_was_only_suppressed() -> None:
    model = tiny.suppressed().model
    longer = SHORT.model_copy(update={"steps": 60})
    done, _ = attack_once(model, TASK, longer, 3e-3, Context(seed=1))
    assert tiny.accuracy(model, "forget_T") < 0.4
    assert tiny.accuracy(done.model, "forget_T") > 0.9


def test_an_attack_reads_no_filling() -> None:
    """Rows that are filled beyond what the model reads: any pass over the filling would be refused."""

    def filled(task: Any, seed: int) -> Callable[[int, int], Batch]:
        def draw(size: int, step: int) -> Batch:
            batch = task.batch("attack", size, seed, step)
            return Batch(
                *(torch.nn.functional.pad(each, (0, 5)) for each in (batch.tokens, batch.answer_mask))
            )

        return draw

    model = tiny.suppressed().model
    found = [
        attack_once(model, TASK, SHORT, 3e-3, Context(seed=1), recipe)[1]
        for recipe in (None, Recipe(draw=filled))
    ]
    assert np.array_equal(found[0]["forget"], found[1]["forget"])


def test_filling_is_left_out_of_a_batch_and_changes_no_loss() -> None:
    model, rows = tiny.model(), TASK.batch("attack", 8, seed=1, step=0)
    end = answers_end(rows.answer_mask)
    filling = (0, model.cfg.n_ctx - end)
    assert filling > (0, 0)
    whole = Batch(
        *(torch.nn.functional.pad(each[:, :end], filling) for each in (rows.tokens, rows.answer_mask))
    )
    short = whole.without_filling()
    assert short.tokens.shape == (8, end)

    def loss(batch: Batch) -> Tensor:
        return losses.next_token(tiny.logits(model, batch.tokens), batch.tokens, batch.answer_mask)

    torch.testing.assert_close(loss(short), loss(whole), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("best", "extensions", "tried"), [(3e-3, 2, 5), (3e-3, 1, 4), (3e-4, 2, 3), (2e-5, 2, 5)]
)
def test_rates_grow_while_the_best_lies_at_their_edge_by_more_than_chance(
    best: float, extensions: int, tried: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an attack that does the better the nearer it is to its best rate."""
    rows = len(TASK.rows("forget_V"))

    def once(
        model: Any, task: Any, config: AttackConfig, rate: float, *_: Any
    ) -> tuple[None, dict[str, np.ndarray]]:
        score = np.full((len(config.eval_steps), rows), -abs(math.log(rate / best)))
        return None, {"forget": score}

    monkeypatch.setattr(one_model, "attack_once", once)
    grid = SHORT.model_copy(update={"learning_rates": (1e-4, 3e-4, 9e-4), "max_extensions": extensions})
    table = bracketed_attack_table(tiny.model(), TASK, grid, 1, sides=("forget",))
    assert len(table.rates) == tried and set(grid.learning_rates) <= set(table.rates)
    assert list(table.rates) == sorted(table.rates)
    for rate in table.rates:
        assert table.at_rate(rate).mean() == pytest.approx(-abs(math.log(rate / best)))


def test_a_side_that_is_not_asked_changes_nothing_of_the_other() -> None:
    model = tiny.suppressed().model
    both, forget = (
        attack_table(model, TASK, SHORT, 1, sides=sides) for sides in (("forget", "retain"), ("forget",))
    )
    assert np.array_equal(both.forget, forget.forget)
    assert both.retain.shape[-1] == len(TASK.rows("retain_test"))
    assert forget.retain.shape[-1] == 0
    assert np.array_equal(both.cumulative_max(), forget.cumulative_max())


def test_step_zero_is_the_model_itself_and_the_last_step_the_attacked_one() -> None:
    model = tiny.suppressed().model
    before = content_hash(model)
    done, correct = attack_once(model, TASK, SHORT, 1e-3, Context(seed=1))
    assert content_hash(model) == before
    for side, split in (("forget", "forget_V"), ("retain", "retain_test")):
        assert correct[side].shape == (3, len(TASK.rows(split)))
        assert np.array_equal(correct[side][0], answers_correct(model, TASK.rows(split)))
        assert np.array_equal(correct[side][-1], answers_correct(done.model, TASK.rows(split)))


def test_the_attacker_never_sees_what_is_evaluated() -> None:
    shown = {TASK.decode(row) for step in range(200) for row in TASK.batch("attack", 64, 0, step).tokens}
    for split in ("forget_V", "forget_W", "forget_D", "retain_test"):
        assert not shown & {TASK.decode(row) for row in TASK.rows(split).tokens}
    assert not set(TASK.rows("forget_T").families) & set(TASK.rows("forget_V").families)


def diverging_from(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count()
    real = losses.next_token

    def breaks(*args: Any) -> Tensor:
        return real(*args) * (math.nan if next(calls) >= step else 1.0)

    monkeypatch.setattr(losses, "next_token", breaks)


@pytest.mark.parametrize(("step", "same_as"), [(0, [0, 0, 0]), (12, [0, 1, 1])])
def test_an_attack_that_diverges_keeps_its_last_evaluation(
    step: int, same_as: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = attack_once(tiny.suppressed().model, TASK, SHORT, 3e-3, Context(seed=1))
    diverging_from(step, monkeypatch)
    done, correct = attack_once(tiny.suppressed().model, TASK, SHORT, 3e-3, Context(seed=1))
    assert done.stopped == f"diverged at step {step}"
    assert all(bool(torch.isfinite(p).all()) for p in done.model.parameters())
    for side in ("forget", "retain"):
        assert np.array_equal(correct[side], whole[side][same_as])


def test_the_attack_runs_in_float32_whatever_the_run_was_trained_in() -> None:
    contexts = (Context(seed=1), Context(seed=1, precision="bf16"))
    found = [attack_once(tiny.half_trained(), TASK, SHORT, 1e-3, context)[0].model for context in contexts]
    assert content_hash(found[0]) == content_hash(found[1])


def test_relearn_returns_the_whole_curve() -> None:
    model = tiny.suppressed().model
    before = content_hash(model)
    config = SHORT.model_copy(update={"seeds": 2})
    curve = relearn_model(model, TASK, config, seed=5)
    assert content_hash(model) == before
    rows: Any = pd.DataFrame(list(curve.rows))
    counts = rows.groupby("kind").size().to_dict()
    assert counts == {
        "rate": 2 * 2 * 3 * 2,  # rates, seeds, steps, sides
        "oracle_rate": 3 * 2,
        "cumulative_max": 3,
        "cumulative_max_utility": 3,
    }
    assert curve.stopped == "30 steps at 2 rates"
    assert curve.rows == relearn_model(model, TASK, config, seed=5).rows
    each = rows[(rows["kind"] == "rate") & (rows["task_split"] == "forget") & (rows["step"] == 30)]
    assert set(each["learning_rate"]) == {1e-3, 3e-3}
    core = core_rows(TASK)
    assert set(each["n"]) == {int(core.sum())}


def test_the_guessable_stratum_does_not_count() -> None:
    subset = TASK.rows("forget_V").labels["subset"].to_numpy()
    assert "trivial" not in subset[core_rows(TASK)]
    assert set(subset[~core_rows(TASK)]) == {"trivial"}


def test_every_arm_meets_the_same_rates_batches_and_seeds(attacked: Run) -> None:
    identities = {}
    for arm in attacked_arms(attacked):
        for rate in attacked.config.attack.learning_rates:
            target = Target(arm, attacked.keys[arm.name], rate, 0)
            what = attack_identity(target, attacked.config, attacked.task.fingerprint)
            identities[arm.name, rate] = what
    assert len({what["seed"] for what in identities.values()}) == 1
    assert len({Store.key(what) for what in identities.values()}) == len(identities)
    rates = {name: table.rates for name, table in attack_tables(attacked).items()}
    assert len(set(rates.values())) == 1
    assert set(rates) == {arm.name for arm in attacked.arms if arm.stage != "noised"}


def test_another_attack_seed_draws_other_batches(attacked: Run) -> None:
    arm = attacked.arms[0]
    targets = [Target(arm, attacked.keys[arm.name], 1e-3, seed) for seed in (0, 1)]
    seeds = {attack_identity(t, attacked.config, attacked.task.fingerprint)["seed"] for t in targets}
    assert len(seeds) == 2


def test_noised_models_are_attacked_where_the_configuration_says_so(attacked: Run) -> None:
    config = attacked.config
    wanted = config.model_copy(update={"attack": config.attack.model_copy(update={"noised": True})})
    assert "noised" not in {arm.stage for arm in attacked_arms(attacked)}
    run = Run(attacked.folder)
    run.config = wanted
    assert attacked_arms(run) == run.arms


def test_the_curves_of_a_run_tell_every_attack_and_every_training(attacked: Run) -> None:
    curves: Any = pd.read_parquet(attacked.folder / "curves.parquet")
    tables = attack_tables(attacked)
    core = core_rows(attacked.task)
    for arm in attacked_arms(attacked):
        own = curves[(curves["checkpoint"] == arm.checkpoint) & (curves["kind"] == "rate")]
        own = own[(own["stage"] == arm.stage) & (own["variant"] == arm.variant)]
        found = own[own["task_split"] == "forget"].set_index(["learning_rate", "step"])["value"]
        table = tables[arm.name]
        for rate in table.rates:
            for step, values in zip(table.steps, table.at_rate(rate)[:, core], strict=True):
                assert found[rate, step] == pytest.approx(values.mean())
    trained = curves[(curves["kind"] == "training") & (curves["stage"] == "original")]
    assert sorted(set(trained["step"])) == [0, 3, 6]
    # one rate for all arms: the one that serves the matched oracle best
    assert curves.loc[curves["kind"] == "oracle_rate", "learning_rate"].nunique() == 1


def test_the_ledger_has_one_line_of_attacks_an_arm_and_its_cost(attacked: Run) -> None:
    lines = [line for line in read_json(attacked.folder / "ledger.json") if line["stage"] == "relearned"]
    assert [line["arm"] for line in lines] == [f"attack on {arm.name}" for arm in attacked_arms(attacked)]
    assert {line["steps"] for line in lines} == {3 * attacked.config.attack.steps}
    assert all(line["flops"] > 0 for line in lines)


def test_attacking_again_computes_nothing_and_changes_nothing(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(attacked, tmp_path / "run")
    names = ("curves.parquet", "ledger.json", "run.json")
    before = {name: (run.folder / name).read_bytes() for name in names}

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("an attack was run again")

    monkeypatch.setattr(arms, "attack_once", never)
    again = attack(run, workers=1)
    assert {name: (again.folder / name).read_bytes() for name in names} == before


def test_a_missing_attack_is_made_again_and_equal(attacked: Run, tmp_path: Path) -> None:
    run = copy_of(attacked, tmp_path / "run")
    key = run.manifest["attacks"][5]["key"]
    before = run.store.entry(key).tensors
    run.store.remove(key)
    assert key not in run.store
    assert attack(run, workers=1).store.entry(key).tensors == before


def test_the_device_is_settled_before_torch_is_asked(attacked: Run, tmp_path: Path) -> None:
    config = attacked.config.model_copy(update={"device": "auto"})
    arm = attacked.arms[0]
    target = Target(arm, attacked.keys[arm.name], 0.02, 0)
    run = copy_of(attacked, tmp_path / "run")
    what = attack_identity(target, config, attacked.task.fingerprint)
    key = run_attack(target, what, config, run.manifest["split_seed"], str(run.store.folder))
    assert set(run.store.tensors(key)) == {"forget", "retain"}


def test_an_extended_grid_holds_for_every_arm_and_is_found_again(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(attacked, tmp_path / "run")
    section = run.config.attack.model_copy(update={"max_extensions": 1})
    run.config = run.config.model_copy(update={"attack": section})
    monkeypatch.setattr(AttackTable, "edge", lambda table, keep: 1)
    longer = attack(run, workers=1)
    tables = attack_tables(longer)
    assert {table.rates for table in tables.values()} == {(0.001, 0.003, 0.01, 0.03)}
    # the attacks at the old rates are the old ones
    old = {entry["key"] for entry in attacked.manifest["attacks"]}
    assert old < {entry["key"] for entry in longer.manifest["attacks"]}


def test_an_attack_depends_on_nothing_but_its_own_settings(attacked: Run) -> None:
    """Not on the grid it belongs to, nor on how the table is summed up afterwards."""
    arm = attacked.arms[0]
    target = Target(arm, attacked.keys[arm.name], 1e-3, 0)
    section = attacked.config.attack

    def key(target: Target = target, **changes: Any) -> str:
        config = attacked.config.model_copy(update={"attack": section.model_copy(update=changes)})
        return Store.key(attack_identity(target, config, attacked.task.fingerprint))

    same = [{"learning_rates": (1e-3, 0.1)}, {"max_extensions": 2}, {"utility": 0.5}, {"seeds": 3}]
    assert {key(**changes) for changes in same} == {key()}
    others = [key(steps=9), key(batch_size=4), key(eval_steps=(0, 4))]
    others += [key(replace(target, learning_rate=2e-3)), key(replace(target, attack_seed=1))]
    others += [key(replace(target, key="another parent"))]
    assert len({key(), *others}) == 7
