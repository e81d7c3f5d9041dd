"""The store keeps every result once, under what made it, and refuses what is not whole."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from undo_probe.attacks import attack
from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.models import content_hash, save_model
from undo_probe.pipeline import run_undo
from undo_probe.records import Ledger
from undo_probe.store import Run, Store, environment, unused

WHAT: dict[str, Any] = {
    "kind": "noise",
    "version": 1,
    "settings": {"alpha": 0.4, "beta": 0.1},
    "seed": 7,
    "parents": ["a" * 64],
    "task": "b" * 64,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(store: Store, what: dict[str, Any] = WHAT, **changes: Any) -> str:
    parts = {
        "model": tiny.model(d_model=4, n_layers=1),
        "tensors": {"u": torch.arange(3.0)},
        "rows": [{"step": 0, "value": 0.5}],
        "ledger": Ledger(flops=2.0, steps=3),
        "stopped": "all 3 steps done",
        "extra": {"layer": "blocks.0"},
    }
    return store.write(what, **{**parts, **changes})


def test_a_result_comes_back_as_it_was_written(store: Store) -> None:
    key = write(store)
    entry = store.entry(key)
    assert key in store
    assert store.keys() == [key]
    assert (entry.key, entry.kind, entry.what) == (key, "noise", WHAT)
    assert (entry.rows, entry.ledger) == ([{"step": 0, "value": 0.5}], Ledger(flops=2.0, steps=3))
    assert (entry.stopped, entry.extra) == ("all 3 steps done", {"layer": "blocks.0"})
    assert content_hash(store.model(key)) == content_hash(tiny.model(d_model=4, n_layers=1)) == entry.model
    assert torch.equal(store.tensors(key)["u"], torch.arange(3.0))
    store.verify(key)
    assert store.size(key) == sum(path.stat().st_size for path in store.path(key).iterdir())


def test_the_key_is_the_hash_of_what_made_it_and_of_nothing_else(tmp_path: Path) -> None:
    one = write(Store(tmp_path / "here"))
    other = write(Store(tmp_path / "there"), model=tiny.model(seed=1), rows=[], stopped="later")
    assert one == other == Store.key(WHAT) == digest(WHAT)
    assert Store.key(dict(reversed(WHAT.items()))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "distill"},
        {"version": 2},
        {"settings": {"alpha": 0.4000001, "beta": 0.1}},
        {"settings": {"alpha": 0.4}},
        {"seed": 8},
        {"parents": []},
        {"parents": ["c" * 64]},
        {"task": "d" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_key_depends_on_each_part_of_what_made_it(change: dict[str, Any]) -> None:
    assert Store.key({**WHAT, **change}) != Store.key(WHAT)


def test_a_second_writer_of_a_key_leaves_the_first_result(store: Store) -> None:
    key = write(store)
    before = {path.name: path.read_bytes() for path in store.path(key).iterdir()}
    assert write(store, model=tiny.model(seed=1), stopped="by another process") == key
    assert {path.name: path.read_bytes() for path in store.path(key).iterdir()} == before
    assert [path.name for path in store.folder.iterdir()] == [key]


def test_a_result_without_model_or_tensors_says_so(store: Store) -> None:
    key = write(store, model=None, tensors=None)
    assert store.tensors(key) == {}
    with pytest.raises(UndoProbeError, match=r"\(noise\) has no model"):
        store.model(key)
    store.verify(key)


def test_a_missing_result_is_asked_to_be_made(store: Store) -> None:
    assert store.keys() == []
    assert Store.key(WHAT) not in store
    with pytest.raises(UndoProbeError, match="holds no result .*run the pipeline again"):
        store.entry(Store.key(WHAT))


def test_writing_a_result_clears_what_was_kept_to_resume_it(store: Store) -> None:
    work = store.work(Store.key(WHAT))
    (work / "step-000000001").mkdir(parents=True)
    other = store.work("other")
    other.mkdir()
    write(store)
    assert not work.exists()
    assert other.exists()


def test_removing_a_result_removes_its_resume_state_too(store: Store) -> None:
    key = write(store)
    (store.work(key) / "step-000000001").mkdir(parents=True)
    store.remove(key)
    assert key not in store
    assert not store.work(key).exists()
    store.remove(key)  # twice is no error


def test_a_half_written_result_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> None:
        raise KeyError("killed here")

    monkeypatch.setattr("undo_probe.store.save_tensors", fails)
    with pytest.raises(KeyError):
        write(store)
    assert store.keys() == []
    assert list(store.folder.iterdir()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("stores") / "saved")
    write(store)
    return store


@pytest.mark.parametrize("name", ["stage.json", "tensors.safetensors", "model.safetensors", "model.json"])
def test_a_flipped_bit_in_any_file_is_noticed_and_the_file_named(
    name: str, saved: Store, tmp_path: Path
) -> None:
    shutil.copytree(saved.folder, tmp_path / "store")
    store, key = Store(tmp_path / "store"), Store.key(WHAT)
    path = store.path(key) / name
    original = path.read_bytes()
    for bit in np.random.default_rng(1).choice(8 * len(original), size=40, replace=False).tolist():
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            store.verify(key)
        except UndoProbeError as error:
            assert name in str(error), f"bit {bit}: {error}"
        else:
            assert json.loads(flipped) == json.loads(original), f"bit {bit}"  # 1e-05 became 1E-05


@pytest.mark.parametrize("name", ["tensors.safetensors", "model.safetensors", "model.json"])
def test_a_file_that_is_gone_is_named_and_what_to_delete(name: str, saved: Store, tmp_path: Path) -> None:
    shutil.copytree(saved.folder, tmp_path / "store")
    store, key = Store(tmp_path / "store"), Store.key(WHAT)
    (store.path(key) / name).unlink()
    with pytest.raises(UndoProbeError, match=name):
        store.verify(key)


def test_a_result_under_another_ones_key_is_refused(store: Store) -> None:
    key = write(store)
    wrong = "e" * 64
    store.path(key).rename(store.path(wrong))
    with pytest.raises(UndoProbeError, match=r"stage\.json is damaged or belongs to another result"):
        store.entry(wrong)


def test_another_model_in_a_results_folder_is_refused(store: Store, tmp_path: Path) -> None:
    key = write(store)
    save_model(tiny.model(seed=1, d_model=4, n_layers=1), tmp_path / "other")
    for name in ("model.json", "model.safetensors"):
        shutil.copy(tmp_path / "other" / name, store.path(key) / name)
    with pytest.raises(UndoProbeError, match="holds another model"):
        store.model(key)


def test_versions_are_recorded_beside_a_result_and_not_in_its_key(store: Store) -> None:
    found = environment()
    assert {"python", "torch", "transformer-lens", "machine"} <= set(found)
    recorded = json.loads((store.path(write(store)) / "stage.json").read_text())["environment"]
    assert recorded == found


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"holds no run \(there is no run\.json\): give the folder"):
        Run(tmp_path)


def test_a_run_lists_its_arms_in_order_with_their_models(attacked: Run) -> None:
    names = [arm.name for arm in attacked.arms]
    assert names[:4] == ["original", "oracle", "oracle_matched", "random"]
    assert set(attacked.keys) == set(names)
    for arm in attacked.arms:
        assert content_hash(attacked.load(arm)) == arm.checkpoint == attacked.entry(arm).model
    assert list(attacked.stages["arm"]) == names
    assert "<table" in attacked._repr_html_()


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_flipped_bit_in_a_runs_own_records_is_noticed_and_the_file_named(
    name: str, attacked: Run, tmp_path: Path
) -> None:
    """Else an arm could go by another's alpha."""
    for record in ("run.json", "config.json"):
        shutil.copy(attacked.folder / record, tmp_path / record)
    original = (tmp_path / name).read_bytes()
    for bit in np.random.default_rng(5).choice(8 * len(original), size=150, replace=False).tolist():
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(flipped)
        try:
            Run(tmp_path)
        except UndoProbeError as error:
            assert name in str(error), f"bit {bit}: {error}"
        else:
            assert json.loads(flipped) == json.loads(original), f"bit {bit}"


def test_a_damaged_manifest_is_mended_by_deleting_it(attacked: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(attacked.folder, folder)
    path = folder / "run.json"
    path.write_text(path.read_text().replace('"alpha": 0.8', '"alpha": 0.4', 1))
    for call in (lambda: Run(folder), lambda: run_undo(tiny.quick(), folder, workers=1)):
        with pytest.raises(
            UndoProbeError, match=r"run\.json is damaged\. Delete it and run the same command"
        ):
            call()
    path.unlink()
    mended = attack(run_undo(tiny.quick(), folder, workers=1), workers=1)
    assert mended.manifest == attacked.manifest


def test_an_arm_is_found_by_what_tells_it_apart(attacked: Run) -> None:
    assert attacked.arm("original").name == "original"
    assert attacked.arm("unlearned").method == "maxent"  # the run's own teacher
    assert attacked.arm("unlearned", method="rmu").name == "unlearned-rmu"
    assert attacked.arm("unlearned", method="rmu", variant="placebo").name == "unlearned-rmu-placebo"
    assert attacked.arm("distilled", variant="fresh").alpha is None
    student = attacked.arm("distilled", alpha=0.8)
    assert content_hash(attacked.model("distilled", alpha=0.8)) == student.checkpoint


@pytest.mark.parametrize(
    ("stage", "fields", "text"),
    [
        ("noised", {"alpha": 0.5}, "no arm fits stage='noised' .* alpha=0.5 .*the run has: original, oracle"),
        ("noised", {"variant": "trio"}, "no arm fits .*variant='trio'"),
        ("original", {"method": "rmu"}, "no arm fits"),
        ("elsewhere", {}, "no arm fits"),
    ],
)
def test_an_arm_that_is_not_there_is_answered_with_those_that_are(
    attacked: Run, stage: str, fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(UndoProbeError, match=text):
        attacked.arm(stage, **fields)


def test_several_arms_that_fit_are_named(attacked: Run) -> None:
    run = Run(attacked.folder)
    run.arms = [*run.arms, run.arm("distilled", alpha=0.8).replace(alpha=0.4)]
    with pytest.raises(
        UndoProbeError, match=r"several arms fit .*they are: distilled-maxent-0\.8, distilled"
    ):
        run.arm("distilled")


def test_a_run_that_was_moved_opens_all_the_same(attacked: Run, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(attacked.folder, moved)
    run = Run(moved)
    assert run.store.folder == moved / "store"
    assert content_hash(run.model("original")) == attacked.arm("original").checkpoint


def test_a_run_made_on_other_rows_is_refused(attacked: Run) -> None:
    run = Run(attacked.folder)
    run.manifest["task"]["fingerprint"] = "0" * 64
    with pytest.raises(UndoProbeError, match="built by another version of undo_probe: its rows differ"):
        _ = run.task


def test_unused_names_what_no_arm_attack_or_measure_needs(attacked: Run, tmp_path: Path) -> None:
    shutil.copytree(attacked.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert unused(run) == []
    stray = write(run.store)
    assert unused(run) == [stray]
    run.manifest["measured"] = [stray]
    assert unused(run) == []
    run.manifest["attacks"] = run.manifest["attacks"][1:]
    assert unused(run) == [attacked.manifest["attacks"][0]["key"]]


def test_a_store_outside_the_run_is_not_pruned_for_it(attacked: Run, tmp_path: Path) -> None:
    run = Run(attacked.folder)
    run.store = Store(tmp_path / "shared")
    with pytest.raises(UndoProbeError, match="is shared with other runs"):
        unused(run)
