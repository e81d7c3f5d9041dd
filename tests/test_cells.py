"""The cells of a sweep: what a file means, and one clear line where it is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from undo_probe.cells import Cells, load_cells
from undo_probe.errors import UndoProbeError
from undo_probe.presets import preset

FILE = """
extends = "smoke"
until = "attack"
distill.steps = 7

[grid]
"noise.beta" = [0.0, 0.2]
seed = [0, 1, 2]

[[cells]]
"noise.alphas" = [0.9]
seed = 5
"""


def write(folder: Path, text: str, name: str = "betas.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def cells(**values: Any) -> Cells:
    return load_cells({"extends": "smoke", **values})


def test_a_file_is_a_base_a_grid_and_further_cells(tmp_path: Path) -> None:
    found = load_cells(write(tmp_path, FILE))
    assert (found.name, found.until, found.swept) == (
        "betas",
        "attack",
        ("noise.beta", "seed", "noise.alphas"),
    )
    assert found.base == preset("smoke", "distill.steps=7", "name=betas")
    assert len(found.cells) == 7
    pairs = [(cell.settings["noise.beta"], cell.settings["seed"]) for cell in found.cells[:6]]
    assert pairs == [(beta, seed) for beta in (0.0, 0.2) for seed in (0, 1, 2)]
    for cell in found.cells:
        settings = [f"{key}={json.dumps(value)}" for key, value in cell.settings.items()]
        assert cell.config == preset("smoke", "distill.steps=7", "name=betas", *settings)
    # every cell has a value for every swept key, its own or the base's
    assert found.cells[6].settings == {"noise.beta": 0.1, "seed": 5, "noise.alphas": [0.9]}
    assert found.cells[0].settings["noise.alphas"] == [0.4, 0.8]


def test_quoted_keys_nested_tables_and_json_mean_the_same(tmp_path: Path) -> None:
    quoted = load_cells(write(tmp_path, 'extends = "smoke"\n[grid]\n"noise.beta" = [0.0, 0.2]\n'))
    nested = load_cells(write(tmp_path, 'extends = "smoke"\n[grid.noise]\nbeta = [0.0, 0.2]\n'))
    text = json.dumps({"extends": "smoke", "grid": {"noise.beta": [0, 0.2]}})
    assert quoted == nested == load_cells(write(tmp_path, text, "betas.json"))


def test_names_are_folders_of_their_own_and_change_with_the_base() -> None:
    grid = {"noise.alphas": [[0.4], [0.4, 0.8]], "seed": [0, 1]}
    one, other = cells(grid=grid), cells(grid=grid, distill={"steps": 5})
    names = [cell.name for cell in (*one.cells, *other.cells)]
    assert len(set(names)) == 8
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.,=-") for name in names)
    assert names[0].startswith("noise.alphas=0.4,seed=0-")
    assert names == [cell.name for cell in (*cells(grid=grid).cells, *other.cells)]
    long = cells(grid={"noise.alphas": [[at / 100 for at in range(n)] for n in (60, 61)]})
    assert len({cell.name for cell in long.cells}) == 2
    assert all(len(cell.name) < 100 for cell in long.cells)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"gird": {}}, "unknown key 'gird'; did you mean 'grid'?"),
        ({"grid": {"noise.bta": [0.1]}}, "unknown key 'noise.bta'; did you mean 'noise.beta'?"),
        ({"cells": [{"nois": {"beta": 0.1}}]}, "cell 1 has an unknown key 'nois.beta'; did you mean 'noise.beta'"),
        ({}, "names no cell"),
        ({"grid": {}}, "grid is empty"),
        ({"grid": [1]}, r"grid is \[1\]: expected a table"),
        ({"grid": {"seed": []}}, "an empty list for seed"),
        ({"grid": {"seed": 3}}, r"seed = 3: expected a list of values, such as \[3\]"),
        ({"grid": {"seed": [1, 2, 1]}}, "grid has seed = 1 twice"),
        ({"grid": {"noise.beta": [0.1]}, "cells": [{"seed": 0}]}, "has the cell noise.beta=0.1 seed=0 twice"),
        ({"grid": {"noise": [0.1]}}, "'noise', a section: name its settings, such as 'noise.rule'"),
        ({"grid": {"noise.beta": [0.1], "noise": {"beta": [0.2]}}}, "names a setting twice"),
        ({"grid": {"noise.beta": [0.1, 7]}}, "cell noise.beta=7: noise.beta is 7"),
        ({"grid": {"noise.alphas": [0.4]}}, "noise.alphas is 0.4: input should be"),
        ({"grid": {"threads": [1, 2]}}, "'threads', on which no result depends"),
        ({"cells": []}, r"cells is \[\]: expected a list of tables"),
        ({"cells": [3]}, "cell 1 is 3: expected a table of settings"),
        ({"until": "noised", "grid": {"seed": [1]}}, "until is 'noised': expected one of distilled, attack, score"),
        ({"extends": "smok", "grid": {"seed": [1]}}, "no preset 'smok'; did you mean 'smoke'?"),
        ({"noise": {"bta": 1}, "grid": {"seed": [1]}}, "unknown key 'noise.bta'; did you mean 'beta'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(values: dict[str, Any], text: str) -> None:
    with pytest.raises(UndoProbeError, match=text) as found:
        cells(**values)
    assert "\n" not in str(found.value)
    assert found.value.exit_code == 2


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"nowhere\.toml"):
        load_cells(tmp_path / "nowhere.toml")
    with pytest.raises(UndoProbeError, match=r"betas\.toml is not valid TOML"):
        load_cells(write(tmp_path, "[grid"))
