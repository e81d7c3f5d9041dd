"""What an attacked run writes down: its curves, the attacks' keys, and what they cost."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from undo_probe.attacks.envelope import AttackTable
from undo_probe.files import read_json, write_json
from undo_probe.parquet import write_table
from undo_probe.records import Arm
from undo_probe.store import Run, write_manifest
from undo_probe.training import Row

if TYPE_CHECKING:
    from undo_probe.attacks.arms import Target

UNTRAINED = 0.0
"""The rate of an attack that trains nothing."""


def curve_rows(
    arm: Arm,
    table: AttackTable,
    core: np.ndarray,
    oracle_rate: float | None,
    utility: float,
    attack: str = "relearn",
) -> list[Row]:
    """The rows of ``curves.parquet`` for one arm and attack: every rate, the oracle's rate, both running maxima.

    An attack that trains nothing has only before and after, kind ``single``; without an oracle (``oracle_rate`` None)
    no rate is its.
    """
    rows: list[Row] = []

    def add(kind: str, rate: float | None, seed: int | None, side: str, values: np.ndarray) -> None:
        subset = "V" if side == "forget" else "all"
        for step, value in zip(table.steps, values, strict=True):
            rows.append(
                {
                    **arm.columns(),
                    "attack": attack,
                    "kind": kind,
                    "learning_rate": rate,
                    "attack_seed": seed,
                    "step": step,
                    "task_split": side,
                    "subset": subset,
                    "value": float(np.nanmean(value)),
                    "n": int(np.isfinite(value).sum()),
                }
            )

    if table.rates == (UNTRAINED,):
        add("single", None, None, "forget", table.forget[0, 0][:, core].astype(float))
        add("single", None, None, "retain", table.retain[0, 0].astype(float))
        return rows
    for index, rate in enumerate(table.rates):
        for seed in range(table.forget.shape[1]):
            add("rate", rate, seed, "forget", table.forget[index, seed][:, core].astype(float))
            add("rate", rate, seed, "retain", table.retain[index, seed].astype(float))
    if oracle_rate is not None:
        add("oracle_rate", oracle_rate, None, "forget", table.at_rate(oracle_rate)[:, core])
        add("oracle_rate", oracle_rate, None, "retain", table.retain_at(oracle_rate))
    add("cumulative_max", None, None, "forget", table.cumulative_max(core))
    add("cumulative_max_utility", None, None, "forget", table.cumulative_max(core, utility))
    return rows


def record(
    run: Run,
    keys: Sequence[tuple["Target", str]],
    arms: Sequence[Arm],
    tables: Mapping[str, Mapping[str, AttackTable]],
    core: np.ndarray,
) -> None:
    """Writes ``curves.parquet``, the attacks' keys in ``run.json``, and their cost in ``ledger.json``.

    Args:
        run: whose folder is written to.
        keys: every attack with its store key.
        arms: the attacked arms.
        tables: attack name to arm name to its table.
        core: the rows of V that count.
    """
    import pandas as pd

    rows = [row for arm in run.arms for row in run_history(run, arm)]
    for name, own in tables.items():
        reference = own.get("oracle_matched")
        oracle_rate = (
            None if reference is None or reference.rates == (UNTRAINED,) else reference.best_rate(core)
        )
        for arm in arms:
            rows += curve_rows(arm, own[arm.name], core, oracle_rate, run.config.attack.utility, name)
    write_table(pd.DataFrame(rows), run.folder / "curves.parquet")
    attacks = [_line(target, key) for target, key in keys]
    write_manifest(run.folder, {**run.manifest, "attacks": attacks})
    _extend_ledger(run, keys, arms)


def _line(target: "Target", key: str) -> Row:
    """An attack in ``run.json``; relearning is named by leaving the name out, as in older runs."""
    line: Row = {
        "arm": target.arm.name,
        "learning_rate": target.learning_rate,
        "attack_seed": target.attack_seed,
        "key": key,
    }
    return line if target.attack == "relearn" else {**line, "attack": target.attack}


def run_history(run: Run, arm: Arm) -> list[Row]:
    """An arm's training history as rows of ``curves.parquet``."""
    extra = {"attack": "", "kind": "training", "learning_rate": None, "attack_seed": None}
    return [{**arm.columns(), **extra, **row} for row in run.entry(arm).rows]


def _extend_ledger(run: Run, keys: Sequence[tuple["Target", str]], arms: Sequence[Arm]) -> None:
    ledger = [line for line in read_json(run.folder / "ledger.json") if line["stage"] != "relearned"]
    for arm in arms:
        entries = [run.store.entry(key) for target, key in keys if target.arm.name == arm.name]
        total = sum((entry.ledger for entry in entries[1:]), entries[0].ledger)
        stops = sorted({entry.stopped for entry in entries})
        columns = {**arm.columns(), "stage": "relearned"}
        columns = {name: columns[name] for name in ("stage", "method", "alpha", "variant")}
        ledger.append(
            {
                "arm": f"attack on {arm.name}",
                "label": f"{len(entries)} attacks on {arm.label}",
                **columns,
                **total.to_dict(),
                "stopped": "; ".join(stops),
            }
        )
    write_json(run.folder / "ledger.json", ledger)
