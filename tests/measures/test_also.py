"""Measures that a run asks for beside the battery: stored by themselves, with the twin as control."""

import shutil

import numpy as np
import pytest
import tiny
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.measures import Statistic, battery
from undo_probe.measures.also import ALSO, _compared, _identity, forward_rows, measure_also
from undo_probe.measures.battery import Measured
from undo_probe.measures.subspaces import relearn_rows
from undo_probe.store import Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("also")]
Found = dict[str, list[Measured]]


@pytest.fixture(scope="module")
def run(attacked: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("also") / "run"
    shutil.copytree(attacked.folder, folder)
    return Run(folder)


@pytest.fixture(scope="module")
def found(run: Run) -> Found:
    measured, keys = measure_also(run, list(ALSO), 1)
    assert len(set(keys)) == len(ALSO) * len(run.arms)
    assert set(keys) <= set(run.store.keys())
    return measured


def one(found: Found, arm: str, measure: str, subset: str) -> Measured:
    fitting = [item for item in found[arm] if (item.measure, item.subset) == (measure, subset)]
    assert len(fitting) == 1
    return fitting[0]


def level(item: Measured) -> float | None:
    return item.value if isinstance(item, Statistic) else float(np.mean(item.values))


def test_every_arm_has_its_place_between_original_and_oracle(run: Run, found: Found) -> None:
    assert set(found) == {arm.name for arm in run.arms}
    assert level(one(found, "original", "depth", "raw, without the last")) in (
        None,
        pytest.approx(0, abs=1e-4),
    )
    assert level(one(found, "original", "barrier", "V")) == pytest.approx(0, abs=1e-4)
    assert level(one(found, "original", "weight_distance", "all weights")) == 0
    assert level(one(found, "oracle_matched", "depth", "raw, all blocks")) == pytest.approx(1)
    assert [item.subset for item in found["unlearned-rmu"] if item.subset.startswith("junk removed")]
    for start in ("random", "oracle", "unlearned-rmu-placebo", "distilled-maxent-fresh"):
        assert "not applicable" in one(found, start, "barrier", "V").note
    assert level(one(found, "distilled-maxent-0.8", "change_cosine", "unlearning, distillation")) is not None


def test_a_twin_is_the_control_of_what_a_change_of_basis_moves_too(found: Found) -> None:
    student = one(found, "distilled-maxent-0.8", "depth", "raw, all blocks")
    twin = one(found, "distilled-maxent-0.8-twin", "depth", "raw, all blocks")
    assert (student.control, student.control_value) == ("Twin 0.8", level(twin))
    assert twin.control == ""
    # its teacher is the original, which unlearned nothing
    assert level(one(found, "distilled-maxent-0.8-twin", "change_cosine", "unlearning, distillation")) is None
    assert one(found, "distilled-maxent-0.8", "weight_distance", "all weights").control == ""


def test_every_arm_is_read_through_the_originals_lens_and_taken_apart(found: Found) -> None:
    student, twin = (found[f"distilled-maxent-0.8{end}"] for end in ("", "-twin"))
    for name in ("tuned", "tuned, mapped"):
        here = [i for i in student if (i.measure, i.subset, i.task_split) == ("lens_kl", name, "forget")]
        assert here
        assert all(item.control == "Twin 0.8" for item in here)
    assert {item.subset for item in found["original"] if item.measure == "lens_fit"} == {"tuned"}
    assert not [item for item in student if item.measure == "lens_fit"]
    lead = one({"a": [i for i in twin if i.task_split == "forget"]}, "a", "attribution", "lead")
    beside = one({"a": [i for i in student if i.task_split == "forget"]}, "a", "attribution", "lead")
    assert beside.control_value == pytest.approx(level(lead))


def test_only_what_is_missing_is_computed(run: Run, found: Found) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in run.store.folder.rglob("stage.json")}
    again, keys = measure_also(run, ["weights"], 1)
    assert {path: path.stat().st_mtime_ns for path in run.store.folder.rglob("stage.json")} == stamps
    assert len(keys) == len(run.arms)
    assert len(again["random"]) < len(found["random"])


def test_asking_for_more_leaves_the_batterys_keys_as_they_were(run: Run) -> None:
    asked = run.config.model_copy(update={"score": run.config.score.model_copy(update={"also": ("depth",)})})
    before = [battery.identity(run, arm) for arm in run.arms]
    run.config = asked
    assert [battery.identity(run, arm) for arm in run.arms] == before
    assert tiny.quick('score.also=["lens"]').score.also == ("lens",)


def test_the_forward_passes_of_an_arm_are_at_most_what_is_said(run: Run) -> None:
    """Counted at the embedding of every model; guessable rows of V are said but not asked, shared maps said twice."""
    arm = next(arm for arm in run.arms if arm.name == "distilled-maxent-0.8")
    read = [0]

    def count(_module: object, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        read[0] += len(inputs[0])

    for name, lowest in (
        ("depth", 0.5),
        ("lens", 0.4),
        ("weights", 0.8),
        ("tuned_lens", 0.4),
        ("attribution", 0.8),
        ("subspaces", 0.2),
    ):
        it = _compared(arm, _identity(run, arm, name), run.config, run.manifest["split_seed"], run.store)
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda m, i, o: count(m, i, o) if type(m).__name__ == "Embed" else None
        )
        read[0] = 0
        try:
            ALSO[name](it)
        finally:
            handle.remove()
        said = forward_rows([name], it.task, it.model.cfg.n_layers, relearn_rows(run.config.attack))
        assert lowest * said <= read[0] <= said, name


def test_a_measure_that_is_not_there_is_refused(run: Run) -> None:
    with pytest.raises(
        UndoProbeError, match="no measure 'height' to add: there are depth, lens, weights, tuned_lens"
    ):
        measure_also(run, ["height"], 1)
    with pytest.raises(UndoProbeError, match="has lens twice"):
        tiny.quick('score.also=["lens","lens"]')
