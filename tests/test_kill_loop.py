"""Killed without warning at any moment, and started again: the same bits in the end, and nobody left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import tiny

from undo_probe.files import FolderLock, read_json
from undo_probe.pipeline import run_undo
from undo_probe.plan import plan
from undo_probe.store import Run, Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

REPO = Path(__file__).parents[1]
KILLS = 20
SETTINGS = (
    *tiny.QUICK,
    # seconds of training a stage, so that kills meet it
    "model.d_model=32",
    "model.d_mlp=64",
    "original.steps=240",
    "original.eval_every=40",
    "original.batch_size=64",
    "unlearn.maxent.steps=60",
    "unlearn.rmu.steps=60",
    "distill.steps=120",
    "distill.eval_every=20",
    "attack.steps=20",
    "attack.learning_rates=[0.003,0.01]",
    'unlearn.also=["rmu"]',
    "score.probes.folds=2",
    "score.probes.max_rows=60",
    "score.probes.penalties=[0.1]",
)


def start(*words: str) -> subprocess.Popen[str]:
    """A process in a session of its own, by which its children are known."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_run(folder: Path) -> subprocess.Popen[str]:
    # a shell's background jobs ignore Ctrl-C, and so would what they start
    call = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    call += "from undo_probe.cli import main; main()"
    words = ("run", "smoke", *SETTINGS, "--out", str(folder), "--workers", "2", "--until", "score")
    return start("-c", call, *words)


def session(leader: int) -> list[int]:
    """Processes of the leader's session that are alive."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def wait_until(condition: Any, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def working(process: subprocess.Popen[str], folder: Path) -> bool:
    """Whether the process has got as far as the folder's lock, or has ended."""
    note = folder / ".lock-holder.json"
    if process.poll() is not None:
        return True
    try:
        return note.is_file() and read_json(note)["pid"] == process.pid
    except ValueError:
        return False


def came_to(process: subprocess.Popen[str], folder: Path, goal: int) -> bool:
    """Whether so many results are stored, or the process has ended; a clock would count another machine's work."""
    return process.poll() is not None or len(Store(folder / "store").keys()) >= goal


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start_run(folder)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return Run(folder)


def assert_equal(run: Run, whole: Run) -> None:
    assert run.keys == whole.keys
    assert [arm.checkpoint for arm in run.arms] == [arm.checkpoint for arm in whole.arms]
    for name in ("readings.parquet", "curves.parquet"):
        ours, theirs = (pd.read_parquet(each.folder / name) for each in (run, whole))
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    for key in run.store.keys():
        run.store.verify(key)


def finish(folder: Path, whole: Run) -> None:
    """One more start, left alone, which must end as the run that was never killed."""
    process = start_run(folder)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert_equal(Run(folder), whole)
    assert not list(folder.rglob(".tmp-*"))


def test_a_run_killed_twenty_times_ends_like_one_that_was_not(whole: Run, tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    killed, folders, between = 0, 0, 0
    while killed < KILLS:
        # a run that completes between two kills is checked, and the next one starts in a fresh folder
        folder = tmp_path / f"run {folders}"
        results, done = [0], False
        while not done and killed < KILLS:
            process = start_run(folder)
            assert wait_until(lambda process=process, folder=folder: working(process, folder), 120)
            goal = results[-1] + int(draw.integers(0, 8))
            assert wait_until(lambda p=process, folder=folder, goal=goal: came_to(p, folder, goal), 300)
            time.sleep(float(draw.uniform(0, 1)))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
            _, said = process.communicate()
            assert process.returncode in (0, -signal.SIGKILL), said
            assert wait_until(lambda process=process: not session(process.pid), 5), session(process.pid)
            with FolderLock(folder):
                pass
            results.append(len(Store(folder / "store").keys()))
            done = process.returncode == 0
        assert results == sorted(results)  # nothing that was done is ever done again
        between += len(set(results)) > 2
        folders += 1
        finish(folder, whole)
    assert killed == KILLS
    assert between  # kills fell between the parts of the work, not only before or after it


FIT = """
import sys
from pathlib import Path
import tiny
from undo_probe import losses
from undo_probe.config import FitConfig
from undo_probe.models import content_hash
from undo_probe.stages.pretrain import accuracy_rows
from undo_probe.training import Context, Watch, fit

settings = FitConfig(steps=80, batch_size=16, learning_rate=5e-3, warmup=5)
task = tiny.task()

def loss(model, step):
    batch = task.batch("pretrain", settings.batch_size, 3, step)
    return losses.next_token(model(batch.tokens, return_type="logits"), batch.tokens, batch.answer_mask)

def report(step, total, **numbers):
    print("step", step, flush=True)

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
watch = Watch(lambda model, step: accuracy_rows(model, task), lambda step: step % 7 == 0)
context = Context(3, folder=folder, save_seconds=0, report=report)
done = fit(tiny.model(), settings, loss, context, watch=watch)
print("done", content_hash(done.model), done.ledger.steps, done.rows)
"""


def test_training_killed_in_the_middle_of_a_step_or_of_saving_ends_at_the_same_bits(tmp_path: Path) -> None:
    expected = subprocess.run(
        [sys.executable, "-c", FIT],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'tests'}"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[-1]
    draw = np.random.default_rng(4)
    first_steps = []
    for _ in range(6):
        process = start("-c", FIT, str(tmp_path / "work"))
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(int(draw.integers(2, 14)))]
        time.sleep(float(draw.uniform(0, 0.02)))  # in the step, in writing it, or in the rename
        process.kill()
        process.communicate()
        first_steps.append(int(lines[0].split()[1]))
    assert first_steps == sorted(first_steps)
    assert first_steps[-1] > 10
    process = start("-c", FIT, str(tmp_path / "work"))
    said, wrong = process.communicate(timeout=120)
    assert process.returncode == 0, wrong
    assert said.splitlines()[-1] == expected


def test_an_interrupt_ends_the_workers_says_how_to_go_on_and_frees_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_run(folder)
    assert wait_until(lambda: working(process, folder) and len(session(process.pid)) > 2, 120)
    time.sleep(6)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers alike
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == (
        "undo-probe: interrupted: the same command goes on where this one stopped"
    )
    assert "Traceback" not in said
    assert wait_until(lambda: not session(process.pid), 5)
    with FolderLock(folder):
        pass


def test_every_seed_makes_the_same_arms_of_other_checkpoints(tmp_path: Path) -> None:
    runs = [run_undo(tiny.quick(f"seed={seed}"), tmp_path / str(seed), workers=1) for seed in range(4)]
    names = [[arm.name for arm in run.arms] for run in runs]
    assert names == [[step.arm.name for step in plan(tiny.quick())]] * 4
    for arms in zip(*(run.arms for run in runs), strict=True):
        assert len({arm.checkpoint for arm in arms}) == 4
    assert len({run.task.fingerprint for run in runs}) == 4
