"""Sweeps: what cells share is computed once, a failure is one cell's, and a second call does what is missing."""

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny

from tests.test_kill_loop import session, start, wait_until
from undo_probe import scorecard, sweep, waves
from undo_probe.attacks import attack
from undo_probe.cells import load_cells
from undo_probe.cli import main
from undo_probe.errors import JobsFailed, UndoProbeError
from undo_probe.files import FolderLock, read_json
from undo_probe.pipeline import KINDS, run_undo
from undo_probe.scorecard import score
from undo_probe.store import Run, Store
from undo_probe.sweep import Sweep, run_sweep

LEAN = (
    "unlearn.also=[]",
    "arms.twins=[]",
    "arms.unlearn_and_distill=false",
    "arms.placebo_rmu=false",
    "attack.learning_rates=[0.003]",
    "score.probes.folds=2",
    "score.probes.max_rows=40",
    "score.probes.penalties=[0.1]",
)
BETAS = {"noise.beta": [0.0, 0.1]}


def asked(until: str, grid: dict[str, list[Any]], *overrides: str) -> dict[str, Any]:
    """A sweep as a file would say it: a few arms, seconds in all."""
    base = tiny.quick(*LEAN, *overrides).model_dump(mode="json")
    return {**base, "until": until, "grid": grid}


def hashes(run: Run) -> dict[str, str]:
    return {arm.name: arm.checkpoint for arm in run.arms}


def by_label(made: Sweep) -> dict[str, Run]:
    return {cell.label: made.run(cell.name) for cell in made.cells}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of stage was computed in this process."""
    counts: Counter[str] = Counter()
    count_kinds(monkeypatch, counts)
    return counts


def count_kinds(monkeypatch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    for kind, (function, version) in KINDS.items():

        def noting(*args: Any, kind: str = kind, function: Any = function) -> Any:
            counts[kind] += 1
            return function(*args)

        monkeypatch.setitem(KINDS, kind, (noting, version))


def break_kind(monkeypatch: pytest.MonkeyPatch, kind: str, when: Any) -> None:
    """Stages of a kind fail where ``when(settings, context)`` is true."""
    function, version = KINDS[kind]

    def breaks(settings: Any, parents: Any, task: Any, context: Any) -> Any:
        if when(settings, context):
            raise RuntimeError("no more power")
        return function(settings, parents, task, context)

    monkeypatch.setitem(KINDS, kind, (breaks, version))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Counter[str]]:
    """Two cells that differ in beta alone, to the end, with the stages that were computed."""
    counts: Counter[str] = Counter()
    folder = tmp_path_factory.mktemp("scored") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        count_kinds(patch, counts)
        made = run_sweep(asked("score", BETAS), folder, workers=1)
    return made, counts


# ---- once


def test_what_cells_share_is_computed_attacked_and_measured_once(scored: tuple[Sweep, Counter[str]]) -> None:
    made, counts = scored
    runs = by_label(made).values()
    keys = [set(run.keys.values()) for run in runs]
    assert all(len(each) == 7 for each in keys)
    # the noised model and the student are a cell's own; five models are shared
    assert len(keys[0] | keys[1]) == sum(counts.values()) == 9
    assert counts == {"pretrain": 3, "fresh": 1, "unlearn": 1, "noise": 2, "distill": 2}
    store = Store(made.folder / "store")
    kinds = Counter(store.entry(key).kind for key in store.keys())
    assert kinds == counts | {"relearn": 7, "measures": 9}  # noised models are not attacked
    assert not list((made.folder / "cells").glob("*/store"))


def test_a_cell_is_the_same_run_as_one_that_was_made_alone(
    scored: tuple[Sweep, Counter[str]], tmp_path: Path
) -> None:
    made, _ = scored
    cell = load_cells(asked("score", BETAS)).cells[1]
    alone = run_undo(cell.config, tmp_path / "alone", workers=1)
    in_sweep = made.run(cell.name)
    assert (in_sweep.keys, hashes(in_sweep)) == (alone.keys, hashes(alone))
    # attacks and measures of equal models are those of the store; what is made of them must be equal too
    shared = run_undo(cell.config, tmp_path / "shared", workers=1, store=made.folder / "store")
    score(attack(shared, workers=1), workers=1)
    for name in ("readings.parquet", "curves.parquet"):
        ours, theirs = (pd.read_parquet(run.folder / name) for run in (in_sweep, shared))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


@pytest.mark.slow
def test_workers_are_shared_by_the_cells_and_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[set[str]] = []
    real = waves.run_jobs

    def watched(todo: Any, workers: int, *args: Any, **more: Any) -> Any:
        if workers > 1:
            jobs.append({job.name for job in todo})
        return real(todo, workers, *args, **more)

    monkeypatch.setattr(waves, "run_jobs", watched)
    values = asked("distilled", {"seed": [0, 1]})
    two = run_sweep(values, tmp_path / "two", workers=2)
    assert {"original of seed=0", "original of seed=1"} <= jobs[0]
    assert jobs[-1] == {"distilled-maxent-0.8 of seed=0", "distilled-maxent-0.8 of seed=1"}
    one = run_sweep(values, tmp_path / "one", workers=1)
    assert [hashes(run) for run in by_label(one).values()] == [hashes(run) for run in by_label(two).values()]


def test_a_second_call_computes_nothing_but_what_is_gone(
    scored: tuple[Sweep, Counter[str]],
    counted: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, folder = scored[0], tmp_path / "sweep"
    shutil.copytree(made.folder, folder)
    times = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*") if path.is_file()}

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("a cell was attacked or scored again")

    monkeypatch.setattr(sweep, "attack", never)
    monkeypatch.setattr(sweep, "score", never)
    again = run_sweep(asked("score", BETAS), folder, workers=1)
    assert again.cells == made.cells
    assert not counted
    assert {path: path.stat().st_mtime_ns for path in times} == times
    pd.testing.assert_frame_equal(again.table(), made.table())
    # a cell whose readings are gone, or not those that were written, is no longer done
    readings = folder / "cells" / made.cells[0].name / "readings.parquet"
    for change in (lambda: readings.write_bytes(b""), readings.unlink):
        change()
        found = run_sweep(asked("score", BETAS), folder, workers=1)
        assert [cell.state for cell in found.cells] == ["failed", "done"]
        assert "scored again" in found.failed[0].reason


def test_more_cells_are_added_to_what_is_there(tmp_path: Path, counted: Counter[str]) -> None:
    few = run_sweep(asked("distilled", BETAS), tmp_path / "sweep", workers=1)
    assert sum(counted.values()) == 9
    more = run_sweep(asked("distilled", {"noise.beta": [0.0, 0.1, 0.2]}), tmp_path / "sweep", workers=1)
    assert sum(counted.values()) == 11
    assert more.cells[:2] == few.cells


# ---- failure


def test_a_failed_cell_is_reported_the_others_finish_and_the_next_call_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, folder = asked("attack", BETAS), tmp_path / "sweep"
    with monkeypatch.context() as broken:
        break_kind(broken, "noise", lambda settings, _: settings["rule"]["beta"] == 0.1)
        made = run_sweep(values, folder, workers=1)
    assert [cell.state for cell in made.cells] == ["done", "failed"]
    (failed,) = made.failed
    assert failed.reason == "noised-maxent-0.8 of noise.beta=0.1: RuntimeError: no more power"
    with pytest.raises(JobsFailed, match=r"1 of 2 cells failed.*\n  noise.beta=0.1: noised-maxent"):
        made.check()
    assert set(made.table()["cell"]) == {made.cells[0].name}
    page = (folder / "sweep.html").read_text()
    assert "1 of 2 cells done" in page
    assert "no more power" in page
    counts: Counter[str] = Counter()
    count_kinds(monkeypatch, counts)
    mended = run_sweep(values, folder, workers=1)
    assert counts == {"noise": 1, "distill": 1}
    assert [cell.state for cell in mended.cells] == ["done", "done"]
    assert mended.cells[0] == made.cells[0]
    assert "no more power" not in (folder / "sweep.html").read_text()


def test_a_shared_stage_that_fails_fails_the_cells_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = asked("distilled", {"seed": [0, 1], **BETAS})
    seeds = {cell.config.seed for cell in load_cells(values).cells}
    assert seeds == {0, 1}
    first: list[int] = []

    def only_the_first(settings: Any, context: Any) -> bool:
        first.append(context.seed)
        return context.seed == first[0]  # the longest of the first wave: the original of seed 0

    break_kind(monkeypatch, "pretrain", only_the_first)
    made = run_sweep(values, tmp_path / "sweep", workers=1)
    states = {cell.label: cell.state for cell in made.cells}
    assert states == {f"seed={s} noise.beta={b}": ("failed", "done")[s] for s in (0, 1) for b in (0.0, 0.1)}
    assert {cell.reason.partition(" of ")[0] for cell in made.failed} == {"original"}
    assert len(first) == len(set(first)) == 6  # nothing was tried a second time for the second cell


def test_a_cell_that_cannot_be_attacked_or_has_a_damaged_model_is_a_failed_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, folder = asked("attack", BETAS), tmp_path / "sweep"
    made = run_sweep({**values, "until": "distilled"}, folder, workers=1)
    with monkeypatch.context() as broken:

        def refuses(run: Run, **more: Any) -> Run:
            if run.config.noise.beta == 0.0:
                raise KeyError("lost")
            return attack(run, **more)

        broken.setattr(sweep, "attack", refuses)
        attacked = run_sweep(values, folder, workers=1)
    assert [(cell.state, cell.reason) for cell in attacked.cells] == [
        ("failed", "KeyError: 'lost'"),
        ("done", ""),
    ]
    student = made.run(made.cells[1].name).keys["distilled-maxent-0.8"]
    record = folder / "store" / student / "stage.json"
    record.write_text(record.read_text().replace("all 4 steps", "all 5 steps"))
    damaged = run_sweep(values, folder, workers=1)
    assert [cell.state for cell in damaged.cells] == ["done", "failed"]
    assert student in damaged.failed[0].reason
    assert "Delete that folder and run again" in damaged.failed[0].reason


def test_a_mistake_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    for wrong in ({"backend": "slurm"}, {"workers": -1}):
        with pytest.raises(UndoProbeError, match="expected"):
            run_sweep(asked("distilled", BETAS), folder, **{"workers": 1, **wrong})
    with pytest.raises(UndoProbeError, match="the split forget_W is empty"):
        run_sweep(asked("distilled", BETAS, "task.forget_shares=[0.5,0.5,0,0]"), folder)
    assert not folder.exists()
    with FolderLock(folder), pytest.raises(UndoProbeError, match="is in use by process"):
        run_sweep(asked("distilled", BETAS), folder)


@pytest.mark.slow
def test_every_part_of_the_work_goes_to_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # looked up, because the package has a function of the module's name
    relearning = sys.modules[attack.__module__]
    seen: list[tuple[str, int, str]] = []
    for module in (waves, relearning, scorecard):

        def told(
            jobs: Any,
            workers: int,
            backend: str,
            *,
            module: Any = module,
            real: Any = module.run_jobs,
            **more: Any,
        ) -> Any:
            seen.append((module.__name__, workers, backend))
            return real(jobs, 1, "loky", **more)

        monkeypatch.setattr(module, "run_jobs", told)
    values = asked("score", {"seed": [0]}, "noise.alphas=[]")
    run_sweep(values, tmp_path / "sweep", workers=3, backend="dask").check()
    assert {name for name, _, _ in seen} == {waves.__name__, relearning.__name__, scorecard.__name__}
    assert {backend for _, _, backend in seen} == {"dask"}
    assert {workers for _, workers, _ in seen} == {1, 3}  # 1 for what trains nothing


# ---- what is written


def test_the_table_has_every_reading_and_a_column_for_each_swept_key(
    scored: tuple[Sweep, Counter[str]],
) -> None:
    made, _ = scored
    table = made.table()
    for cell in made.cells:
        own = table.loc[table["cell"] == cell.name]
        assert set(own["noise.beta"]) == {cell.settings["noise.beta"]}
        readings = pd.read_parquet(made.folder / "cells" / cell.name / "readings.parquet")
        pd.testing.assert_frame_equal(
            own[readings.columns].reset_index(drop=True), readings, check_dtype=False
        )
    assert len(made.cells) == table["cell"].nunique() == 2


def test_before_the_scorecard_the_table_has_what_training_and_attack_left(tmp_path: Path) -> None:
    grid = {"noise.alphas": [[0.4], [0.4, 0.8]], "distill.horizon": [None, 9]}
    values = asked("attack", {})
    values = {**values, "cells": [{"noise.alphas": a, "distill.horizon": h} for a in grid["noise.alphas"]
                                  for h in grid["distill.horizon"]]}  # fmt: skip
    del values["grid"]
    made = run_sweep(values, tmp_path / "sweep", workers=1)
    made.check()
    table = made.table()
    assert set(table["noise.alphas"]) == {"[0.4]", "[0.4,0.8]"}
    assert set(table["distill.horizon"]) == {"null", "9"}
    run = made.run(made.cells[0].name)
    own = table.loc[table["cell"] == made.cells[0].name]
    rows = [row for row in run.entry(run.arm("original")).rows if row["step"] == 6]
    trained = own.loc[(own["stage"] == "original") & (own["measure"] == "training_accuracy")]
    found = {(row["task_split"], row["subset"]): row["value"] for row in trained.to_dict("records")}
    assert {key: value for key, value in found.items() if key[1] != "all"} == {
        (row["task_split"], row["subset"]): row["value"] for row in rows
    }
    retain = [row for row in rows if row["task_split"] == "retain"]
    right = sum(row["value"] * row["n"] for row in retain)
    assert found["retain", "all"] == pytest.approx(right / sum(row["n"] for row in retain))
    curves = pd.read_parquet(run.folder / "curves.parquet")
    wanted = curves.loc[(curves["kind"] == "cumulative_max") & (curves["stage"] == "distilled")]
    reached = own.loc[(own["measure"] == "relearned") & (own["stage"] == "distilled")]
    assert reached["value"].tolist() == wanted["value"].tolist()
    assert reached["subset"].tolist() == [f"step {step}" for step in wanted["step"]]


def test_sweep_json_says_what_the_sweep_is_and_where_each_cell_stands(
    scored: tuple[Sweep, Counter[str]],
) -> None:
    said = read_json(scored[0].folder / "sweep.json")
    assert (said["format"], said["until"], said["swept"]) == (1, "score", ["noise.beta"])
    assert [(cell["label"], cell["state"]) for cell in said["cells"]] == [
        ("noise.beta=0.0", "done"),
        ("noise.beta=0.1", "done"),
    ]
    assert said["base"] == load_cells(asked("score", BETAS)).base.model_dump(mode="json")


# ---- the command, and kills


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "betas.json"
    path.write_text(json.dumps(values))
    return path


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["undo-probe", "sweep", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_the_command_sweeps_says_what_failed_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (write(tmp_path, asked("distilled", BETAS)), "--out", tmp_path / "sweep", "--workers", "1")
    with monkeypatch.context() as broken:
        break_kind(broken, "noise", lambda settings, _: settings["rule"]["beta"] == 0.1)
        assert call(monkeypatch, *words) == 1
    said = capsys.readouterr()
    assert said.out == f"1 of 2 cells done: {tmp_path / 'sweep' / 'sweep.html'}\n"
    assert "noise.beta=0.1: noised-maxent-0.8 of noise.beta=0.1: RuntimeError: no more power" in said.err
    assert "Traceback" not in said.err
    assert call(monkeypatch, *words) == 0
    assert capsys.readouterr().out.startswith("2 of 2 cells done")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"grid": {"noise.bta": [0.1]}}, "did you mean 'noise.beta'?"),
        ({"grid": {"noise.beta": []}}, "an empty list for noise.beta"),
        ({"grid": {"seed": [1, 1]}}, "seed = 1 twice"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_two(
    values: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = write(tmp_path, {"extends": "smoke", **values})
    assert call(monkeypatch, path, "--out", tmp_path / "sweep") == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert str(path) in said.err
    assert text in said.err
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_sweep_goes_on_where_it_was_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    longer = ("original.steps=300", "original.batch_size=64", "distill.steps=120", "model.d_model=32")
    values = asked("attack", {"seed": [0, 1], **BETAS}, *longer)
    path = write(tmp_path, values)
    program = "import sys; from undo_probe.cli import main; main()"
    words = ("-c", program, "sweep", str(path), "--workers", "2", "--out")
    whole = start(*words, str(tmp_path / "whole"))
    _, said = whole.communicate(timeout=600)
    assert whole.returncode == 0, said
    folder, stored = tmp_path / "killed", [0]
    for wanted in (2, 12, 24):
        process = start(*words, str(folder))
        grown = lambda wanted=wanted: len(Store(folder / "store").keys()) >= wanted  # noqa: E731
        assert wait_until(lambda process=process, grown=grown: grown() or process.poll() is not None, 400)
        time.sleep(0.3)
        assert process.poll() is None  # the kill meets it at work
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert wait_until(lambda process=process: not session(process.pid), 5)
        stored.append(len(Store(folder / "store").keys()))
    assert stored == sorted(stored)
    last = start(*words, str(folder))
    _, said = last.communicate(timeout=600)
    assert last.returncode == 0, said
    ours, theirs = (pd.read_parquet(where / "sweep.parquet") for where in (folder, tmp_path / "whole"))
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert Store(folder / "store").keys() == Store(tmp_path / "whole" / "store").keys()
    assert not list(folder.rglob(".tmp-*"))
