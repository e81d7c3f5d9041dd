"""Work in waves: results that need other results, each made once, however many runs want it."""

from collections.abc import Sequence
from dataclasses import dataclass

from undo_probe.errors import UndoProbeError
from undo_probe.jobs import Job, OnEvent, Outcome, run_jobs
from undo_probe.store import Store


@dataclass(frozen=True)
class Piece:
    """One result to be stored under ``key`` by a job, once the results under ``parents`` are there.

    ``cost`` is what is expected, in any unit; a ``quick`` piece is not worth another process.
    """

    key: str
    parents: tuple[str, ...]
    job: Job
    cost: float
    quick: bool = False


def compute(
    runs: Sequence[Sequence[Piece]],
    store: Store,
    workers: int,
    *,
    backend: str = "loky",
    threads: int = 1,
    progress: OnEvent | None = None,
) -> dict[str, Outcome]:
    """Makes whatever the runs need and the store does not have; the costliest of a wave first.

    A run fails with the first wave in which a piece of it fails, or when a stored result of it is damaged. What
    only failed runs need is not started any more; the others go on.

    Returns:
        Key to outcome, of all that was tried and of what is damaged.
    """
    pieces: dict[str, Piece] = {}
    for run in runs:
        for piece in run:
            pieces.setdefault(piece.key, piece)
    stored = [piece for key, piece in pieces.items() if key in store]
    outcomes = {piece.key: damage for piece in stored if (damage := _damage(piece, store))}
    waiting = _missing(runs, outcomes, store)
    if progress is not None:
        for key in waiting:
            progress(pieces[key].job.name, 0, None, {"cost": pieces[key].cost})
    while waiting:
        ready = [pieces[key] for key in waiting if all(parent in store for parent in pieces[key].parents)]
        quick = [piece for piece in ready if piece.quick]
        wave = quick or sorted(ready, key=lambda piece: piece.cost, reverse=True)
        jobs = [piece.job for piece in wave]
        found = run_jobs(jobs, 1 if quick else workers, backend, on_event=progress, threads=threads)
        outcomes |= {piece.key: outcome for piece, outcome in zip(wave, found, strict=True)}
        waiting = _missing(runs, outcomes, store)
    return outcomes


def failures(run: Sequence[Piece], outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """Key to outcome of the pieces of a run that failed."""
    found = {piece.key: outcomes[piece.key] for piece in run if piece.key in outcomes}
    return {key: outcome for key, outcome in found.items() if outcome.error is not None}


def _missing(runs: Sequence[Sequence[Piece]], outcomes: dict[str, Outcome], store: Store) -> dict[str, None]:
    """Keys that runs without a failure still need, each once, in order."""
    going = [run for run in runs if not failures(run, outcomes)]
    return dict.fromkeys(piece.key for run in going for piece in run if piece.key not in store)


def _damage(piece: Piece, store: Store) -> Outcome | None:
    try:
        store.verify(piece.key)
    except UndoProbeError as error:
        return Outcome(piece.job.name, error=str(error), users=True)
    return None
