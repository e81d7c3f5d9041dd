"""A sweep: many configurations, each stage that they share computed once, one table and one page."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undo_probe import __version__
from undo_probe.attacks.arms import VERSION as ATTACKED
from undo_probe.attacks.arms import attack
from undo_probe.cells import Cell, Cells, load_cells, written
from undo_probe.errors import JobsFailed, UndoProbeError
from undo_probe.figures.tables import arm_from_row
from undo_probe.files import FolderLock, digest, file_digest, read_json, write_json
from undo_probe.jobs import Outcome, default_workers, run_jobs
from undo_probe.measures.battery import VERSION as MEASURED
from undo_probe.parquet import read_table, write_table
from undo_probe.pipeline import Recipe, begin_run, recipe, record_run
from undo_probe.records import Arm, Reading, reading_table
from undo_probe.report.sweep_page import write_sweep_page
from undo_probe.scorecard import score
from undo_probe.store import Run, Store
from undo_probe.waves import Piece, compute, failures

if TYPE_CHECKING:
    import pandas as pd

PENDING, DONE, FAILED = "pending", "done", "failed"
# what a cell's last step writes: a cell is done while that file is as it was left
_LAST_FILE = {"distilled": "run.json", "attack": "curves.parquet", "score": "readings.parquet"}
Phase = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class CellState:
    """Where a cell stands; ``made_by`` and ``wrote`` say what its last file was made from and its hash."""

    name: str
    label: str
    settings: dict[str, Any]
    state: str = PENDING
    reason: str = ""
    made_by: str = ""
    wrote: str = ""


@dataclass(frozen=True)
class Sweep:
    """A sweep folder and the state of each cell."""

    folder: Path
    cells: tuple[CellState, ...]

    @property
    def failed(self) -> list[CellState]:
        """The cells that failed; the same call tries them again."""
        return [cell for cell in self.cells if cell.state == FAILED]

    def check(self) -> None:
        """Raises an error that names the failed cells, if there are any."""
        if self.failed:
            lines = "\n".join(f"  {cell.label}: {cell.reason}" for cell in self.failed)
            raise JobsFailed(
                f"{len(self.failed)} of {len(self.cells)} cells failed; the same command tries them again:\n{lines}"
            )

    def table(self) -> "pd.DataFrame":
        """The readings of all cells that are done, with a column for each swept key."""
        return read_table(self.folder / "sweep.parquet")

    def run(self, name: str) -> Run:
        """The run of a cell."""
        return Run(self.folder / "cells" / name)


def run_sweep(
    source: str | Path | Mapping[str, Any],
    folder: str | Path,
    *,
    workers: int | None = None,
    backend: str = "loky",
    store: str | Path | None = None,
    phase: Phase | None = None,
) -> Sweep:
    """Runs every cell of a sweep; what is done stays, what failed or was cut short is tried again.

    Writes ``sweep.json`` (the cells and where they stand), ``sweep.parquet`` (all readings), ``sweep.html`` and
    a run folder for each cell in ``cells``. A cell that fails does not stop the others.

    Args:
        source: a TOML or JSON file, or a mapping of the same form: see :func:`undo_probe.cells.load_cells`.
        folder: the sweep's folder; made if missing. One process works in it at a time.
        workers: processes; results do not depend on it. One a core by default.
        backend: where the processes are: loky (this machine), ray or dask.
        store: the stage store of all cells; ``folder/store`` by default.
        phase: makes a context manager around each phase from its title; its ``event`` is told the progress
            (:class:`undo_probe.progress.PhaseProgress`).

    Raises:
        UndoProbeError: the source is wrong, or the folder is in use.
    """
    asked, folder, workers = load_cells(source), Path(folder), workers or default_workers()
    run_jobs([], workers, backend)  # a wrong number or name is told before anything is touched
    kept = Store(folder / "store" if store is None else store)
    recipes = {cell.name: recipe(cell.config) for cell in asked.cells}
    phase = phase or (lambda title: nullcontext())
    with FolderLock(folder):
        states = _before(folder, asked)
        _write(folder, asked, states)
        outcomes = _stages(asked, recipes, kept, workers, backend, phase)
        for cell in asked.cells:
            work = _CellWork(asked, cell, recipes[cell.name], kept, folder, workers, backend)
            states[cell.name] = work.finish(states[cell.name], outcomes, phase)
            _write(folder, asked, states)
        _write_table(folder, asked, states)
        write_sweep_page(folder)
    return Sweep(folder, tuple(states.values()))


def _stages(
    asked: Cells, recipes: dict[str, Recipe], store: Store, workers: int, backend: str, phase: Phase
) -> dict[str, Outcome]:
    """The models of all cells, as one list of work over the union of their steps."""
    work = [_pieces(cell, recipes[cell.name], store) for cell in asked.cells]
    with phase("stages") as shown:
        return compute(
            work,
            store,
            workers,
            backend=backend,
            threads=asked.base.threads,
            progress=getattr(shown, "event", None),
        )


def _pieces(cell: Cell, made: Recipe, store: Store) -> list[Piece]:
    return made.pieces(store, f" of {cell.label}")


@dataclass(frozen=True)
class _CellWork:
    """One cell's way from its models to its last file."""

    asked: Cells
    cell: Cell
    recipe: Recipe
    store: Store
    sweep: Path
    workers: int
    backend: str

    @property
    def folder(self) -> Path:
        return self.sweep / "cells" / self.cell.name

    @property
    def last_file(self) -> Path:
        return self.folder / _LAST_FILE[self.asked.until]

    def finish(self, state: CellState, outcomes: dict[str, Outcome], phase: Phase) -> CellState:
        """The cell's new state, after whatever it still needs."""
        failed = failures(_pieces(self.cell, self.recipe, self.store), outcomes)
        if failed:
            reasons = [f"{outcome.name}: {outcome.error}" for outcome in failed.values()]
            return dataclasses.replace(state, state=FAILED, reason="; ".join(reasons), made_by="", wrote="")
        if self._is_done(state):
            return dataclasses.replace(state, state=DONE, reason="")
        try:
            with phase(self.cell.label) as shown:
                self._run(getattr(shown, "event", None))
        except Exception as error:  # whatever it is, the other cells are none the worse for it
            text = str(error) if isinstance(error, UndoProbeError) else f"{type(error).__name__}: {error}"
            return dataclasses.replace(state, state=FAILED, reason=text, made_by="", wrote="")
        wrote = file_digest(self.last_file)
        return dataclasses.replace(state, state=DONE, reason="", made_by=self._made_by(), wrote=wrote)

    def _run(self, progress: Any) -> None:
        with FolderLock(self.folder):
            begin_run(self.folder, self.cell.config)
            record_run(self.folder, self.recipe, self.store)
        run = Run(self.folder)
        if self.asked.until != "distilled":
            run = attack(run, workers=self.workers, progress=progress, backend=self.backend)
        if self.asked.until == "score":
            score(run, workers=self.workers, progress=progress, backend=self.backend)

    def _is_done(self, state: CellState) -> bool:
        made_by, path = self._made_by(), self.last_file
        return state.made_by == made_by and path.is_file() and file_digest(path) == state.wrote

    def _made_by(self) -> str:
        """A hash of all that the cell's last file depends on."""
        keys = [piece.key for piece in _pieces(self.cell, self.recipe, self.store)]
        versions = [__version__, ATTACKED, MEASURED]
        return digest([self.asked.until, self.cell.config.model_dump(mode="json"), keys, versions])


def _before(folder: Path, asked: Cells) -> dict[str, CellState]:
    """Every cell as pending, with what an earlier call noted of it."""
    noted: dict[str, Any] = {}
    if (folder / "sweep.json").is_file():
        noted = {cell["name"]: cell for cell in read_json(folder / "sweep.json")["cells"]}
    states = {}
    for cell in asked.cells:
        old = {name: noted.get(cell.name, {}).get(name, "") for name in ("made_by", "wrote")}
        states[cell.name] = CellState(cell.name, cell.label, cell.settings, **old)
    return states


def _write(folder: Path, asked: Cells, states: dict[str, CellState]) -> None:
    """``sweep.json``: what the sweep is and where each cell stands."""
    said = {
        "format": 1,
        "name": asked.name,
        "until": asked.until,
        "swept": list(asked.swept),
        "base": asked.base.model_dump(mode="json"),
        "cells": [dataclasses.asdict(state) for state in states.values()],
    }
    write_json(folder / "sweep.json", said)


def _write_table(folder: Path, asked: Cells, states: dict[str, CellState]) -> None:
    """``sweep.parquet``: the readings of the cells that are done, with a column for each swept key."""
    import pandas as pd

    tables = []
    for cell in asked.cells:
        if states[cell.name].state == DONE:
            found = _readings(folder / "cells" / cell.name, asked.until)
            swept = {key: _plain(value) for key, value in cell.settings.items()}
            tables.append(found.assign(cell=cell.name, **swept))
    empty = reading_table(()).assign(**dict.fromkeys(("cell", *asked.swept)))
    table = pd.concat(tables, ignore_index=True) if tables else empty
    for key in asked.swept:  # one type a column
        if len({isinstance(value, str) for value in table[key]}) > 1:
            table[key] = table[key].map(written)
    write_table(table, folder / "sweep.parquet")


def _plain(value: Any) -> Any:
    """A setting as a cell of a table: a list or null as JSON."""
    return value if isinstance(value, (int, float, str)) else written(value)


def _readings(folder: Path, until: str) -> "pd.DataFrame":
    """The readings of a run; of one that was not scored, those that its training and its attack left."""
    if until == "score":
        return read_table(folder / "readings.parquet")
    run = Run(folder)
    rows = [reading for arm in run.arms for reading in _last_of_training(run, arm)]
    if until == "attack":
        rows += _reached(folder)
    return reading_table(rows)


def _last_of_training(run: Run, arm: Arm) -> Iterator[Reading]:
    """Accuracy on development rows when training ended, by operation and (``all``) over all rows."""
    history = run.entry(arm).rows
    last = [row for row in history if row["step"] == max(each["step"] for each in history)]
    for split in dict.fromkeys(row["task_split"] for row in last):
        own = [row for row in last if row["task_split"] == split]
        n = sum(row["n"] for row in own)
        mean = sum(row["value"] * row["n"] for row in own) / n
        for subset, value, count in [*((r["subset"], r["value"], r["n"]) for r in own), ("all", mean, n)]:
            yield Reading(arm, "training_accuracy", split, subset, value=value, n=count, unit="share")


def _reached(folder: Path) -> Iterator[Reading]:
    """The attack's running maximum by step; its intervals come with the scorecard."""
    curves = read_table(folder / "curves.parquet")
    for row in curves.loc[curves["kind"] == "cumulative_max"].to_dict("records"):
        step, value, n = f"step {row['step']}", float(row["value"]), int(row["n"])
        yield Reading(arm_from_row(row), "relearned", "forget", step, value=value, n=n, unit="share")
