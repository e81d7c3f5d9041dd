"""Relearning: fine-tune on some forgotten families, ask about others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.attacks.envelope import AttackTable, common_edges, halves
from undo_probe.config import AttackConfig, FitConfig, RunConfig
from undo_probe.evaluation import answers_correct
from undo_probe.files import FolderLock, read_json, write_json
from undo_probe.jobs import Job, OnEvent, default_workers, run_jobs, values_of
from undo_probe.models import HookedTransformer, clone, flops_per_token
from undo_probe.randomness import derive_seed
from undo_probe.records import Arm, Curve
from undo_probe.store import Run, Store, write_manifest
from undo_probe.tasks import Task, build_task
from undo_probe.training import Context, Cost, Fit, Row, Watch, fit, resolve_device

VERSION = 2
EVALUATED = {"forget": "forget_V", "retain": "retain_test"}


@dataclass(frozen=True)
class Target:
    """One attack to run: arm, rate, attack seed."""

    arm: Arm
    key: str
    learning_rate: float
    attack_seed: int


def attack_once(
    model: HookedTransformer, task: Task, config: AttackConfig, rate: float, context: Context
) -> tuple[Fit, dict[str, np.ndarray]]:
    """Fine-tunes a float32 copy on T at one rate, with constant schedule and AdamW (arXiv 2506.06278).

    Returns:
        The fit, and for ``forget`` (V) and ``retain`` the correct rows at each evaluation step, bool, shape
        (step, row). A diverged attack keeps its last evaluation for the steps it did not reach.
    """
    settings = FitConfig(
        steps=config.steps, batch_size=config.batch_size, learning_rate=rate, warmup=0, schedule="constant"
    )
    seen: dict[str, dict[int, np.ndarray]] = {side: {} for side in EVALUATED}

    def loss(student: torch.nn.Module, step: int) -> Tensor:
        batch = task.batch("attack", settings.batch_size, context.seed, step)
        tokens, mask = batch.tokens.to(context.device), batch.answer_mask.to(context.device)
        return losses.next_token(student(tokens, return_type="logits"), tokens, mask)

    def measure(student: HookedTransformer, step: int) -> list[Row]:
        for side, split in EVALUATED.items():
            seen[side][step] = answers_correct(student, task.rows(split))
        return []

    tokens = settings.batch_size * task.n_ctx
    cost = Cost(3 * tokens * flops_per_token(model, task.n_ctx), tokens, tokens)
    watch = Watch(measure, set(config.eval_steps).__contains__)
    # short: it starts again after a kill rather than keeping state
    done = fit(
        clone(model).float(),
        settings,
        loss,
        replace(context, folder=None, precision="no"),
        watch=watch,
        cost=cost,
    )
    return done, {side: _filled(found, config.eval_steps) for side, found in seen.items()}


def _filled(found: dict[int, np.ndarray], steps: Sequence[int]) -> np.ndarray:
    rows = []
    for step in steps:
        reached = max(s for s in found if s <= step)
        rows.append(found[reached])
    return np.stack(rows)


def attack_identity(target: Target, config: RunConfig, fingerprint: str) -> dict[str, Any]:
    """What an attack's store key is the hash of; the grid it belongs to is not part of it."""
    section = config.attack
    settings = {
        "steps": section.steps,
        "batch_size": section.batch_size,
        "eval_steps": list(section.eval_steps),
    }
    return {
        "kind": "relearn",
        "version": VERSION,
        "settings": {**settings, "learning_rate": target.learning_rate},
        "seed": derive_seed(config.seed, "attack", target.attack_seed),
        "parents": [target.key],
        "task": fingerprint,
    }


def run_attack(
    target: Target, what: dict[str, Any], config: RunConfig, split_seed: int, folder: str, report: Any = None
) -> str:
    """Runs one attack and stores it; called in worker processes. Returns the key."""
    store = Store(folder)

    def make() -> dict[str, Any]:
        task = build_task(config.task, split_seed)
        context = Context(what["seed"], resolve_device(config.device), threads=config.threads, report=report)
        model = store.model(target.key)
        done, correct = attack_once(model, task, config.attack, target.learning_rate, context)
        if report is not None:
            report(1, 1)
        tensors = {side: torch.from_numpy(found) for side, found in correct.items()}
        return {"tensors": tensors, "ledger": done.ledger, "stopped": done.stopped}

    return store.once(what, make)


def attacked_arms(run: Run) -> list[Arm]:
    """The arms that are attacked: all, but noised ones only where the configuration says so."""
    return [arm for arm in run.arms if arm.stage != "noised" or run.config.attack.noised]


def attack(
    run: Run, *, workers: int | None = None, progress: OnEvent | None = None, backend: str = "loky"
) -> Run:
    """Attacks every arm of a run at every rate and attack seed, with the same batches.

    While some arm's best rate lies at the edge of the grid, the grid grows by a factor of 3 on that side, for
    all arms. Writes ``curves.parquet`` and the attacks' keys into the run folder; what is in the store is not
    run again. Returns the run, opened anew.
    """
    config, rates = run.config, sorted(run.config.attack.learning_rates)
    with FolderLock(run.folder):
        run = Run(run.folder)  # the manifest may have grown since the caller opened it
        while True:  # the grid grows at most max_extensions times on either side
            targets = _targets(run, rates)
            _compute(run, targets, workers or default_workers(), progress, backend)
            tables = attack_tables(run, targets)
            grown = _extended(rates, tables, config.attack, core_rows(run.task))
            if grown == rates:
                break
            rates = grown
        _record(run, targets, tables)
    return Run(run.folder)


def core_rows(task: Task) -> np.ndarray:
    """Which rows of V count for the primary figures: all but the stratum that can be guessed."""
    return (task.rows(EVALUATED["forget"]).labels["subset"] != "trivial").to_numpy()


def _extended(
    rates: list[float], tables: dict[str, AttackTable], config: AttackConfig, core: np.ndarray
) -> list[float]:
    sides = common_edges(list(tables.values()), core)
    start = sorted(config.learning_rates)
    grown = list(rates)
    if -1 in sides and sum(rate < start[0] for rate in rates) < config.max_extensions:
        grown.insert(0, float(f"{rates[0] / 3:.3g}"))
    higher = float(f"{rates[-1] * 3:.3g}")
    # a rate of 1 or more is no rate
    if 1 in sides and sum(rate > start[-1] for rate in rates) < config.max_extensions and higher < 1:
        grown.append(higher)
    return grown


def _targets(run: Run, rates: Sequence[float]) -> list[Target]:
    seeds = range(run.config.attack.seeds)
    return [
        Target(arm, run.keys[arm.name], rate, seed)
        for arm in attacked_arms(run)
        for rate in rates
        for seed in seeds
    ]


def _compute(run: Run, targets: list[Target], workers: int, progress: OnEvent | None, backend: str) -> None:
    folder, split = str(run.store.folder), run.manifest["split_seed"]
    jobs = []
    for target in targets:
        what = attack_identity(target, run.config, run.task.fingerprint)
        if Store.key(what) not in run.store:
            name = f"attack {target.arm.name} at {target.learning_rate:g}, seed {target.attack_seed}"
            jobs.append(Job(name, run_attack, (target, what, run.config, split, folder)))
    if progress is not None:
        for job in jobs:
            progress(job.name, 0, None, {"cost": 1.0})
    values_of(run_jobs(jobs, workers, backend, on_event=progress, threads=run.config.threads))


def attack_tables(run: Run, targets: Sequence[Target] | None = None) -> dict[str, AttackTable]:
    """Arm name to all its attacks, read from the store (of a run that was attacked, by its manifest)."""
    if targets is None:
        by_name = {arm.name: arm for arm in run.arms}
        targets = [
            Target(by_name[a["arm"]], run.keys[a["arm"]], a["learning_rate"], a["attack_seed"])
            for a in run.manifest["attacks"]
        ]
    families = run.task.rows(EVALUATED["forget"]).families
    half = halves(families, run.manifest["split_seed"])
    tables = {}
    for name in dict.fromkeys(target.arm.name for target in targets):
        own = [target for target in targets if target.arm.name == name]
        rates = tuple(sorted({target.learning_rate for target in own}))
        found = {(t.learning_rate, t.attack_seed): run.store.tensors(_key(run, t)) for t in own}
        seeds = sorted({seed for _, seed in found})
        forget, retain = (
            np.stack([[found[rate, seed][side].numpy() for seed in seeds] for rate in rates])
            for side in EVALUATED
        )
        tables[name] = AttackTable(rates, run.config.attack.eval_steps, forget, retain, families, half)
    return tables


def _key(run: Run, target: Target) -> str:
    return Store.key(attack_identity(target, run.config, run.task.fingerprint))


def curve_rows(
    arm: Arm, table: AttackTable, core: np.ndarray, oracle_rate: float, utility: float
) -> list[Row]:
    """The rows of ``curves.parquet`` for one arm: every rate, the oracle's rate, and both running maxima."""
    rows: list[Row] = []

    def add(kind: str, rate: float | None, seed: int | None, side: str, values: np.ndarray) -> None:
        subset = "V" if side == "forget" else "all"
        for step, value in zip(table.steps, values, strict=True):
            rows.append(
                {
                    **arm.columns(),
                    "attack": "relearn",
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

    for index, rate in enumerate(table.rates):
        for seed in range(table.forget.shape[1]):
            add("rate", rate, seed, "forget", table.forget[index, seed][:, core].astype(float))
            add("rate", rate, seed, "retain", table.retain[index, seed].astype(float))
    add("oracle_rate", oracle_rate, None, "forget", table.at_rate(oracle_rate)[:, core])
    add("oracle_rate", oracle_rate, None, "retain", table.retain_at(oracle_rate))
    add("cumulative_max", None, None, "forget", table.cumulative_max(core))
    add("cumulative_max_utility", None, None, "forget", table.cumulative_max(core, utility))
    return rows


def _record(run: Run, targets: list[Target], tables: dict[str, AttackTable]) -> None:
    """Writes ``curves.parquet``, the attacks' keys in ``run.json``, and their cost in ``ledger.json``."""
    core, utility = core_rows(run.task), run.config.attack.utility
    reference = tables.get("oracle_matched", next(iter(tables.values())))
    oracle_rate = reference.best_rate(core)
    rows = [row for arm in run.arms for row in run_history(run, arm)]
    for arm in attacked_arms(run):
        rows += curve_rows(arm, tables[arm.name], core, oracle_rate, utility)
    write_table(rows, run.folder / "curves.parquet")
    keys = [(target, _key(run, target)) for target in targets]
    attacks = [
        {"arm": t.arm.name, "learning_rate": t.learning_rate, "attack_seed": t.attack_seed, "key": key}
        for t, key in keys
    ]
    write_manifest(run.folder, {**run.manifest, "attacks": attacks})
    _extend_ledger(run, keys)


def run_history(run: Run, arm: Arm) -> list[Row]:
    """An arm's training history as rows of ``curves.parquet``."""
    extra = {"attack": "", "kind": "training", "learning_rate": None, "attack_seed": None}
    return [{**arm.columns(), **extra, **row} for row in run.entry(arm).rows]


def _extend_ledger(run: Run, keys: list[tuple[Target, str]]) -> None:
    ledger = [line for line in read_json(run.folder / "ledger.json") if line["stage"] != "relearned"]
    for arm in attacked_arms(run):
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


def write_table(rows: list[Row], path: Path) -> None:
    """Rows as a Parquet file, written atomically."""
    import pandas as pd

    from undo_probe.files import atomic_file

    with atomic_file(path) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)


def relearn(
    model: HookedTransformer, task: Task, config: AttackConfig | None = None, *, seed: int = 0
) -> Curve:
    """The attack on one model: every rate and seed of ``config``, as a curve.

    Args:
        model: untouched; each attack trains a copy.
        task: T is trained on, V and held-out retain rows are evaluated.
        config: rates, steps and evaluation steps; the defaults are the ``tiny`` preset's.
        seed: seed of the attack's batches.

    Returns:
        A curve whose rows are those of ``curves.parquet``, kinds ``rate`` and ``cumulative_max``.
    """
    config = config or AttackConfig()
    found: dict[str, list[list[np.ndarray]]] = {side: [] for side in EVALUATED}
    for rate in config.learning_rates:
        each: dict[str, list[np.ndarray]] = {side: [] for side in EVALUATED}
        for number in range(config.seeds):
            context = Context(derive_seed(seed, "attack", number))
            _, correct = attack_once(model, task, config, rate, context)
            for side in EVALUATED:
                each[side].append(correct[side])
        for side in EVALUATED:
            found[side].append(each[side])
    families = task.rows(EVALUATED["forget"]).families
    forget, retain = (np.stack(found[side]) for side in EVALUATED)
    table = AttackTable(
        tuple(config.learning_rates), config.eval_steps, forget, retain, families, halves(families, seed)
    )
    rows = curve_rows(
        Arm("relearned"), table, core_rows(task), table.best_rate(core_rows(task)), config.utility
    )
    return Curve(tuple(rows), stopped=f"{config.steps} steps at {len(config.learning_rates)} rates")
