"""The page of a sweep: its figures, their intervals over seeds, and what is said where there is nothing."""

import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.report.test_html import FETCHING, HOSTILE, Tags
from undo_probe.errors import UndoProbeError
from undo_probe.figures.swept import (
    FORGET,
    HEADLINES,
    RELEARNED,
    RETAIN,
    SURVIVAL,
    groups_of,
    swept,
    swept_table,
)
from undo_probe.intervals import t_interval
from undo_probe.presets import preset
from undo_probe.records import Arm, Reading, reading_table
from undo_probe.report.sweep_page import render

N = 200


def readings(seed: int, shift: float, gate: str = "ok", method: str = "maxent") -> list[Reading]:
    draw = np.random.default_rng([seed, round(100 * shift)])
    levels = {
        Arm("original", seed=seed): 0.95,
        Arm("oracle_matched", seed=seed): 0.2,
        Arm("unlearned", method, seed=seed): 0.8,
        Arm("unlearned", "rmu", seed=seed): 0.7,
        Arm("distilled", method, 0.8, seed=seed): 0.4 + shift,
        Arm("distilled", method, 0.8, seed=seed, variant="twin"): 0.9,
    }
    found = []
    for arm, level in levels.items():
        value = level + float(draw.normal(0, 0.02))
        found += [
            Reading(arm, "accuracy", "retain", "all", value=0.9, n=N),
            Reading(arm, "accuracy", "forget", "V", value=value / 2, n=N),
            Reading(arm, "relearned", "forget", "step 9", value=0.0, n=N),
            Reading(arm, "relearned", "forget", "step 10", value=value, n=N, survival=value, gate=gate),
        ]
    return found


def table_of(cells: list[dict[str, Any]], **more: Any) -> pd.DataFrame:
    tables = []
    for cell in cells:
        made = reading_table(readings(cell["seed"], cell.get("noise.beta", 0.0), **more))
        tables.append(made.assign(cell=str(cell), **cell))
    return pd.concat(tables, ignore_index=True)


def grid(**values: list[Any]) -> list[dict[str, Any]]:
    names = [name.replace("__", ".") for name in values]
    return [dict(zip(names, each, strict=True)) for each in itertools.product(*values.values())]


CELLS = grid(noise__beta=[0.0, 0.1], seed=[0, 1, 2])
KEYS = ("noise.beta", "seed")


def said(cells: list[dict[str, Any]] = CELLS, **changes: Any) -> dict[str, Any]:
    states = [
        {"name": f"c{at}", "label": str(cell), "settings": cell, "state": "done", "reason": ""}
        for at, cell in enumerate(cells)
    ]
    base = preset("tiny").model_dump(mode="json")
    return {"name": "betas", "until": "score", "swept": list(KEYS), "base": base, "cells": states, **changes}


def test_groups_are_models_by_role_and_setting_with_student_s_interval_over_seeds() -> None:
    table = table_of(CELLS)
    groups = {(group.place, group.role): group for group in groups_of(table, KEYS, RELEARNED)}
    assert {place for place, _ in groups} == {("0",), ("0.1",)}
    assert {role for _, role in groups} == {"Original", "Oracle (matched)", "Unlearned", "UNDO 0.8"}
    student = groups[("0.1",), "UNDO 0.8"]
    own = table.loc[(table["stage"] == "distilled") & (table["variant"] == "") & (table["noise.beta"] == 0.1)]
    values = own.loc[own["subset"] == "step 10", "value"].tolist()
    assert list(student.values) == values
    assert student.interval == t_interval(values, resolution=1 / N)
    same = groups_of(table, KEYS, RETAIN)[0]  # 90 % with every seed: still a width
    assert same.interval.low < 0.9 < same.interval.high


def test_a_role_is_the_same_whatever_the_method_is_called() -> None:
    tables = [table_of([cell], method=method).assign(**{"unlearn.method": method, "cell": f"{cell}{method}"})
              for method in ("maxent", "graddiff") for cell in grid(seed=[0, 1])]  # fmt: skip
    groups = groups_of(pd.concat(tables), ("unlearn.method", "seed"), FORGET)
    places = [group.place for group in groups if group.role == "Unlearned"]
    assert places == [("maxent",), ("graddiff",)]


def test_survival_leaves_out_seeds_without_a_range_and_the_two_ends() -> None:
    table = pd.concat([table_of(CELLS[:2]), table_of(CELLS[2:], gate="no range")])
    groups = groups_of(table, KEYS, SURVIVAL)
    assert {group.role for group in groups} == {"Unlearned", "UNDO 0.8"}
    assert {(group.place, len(group.values)) for group in groups} == {(("0",), 2)}
    line = swept_table(table, KEYS, HEADLINES["score"]).query("model == 'Unlearned'").iloc[0]
    assert line["seeds"] == "3"
    assert line[SURVIVAL.title[:1].lower() + SURVIVAL.title[1:]].endswith("\n2 of the seeds")
    with pytest.raises(UndoProbeError, match="survival has no scale in any cell"):
        groups_of(table_of(CELLS, gate="weak"), KEYS, SURVIVAL)


def test_the_longest_key_is_the_axis_and_the_others_are_panels() -> None:
    cells = grid(distill__steps=[9, 20, 100], noise__beta=[0.0, 0.1], seed=[0, 1])
    figure = swept(table_of(cells), ("noise.beta", "distill.steps", "seed"), RELEARNED)
    layout = json.loads(figure.plotly.to_json())["layout"]
    assert layout["xaxis"]["ticktext"] == ["9", "20", "100"]  # as numbers, not as words
    assert [note["text"] for note in layout["annotations"]] == ["<b>beta 0</b>", "<b>beta 0.1</b>"]
    assert figure.caption.startswith("Across: distill.steps.")
    many = grid(noise__beta=[at / 100 for at in range(10)], distill__steps=list(range(1, 12)), seed=[0])
    with pytest.raises(UndoProbeError, match="10 combinations of noise.beta are more than a figure can hold"):
        swept(table_of(many), ("noise.beta", "distill.steps", "seed"), RELEARNED)


def test_one_seed_is_a_point_without_an_interval() -> None:
    figure = swept(table_of(grid(noise__beta=[0.0, 0.1], seed=[0])), KEYS, RELEARNED)
    assert set(figure.table["seeds"]) == {"1"}
    assert not figure.table["mean (95% interval over seeds)"].str.contains("to").any()
    bars = [trace["error_y"]["array"] for trace in json.loads(figure.plotly.to_json())["data"]]
    assert bars == [[0.0]] * len(bars)


def test_the_page_asks_nothing_of_any_network_and_says_what_failed() -> None:
    whole = said()
    whole["cells"][1] |= {"state": "failed", "reason": f"original: {HOSTILE}", "label": HOSTILE}
    whole["cells"][2] |= {"state": "pending"}
    page = render(whole, table_of(CELLS))
    tags = Tags(page)
    assert "4 of 6 cells done, over noise.beta and seed" in page
    assert "has not run to its end yet" in page
    assert HOSTILE not in page
    assert "alert(1)" in "".join(tags.words)
    assert tags.count("figcaption") == page.count("What would have shown the opposite:") == 4
    fetched = [value for _, attributes in tags.tags for name, value in attributes.items()
               if name in FETCHING and not str(value).startswith("#")]  # fmt: skip
    assert fetched == []
    assert len(page.encode()) < 8 * 2**20


def test_a_sweep_of_which_nothing_is_done_has_a_page_too() -> None:
    empty = reading_table(()).assign(**dict.fromkeys(("cell", *KEYS)))
    page = render(said(), empty)
    assert page.count("in any cell yet") == 4
    assert "Not shown: no cell is done." in page
