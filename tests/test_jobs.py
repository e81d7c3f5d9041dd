"""Jobs come back in order, whole and equal, whatever happens to the processes they run in."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from undo_probe import jobs
from undo_probe.errors import UndoProbeError
from undo_probe.jobs import Job, Outcome, run_jobs, values_of


def square(number: int) -> int:
    return number * number


def slow_square(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number * number


def process() -> int:
    return os.getpid()


def fail(error: BaseException) -> None:
    raise error


def read_file(path: Path) -> str:
    return path.read_text()


def killed_until(path: Path, times: int) -> int:
    """Note the try, then die of SIGKILL in the first `times` of them."""
    with path.open("a") as file:
        file.write("x")
    tried = len(path.read_text())
    if tried <= times:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    return tried


def count_to(total: int, seconds: float, report: jobs.Report) -> int:
    for step in range(1, total + 1):
        report(step, total, loss=1 / step)
        time.sleep(seconds)
    return total


KEPT: list[bytearray] = []


def grow(megabytes: int) -> int:
    """Keep memory for ever, for long enough that the pool looks at its worker's size afterwards."""
    KEPT.append(bytearray(b"1") * (megabytes * 2**20))
    time.sleep(1.2)
    return os.getpid()


def matrix_work(seed: int) -> tuple[bytes, int]:
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(300, 300, generator=generator)
    product = (matrix @ matrix.T).softmax(1).sum(0).numpy()
    solved = np.linalg.solve(np.eye(300) + matrix.numpy().astype(np.float64) ** 2, product.astype(np.float64))
    return product.tobytes() + solved.tobytes(), torch.get_num_threads()


def nested(number: int) -> list[tuple[int, int]]:
    inner = [Job(f"inner {i}", process) for i in range(3)]
    return [(os.getpid(), pid) for pid in values_of(run_jobs(inner, workers=number))]


def spools() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob(f".tmp-*-{os.getpid()}-*.jobs"))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers: int) -> None:
    todo = [Job(f"job {i}", slow_square, (i,), {"seconds": 0.2 if i == 0 else 0.0}) for i in range(6)]
    outcomes = run_jobs(todo, workers)
    assert outcomes == [Outcome(f"job {i}", i * i) for i in range(6)]
    assert values_of(outcomes) == [0, 1, 4, 9, 16, 25]
    assert run_jobs([], workers) == []


def test_one_worker_is_this_process_and_two_are_others_that_stay_warm() -> None:
    two = [Job("a", process), Job("b", process)]
    assert values_of(run_jobs(two, workers=1)) == [os.getpid()] * 2
    assert values_of(run_jobs(two[:1], workers=2)) == [os.getpid()]
    first, second = set(values_of(run_jobs(two, workers=2))), set(values_of(run_jobs(two, workers=2)))
    assert os.getpid() not in first | second
    assert len(first | second) <= 2
    assert all(psutil.pid_exists(pid) for pid in first)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_is_returned_with_its_text_and_place(workers: int) -> None:
    todo = [
        Job("ours", fail, (UndoProbeError("alpha is 2; expected at most 1"),)),
        Job("good", square, (3,)),
        Job("bug", fail, (KeyError("x"),)),
        Job("memory", fail, (MemoryError("64 GB"),)),
        Job("exit", fail, (SystemExit(3),)),
    ]
    outcomes = run_jobs(todo, workers)
    errors = [outcome.error for outcome in outcomes]
    assert errors == [
        "alpha is 2; expected at most 1",
        None,
        "KeyError: 'x'",
        "MemoryError: 64 GB",
        "SystemExit: 3",
    ]
    assert outcomes[1] == Outcome("good", 9)
    assert outcomes[0].traceback is not None
    assert "in fail" in outcomes[0].traceback
    with pytest.raises(UndoProbeError, match=r"4 of 5 jobs failed; the others are done:\n  ours: alpha is 2"):
        values_of(outcomes)


def test_what_cannot_be_sent_fails_alone() -> None:
    todo = [
        Job("arguments", square, (threading.Lock(),)),
        Job("good", square, (3,)),
        Job("result", threading.Lock),
        Job("closure", lambda: 5),
    ]
    arguments, good, result, closure = run_jobs(todo, workers=2)
    assert arguments.error is not None
    assert arguments.error.startswith("its call cannot be sent between processes: TypeError: cannot pickle")
    assert result.error is not None
    assert result.error.startswith("its result cannot be sent between processes: TypeError: cannot pickle")
    assert (good.value, closure.value) == (9, 5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "workers is 0; expected a whole number of at least 1"),
        ({"workers": True}, "workers is True"),
        ({"workers": 2, "threads": 0}, "threads is 0"),
        ({"workers": 2, "backend": "slurm"}, "the backend is 'slurm'; expected one of loky, ray, dask"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        run_jobs([Job("a", process)], **options)


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(UndoProbeError, match="several jobs are named a; give each a name"):
        run_jobs([Job("a", process), Job("b", process), Job("a", process)], workers=1)


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_missing_cluster_package_is_named(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ray", "ray.util.joblib", "distributed"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UndoProbeError, match=rf"'{backend}' is not installed .*pip install 'undo-probe\[cluster\]'"
    ):
        run_jobs([Job("a", process)], workers=2, backend=backend)


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_cluster_backends_give_the_same_outcomes_and_progress(
    backend: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")  # cluster workers start afresh
    todo = [Job(f"job {i}", count_to, (3, 0.1)) for i in range(3)] + [Job("bad", fail, (KeyError("x"),))]
    steps: list[tuple[str, int]] = []
    outcomes = run_jobs(todo, 2, backend, lambda name, step, *_: steps.append((name, step)))
    assert [outcome.value for outcome in outcomes] == [3, 3, 3, None]
    assert outcomes[3].error == "KeyError: 'x'"
    assert {("job 0", 3), ("job 1", 3), ("job 2", 3)} <= set(steps)


def test_results_do_not_depend_on_where_the_job_runs() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        todo = [Job(f"job {i}", matrix_work, (i,)) for i in range(2)]
        here, there = run_jobs(todo, workers=1), run_jobs(todo, workers=2)
        assert here == there
        assert [outcome.value[1] for outcome in here] == [1, 1]
        assert torch.get_num_threads() == 2
        two_threads = run_jobs(todo, workers=2, threads=2) + run_jobs(todo, workers=1, threads=2)
        assert [outcome.value[1] for outcome in two_threads] == [2, 2, 2, 2]
    finally:
        torch.set_num_threads(before)


def test_thread_limits_of_the_environment_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    inside = Job("a", lambda: (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]))
    assert values_of(run_jobs([inside], workers=1, threads=3)) == [("3", "3")]
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_jobs_started_inside_a_job_stay_in_its_process() -> None:
    pairs = sum(values_of(run_jobs([Job("a", nested, (4,)), Job("b", nested, (4,))], workers=2)), [])
    assert len(pairs) == 6
    assert all(outer == inner != os.getpid() for outer, inner in pairs)


def test_a_killed_worker_costs_nothing_but_time(tmp_path: Path) -> None:
    todo = [Job("victim", killed_until, (tmp_path / "victim", 2))]
    todo += [Job(f"other {i}", slow_square, (i, 0.1)) for i in range(5)]
    outcomes = run_jobs(todo, workers=2)
    assert values_of(outcomes) == [3, 0, 1, 4, 9, 16]


def test_a_worker_that_retires_while_jobs_wait_is_replaced() -> None:
    # loky retires one that has grown by 300 MB and says so in a warning, which is an error in these tests
    run_jobs([Job(f"small {i}", slow_square, (i, 1.2)) for i in range(2)], workers=2)
    pids = values_of(run_jobs([Job(f"large {i}", grow, (400,)) for i in range(5)], workers=2))
    assert len(set(pids)) > 2


def test_a_job_that_keeps_killing_is_returned_as_failed_and_no_other_job_is_blamed(tmp_path: Path) -> None:
    todo = [Job("beside it", slow_square, (7, 1.0))]  # outlasts the killer, so it dies of it every time
    todo += [Job(f"killer {i}", killed_until, (tmp_path / f"killer {i}", 99)) for i in range(2)]
    todo += [Job(f"later {i}", slow_square, (i, 0.1)) for i in range(3)]
    beside, *killers, one, two, three = run_jobs(todo, workers=2)
    for i, killer in enumerate(killers):
        assert killer.error is not None
        assert killer.error.startswith("its worker process was killed 3 times (memory used up, most often): ")
        assert killer.error.endswith("Try fewer workers or a smaller job")
        assert (tmp_path / f"killer {i}").read_text() == "xxx"
    assert values_of([beside, one, two, three]) == [49, 0, 1, 4]


def test_progress_in_this_process_is_passed_on_as_it_comes() -> None:
    seen: list[tuple] = []
    run_jobs([Job("count", count_to, (3, 0.0))], workers=1, on_event=lambda *event: seen.append(event))
    assert seen == [("count", step, 3, {"loss": 1 / step}) for step in (1, 2, 3)]


def test_progress_from_workers_comes_while_they_run_at_most_four_times_a_second() -> None:
    seen: list[tuple[float, str, int]] = []
    begin = time.monotonic()

    def on_event(name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
        assert total == 100
        assert len(spools()) == 1
        assert numbers == {"loss": 1 / step}
        seen.append((time.monotonic(), name, step))

    outcomes = run_jobs([Job(n, count_to, (100, 0.01)) for n in "ab"], workers=2, on_event=on_event)
    end = time.monotonic()
    assert values_of(outcomes) == [100, 100]
    for name in "ab":
        steps = [step for _, who, step in seen if who == name]
        assert steps == sorted(set(steps))
        assert steps[-1] == 100  # the last report is never dropped
        assert 3 <= len(steps) <= (end - begin) / jobs.REPORT_SECONDS + 2
    assert seen[0][0] < end - 0.5
    assert spools() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_callback_is_raised_after_the_jobs_are_done(workers: int, tmp_path: Path) -> None:
    calls: list[int] = []

    def on_event(name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
        calls.append(step)
        raise RuntimeError("a bug in the display")

    todo = [Job("a", count_to, (5, 0.1)), Job("b", killed_until, (tmp_path / "b", 0))]
    with pytest.raises(RuntimeError, match="a bug in the display"):
        run_jobs(todo, workers, on_event=on_event)
    assert len(calls) == 1
    assert (tmp_path / "b").exists()


def test_a_report_argument_of_the_caller_is_kept() -> None:
    lines: list[int] = []
    job = Job("a", count_to, (2, 0.0), {"report": lambda step, total, loss: lines.append(step)})
    assert values_of(run_jobs([job], workers=1)) == [2]
    assert lines == [1, 2]


# --- the parent dies ---------------------------------------------------------------------------------

PARENT = """
import os, pathlib, signal, sys, time
from undo_probe.jobs import Job, run_jobs, values_of

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
folder = pathlib.Path(sys.argv[1])

def work(name, busy):
    (folder / name).write_text(str(os.getpid()))
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if not busy:
            time.sleep(1)

try:
    values_of(run_jobs([Job(n, work, (n, n == "a")) for n in "abcd"], workers=2))
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def start_parent(folder: Path, code: str = PARENT) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Start a process whose two workers are at work; return it and all its descendants."""
    command = [sys.executable, "-c", code, folder]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while len(list(folder.iterdir())) < 2:
        assert parent.poll() is None, "the parent ended early"
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.05)
    return parent, psutil.Process(parent.pid).children(recursive=True)


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda by: by.name)
def test_no_worker_outlives_its_parent(by: signal.Signals, tmp_path: Path) -> None:
    parent, family = start_parent(tmp_path)
    assert len(family) >= 2
    if by == signal.SIGINT:
        os.killpg(parent.pid, by)  # as Ctrl-C in a terminal does
    else:
        parent.send_signal(by)
    parent.wait(timeout=20)
    _, alive = psutil.wait_procs(family, timeout=5)
    for survivor in alive:
        survivor.kill()
    assert alive == []
    out, _ = parent.communicate(timeout=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # the queued jobs did not start
    if by == signal.SIGINT:
        assert (parent.returncode, out) == (130, "interrupted\n")
    else:
        assert parent.returncode == -by


def test_the_parent_alone_decides_what_ctrl_c_means(tmp_path: Path) -> None:
    code = PARENT.replace("+ 60", "+ 2").replace(
        "try:", "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('noted', flush=True))\ntry:"
    )
    parent, _ = start_parent(tmp_path, code)
    os.killpg(parent.pid, signal.SIGINT)
    out, _ = parent.communicate(timeout=30)
    assert (parent.returncode, out) == (0, "noted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_idle_workers_end_with_their_parent() -> None:
    code = (
        "import os\nfrom undo_probe.jobs import Job, run_jobs\n"
        "print(*[o.value for o in run_jobs([Job(n, os.getpid) for n in 'ab'], 2)], flush=True)\n"
    )
    for ending in ("", "os.kill(os.getpid(), 9)\n"):
        done = subprocess.run(
            [sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=30
        )
        pids = {int(pid) for pid in done.stdout.split()}
        assert pids
        deadline = time.monotonic() + 5
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(psutil.pid_exists(pid) for pid in pids)
        if not ending:  # after a kill, joblib's own clean-up process warns of what it cleans up
            assert done.stderr == ""


def test_a_ctrl_c_in_this_process_is_not_taken_for_a_failure() -> None:
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("a", fail, (KeyboardInterrupt(),))], workers=1)


def test_importing_jobs_imports_neither_torch_nor_joblib() -> None:
    code = "import sys, undo_probe.jobs; print(sorted({'torch', 'joblib', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
