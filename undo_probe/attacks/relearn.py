"""Relearning and the attacks beside it: what is trained on some forgotten families is asked about others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe import losses, ranks
from undo_probe.attacks.envelope import AttackTable, common_edges, halves
from undo_probe.attacks.few_shot import Asking
from undo_probe.attacks.recipes import Recipe, Recipes, recipes
from undo_probe.attacks.record import UNTRAINED, curve_rows, record
from undo_probe.config import AttackConfig, FitConfig, RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import row_scores
from undo_probe.files import FolderLock
from undo_probe.jobs import Job, OnEvent, default_workers, run_jobs, values_of
from undo_probe.models import HookedTransformer, clone, to_device
from undo_probe.randomness import derive_seed, deterministic
from undo_probe.records import Arm, Curve
from undo_probe.store import Run, Store
from undo_probe.tasks import Task, TokenSet, asked_task, build_task
from undo_probe.training import Context, Fit, Row, Watch, fit, resolve_device, step_cost

VERSION, RECOVERY_VERSION = 3, 2
EVALUATED = {"forget": "forget_V", "retain": "retain_test"}
Score = Callable[[HookedTransformer, TokenSet], np.ndarray]


@dataclass(frozen=True)
class Target:
    """One attack to run: arm, rate (:data:`UNTRAINED` where nothing is trained), attack seed, and which attack."""

    arm: Arm
    key: str
    learning_rate: float
    attack_seed: int
    attack: str = "relearn"


def attack_once(
    model: HookedTransformer,
    task: Task,
    config: AttackConfig,
    rate: float,
    context: Context,
    recipe: Recipe | None = None,
    score: Score | None = None,
    sides: Sequence[str] = tuple(EVALUATED),
) -> tuple[Fit, dict[str, np.ndarray]]:
    """Attacks a float32 copy at one rate, with constant schedule and AdamW (arXiv 2506.06278).

    Args:
        model: untouched.
        task: V and held-out retain rows are evaluated.
        config: steps, batch size, evaluation steps.
        rate: of the training; without meaning for a recipe that trains nothing.
        context: its seed draws batches, and whatever else the recipe draws.
        recipe: relearning on T if none is given.
        score: of each row; by the task's metric if none is given.
        sides: which of ``forget`` and ``retain`` are evaluated.

    Returns:
        The fit, and for ``forget`` (V) and ``retain`` the score of each row at each evaluation step, shape
        (step, row), bool where rows are right or wrong. A diverged attack keeps its last evaluation for the steps
        it did not reach.
    """
    ranks.refuse("an attack", "attack without accelerate launch")
    recipe = recipe or Recipe()
    score = score or (lambda student, rows: row_scores(student, rows, task.metric))
    seen: dict[str, dict[int, np.ndarray]] = {side: {} for side in sides}

    def measure(student: HookedTransformer, step: int, asking: Asking | None = None) -> list[Row]:
        for side in sides:
            if step not in seen[side]:
                rows = task.rows(EVALUATED[side])
                asked = [rows] if asking is None else asking(task, rows, context.seed)
                seen[side][step] = _mean_scores(student, asked, score)
        return []

    copy = to_device(clone(model).float(), context.device)
    if recipe.change is not None or not recipe.trained:
        with deterministic(context.threads):
            measure(copy, 0)  # before anything is done to it: what the utility limit is a share of
            if recipe.change is not None:
                recipe.change(copy, context.seed)
    if recipe.trained:
        done = _trained(copy, task, config, rate, context, recipe, measure)
    else:
        with deterministic(context.threads):
            measure(copy, 1, recipe.asking)
        done = Fit(copy, stopped=recipe.done)
    return done, {side: _filled(found, recipe.steps(config)) for side, found in seen.items()}


def _mean_scores(model: HookedTransformer, asked: list[TokenSet], score: Score) -> np.ndarray:
    """The score of each row, averaged over the ways in which it is asked."""
    length = max(rows.tokens.shape[1] for rows in asked)
    if length > model.cfg.n_ctx:
        raise UndoProbeError(
            f"a question with its solved questions has {length} tokens, but the model reads {model.cfg.n_ctx}: train "
            "it with a larger task.shots, or give a smaller attack.recovery.shots"
        )
    scores = [score(model, rows) for rows in asked]
    return scores[0] if len(scores) == 1 else np.mean(scores, axis=0)


def _trained(
    copy: HookedTransformer,
    task: Task,
    config: AttackConfig,
    rate: float,
    context: Context,
    recipe: Recipe,
    measure: Callable[[HookedTransformer, int], list[Row]],
) -> Fit:
    settings = FitConfig(
        steps=config.steps, batch_size=config.batch_size, learning_rate=rate, warmup=0, schedule="constant"
    )
    batches, adapt = recipe.draw(task, context.seed), recipe.adapt

    def loss(student: torch.nn.Module, step: int) -> Tensor:
        batch = batches(settings.batch_size, step).without_filling()
        tokens, mask = batch.tokens.to(context.device), batch.answer_mask.to(context.device)
        return losses.next_token(student(tokens[:, :-1], return_type="logits"), tokens, mask)

    # priced as whole rows: how much of them is filling differs from batch to batch
    cost = step_cost(copy, settings.batch_size, task.n_ctx, passes=3, labelled=recipe.labelled)
    return fit(
        copy,
        settings,
        loss,
        # short: it starts again after a kill rather than keeping state
        replace(context, folder=None, precision="no"),
        watch=Watch(measure, set(config.eval_steps).__contains__),
        cost=cost,
        trainable=recipe.trainable,
        adapt=None if adapt is None else lambda student: adapt(student, context.seed),
    )


def _filled(found: dict[int, np.ndarray], steps: Sequence[int]) -> np.ndarray:
    rows = []
    for step in steps:
        reached = max(s for s in found if s <= step)
        rows.append(found[reached])
    return np.stack(rows)


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
            grown = {name: _extended(rates[name], tables[name], config, core) for name in planned}
            if grown == rates:
                break
            rates = grown
        keys = [(target, _key(run, target)) for target in targets]
        record(run, keys, attacked_arms(run), tables, core)
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


def relearn(
    model: HookedTransformer,
    task: Task,
    config: AttackConfig | None = None,
    *,
    seed: int = 0,
    attack: str = "relearn",
) -> Curve:
    """One attack on one model: every rate and seed of ``config``, as a curve.

    Args:
        model: untouched; each attack changes a copy.
        task: T is trained on, V and held-out retain rows are evaluated.
        config: rates, steps and evaluation steps; the defaults are the ``tiny`` preset's.
        seed: seed of the attack's batches.
        attack: ``relearn``, or an attack that ``config.also`` asks for, for example ``lora-4``.

    Returns:
        A curve whose rows are those of ``curves.parquet``: kinds ``rate``, ``oracle_rate`` and
        ``cumulative_max``, or ``single`` for an attack that trains nothing.

    Raises:
        UndoProbeError: ``config.also`` asks for no such attack.
    """
    config = config or AttackConfig()
    planned = recipes(config, model.cfg.n_layers)
    if attack not in planned:
        raise UndoProbeError(
            f"there is no attack {attack!r} here: config.also is {list(config.also)}, which gives {', '.join(planned)}"
        )
    recipe = planned[attack]
    table = attack_table(model, task, config, seed, recipe)
    core = core_rows(task)
    oracle_rate = table.best_rate(core) if recipe.trained else None
    rows = curve_rows(Arm("relearned"), table, core, oracle_rate, config.utility, attack)
    stopped = f"{config.steps} steps at {len(table.rates)} rates" if recipe.trained else "nothing was trained"
    return Curve(tuple(rows), stopped=stopped)


def attack_table(
    model: HookedTransformer,
    task: Task,
    config: AttackConfig,
    seed: int,
    recipe: Recipe | None = None,
    score: Score | None = None,
    sides: Sequence[str] = tuple(EVALUATED),
) -> AttackTable:
    """One model attacked at every rate and with every seed of ``config``; arguments as of :func:`attack_once`.

    With ``sides`` that lack ``retain`` the table has no such rows: no utility limit can be set.
    """
    recipe = recipe or Recipe()
    rates = tuple(config.learning_rates) if recipe.trained else (UNTRAINED,)
    contexts = [
        Context(derive_seed(seed, "attack", number))
        for number in range(config.seeds if recipe.trained else 1)
    ]
    found = [
        [attack_once(model, task, config, rate, context, recipe, score, sides)[1] for context in contexts]
        for rate in rates
    ]
    seen = {side: np.stack([[each[side] for each in of_rate] for of_rate in found]) for side in sides}
    forget = seen["forget"]
    kept = seen.get("retain", forget[..., :0])
    families = task.rows(EVALUATED["forget"]).families
    return AttackTable(rates, recipe.steps(config), forget, kept, families, halves(families, seed))


def bracketed_attack_table(
    model: HookedTransformer, task: Task, config: AttackConfig, seed: int, **how: Any
) -> AttackTable:
    """:func:`attack_table`, whose rates grow by factors of 3 while the best one lies at their edge, and not by chance.

    At most ``config.max_extensions`` times on either side, as :func:`attack` does for all arms of a run.
    """
    core = core_rows(task)
    table = attack_table(model, task, config, seed, **how)
    while (rates := _extended(list(table.rates), {"": table}, config, core)) != list(table.rates):
        new = tuple(rate for rate in rates if rate not in table.rates)
        further = attack_table(model, task, config.model_copy(update={"learning_rates": new}), seed, **how)
        table = _joined(table, further)
    return table


def _joined(one: AttackTable, other: AttackTable) -> AttackTable:
    """The rates of both, in order; steps, seeds and rows are the same."""
    rates = (*one.rates, *other.rates)
    order = np.argsort(rates)
    return replace(
        one,
        rates=tuple(rates[at] for at in order),
        forget=np.concatenate([one.forget, other.forget])[order],
        retain=np.concatenate([one.retain, other.retain])[order],
    )
