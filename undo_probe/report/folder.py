"""A run folder as a report sees it: what is there, and what is missing with the command that makes it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undo_probe import files
from undo_probe.errors import UndoProbeError
from undo_probe.figures.look import clean
from undo_probe.parquet import read_table
from undo_probe.records import TaskWords

if TYPE_CHECKING:
    import pandas as pd

_COMMANDS = {
    "config.json": ("the configuration", "run"),
    "run.json": ("the list of arms, versions and hashes", "run"),
    "ledger.json": ("what each stage cost", "run"),
    "curves.parquet": ("the relearning curves", "attack"),
    "readings.parquet": ("the readings of every measure", "score"),
}
_COLUMNS = {
    "curves.parquet": ("stage", "kind", "step", "task_split", "subset", "value"),
    "readings.parquet": ("stage", "measure", "task_split", "subset", "value"),
}


@dataclass(frozen=True)
class Missing:
    """A file that a run has not written yet."""

    file: str
    what: str
    command: str


@dataclass(frozen=True)
class RunFiles:
    """The files of one run, read once; empty where a file is missing."""

    folder: str
    config: dict[str, Any]
    run: dict[str, Any]
    ledger: list[dict[str, Any]]
    curves: "pd.DataFrame" = field(repr=False)
    readings: "pd.DataFrame" = field(repr=False)
    card: dict[str, Any] = field(default_factory=dict, repr=False)
    missing: tuple[Missing, ...] = ()

    @property
    def name(self) -> str:
        """The run's name, or its folder's where the run has not said one."""
        return str(self.run.get("name") or self.config.get("name") or self.folder)


def read_run(run_or_folder: object) -> RunFiles:
    """Read a run folder given by its path or by anything with a ``folder``; nothing is recomputed."""
    folder = _folder(run_or_folder)
    if not folder.is_dir():
        raise UndoProbeError(f"no run folder at {folder}: give the folder that `undo-probe run --out` made")
    found = {name: folder / name for name in _COMMANDS if (folder / name).is_file()}
    if not {"config.json", "run.json"} & set(found):
        raise UndoProbeError(
            f"{folder} holds neither config.json nor run.json, so it is no run folder: give the folder that "
            "`undo-probe run --out` made"
        )
    return RunFiles(
        folder=clean(folder.resolve().name),
        config=_record(found, "config.json"),
        run=_record(found, "run.json"),
        ledger=_ledger(found),
        curves=_table(found, "curves.parquet"),
        readings=_readings(folder, found),
        card=_card(folder),
        missing=_missing(folder, found),
    )


def words_of(run: Mapping[str, Any]) -> TaskWords:
    """What ``run.json`` calls the parts of its task."""
    said = (run.get("task") or {}).get("words")
    return TaskWords.from_dict(said) if isinstance(said, dict) else TaskWords()


def _folder(run_or_folder: object) -> Path:
    given = getattr(run_or_folder, "folder", run_or_folder)
    if not isinstance(given, (str, os.PathLike)):
        raise UndoProbeError(
            f"cannot report on {type(run_or_folder).__name__}: give a run, or the path of its folder"
        )
    return Path(given)


def _missing(folder: Path, found: Mapping[str, Path]) -> tuple[Missing, ...]:
    absent = [name for name in _COMMANDS if name not in found]
    if (folder / "scorecard.json").is_file():
        absent = [name for name in absent if name != "readings.parquet"]
    name = clean(folder.resolve().name)
    return tuple(Missing(file, _COMMANDS[file][0], _command(_COMMANDS[file][1], name)) for file in absent)


def _command(verb: str, name: str) -> str:
    return f"undo-probe run --out {name}" if verb == "run" else f"undo-probe {verb} {name}"


def _record(found: Mapping[str, Path], name: str) -> dict[str, Any]:
    value = cleaned(files.read_json(found[name])) if name in found else {}
    if not isinstance(value, dict):
        raise UndoProbeError(
            f"{found[name]} holds a {type(value).__name__}, expected an object: was it overwritten?"
        )
    return value


def _ledger(found: Mapping[str, Path]) -> list[dict[str, Any]]:
    value = cleaned(files.read_json(found["ledger.json"])) if "ledger.json" in found else []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise UndoProbeError(f"{found['ledger.json']} is not a list of objects: was it overwritten?")
    return value


def _readings(folder: Path, found: Mapping[str, Path]) -> "pd.DataFrame":
    """The table of readings, from the scorecard where only that is there."""
    scorecard = folder / "scorecard.json"
    if "readings.parquet" in found or not scorecard.is_file():
        return _table(found, "readings.parquet")
    from undo_probe.records import Scorecard

    return _clean_table(Scorecard.from_dict(files.read_json(scorecard)).table())


def _card(folder: Path) -> dict[str, Any]:
    """What the scorecard says beside its readings."""
    scorecard = folder / "scorecard.json"
    value = files.read_json(scorecard) if scorecard.is_file() else {}
    said = value.get("verdict") if isinstance(value, dict) else None
    return cleaned(said) if isinstance(said, dict) else {}


def _table(found: Mapping[str, Path], name: str) -> "pd.DataFrame":
    import pandas as pd

    if name not in found:
        return pd.DataFrame(columns=list(_COLUMNS[name]))
    return _clean_table(read_table(found[name], _COLUMNS[name]))


def _clean_table(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with unseen characters out of its texts."""
    changed = {}
    for column in table.columns:
        known = {value: clean(value) for value in table[column].unique() if isinstance(value, str)}
        if any(text != shown for text, shown in known.items()):
            changed[column] = table[column].replace(known)
    return table.assign(**changed)


def cleaned(value: Any) -> Any:
    """Plain JSON data with every text cleaned, keys too."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return value
