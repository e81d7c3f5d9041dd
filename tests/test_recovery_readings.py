"""What the attacks beside relearning say on the scorecard: worked by hand, and on a whole run."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

from undo_probe.attacks import AttackTable, attack
from undo_probe.attacks.arms import attack_tables, attacked_arms, recorded_attacks
from undo_probe.attacks.one_model import core_rows
from undo_probe.files import read_json
from undo_probe.pipeline import run_undo
from undo_probe.recoveries import any_number, recovery_items, recovery_tables, smallest_enough
from undo_probe.report import write_report
from undo_probe.report.intrinsic import intrinsic_table
from undo_probe.scorecard import score
from undo_probe.store import Run

FAMILIES = np.array([f"f{n}" for n in range(40)])
ORIGINAL = np.ones(40)


def share_right(share: float) -> np.ndarray:
    return (np.arange(40) < share * 40).astype(float)


def test_the_smallest_size_is_the_first_that_brings_back_the_share() -> None:
    reached = np.stack([share_right(share) for share in (0.0, 0.1, 0.4, 0.9, 0.9)])
    sizes = (0, 1, 2, 4, 8)
    assert smallest_enough(sizes, reached, ORIGINAL, 0.5, FAMILIES, 0)[0] == 4
    assert smallest_enough(sizes, reached, ORIGINAL, 0.4, FAMILIES, 0)[0] == 2
    assert smallest_enough(sizes, reached, 0 * ORIGINAL, 0.5, FAMILIES, 0)[0] == 0
    assert smallest_enough(sizes, reached, ORIGINAL, 0.95, FAMILIES, 0)[0] == np.inf
    assert smallest_enough(sizes, 0 * reached, ORIGINAL, 0.95, FAMILIES, 0) == (np.inf, np.inf, np.inf)


def test_the_share_is_of_the_original_not_of_all_questions() -> None:
    reached = np.stack([share_right(0.0), share_right(0.3)])
    assert smallest_enough((0, 1), reached, share_right(0.5), 0.5, FAMILIES, 0)[0] == 1
    assert smallest_enough((0, 1), reached, share_right(1.0), 0.5, FAMILIES, 0)[0] == np.inf


def test_the_interval_holds_the_value_and_widens_near_the_threshold() -> None:
    clear = np.stack([share_right(share) for share in (0.0, 0.05, 0.95, 0.95)])
    assert smallest_enough((0, 1, 2, 4), clear, ORIGINAL, 0.5, FAMILIES, 0) == (2, 2, 2)
    close = np.stack([share_right(share) for share in (0.0, 0.45, 0.55, 0.6)])
    value, low, high = smallest_enough((0, 1, 2, 4), close, ORIGINAL, 0.5, FAMILIES, 0)
    assert (value, low, high) == (2, 1, np.inf)
    assert smallest_enough((0, 1, 2, 4), close, ORIGINAL, 0.5, FAMILIES, 0) == (value, low, high)


def test_the_interval_is_over_families_not_rows() -> None:
    # 400 rows, but they stand or fall by twos of 20 families: as uncertain as a handful of coins
    families = np.repeat([f"f{n}" for n in range(20)], 20)
    rows = np.repeat(np.arange(20) < 11, 20).astype(float)
    reached = np.stack([0 * rows, rows])
    assert smallest_enough((0, 1), reached, np.ones(400), 0.5, families, 0) == (1, 1, np.inf)
    apart = np.arange(400).astype(str)
    assert smallest_enough((0, 1), reached, np.ones(400), 0.45, apart, 0)[2] == 1


def shot_table(before: float, after: float) -> AttackTable:
    scores = np.stack([share_right(before), share_right(after)])[None, None]
    half = np.arange(40) % 2
    return AttackTable((0.0,), (0, 1), scores, np.ones((1, 1, 2, 5)), FAMILIES, half)


def test_the_best_number_of_solved_questions_is_chosen_on_the_other_half() -> None:
    core = np.ones(40, dtype=bool)
    tables = {f"few_shot-{k}": {"arm": shot_table(0.2, after)} for k, after in ((1, 0.1), (2, 0.9), (4, 0.5))}
    tables |= {"few_shot_random-1": {"arm": shot_table(0.2, 0.05)}, "lora-1": {"arm": shot_table(0.2, 1.0)}}
    items = {item.measure: item for item in any_number(tables, "arm", core)}
    assert set(items) == {"after_few_shot", "after_few_shot_random"}
    assert np.array_equal(items["after_few_shot"].values, share_right(0.9))
    # where every number only hurts, none is asked first
    assert np.array_equal(items["after_few_shot_random"].values, share_right(0.2))
    # luck in one half is not reported from that half
    first, second = (shot_table(0.0, 0.0) for _ in range(2))
    first.forget[0, 0, 1, ::2], second.forget[0, 0, 1, 1::2] = 1, 1
    lucky = any_number({"few_shot-1": {"arm": first}, "few_shot-2": {"arm": second}}, "arm", core)
    assert not lucky[0].values.any()
    assert any_number(tables, "no such arm", core) == []


ALSO = (
    'attack.also=["mixed","retain_only","noised","dose","lora","subspace","block","quantised","pruned","few_shot"]',
    "task.shots=2",
    "attack.recovery.shots=[1,2]",
    "attack.recovery.doses=[1,3]",
    "attack.recovery.ranks=[1,2]",
    "attack.recovery.dimensions=[4,8]",
    "attack.recovery.shares=[0.5]",
    "attack.learning_rates=[0.003,0.01]",
    "model.n_layers=1",
    "unlearn.also=[]",
    "arms.placebo_rmu=false",
    "arms.unlearn_and_distill=false",
    "arms.twins=[]",
    "score.probes.folds=2",
    "score.probes.max_rows=60",
    "score.probes.penalties=[0.1]",
)
NAMES = [
    "relearn", "mixed", "retain_only", "noised", "dose-1", "dose-3", "lora-1", "lora-2", "subspace-4", "subspace-8",
    "block-0", "quantised-8", "quantised-4", "pruned-0.5", "few_shot-1", "few_shot-2", "few_shot_random-1",
    "few_shot_random-2",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("recoveries") / "run"
    run = attack(run_undo(tiny.quick(*ALSO), folder, workers=1), workers=1)
    score(run, workers=1)
    return Run(folder)


@pytest.mark.slow
def test_every_arm_meets_every_attack_with_the_same_seed_and_is_told_as_a_curve(whole: Run) -> None:
    assert recorded_attacks(whole) == NAMES
    arms = [arm.name for arm in attacked_arms(whole)]
    curves: Any = pd.read_parquet(whole.folder / "curves.parquet")
    core = core_rows(whole.task)
    for name in NAMES:
        tables = attack_tables(whole, attack=name)
        assert list(tables) == arms
        assert len({table.rates for table in tables.values()}) == 1
        own = curves[(curves["attack"] == name) & (curves["task_split"] == "forget")]
        for arm in attacked_arms(whole):
            rows = own[(own["checkpoint"] == arm.checkpoint) & (own["stage"] == arm.stage)]
            found = rows[rows["kind"].isin(("rate", "single"))]
            table = tables[arm.name]
            assert len(found) == len(table.rates) * len(table.steps)
            first = found.sort_values(["learning_rate", "step"])["value"].iloc[0]
            assert first == pytest.approx(table.forget[0, 0, 0, core].mean())
    keys = [entry["key"] for entry in whole.manifest["attacks"]]
    assert len(set(keys)) == len(keys) and all(key in whole.store for key in keys)
    seeds = {whole.store.entry(key).what["seed"] for key in keys}
    assert len(seeds) == 1


@pytest.mark.slow
def test_the_scorecard_has_every_attack_on_every_arm_with_n_and_an_interval(whole: Run) -> None:
    readings: Any = pd.read_parquet(whole.folder / "readings.parquet")
    families = set(whole.task.rows("forget_V").families[core_rows(whole.task)])
    for name in NAMES[1:]:
        own = readings[(readings["measure"] == f"after_{name}") & (readings["task_split"] == "forget")]
        untrained = name.startswith(("quantised", "pruned", "few_shot"))
        expected = {"V"} if untrained else {"step 4", "step 4, retain kept"}
        assert set(own["subset"]) == expected, name
        assert len(own) == len(expected) * len(attacked_arms(whole))
        assert (own["n_clusters"] == len(families)).all() and (own["n"] == core_rows(whole.task).sum()).all()
        assert (own["low"] <= own["value"]).all() and (own["value"] <= own["high"]).all()
        # survival is the reading or the reason why there is none
        assert set(own["gate"]) <= {"ok", "weak range", "no range"}
    for measure, count in (("intrinsic_rank", 1), ("intrinsic_dimension", 1), ("intrinsic_block", 1)):
        own = readings[readings["measure"] == measure]
        assert len(own) == count * len(attacked_arms(whole))
        assert own["note"].str.startswith("for 0.5 of the original's accuracy on V").all()
    assert list(intrinsic_table(readings).columns)[1:] == [
        "LoRA rank, for 50%", "random subspace, for 50%", "one block alone, for 50%",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_items_are_those_of_the_tables(whole: Run) -> None:
    tables, core = recovery_tables(whole), core_rows(whole.task)
    items = {(i.measure, i.task_split, i.subset): i for i in recovery_items(whole, tables, "original")}
    table: AttackTable = tables["pruned-0.5"]["original"]
    assert np.array_equal(items["after_pruned-0.5", "forget", "V"].values, table.forget[0, 0, 1, core])
    assert np.array_equal(items["after_pruned-0.5", "retain", "all"].values, table.retain[0, 0, 1])
    few, random = (tables[f"few_shot{kind}-2"]["original"].forget[0, 0, 1, core] for kind in ("", "_random"))
    assert np.array_equal(items["after_few_shot-2", "forget", "V"].values, few)
    assert items["after_few_shot-2", "forget", "V"].control_value == random.mean()
    table = tables["lora-2"]["original"]
    reached = table.cumulative_max(core)[-1, core]
    assert np.array_equal(items["after_lora-2", "forget", "step 4"].values, reached)
    assert recovery_items(whole, tables, "no such arm") == []


@pytest.mark.slow
def test_the_page_shows_all_attacks_and_the_same_run_without_them_keeps_its_relearning(
    whole: Run, tmp_path: Path
) -> None:
    page = write_report(whole, tmp_path / "page.html").read_text()
    for words in ("The same models under every attack", "T, LoRA rank 2", "How little training is enough"):
        assert words in page
    settings = [setting for setting in ALSO if 'also=["mixed' not in setting]
    alone = attack(
        run_undo(tiny.quick(*settings), tmp_path / "run", workers=1, store=whole.store.folder), workers=1
    )
    relearning = [entry for entry in whole.manifest["attacks"] if "attack" not in entry]
    assert alone.manifest["attacks"] == relearning
    with_others: Any = pd.read_parquet(whole.folder / "curves.parquet")
    only: Any = pd.read_parquet(alone.folder / "curves.parquet")
    kept = with_others[with_others["attack"].isin(("", "relearn"))].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, only, check_exact=True)
    assert "The same models under every attack" not in write_report(alone).read_text()
    lines = read_json(whole.folder / "ledger.json")
    assert sum(line["stage"] == "relearned" for line in lines) == len(attacked_arms(whole))
