"""The cells of a sweep: a base configuration and a grid of settings, read from a file and checked."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.presets import flatten, from_values, near, override, read_settings

UNTIL = ("distilled", "attack", "score")
_OWN = ("until", "grid", "cells")
# they say how a run is computed or called, and no result depends on them
_NO_RESULT = ("format", "name", "device", "threads")
_EXAMPLE = '[grid] with "noise.beta" = [0.0, 0.1], for example'
Settings = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One configuration of a sweep; ``settings`` has a value for every swept key."""

    settings: Settings
    config: RunConfig

    @property
    def label(self) -> str:
        """The swept settings for a reader: ``noise.beta=0.1 seed=0``."""
        return " ".join(f"{key}={written(value)}" for key, value in self.settings.items()) or "base"

    @property
    def name(self) -> str:
        """The label as a folder's name, with a hash so that another base never meets the same folder."""
        plain = re.sub(r"[^A-Za-z0-9.,=_+-]", "", self.label.replace(" ", ","))[:80].strip(",.")
        return f"{plain}-{digest(self.config.model_dump(mode='json'))[:8]}"


@dataclass(frozen=True)
class Cells:
    """All cells of a sweep, how far each goes, and the keys in which they differ."""

    name: str
    until: str
    base: RunConfig
    swept: tuple[str, ...]
    cells: tuple[Cell, ...]


def load_cells(source: str | Path | Mapping[str, Any]) -> Cells:
    """The cells that a TOML or JSON file names, or a mapping of the same form.

    The file is a configuration file with three more keys: ``grid`` (a list of values for each key; all
    combinations are cells), ``cells`` (a list of single cells) and ``until`` (distilled, attack or score).

    Raises:
        UndoProbeError: in one line, what is wrong with the file.
    """
    if isinstance(source, Mapping):
        values, where, name = dict(source), "the sweep", "sweep"
    else:
        values, where, name = read_settings(Path(source)), str(source), Path(source).stem
    known = [*RunConfig.model_fields, "extends", *_OWN]
    for key in values:
        if key not in known:
            raise UndoProbeError(
                f"{where}: unknown key {key!r}{near(key, known)}; a sweep has the keys of a "
                f"configuration, and {', '.join(_OWN)}"
            )
    own = {key: values.pop(key) for key in _OWN if key in values}
    until = own.get("until", UNTIL[-1])
    if until not in UNTIL:
        raise UndoProbeError(f"{where}: until is {until!r}: expected one of {', '.join(UNTIL)}")
    base = from_values(values, where, name)
    asked = [*_combinations(own, base, where), *_listed(own, base, where)]
    if not asked:
        raise UndoProbeError(f"{where} names no cell: give {_EXAMPLE}")
    return _checked(name, until, base, asked, where)


def written(value: Any) -> str:
    """A setting's value in a few letters: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _combinations(own: Settings, base: RunConfig, where: str) -> list[Settings]:
    if "grid" not in own:
        return []
    grid = _keys(own["grid"], base, f"{where}: grid")
    if not grid:
        raise UndoProbeError(f"{where}: grid is empty: give {_EXAMPLE}, or leave it out")
    for key, listed in grid.items():
        if not isinstance(listed, list):
            raise UndoProbeError(
                f"{where}: grid has {key} = {_short(listed)}: expected a list of values, such as [{_short(listed)}]"
            )
        if not listed:
            raise UndoProbeError(
                f"{where}: grid has an empty list for {key}: give it a value, or leave the key out"
            )
        twice = [value for value in listed if listed.count(value) > 1]
        if twice:
            raise UndoProbeError(f"{where}: grid has {key} = {_short(twice[0])} twice: name each once")
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def _listed(own: Settings, base: RunConfig, where: str) -> list[Settings]:
    listed = own.get("cells", [])
    if not isinstance(listed, list) or ("cells" in own and not listed):
        raise UndoProbeError(
            f"{where}: cells is {_short(listed)}: expected a list of tables, each a cell (in TOML [[cells]])"
        )
    return [_keys(cell, base, f"{where}: cell {at}") for at, cell in enumerate(listed, 1)]


def _keys(given: Any, base: RunConfig, where: str) -> Settings:
    """The settings by dotted key, however they were nested; each must be one of the configuration's."""
    if not isinstance(given, dict):
        raise UndoProbeError(f"{where} is {_short(given)}: expected a table of settings")
    settings = flatten(given)
    if len(settings) < _leaves(given):
        raise UndoProbeError(f"{where} names a setting twice, once in quotes and once in a table: drop one")
    known = list(flatten(base.model_dump(mode="json")))
    for key in settings:
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            raise UndoProbeError(f"{where} has {key!r}, a section: name its settings, such as {inside[0]!r}")
        if key not in known:
            raise UndoProbeError(f"{where} has an unknown key {key!r}{near(key, known)}")
        if key in _NO_RESULT:
            raise UndoProbeError(
                f"{where} has {key!r}, on which no result depends: set it for all cells, outside the grid"
            )
    return settings


def _leaves(given: Any) -> int:
    return sum(_leaves(value) for value in given.values()) if isinstance(given, dict) else 1


def _checked(name: str, until: str, base: RunConfig, asked: list[Settings], where: str) -> Cells:
    swept = tuple(dict.fromkeys(key for settings in asked for key in settings))
    cells: list[Cell] = []
    for settings in asked:
        words = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
        config = override(base, *words, where=f"{where}: cell {' '.join(words) or 'without settings'}")
        flat = flatten(config.model_dump(mode="json"))
        cell = Cell({key: flat[key] for key in swept}, config)
        if any(config == other.config for other in cells):
            raise UndoProbeError(f"{where} has the cell {cell.label} twice: name each once")
        cells.append(cell)
    return Cells(name, until, base, swept, tuple(cells))


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
