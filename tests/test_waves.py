"""Work in waves: each result once, and a failure costs only the runs that need it."""

from pathlib import Path
from typing import Any

import pytest

from undo_probe import waves
from undo_probe.jobs import Job
from undo_probe.store import Store
from undo_probe.waves import Piece, compute, failures


def make(what: dict[str, Any], folder: str, log: str) -> str:
    with Path(log).open("a") as file:
        file.write(f"{what['kind']}\n")
    if what["kind"].startswith("bad"):
        raise RuntimeError("no more power")
    return Store(folder).write(what)


class Work:
    """Pieces by name over one store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log = Store(folder / "store"), folder / "log"
        self.what: dict[str, dict[str, Any]] = {}

    def piece(self, name: str, *parents: str, cost: float = 1.0, quick: bool = False) -> Piece:
        keys = [Store.key(self.what[parent]) for parent in parents]
        self.what[name] = {"kind": name, "parents": keys}
        call = (self.what[name], str(self.store.folder), str(self.log))
        return Piece(Store.key(self.what[name]), tuple(keys), Job(name, make, call), cost, quick)

    def made(self) -> list[str]:
        return self.log.read_text().split() if self.log.is_file() else []


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_what_runs_share_is_made_once_the_costliest_of_a_wave_first(work: Work) -> None:
    first, second = work.piece("first"), work.piece("second", cost=9)
    ends = [work.piece("end-a", "first"), work.piece("end-b", "first", cost=3)]
    outcomes = compute([[first, ends[0]], [first, second, ends[1]]], work.store, 1)
    assert work.made() == ["second", "first", "end-b", "end-a"]
    assert set(outcomes) == set(work.store.keys()) == {piece.key for piece in (first, second, *ends)}
    assert compute([[first, *ends]], work.store, 1) == {}
    assert len(work.made()) == 4


def test_a_failure_costs_the_runs_that_need_it_and_no_others(work: Work) -> None:
    shared, bad, fine = work.piece("shared"), work.piece("bad"), work.piece("fine")
    lost = [shared, bad, work.piece("after-bad", "bad"), work.piece("only-lost", "shared")]
    kept = [shared, fine, work.piece("end", "shared", "fine")]
    outcomes = compute([lost, kept], work.store, 1)
    # the wave in which a run fails is finished, and nothing more is begun that it alone needs
    assert work.made() == ["shared", "bad", "fine", "end"]
    assert failures(kept, outcomes) == {}
    failed = failures(lost, outcomes)
    assert [outcome.error for outcome in failed.values()] == ["RuntimeError: no more power"]
    compute([lost, kept], work.store, 1)
    assert work.made()[4:] == ["bad", "only-lost"]  # both are ready now, and what is there is not made again


def test_a_damaged_result_fails_its_runs_before_anything_is_made(work: Work) -> None:
    damaged, fine = work.piece("damaged"), work.piece("fine")
    compute([[damaged]], work.store, 1)
    record = work.store.path(damaged.key) / "stage.json"
    record.write_text(record.read_text().replace('"stopped": ""', '"stopped": "x"'))
    lost, kept = [damaged, work.piece("after", "damaged")], [fine]
    outcomes = compute([lost, kept], work.store, 1)
    (found,) = failures(lost, outcomes).values()
    assert found.users
    assert "is damaged" in str(found.error)
    assert work.made() == ["damaged", "fine"]


def test_waves_hold_the_work_of_all_runs_and_quick_pieces_stay_here(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], int, str, int]] = []
    real = waves.run_jobs

    def watched(jobs: list[Job], workers: int, backend: str, **more: Any) -> Any:
        calls.append(([job.name for job in jobs], workers, backend, more["threads"]))
        return real(jobs, 1, "loky", **more)

    monkeypatch.setattr(waves, "run_jobs", watched)
    runs = []
    for name in "ab":
        start = work.piece(f"start-{name}")
        noise = work.piece(f"noise-{name}", f"start-{name}", quick=True)
        runs.append([start, noise, work.piece(f"end-{name}", f"noise-{name}")])
    compute(runs, work.store, 2, backend="dask", threads=3)
    assert calls == [
        (["start-a", "start-b"], 2, "dask", 3),
        (["noise-a", "noise-b"], 1, "dask", 3),
        (["end-a", "end-b"], 2, "dask", 3),
    ]
