"""Parallel work: independent jobs in other processes, on this machine or a cluster.

This is the only caller of joblib. A job is a function and its arguments; it writes what is large into its
own folder and returns something small. Its failure is returned, not raised, so one bad job does not cost
the others; a worker killed by the system (for memory, say) costs only the jobs it was running, and those
are tried again.

Over 400 lines because what is sent to workers, how they report, and how they die are one protocol.
"""

import importlib
import inspect
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol, cast, runtime_checkable

from undo_probe import files, ranks
from undo_probe.errors import JobsFailed, UndoProbeError

OnEvent = Callable[[str, int, int | None, dict[str, float]], None]

BACKENDS = ("loky", "ray", "dask")
MAX_TRIES = 3
REPORT_SECONDS = 0.25
WATCH_SECONDS = 0.5

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_inside_job: ContextVar[bool] = ContextVar("inside_job", default=False)


@runtime_checkable
class Report(Protocol):
    """What a job calls to tell how far it is; at most four calls a second are passed on."""

    def __call__(self, step: int, total: int | None = None, **numbers: float) -> None:
        """Tell that `step` of `total` is done, with any numbers worth showing."""


@dataclass(frozen=True)
class Job:
    """A named function call that can be sent to another process.

    If the function has a parameter `report`, it is given a `Report`. Arguments must not be changed by
    the function: with one worker it gets the caller's own objects.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its value, or the error's text and traceback."""

    name: str
    value: Any = None
    error: str | None = None
    traceback: str | None = None
    users: bool = False  # the error is one that the user can mend


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    backend: str = "loky",
    on_event: OnEvent | None = None,
    threads: int = 1,
) -> list[Outcome]:
    """Run the jobs and return their outcomes in the order of `jobs`.

    Args:
        jobs: Independent jobs with different names; they start in this order.
        workers: How many run at once. One worker, a single job, and a call made inside a worker run in
            this process, with the same number of threads and so with equal results.
        backend: `loky` (processes on this machine), `ray` or `dask` (a cluster; the job folders must be
            on a disk that its machines share).
        on_event: Called as `on_event(name, step, total, numbers)` for the jobs' reports, from a thread.
        threads: How many threads a job's numerical libraries use.

    Returns:
        One outcome a job. A job whose worker was killed is tried up to three times, the last time with no
        other job beside it.
    """
    _check(jobs, workers, backend, threads)
    ranks.refuse("work for a pool of processes", "run it without accelerate launch")
    events = _Events(on_event)
    if workers == 1 or not jobs or (backend == "loky" and len(jobs) == 1) or _inside_job.get():
        outcomes = [_attempt(job, events.reporter(job.name), threads) for job in jobs]
    else:
        outcomes = _run_in_processes(jobs, _Pool(workers, backend, threads), events)
    if events.error is not None:
        raise events.error
    return outcomes


def values_of(outcomes: Sequence[Outcome]) -> list[Any]:
    """Return the values, or raise an error that names every failed job.

    Raises:
        UndoProbeError: one job failed, and for a reason the user can mend: its own text.
        JobsFailed: anything else.
    """
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed and all(outcome.users for outcome in failed):
        raise UndoProbeError("; ".join(dict.fromkeys(str(outcome.error) for outcome in failed)))
    if failed:
        lines = "\n".join(f"  {outcome.name}: {outcome.error}" for outcome in failed)
        raise JobsFailed(f"{len(failed)} of {len(outcomes)} jobs failed; the others are done:\n{lines}")
    return [outcome.value for outcome in outcomes]


def _check(jobs: Sequence[Job], workers: int, backend: str, threads: int) -> None:
    for name, number in (("workers", workers), ("threads", threads)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise UndoProbeError(f"{name} is {number!r}; expected a whole number of at least 1")
    if backend not in BACKENDS:
        raise UndoProbeError(f"the backend is {backend!r}; expected one of {', '.join(BACKENDS)}")
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UndoProbeError(f"several jobs are named {', '.join(twice)}; give each a name of its own")


def _run_in_processes(jobs: Sequence[Job], pool: "_Pool", events: "_Events") -> list[Outcome]:
    done = {i: refusal for i, job in enumerate(jobs) if (refusal := _refuse_unsendable(job, job.name))}
    tries = dict.fromkeys(range(len(jobs)), 0)
    with _Spool([job.name for job in jobs], events) as spool, pool.ready() as run:
        while pending := [index for index in tries if index not in done]:
            # A job beside a killer dies with it, so only a try without company can convict.
            batch = [index for index in pending if tries[index] < MAX_TRIES - 1] or pending[:1]
            try:
                for index, outcome in run([(index, jobs[index]) for index in batch], spool.folder):
                    done[index] = outcome
            except Exception as crash:  # workers were lost; a job's own error never gets here
                lost = [index for index in batch if index not in done]
                for index in spool.take_running(lost) or lost:
                    tries[index] += 1
                    if tries[index] == MAX_TRIES:
                        done[index] = _killed(jobs[index].name, crash)
    return [done[index] for index in range(len(jobs))]


def _killed(name: str, crash: Exception) -> Outcome:
    first_line = (str(crash).splitlines() or [""])[0]
    text = (
        f"its worker process was killed {MAX_TRIES} times (memory used up, most often): "
        f"{type(crash).__name__}: {first_line} Try fewer workers or a smaller job"
    )
    return Outcome(name, error=text, traceback="".join(traceback.format_exception(crash)))


def _refuse_unsendable(thing: object, name: str) -> Outcome | None:
    import cloudpickle  # slow to import, and one worker does without

    try:
        cloudpickle.dumps(thing)
    except Exception as error:
        what = "its call" if isinstance(thing, Job) else "its result"
        text = f"{what} cannot be sent between processes: {type(error).__name__}: {error}"
        return Outcome(name, error=text, traceback=traceback.format_exc())
    return None


_Run = Callable[[list[tuple[int, Job]], Path], Iterator[tuple[int, Outcome]]]


@dataclass(frozen=True)
class _Pool:
    """joblib with one of its backends; loky's workers stay warm from one call to the next."""

    workers: int
    backend: str
    threads: int

    @contextmanager
    def ready(self) -> Iterator[_Run]:
        import joblib

        with _cluster(self.backend), joblib.parallel_config(self.backend, **self._options()), _calm():
            yield self._run

    def _options(self) -> dict[str, Any]:
        if self.backend != "loky":
            return {}
        return {
            "inner_max_num_threads": self.threads,
            "initializer": _start_worker,
            "initargs": (os.getpid(),),
        }

    def _run(self, batch: list[tuple[int, Job]], spool: Path) -> Iterator[tuple[int, Outcome]]:
        import joblib

        # Two, because joblib runs the jobs of one worker in this process: a killer would kill us.
        parallel = joblib.Parallel(
            n_jobs=max(2, min(self.workers, len(batch))),
            batch_size=cast(Any, 1),  # joblib's annotation only knows "auto"
            pre_dispatch="all",
            max_nbytes=None,  # else large arrays would arrive read-only, unlike with one worker
            return_as="list" if self.backend == "ray" else "generator_unordered",
        )
        calls = (joblib.delayed(_run_in_worker)(index, job, spool, self.threads) for index, job in batch)
        yield from cast(Iterator[tuple[int, Outcome]], parallel(calls))


@contextmanager
def _cluster(backend: str) -> Iterator[None]:
    if backend == "ray":
        _import("ray.util.joblib", "ray").register_ray()
    if backend != "dask":
        yield
        return
    distributed = _import("distributed", "dask")
    try:
        distributed.get_client()
    except ValueError:
        # Follows Dask's own settings (DASK_SCHEDULER_ADDRESS) or starts a cluster on this machine.
        with distributed.Client():
            yield
        return
    yield


@contextmanager
def _calm() -> Iterator[None]:
    """Let loky replace a worker that retires (idle for long, or grown large) without a word.

    It warns from the thread that manages its workers; where warnings are errors that thread would die, and
    the jobs wait for ever.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        yield


def _import(module: str, backend: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UndoProbeError(
            f"the backend {backend!r} is not installed ({error}); "
            "install it with pip install 'undo-probe[cluster]' or use backend 'loky'"
        ) from error


def _start_worker(parent: int) -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    # loky's workers outlive a killed parent and even start the tasks that were queued.
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _run_in_worker(index: int, job: Job, spool: Path, threads: int) -> tuple[int, Outcome]:
    _inside_job.set(True)
    running = spool / f"{index}.running"
    report = _SpoolReport(spool / f"{index}.events")
    with suppress(OSError):  # on another machine there is no spool: no progress, same results
        running.touch()
    outcome = _attempt(job, report, threads)
    outcome = _refuse_unsendable(outcome, job.name) or outcome
    report.flush()
    with suppress(OSError):
        running.unlink()
    return index, outcome


def _attempt(job: Job, report: Report, threads: int) -> Outcome:
    try:
        with _limited(threads):
            extra = {"report": report} if _wants_report(job) else {}
            value = job.function(*job.args, **job.kwargs, **extra)
    except UndoProbeError as error:
        return Outcome(
            job.name, error=str(error), traceback=traceback.format_exc(), users=error.exit_code == 2
        )
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error}"
        return Outcome(job.name, error=text, traceback=traceback.format_exc())
    return Outcome(job.name, value)


def _wants_report(job: Job) -> bool:
    if "report" in job.kwargs:
        return False
    try:
        return "report" in inspect.signature(job.function).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


@contextmanager
def _limited(threads: int) -> Iterator[None]:
    """Give numerical libraries `threads` threads: loaded ones now, others when the job imports them."""
    import threadpoolctl

    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    torch = sys.modules.get("torch")
    torch_before = torch.get_num_threads() if torch else 0
    try:
        with threadpoolctl.threadpool_limits(threads):
            if torch:
                torch.set_num_threads(threads)
            yield
    finally:
        if torch:
            torch.set_num_threads(torch_before)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Events:
    """Passes reports on. A callback that raises is not called again; its error is kept for the end."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event = on_event
        self.error: Exception | None = None

    def emit(self, name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
        if self._on_event is None or self.error is not None:
            return
        try:
            self._on_event(name, step, total, numbers)
        except Exception as error:
            self.error = error

    def reporter(self, name: str) -> Report:
        def report(step: int, total: int | None = None, **numbers: float) -> None:
            self.emit(name, step, total, {key: float(value) for key, value in numbers.items()})

        return report


class _SpoolReport:
    """A worker's end of the spool: appends to a file, seldom enough to cost nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = -float("inf")
        self._line = ""

    def __call__(self, step: int, total: int | None = None, **numbers: float) -> None:
        self._line = json.dumps([step, total, {key: float(value) for key, value in numbers.items()}]) + "\n"
        if time.monotonic() - self._written >= REPORT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._line:
            with suppress(OSError), self._path.open("a") as file:
                file.write(self._line)
            self._line = ""
            self._written = time.monotonic()


class _Spool:
    """The parent's end: a folder where workers note what they run and report, gone at the end.

    Files work alike with every backend, need no server, and outlive a killed worker.
    """

    def __init__(self, names: list[str], events: _Events) -> None:
        self._names = names
        self._events = events
        self._read = [0] * len(names)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        parent = Path(tempfile.gettempdir())
        files.sweep(parent)  # spools of killed runs
        self.folder = parent / files.temporary_name(".jobs")

    def __enter__(self) -> "_Spool":
        with files.writing(self.folder):
            self.folder.mkdir(mode=0o700)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._poll()
        rmtree(self.folder, ignore_errors=True)

    def take_running(self, indices: list[int]) -> list[int]:
        """Return which of the jobs were running when their worker died, and forget it."""
        found = [index for index in indices if (self.folder / f"{index}.running").exists()]
        for index in found:
            (self.folder / f"{index}.running").unlink()
        return found

    def _watch(self) -> None:
        while not self._ended.wait(REPORT_SECONDS):
            self._poll()

    def _poll(self) -> None:
        for index, name in enumerate(self._names):
            with suppress(FileNotFoundError), (self.folder / f"{index}.events").open("rb") as file:
                file.seek(self._read[index])
                whole = file.read().rpartition(b"\n")[0]
                if whole:
                    self._read[index] += len(whole) + 1
                    for line in whole.splitlines():
                        self._events.emit(name, *json.loads(line))


def default_workers() -> int:
    """One process a core, of those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
