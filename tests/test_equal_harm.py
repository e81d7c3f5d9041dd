"""Ways of unlearning at equal harm: folds, controls, what is kept, and what differences are made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from undo_probe import equal_harm as module
from undo_probe.collapse_config import BudgetConfig
from undo_probe.equal_harm import INTACT, Way, difference, equal_harm
from undo_probe.errors import UndoProbeError
from undo_probe.pipeline import run_undo
from undo_probe.presets import preset
from undo_probe.store import Run

LIMIT = 0.05
BUDGET = BudgetConfig(retain=LIMIT)
PLAIN: dict[str, Any] = {"k_act": 0, "k_grad": 0}
WAYS = {
    "both": Way("cir", {"k_act": 4, "k_grad": 4}),
    "none": Way("cir", PLAIN),
    "as far": Way("cir", {"basis": "random", "steps": 200}, by="moved", like="both"),
    "as lost": Way("cir", {**PLAIN, "steps": 200}, by="forgotten", like="both"),
}


@pytest.mark.parametrize(
    ("ways", "score", "words"),
    [
        ({"a": Way("erase")}, "probability", "a: there is no method 'erase'; there are "),
        ({"a": Way("cir", by="moved", like="b")}, "probability", "a: a control needs by='moved' or by="),
        ({"a": Way("cir", by="moved")}, "probability", "and like= a way before it"),
        ({INTACT: Way("cir")}, "probability", "'intact' is the name of the model as it came"),
        (
            {"a": Way("cir")},
            "accuracy",
            "the score is 'accuracy'; expected one of probability, log_probability",
        ),
    ],
)
def test_ways_that_cannot_be_gone_are_refused(ways: dict[str, Way], score: str, words: str) -> None:
    with pytest.raises(UndoProbeError, match=words):
        equal_harm([], ways, BUDGET, score=score)


def test_a_task_without_folds_is_refused(attacked: Run) -> None:
    with pytest.raises(UndoProbeError, match=r"the task arithmetic has no folds \(task\.fold\)"):
        equal_harm([attacked.folder], WAYS, BUDGET)


@pytest.mark.slow
def test_all_are_held_to_one_harm_and_everybody_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = preset(
        "facts-tiny", "task.people=40", "task.relations=2", "model.d_model=32", "model.n_layers=2",
        "original.steps=120", "original.batch_size=128", "attack.batch_size=32", "attack.steps=10",
        "attack.eval_steps=[0,5,10]", "attack.learning_rates=[0.003]",
        "unlearn.cir.batch_size=64", "unlearn.cir.step_norm=0.3",
    )  # fmt: skip
    run = run_undo(config, tmp_path / "run", workers=1, until="original")
    table = equal_harm([run.folder], WAYS, BUDGET, folds=(0, 1), table=tmp_path / "kept.parquet")
    assert set(table["way"]) == {INTACT, *WAYS} and set(table["split"]) == {"forget_V"}
    asked = [set(part["family"]) for _, part in table.groupby("fold")]
    assert asked[0] and not asked[0] & asked[1]
    arms = table.pivot_table(values=["kl_retain", "moved", "forgotten"], index="way")
    held = table[table["way"].isin(["both", "none"])]
    assert max(held["kl_retain"].tolist()) <= LIMIT + 1e-6 and set(held["bound"]) == {"retain"}
    for control, by in (("as far", "moved"), ("as lost", "forgotten")):
        assert arms.loc[control, by] == pytest.approx(arms.loc["both", by], rel=0.03)
    first, second = (
        table.loc[table["way"] == name].sort_values(by=["fold", "family", "question"])["after"].to_numpy()
        for name in ("both", "none")
    )
    assert difference(table, "both", "none").value == pytest.approx(float(np.mean(first - second)))

    monkeypatch.setattr(module, "METHODS", dict.fromkeys(module.METHODS))  # nothing can be computed any more
    again = equal_harm([run.folder], WAYS, BUDGET, folds=(0, 1), table=tmp_path / "kept.parquet")
    assert again.equals(table)
    with pytest.raises(Exception, match="not callable"):
        equal_harm([run.folder], WAYS, BudgetConfig(retain=0.06), folds=(0,), table=tmp_path / "kept.parquet")
