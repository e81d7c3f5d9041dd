"""Measures that a run asks for beside the battery: stored by themselves, with the twin as control."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tiny

from undo_probe.errors import UndoProbeError
from undo_probe.measures import battery
from undo_probe.measures.also import measure_also
from undo_probe.scorecard import score
from undo_probe.store import Run

if TYPE_CHECKING:
    from undo_probe.records import Reading


@pytest.fixture
def run(attacked: Run, tmp_path: Path) -> Run:
    shutil.copytree(attacked.folder, tmp_path / "run")
    return Run(tmp_path / "run")


def test_asked_for_measures_join_the_scorecard_and_are_kept(run: Run) -> None:
    plain = score(run, workers=1)
    before = set(run.store.keys())
    card = score(run, workers=1, also=("depth", "lens", "weights"))
    added = set(run.store.keys()) - before
    assert len(added) == 3 * len(run.arms)
    assert added <= set(Run(run.folder).manifest["measured"])
    assert [r for r in card.readings if r in plain.readings] == list(plain.readings)
    measures = {r.measure for r in card.readings} - {r.measure for r in plain.readings}
    assert measures == {
        "depth", "patch_drop", "patch_gain", "stitch_explained", "stitch_outside", "lens_log_probability", "lens_rank",
        "lens_kl", "transfer_accuracy", "weight_distance", "change_stable_rank", "change_rank_90", "change_cosine",
        "barrier",
    }  # fmt: skip

    def one(arm: str, measure: str, subset: str) -> "Reading":
        found = [r for r in card.readings if (r.arm.name, r.measure, r.subset) == (arm, measure, subset)]
        assert len(found) == 1
        return found[0]

    assert one("original", "depth", "raw, all blocks").value == pytest.approx(0, abs=1e-4)
    assert one("oracle_matched", "depth", "raw, all blocks").value == pytest.approx(1)
    student, twin = (one(f"distilled-maxent-0.8{v}", "depth", "raw, all blocks") for v in ("", "-twin"))
    assert (student.control, student.control_value) == ("Twin 0.8", pytest.approx(twin.value))
    assert one("distilled-maxent-0.8-twin", "change_cosine", "unlearning, distillation").value is None
    assert "not applicable" in one("random", "barrier", "V").note
    assert one("original", "barrier", "V").value == pytest.approx(0, abs=1e-4)


def test_only_what_is_missing_is_computed(run: Run) -> None:
    measure_also(run, ["weights"], 1)
    stamps = {path: path.stat().st_mtime_ns for path in run.store.folder.rglob("stage.json")}
    found, keys = measure_also(run, ["weights"], 1)
    assert {path: path.stat().st_mtime_ns for path in run.store.folder.rglob("stage.json")} == stamps
    assert len(keys) == len(run.arms) and all(found.values())


def test_asking_for_more_leaves_the_batterys_keys_as_they_were(run: Run) -> None:
    asked = run.config.model_copy(update={"score": run.config.score.model_copy(update={"also": ("depth",)})})
    before = [battery.identity(run, arm) for arm in run.arms]
    run.config = asked
    assert [battery.identity(run, arm) for arm in run.arms] == before
    assert tiny.quick('score.also=["lens"]').score.also == ("lens",)


def test_a_measure_that_is_not_there_is_refused(run: Run) -> None:
    with pytest.raises(UndoProbeError, match="no measure 'height' to add: there are depth, lens, weights"):
        measure_also(run, ["height"], 1)
    with pytest.raises(UndoProbeError, match="has lens twice"):
        tiny.quick('score.also=["lens","lens"]')
