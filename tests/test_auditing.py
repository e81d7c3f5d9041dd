"""An audit: finished models measured as a run's are, and nothing trained unless asked."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny

import undo_probe as up
from undo_probe.auditing import audit_config, named_places
from undo_probe.errors import UndoProbeError
from undo_probe.figures.said import said
from undo_probe.models import build, content_hash, save_model
from undo_probe.pipeline import split_seed
from undo_probe.plan import plan
from undo_probe.presets import preset
from undo_probe.tasks import build_task

SMALL = ("task.add_max=6", "task.mul_max=5")  # what tiny.knowing() knows


def test_a_place_may_have_a_name_and_several_without_one_are_numbered() -> None:
    assert named_places(["some/folder"]) == {"Unlearned": "some/folder"}
    assert named_places(["rmu=a", "b"]) == {"rmu": "a", "Unlearned 2": "b"}
    with pytest.raises(
        UndoProbeError, match="two unlearned models are called 'rmu': give each a name of its own"
    ):
        named_places(["rmu=a", "rmu=b"])


def test_an_audit_plans_loads_and_an_untrained_model_only(tmp_path: Path) -> None:
    for name in ("before", "after", "never"):
        save_model(tiny.model(), tmp_path / name)
    config = audit_config(tmp_path / "before", tmp_path / "after", "smoke", oracle=tmp_path / "never")
    steps = {step.arm.name: step.kind for step in plan(config)}
    assert steps == {
        "original": "load",
        "unlearned-Unlearned": "load",
        "oracle_matched": "load",
        "random": "fresh",
    }
    assert config.teacher == "Unlearned"


def test_an_audit_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"'arithmetik' is no task.*did you mean 'arithmetic'\?"):
        audit_config("a", "b", "arithmetik")
    with pytest.raises(UndoProbeError, match=r"given.unlearned needs the model that was unlearned"):
        preset("smoke", 'given={"unlearned": {"a": "place"}}')
    with pytest.raises(UndoProbeError, match=r"given.oracle stands beside an unlearned model"):
        preset("smoke", "original.source=place", 'given={"oracle": "place"}')
    save_model(tiny.model(), tmp_path / "before")
    save_model(tiny.model(n_layers=3), tmp_path / "after")
    with pytest.raises(
        UndoProbeError, match=r"after has n_layers 3, the original 2: an audit compares models of one"
    ):
        up.audit(tmp_path / "before", tmp_path / "after", "smoke", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_told_of_how_given_models_were_trained() -> None:
    words = tiny.task().words
    assert "met the same questions" in said(words).matched
    assert "met the same questions" not in said(words.replace(given=True)).matched


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A model that knows, audited beside its unlearned self and itself; one from elsewhere stands for the oracle."""
    folder = tmp_path_factory.mktemp("audit")
    config = tiny.quick(*SMALL)
    task = build_task(config.task, split_seed(config))
    save_model(tiny.knowing(), folder / "before")
    hidden = up.unlearn(tiny.knowing(), task, method="maxent", steps=30, batch_size=64, learning_rate=3e-3)
    save_model(hidden, folder / "after")
    save_model(build(tiny.SHAPE, task.d_vocab, task.n_ctx, seed=5), folder / "never")
    given = {"hidden": folder / "after", "same": folder / "before"}
    neutral = [[at, 8 - at, 4, at] for at in range(9)]
    run = up.audit(
        folder / "before",
        given,
        config,
        folder / "run",
        oracle=folder / "never",
        also=["depth"],
        neutral=neutral,
        workers=1,
    )
    return folder, run


@pytest.mark.slow
@pytest.mark.xdist_group("audit")
def test_an_audit_measures_what_it_was_given(audited: tuple[Path, Any]) -> None:
    folder, run = audited
    assert content_hash(run.model("unlearned", method="hidden")) == content_hash(
        up.load_model(folder / "after")
    )
    table = pd.read_parquet(run.folder / "readings.parquet")
    seen = table[(table.measure == "accuracy") & (table.task_split == "forget") & (table.subset == "V")]
    forget = dict(zip(seen.method.where(seen.stage == "unlearned", seen.stage), seen.value, strict=True))
    assert forget["same"] == forget["original"] > 0.9 > forget["hidden"] + 0.3
    assert "no oracle" not in set(table.gate)
    depth = table[(table.measure == "depth") & (table.task_split == "forget") & (table.method == "same")]
    assert len(depth)
    assert depth.value.abs().max() < 1e-6  # nothing is gone from a model compared with itself
    assert not (run.folder / "curves.parquet").exists()  # nobody asked for an attack
    for name in ("hidden", "same"):
        page = (folder / "run" / f"compare-{name}.html").read_text()
        assert "Original" in page and "9 neutral rows" in page
    assert {entry.ledger.steps for entry in map(run.store.entry, run.keys.values())} == {0}


@pytest.mark.slow
@pytest.mark.xdist_group("audit")
def test_an_arm_of_a_run_can_be_audited(audited: tuple[Path, Any], tmp_path: Path) -> None:
    folder, run = audited
    config = audit_config(f"{run.folder}:original", f"{run.folder}:hidden", run.folder)
    assert (config.task, config.seed) == (run.config.task, run.config.seed)
    assert content_hash(up.load_model(config.given.unlearned["Unlearned"])) == content_hash(
        up.load_model(folder / "after")
    )
    with pytest.raises(
        UndoProbeError, match=r"the run has no arm 'nobody': expected one of original \(Original\)"
    ):
        audit_config(f"{run.folder}:nobody", folder / "after", tiny.quick(*SMALL))


@pytest.mark.slow
@pytest.mark.xdist_group("audit")
def test_an_audits_page_speaks_of_every_model_and_of_no_training(audited: tuple[Path, Any]) -> None:
    page = (audited[1].folder / "report.html").read_text()
    for name in ("hidden", "same"):
        assert f"<strong>{name}.</strong>" in page
    assert "nothing is known here of how they were trained" in page
    assert "met the same questions" not in page
    assert "trained on everything" not in page


@pytest.mark.slow
@pytest.mark.xdist_group("audit")
def test_an_attack_is_made_where_it_is_asked_for(audited: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = audited
    run = up.audit(
        folder / "before", folder / "after", tiny.quick(*SMALL), tmp_path / "run", attack=True, workers=1
    )
    table = pd.read_parquet(run.folder / "readings.parquet")
    assert "recovered_gap" in set(table.measure)
    relearned = table[(table.measure == "relearned") & (table.task_split == "forget")]
    assert set(relearned.gate) == {"no oracle"}  # none was given, so survival has no zero
    assert relearned.survival.isna().all()
