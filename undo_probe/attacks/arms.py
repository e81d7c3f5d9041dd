"""Every arm of a run attacked: by relearning and the attacks beside it, at one grid for all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from undo_probe.attacks.envelope import AttackTable, extended, halves
from undo_probe.attacks.one_model import EVALUATED, attack_once, core_rows
from undo_probe.attacks.recipes import Recipes, recipes
from undo_probe.attacks.record import UNTRAINED, record
from undo_probe.config import RunConfig
from undo_probe.files import FolderLock
from undo_probe.jobs import Job, OnEvent, default_workers, run_jobs, values_of
from undo_probe.randomness import derive_seed
from undo_probe.records import Arm
from undo_probe.store import Run, Store
from undo_probe.tasks import asked_task, build_task
from undo_probe.training import Context, resolve_device

VERSION, RECOVERY_VERSION = 3, 2


@dataclass(frozen=True)
class Target:
    """One attack to run: arm, rate (:data:`UNTRAINED` where nothing is trained), attack seed, and which attack."""

    arm: Arm
    key: str
    learning_rate: float
    attack_seed: int
    attack: str = "relearn"


def attack_identity(
    target: Target, config: RunConfig, fingerprint: str, n_layers: int | None = None
) -> dict[str, Any]:
    """What an attack's store key is the hash of; the grid it belongs to is not part of it.

    ``n_layers`` are the model's, where they are not those of the section ``model``.
    """
    section = config.attack
    settings = {
        "steps": section.steps,
        "batch_size": section.batch_size,
        "eval_steps": list(section.eval_steps),
        "learning_rate": target.learning_rate,
    }
    what = {
        "kind": "relearn",
        "version": VERSION,
        "settings": settings,
        "seed": derive_seed(config.seed, "attack", target.attack_seed),
        "parents": [target.key],
        "task": fingerprint,
    }
    if target.attack == "relearn":  # as it was before there were others, so that what is stored stays valid
        return what
    recipe = recipes(config.attack, n_layers or config.model.n_layers)[target.attack]
    own = {"attack": target.attack, **recipe.settings, **(settings if recipe.trained else {})}
    return {**what, "kind": "recovery", "version": RECOVERY_VERSION, "settings": own}


def run_attack(
    target: Target, what: dict[str, Any], config: RunConfig, split_seed: int, folder: str, report: Any = None
) -> str:
    """Runs one attack and stores it; called in worker processes. Returns the key."""
    store = Store(folder)

    def make() -> dict[str, Any]:
        task = build_task(asked_task(config), split_seed)
        context = Context(what["seed"], resolve_device(config.device), threads=config.threads, report=report)
        model = store.model(target.key)
        recipe = recipes(config.attack, model.cfg.n_layers)[target.attack]
        done, correct = attack_once(model, task, config.attack, target.learning_rate, context, recipe)
        if report is not None:
            report(1, 1)
        tensors = {side: torch.from_numpy(found) for side, found in correct.items()}
        return {"tensors": tensors, "ledger": done.ledger, "stopped": done.stopped}

    return store.once(what, make)


def recipes_of(run: Run) -> Recipes:
    """The recipes of a run's attacks, by name."""
    return recipes(run.config.attack, run.n_layers)


def attacked_arms(run: Run) -> list[Arm]:
    """The arms that are attacked: all, but noised ones only where the configuration says so."""
    return [arm for arm in run.arms if arm.stage != "noised" or run.config.attack.noised]


def attack(
    run: Run, *, workers: int | None = None, progress: OnEvent | None = None, backend: str = "loky"
) -> Run:
    """Attacks every arm of a run at every rate and attack seed, with the same batches.

    While some arm's best rate lies at the edge of an attack's grid, the grid grows by a factor of 3 on that side,
    for all arms. Writes ``curves.parquet`` and the attacks' keys into the run folder; what is in the store is not
    run again. Returns the run, opened anew.
    """
    config, planned = run.config.attack, recipes_of(run)
    for recipe in planned.values():
        recipe.draw(run.task, 0)  # refuses a dose that T does not have before hours are spent
    rates = {
        name: sorted(config.learning_rates) if recipe.trained else [UNTRAINED]
        for name, recipe in planned.items()
    }
    with FolderLock(run.folder):
        run = Run(run.folder)  # the manifest may have grown since the caller opened it
        core = core_rows(run.task)
        while True:  # a grid grows at most max_extensions times on either side
            targets = [target for name in planned for target in _targets(run, name, rates[name])]
            _compute(run, targets, workers or default_workers(), progress, backend)
            tables = {name: attack_tables(run, targets, name) for name in planned}
            grown = {name: extended(rates[name], tables[name].values(), config, core) for name in planned}
            if grown == rates:
                break
            rates = grown
        keys = [(target, _key(run, target)) for target in targets]
        record(run, keys, attacked_arms(run), tables, core)
    return Run(run.folder)


def _targets(run: Run, name: str, rates: Sequence[float]) -> list[Target]:
    # what draws nothing is the same with every seed
    drawn = recipes_of(run)[name].trained
    seeds = range(run.config.attack.seeds if drawn else 1)
    return [
        Target(arm, run.keys[arm.name], rate, seed, name)
        for arm in attacked_arms(run)
        for rate in rates
        for seed in seeds
    ]


def _compute(run: Run, targets: list[Target], workers: int, progress: OnEvent | None, backend: str) -> None:
    folder, split = str(run.store.folder), run.manifest["split_seed"]
    jobs = []
    for target in targets:
        what = attack_identity(target, run.config, run.task.fingerprint, run.n_layers)
        if Store.key(what) not in run.store:
            which = "attack" if target.attack == "relearn" else f"attack {target.attack} on"
            name = f"{which} {target.arm.name} at {target.learning_rate:g}, seed {target.attack_seed}"
            jobs.append(Job(name, run_attack, (target, what, run.config, split, folder)))
    if progress is not None:
        for job in jobs:
            progress(job.name, 0, None, {"cost": 1.0})
    values_of(run_jobs(jobs, workers, backend, on_event=progress, threads=run.config.threads))


def attack_tables(
    run: Run, targets: Sequence[Target] | None = None, attack: str = "relearn"
) -> dict[str, AttackTable]:
    """Arm name to all runs of one attack, read from the store (of a run that was attacked, by its manifest)."""
    if targets is None:
        targets = _recorded(run)
    targets = [target for target in targets if target.attack == attack]
    if not targets:
        return {}
    families = run.task.rows(EVALUATED["forget"]).families
    half = halves(families, run.manifest["split_seed"])
    steps = recipes_of(run)[attack].steps(run.config.attack)
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
        tables[name] = AttackTable(rates, steps, forget, retain, families, half)
    return tables


def recorded_attacks(run: Run) -> list[str]:
    """Names of the attacks that were run, in the order of the configuration."""
    return list(dict.fromkeys(target.attack for target in _recorded(run)))


def _recorded(run: Run) -> list[Target]:
    by_name = {arm.name: arm for arm in run.arms}
    return [
        Target(
            by_name[a["arm"]],
            run.keys[a["arm"]],
            a["learning_rate"],
            a["attack_seed"],
            a.get("attack", "relearn"),
        )
        for a in run.manifest["attacks"]
    ]


def _key(run: Run, target: Target) -> str:
    return Store.key(attack_identity(target, run.config, run.task.fingerprint, run.n_layers))
