"""The scorecard: every measure on every arm, with intervals, controls and survival between the anchors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from undo_probe import intervals
from undo_probe.attacks.arms import attack_tables
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import recovered
from undo_probe.files import FolderLock, write_json
from undo_probe.jobs import Job, OnEvent, default_workers, run_jobs, values_of
from undo_probe.measures import ItemScores, Statistic, battery
from undo_probe.measures.also import measure_also
from undo_probe.measures.battery import Measured
from undo_probe.parquet import write_table
from undo_probe.randomness import derive_seed
from undo_probe.records import Arm, Reading, Scorecard, reading_table
from undo_probe.recoveries import MEASURE, intrinsic_readings, recovery_items, recovery_tables
from undo_probe.relearned import (
    ANCHOR_0,
    ANCHOR_1,
    NO_ORACLE,
    WHY_NONE,
    attack_items,
    attack_statistics,
    finite,
    recovered_gaps,
)
from undo_probe.store import Run, write_manifest

# forgotten knowledge, normalised between the anchors and given a bootstrap interval
NORMALISED = (
    "accuracy", "relearned", "relearn_area", "probe_accuracy", "probe_bits", "lens_log_probability",
    "transfer_accuracy",
)  # fmt: skip
ATTACKED_ONLY = "run `undo-probe attack` to add the attack's readings"


def score(
    run: Run,
    *,
    workers: int | None = None,
    progress: OnEvent | None = None,
    backend: str = "loky",
    also: Sequence[str] | None = None,
) -> Scorecard:
    """Measures every arm of a run, normalises, and writes ``readings.parquet`` and ``scorecard.json``.

    What was measured before is taken from the store. A run that was attacked gets the attack's readings too; measures
    of ``also`` are made in place of the configuration's ``score.also``. A run whose original was loaded has no oracle:
    survival is then null with its reason, and ``recovered_gap`` says which share of what unlearning took away an
    attacked model has.

    Raises:
        UndoProbeError: the run has no original, or no matched oracle where it should have one, or ``also`` an
            unknown name.
    """
    names = {arm.name for arm in run.arms}
    if ANCHOR_1 not in names or (ANCHOR_0 not in names and not run.config.original.source):
        raise UndoProbeError(f"{run.folder} has no {ANCHOR_0} or no {ANCHOR_1}: run the pipeline first")
    with FolderLock(run.folder):
        run = Run(run.folder)  # the manifest may have grown since the caller opened it
        workers = workers or default_workers()
        wanted = run.config.score.also if also is None else also
        more, more_keys = measure_also(run, wanted, workers, progress, backend)
        keys = _measure(run, workers, progress, backend)
        tables, others = attack_tables(run), recovery_tables(run)
        measured = {
            name: [
                *battery.unpack(run.store, key),
                *more[name],
                *attack_items(run, tables, name),
                *recovery_items(run, others, name),
            ]
            for name, key in keys.items()
        }
        seed = derive_seed(run.config.seed, "intervals")
        readings = [
            reading
            for arm in run.arms
            for reading in arm_readings(
                arm,
                measured[arm.name],
                measured.get(ANCHOR_0),
                measured[ANCHOR_1],
                run.config.score.draws,
                seed,
            )
        ]
        readings += attack_statistics(run, tables, seed) + intrinsic_readings(run, tables, others, seed)
        if ANCHOR_0 not in names:
            readings += recovered_gaps(run, tables, seed)
        readings += _compute_shares(run)
        layer = run.store.entry(keys[ANCHOR_1]).extra["inner_layer"]
        headline = _headlines(run, measured, layer, seed)
        verdict = {
            "inner_layer": layer,
            "headline": headline,
            "attacked": bool(tables),
            "note": "" if tables else ATTACKED_ONLY,
        }
        card = Scorecard(tuple(readings), verdict)
        write_table(reading_table(readings), run.folder / "readings.parquet")
        write_json(run.folder / "scorecard.json", card.to_dict())
        write_manifest(run.folder, {**run.manifest, "measured": sorted([*keys.values(), *more_keys])})
    return card


def _measure(run: Run, workers: int, progress: OnEvent | None, backend: str) -> dict[str, str]:
    """Arm name to the key of its stored measurements, made where missing."""
    what = {arm.name: battery.identity(run, arm) for arm in run.arms}
    keys = {name: run.store.key(identity) for name, identity in what.items()}
    split, folder = run.manifest["split_seed"], str(run.store.folder)
    missing = [arm for arm in run.arms if keys[arm.name] not in run.store]
    # the original also chooses the probed layer, RMU's direction has many controls: start them first
    missing.sort(key=lambda arm: arm.name != ANCHOR_1 and arm.method != "rmu")
    jobs = [
        Job(f"measure {arm.name}", battery.job, (arm, what[arm.name], run.config, split, folder))
        for arm in missing
    ]
    if progress is not None:
        for job in jobs:
            progress(job.name, 0, None, {"cost": 1.0})
    values_of(run_jobs(jobs, workers, backend, on_event=progress, threads=run.config.threads))
    return keys


def _place(item: Measured) -> tuple[str, str, str, str | None]:
    return item.measure, item.task_split, item.subset, item.layer


def arm_readings(
    arm: Arm,
    found: Sequence[Measured],
    anchor_0: Sequence[Measured] | None,
    anchor_1: Sequence[Measured],
    draws: int,
    seed: int,
) -> list[Reading]:
    """Readings of one arm, with survival where the measure is about forgotten knowledge.

    Args:
        arm: whose.
        found: its measured values.
        anchor_0: those of the model that should read 0 (the matched oracle), on the same rows; None without one.
        anchor_1: those of the original.
        draws: bootstrap draws.
        seed: of the draws.
    """
    zero = {_place(item): item for item in anchor_0 or () if isinstance(item, ItemScores)}
    one = {_place(item): item for item in anchor_1 if isinstance(item, ItemScores)}
    readings = []
    for item in found:
        if isinstance(item, Statistic):
            readings.append(_of_statistic(arm, item))
            continue
        normalised = item.measure in NORMALISED or item.measure.startswith(MEASURE)
        reading = _of_items(arm, item, draws if normalised else 0, seed)
        place = _place(item)
        if normalised and item.task_split == "forget" and anchor_0 is None:
            note = f"{reading.note}; {WHY_NONE}" if reading.note else WHY_NONE
            reading = replace(reading, gate=NO_ORACLE, note=note)
        elif normalised and item.task_split == "forget" and place in zero and place in one:
            reading = _with_survival(reading, item, zero[place], one[place], draws, seed)
        readings.append(reading)
    return readings


def _of_statistic(arm: Arm, item: Statistic) -> Reading:
    fields = {
        name: getattr(item, name)
        for name in ("measure", "task_split", "subset", "layer", "value", "low", "high")
    }
    more = {
        name: getattr(item, name) for name in ("n", "n_clusters", "unit", "control", "control_value", "note")
    }
    return Reading(arm, **fields, **more)


def _of_items(arm: Arm, item: ItemScores, draws: int, seed: int) -> Reading:
    share = item.unit == "share"
    if share and bool(np.isin(item.values, (0.0, 1.0)).all()):
        found = intervals.proportion(item.values, item.families)
    else:
        # a distance or a number of bits that is 0 in every row is no outcome that was never seen
        seen = None if share else False
        found = intervals.mean_interval(item.values, item.families, draws=draws, seed=seed, outcomes=seen)
    return Reading(
        arm,
        item.measure,
        item.task_split,
        item.subset,
        item.layer,
        found.value,
        finite(found.low),
        finite(found.high),
        found.n,
        found.n_clusters,
        item.unit,
        item.control,
        item.control_value,
        note=item.note,
    )


def _with_survival(
    reading: Reading, item: ItemScores, zero: ItemScores, one: ItemScores, draws: int, seed: int
) -> Reading:
    found = intervals.survival(item.values, zero.values, one.values, item.families, draws=draws, seed=seed)
    return replace(
        reading,
        survival=finite(found.value),
        survival_low=finite(found.low),
        survival_high=finite(found.high),
        gate=found.gate,
    )


def _compute_shares(run: Run) -> list[Reading]:
    """FLOPs from the original to each student over those of the oracle when it first met the same stop rule."""
    lines = {line["name"]: line for line in run.manifest["arms"]}
    teacher = Arm("unlearned", run.config.teacher).name
    base, note = _oracle_flops(run, teacher) if "oracle" in lines else (None, WHY_NONE)
    readings = []
    for arm in run.arms:
        if arm.stage not in ("unlearned", "noised", "distilled"):
            continue
        chain, waiting = set(), [arm.name]
        while waiting:
            name = waiting.pop()
            if name in chain or not lines[name]["parents"]:
                continue
            chain.add(name)
            waiting += lines[name]["parents"]
        flops = sum(run.store.entry(lines[name]["key"]).ledger.flops for name in chain)
        readings.append(
            Reading(
                arm, "compute_share", "forget", "all", None, None if base is None else flops / base, n=1,
                unit="share of data filtering", note=note,
            )
        )  # fmt: skip
    return readings


def _oracle_flops(run: Run, teacher: str) -> tuple[float, str]:
    """FLOPs at which the oracle first met the students' stop rule, or all of its FLOPs if it never did."""
    goal = _retain_by_step(run, teacher)
    wanted, tolerance = goal[max(goal)], run.config.distill.tolerance
    oracle = _retain_by_step(run, "oracle")
    entry = run.store.entry(run.keys["oracle"])
    per_step = entry.ledger.flops / max(1, entry.ledger.steps)
    for step in sorted(oracle):
        if step and recovered(oracle[step], wanted, tolerance, run.task.metric):
            return per_step * step, f"the oracle met the stop rule at step {step}"
    return entry.ledger.flops, f"the oracle did not meet the stop rule in {entry.ledger.steps} steps"


def _retain_by_step(run: Run, name: str) -> dict[int, float]:
    rows = [row for row in run.store.entry(run.keys[name]).rows if row["task_split"] == "retain"]
    return {
        step: float(np.mean([r["value"] for r in rows if r["step"] == step]))
        for step in {r["step"] for r in rows}
    }


def _headlines(run: Run, measured: dict[str, list[Measured]], layer: str, seed: int) -> dict[str, Any]:
    """1 - simultaneous upper bound of survival over the headline measures, for every arm that has them all.

    A clean model does not get 1: with few families the bound itself is wide. So it stands beside the same
    figure of the oracle and of the original. A task without probe targets has no probes among them.
    """
    last = f"step {max(run.config.attack.eval_steps)}"
    places = [
        ("accuracy", "V", None),
        ("relearned", last, None),
        *(("probe_bits", target, layer) for target in run.task.probe_targets[:1]),
    ]
    found = {}
    for arm in run.arms if ANCHOR_0 in measured else ():
        columns = _columns(measured, arm.name, places)
        if columns is not None:
            found[arm.name] = _headline(*columns, seed, run.config.score.draws)
    return {"measures": [list(place) for place in places], "arms": found}


def _columns(
    measured: dict[str, list[Measured]], name: str, places: Sequence[tuple[str, str, str | None]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Family means of (stage - anchor 0) and (original - anchor 0) on shared families, or None."""
    tops, bottoms, shared = [], [], None
    for measure, subset, layer in places:
        trio = []
        for owner in (name, ANCHOR_0, ANCHOR_1):
            item = next(
                (
                    i
                    for i in measured[owner]
                    if isinstance(i, ItemScores) and _place(i) == (measure, "forget", subset, layer)
                ),
                None,
            )
            if item is None:
                return None
            trio.append(_family_means(item))
        families = set(trio[0])
        shared = families if shared is None else shared & families
        tops.append({family: trio[0][family] - trio[1][family] for family in families})
        bottoms.append({family: trio[2][family] - trio[1][family] for family in families})
    order = sorted(shared or ())
    stacked = [
        np.array([[column[family] for column in columns] for family in order]) for columns in (tops, bottoms)
    ]
    return stacked[0], stacked[1], np.array(order)


def _family_means(item: ItemScores) -> dict[str, float]:
    names, member = np.unique(item.families, return_inverse=True)
    sums = np.bincount(member, weights=item.values)
    return dict(zip((str(name) for name in names), sums / np.bincount(member), strict=True))


def _headline(
    tops: np.ndarray, bottoms: np.ndarray, families: np.ndarray, seed: int, draws: int
) -> dict[str, Any]:
    if (bottoms.mean(axis=0) <= 0).any():
        return {"erased_at_least": None, "note": "no range: the original is not above the matched oracle"}
    bound = intervals.max_t_upper(tops, bottoms, families, draws=draws, seed=seed)
    return {
        "erased_at_least": finite(1 - bound.highest),
        "survival": [finite(value) for value in bound.values],
        "upper": [finite(value) for value in bound.uppers],
        "n_clusters": bound.n_clusters,
    }
