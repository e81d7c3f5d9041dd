"""The pipeline: ORIGINAL -> UNLEARNED -> NOISED -> DISTILLED, with both oracles beside it.

``run_undo`` reads like the paper's first figure: plan.py lists every model of a run, in order, with its parents;
each is computed once and kept in the stage store before anything that needs it starts.
"""

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undo_probe import ranks
from undo_probe.config import DistillConfig, FitConfig, ModelConfig, NoiseRule, RunConfig, UnlearnConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import FolderLock, digest, read_json, write_json
from undo_probe.jobs import Job, default_workers, values_of
from undo_probe.models import HookedTransformer
from undo_probe.plan import QUICK, UNTIL, Step, places_of, plan
from undo_probe.presets import differences, load_config
from undo_probe.randomness import derive_seed
from undo_probe.sources import check_places, described, find_source
from undo_probe.stages import StageResult, unlearn
from undo_probe.stages import distill as distilling
from undo_probe.stages import noise as noising
from undo_probe.stages import pretrain as pretraining
from undo_probe.store import Run, Store, environment, read_manifest, write_manifest
from undo_probe.tasks import Task, asked_task, build_task
from undo_probe.training import Context, resolve_device
from undo_probe.waves import Piece, compute

Models = list[HookedTransformer]
Progress = Callable[[str, int, int | None, dict[str, float]], None]


def _fresh(settings: dict[str, Any], parents: Models, task: Task, context: Context) -> StageResult:
    shape = parents[0] if parents else ModelConfig(**settings["model"])
    return pretraining.fresh(task, shape, context)


def _load(settings: dict[str, Any], parents: Models, task: Task, context: Context) -> StageResult:
    return pretraining.load(task, context, settings.get("given", False))


def _pretrain(settings: dict[str, Any], parents: Models, task: Task, context: Context) -> StageResult:
    shape, fit = ModelConfig(**settings["model"]), FitConfig(**settings["fit"])
    return pretraining.pretrain(task, shape, fit, settings["mixture"], context)


def _unlearn(settings: dict[str, Any], parents: Models, task: Task, context: Context) -> StageResult:
    section = type(getattr(UnlearnConfig(), settings["method"]))
    return unlearn.METHODS[settings["method"]](parents[0], task, section(**settings["fit"]), context)


def _noise(settings: dict[str, Any], parents: Models, task: Task, context: Context) -> StageResult:
    before = parents[1] if len(parents) > 1 else None
    return noising.noise(parents[0], NoiseRule(**settings["rule"]), settings["alpha"], context.seed, before)


def _distill(settings: dict[str, Any], parents: Models, task: Task, context: Context) -> StageResult:
    return distilling.distill(parents[0], parents[1], task, DistillConfig(**settings["fit"]), context)


Runner = Callable[[dict[str, Any], Models, Task, Context], StageResult]
# kind -> (function, version): raise the version when a stage's numbers change
KINDS: dict[str, tuple[Runner, int]] = {
    "fresh": (_fresh, pretraining.VERSION),
    "load": (_load, pretraining.LOAD_VERSION),
    "pretrain": (_pretrain, pretraining.VERSION),
    "unlearn": (_unlearn, unlearn.VERSION),
    "noise": (_noise, noising.VERSION),
    "distill": (_distill, distilling.VERSION),
}


def length_of(settings: dict[str, Any], likened: int) -> dict[str, Any]:
    """The settings with a number of steps that follows from another student's, and no stop rule.

    ``times`` is a multiple of its steps; ``power`` p means steps to the power p, evenly spaced in log steps.
    """
    asked = settings["length"]
    steps = asked["times"] * likened if "times" in asked else likened ** asked["power"]
    fit = settings["fit"]
    horizon = fit["horizon"] or fit["steps"]  # the rate at a step is the same as in the sweep
    return {"fit": {**fit, "steps": round(steps), "horizon": horizon, "stop": "never"}}


def stage_identity(step: Step, parent_keys: list[str], fingerprint: str) -> dict[str, Any]:
    """What a stage's store key is the hash of."""
    return {
        "kind": step.kind,
        "version": KINDS[step.kind][1],
        "settings": step.settings,
        "seed": step.seed,
        "parents": parent_keys,
        "task": fingerprint,
    }


def run_stage(
    step: Step, what: dict[str, Any], config: RunConfig, store_folder: str, report: Any = None
) -> str:
    """Computes one stage and stores it; called in worker processes. Returns the key."""
    store = Store(store_folder)

    def make() -> dict[str, Any]:
        parents = [store.model(parent) for parent in what["parents"]]
        task = build_task(asked_task(config), split_seed(config))
        folder = None if step.kind in QUICK else store.work(store.key(what))
        where = {"report": report, "source": places_of(config).get(step.arm.name, ("", ""))}
        device = resolve_device(config.device)
        context = Context(step.seed, device, config.precision, config.threads, folder, store.shared, **where)
        settings = {name: value for name, value in step.settings.items() if name != "precision"}
        if "length" in settings:
            settings = length_of(settings, store.entry(what["parents"][-1]).ledger.steps)
        result = KINDS[step.kind][0](settings, parents, task, context)
        if report is not None:
            report(1, 1)
        return vars(result)

    return store.once(what, make)


def split_seed(config: RunConfig) -> int:
    """The seed that divides families between splits."""
    return derive_seed(config.seed, "split")


@dataclass(frozen=True)
class Recipe:
    """What a run is to make, before anything is computed: all its steps, and the hashed part of their keys."""

    config: RunConfig
    task: Task
    every: list[Step]
    wanted: list[Step]
    what: dict[str, dict[str, Any]]

    def pieces(self, store: Store, name: str = "") -> list[Piece]:
        """The wanted steps as jobs, whose names end in ``name``."""
        return [
            Piece(
                Store.key(self.what[step.arm.name]),
                tuple(self.what[step.arm.name]["parents"]),
                Job(f"{step.arm.name}{name}", run_stage, self._call(step, store)),
                _expected_cost(step),
                quick=step.kind in QUICK,
            )
            for step in self.wanted
        ]

    def _call(self, step: Step, store: Store) -> tuple[Any, ...]:
        return step, self.what[step.arm.name], self.config, str(store.folder)


def recipe(config: RunConfig, until: str = "distilled") -> Recipe:
    """The recipe of a configuration, up to a stage.

    Raises:
        UndoProbeError: there is no such stage, or the task cannot be built.
    """
    if until not in UNTIL:
        raise UndoProbeError(f"until is {until!r}: expected one of {', '.join(UNTIL)}")
    if config.original.source and not config.given.unlearned:
        check_places(config, described(find_source(config.original.source, config.original.revision)))
    task = build_task(asked_task(config), split_seed(config))
    every = plan(config)
    wanted = [step for step in every if UNTIL.index(step.until) <= UNTIL.index(until)]
    return Recipe(config, task, every, wanted, _keys(every, task))


def run_undo(
    config: RunConfig,
    folder: str | Path,
    *,
    until: str = "distilled",
    workers: int | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
    backend: str = "loky",
) -> Run:
    """Makes every model of a run; what is already in the store is loaded, what was cut short continues.

    Args:
        config: what the run is.
        folder: the run folder; made if missing. One process works in it at a time.
        until: last stage to make: original, unlearned, noised or distilled.
        workers: processes; results do not depend on it. One a core by default. Processes of ``accelerate
            launch`` train every stage together instead, and have no workers.
        store: the stage store; ``folder/store`` by default. Runs may share one.
        progress: called as ``progress(name, step, total, numbers)``.
        backend: where the processes are: loky (this machine), ray or dask.

    Raises:
        UndoProbeError: the folder holds a run of another configuration or is in use, an input is wrong, a
            stored checkpoint is damaged.
    """
    todo = recipe(config, until)
    folder = Path(folder)
    kept = Store(folder / "store" if store is None else store)
    if ranks.size() > 1:
        return _run_together(todo, folder, kept, workers or 1, progress)
    with FolderLock(folder):
        begin_run(folder, config)
        found = compute(
            [todo.pieces(kept)],
            kept,
            workers or default_workers(),
            backend=backend,
            threads=config.threads,
            progress=progress,
        )
        values_of(list(found.values()))
        record_run(folder, todo, kept)
    return Run(folder)


def _run_together(todo: Recipe, folder: Path, store: Store, workers: int, progress: Progress | None) -> Run:
    """The run in all processes of ``accelerate launch``: one stage after the other, each trained by all of them.

    The first process alone claims the folder and writes. An error ends the process that met it, and with it the
    launcher ends the others.
    """
    if workers > 1:
        ranks.refuse(f"a pool of {workers} workers", "leave workers at 1, or start without accelerate launch")
    ranks.join(resolve_device(todo.config.device))
    with FolderLock(folder) if ranks.is_main() else nullcontext():
        if ranks.is_main():
            begin_run(folder, todo.config)
            for piece in todo.pieces(store):
                if piece.key in store:
                    store.verify(piece.key)
        for step in todo.wanted:  # parents come before children

            def report(
                done: int, total: int | None = None, name: str = step.arm.name, **numbers: float
            ) -> None:
                if progress is not None:
                    progress(name, done, total, numbers)

            run_stage(step, todo.what[step.arm.name], todo.config, str(store.folder), report)
        if ranks.is_main():
            record_run(folder, todo, store)
        ranks.agree(None)  # nobody opens the run before it is recorded
    return Run(folder)


def begin_run(folder: Path, config: RunConfig) -> None:
    """Claims a run folder for a configuration; one that holds a run of another is refused."""
    _check_folder(folder, config)
    write_json(folder / "config.json", config.model_dump(mode="json"))


def record_run(folder: Path, made: Recipe, store: Store) -> None:
    """Writes the manifest and the ledger of a run whose models are in the store."""
    # an earlier call may have gone further than this one: what it made stays in the run
    before = _unchanged(_manifest(folder), made.what, store)
    steps = [step for step in made.every if step in made.wanted or step.arm.name in before]
    _write_manifest(folder, made.config, steps, made.what, store, made.task)


def load_run(folder: str | Path) -> Run:
    """Opens a run folder; see :class:`undo_probe.store.Run`."""
    return Run(folder)


def _check_folder(folder: Path, config: RunConfig) -> None:
    if not (folder / "config.json").is_file():
        return
    changed = differences(load_config(folder / "config.json"), config)
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UndoProbeError(
            f"{folder} holds a run of another configuration: {'; '.join(changed[:3])}{more}. "
            "Choose another folder, or give the settings that this one was made with."
        )


def _keys(steps: list[Step], task: Task) -> dict[str, dict[str, Any]]:
    """Arm name to what its key is the hash of, in order."""
    what: dict[str, dict[str, Any]] = {}
    for step in steps:
        parents = [Store.key(what[parent]) for parent in step.parents]
        what[step.arm.name] = stage_identity(step, parents, task.fingerprint)
    return what


def _expected_cost(step: Step) -> float:
    """Steps times batch; a distillation is thought to run longer the more its student has lost."""
    if step.kind in QUICK:
        return 1.0
    fit = step.settings["fit"]
    lost = 1.0 if step.arm.alpha is None or step.kind != "distill" else step.arm.alpha**2
    return fit["steps"] * fit["batch_size"] * lost


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder) if (folder / "run.json").is_file() else {}


def _unchanged(manifest: dict[str, Any], what: dict[str, Any], store: Store) -> set[str]:
    """Names of a manifest's arms that would get the same key today and are in the store."""
    key = {name: Store.key(identity) for name, identity in what.items()}
    return {
        arm["name"]
        for arm in manifest.get("arms", [])
        if key.get(arm["name"]) == arm["key"] and arm["key"] in store
    }


def _write_manifest(
    folder: Path, config: RunConfig, steps: list[Step], what: dict[str, Any], store: Store, task: Task
) -> None:
    """``run.json``: arms with their keys and hashes, versions, task counts; kept parts of older manifests stay."""
    old = _manifest(folder)
    same = _unchanged(old, what, store)
    arms = []
    for step in steps:
        key = Store.key(what[step.arm.name])
        entry = store.entry(key)
        arm = replace(step.arm, checkpoint=entry.model or "")
        arms.append(
            {
                **arm.columns(),
                "name": arm.name,
                "label": arm.label,
                "key": key,
                "parents": list(step.parents),
                "stopped": entry.stopped,
                "steps": entry.ledger.steps,
            }
        )
    manifest = {
        "format": 1,
        "name": config.name,
        "seed": config.seed,
        "config": digest(read_json(folder / "config.json")),
        "split_seed": split_seed(config),
        "store": os.path.relpath(store.folder, folder),
        "device": resolve_device(config.device),
        "threads": config.threads,
        "versions": environment(),
        "git": _git_state(),
        "task": {
            "fingerprint": task.fingerprint,
            "chance": task.chance(),
            "counts": _counts(task),
            "words": replace(task.words, given=bool(config.given.unlearned)).to_dict(),
        },
        "arms": arms,
        "attacks": [a for a in old.get("attacks", []) if a["arm"] in same and a["key"] in store],
        "measured": old.get("measured", []),
    }
    write_manifest(folder, manifest)
    ledger = [
        {"arm": arm["name"], "label": arm["label"], **_arm_columns(arm), **_ledger(store, arm["key"])}
        for arm in arms
    ]
    write_json(folder / "ledger.json", ledger)


def _arm_columns(arm: dict[str, Any]) -> dict[str, Any]:
    return {name: arm[name] for name in ("stage", "method", "alpha", "variant")}


def _ledger(store: Store, key: str) -> dict[str, Any]:
    entry = store.entry(key)
    return {**entry.ledger.to_dict(), "stopped": entry.stopped}


def _counts(task: Task) -> dict[str, dict[str, int]]:
    from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS

    sets = {name: task.rows(name) for name in (*FORGET_SPLITS, *RETAIN_SPLITS)}
    return {name: {"rows": len(part), "families": len(set(part.families))} for name, part in sets.items()}


def _git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout this package lies in, or None."""
    import subprocess

    def git(*words: str) -> str:
        here = Path(__file__).parent
        done = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
