"""Attacks on one model, without a run: at one rate, or at all rates and with all seeds of a grid."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe import losses, ranks
from undo_probe.attacks.envelope import AttackTable, extended, halves
from undo_probe.attacks.few_shot import Asking
from undo_probe.attacks.recipes import Recipe, recipes
from undo_probe.attacks.record import UNTRAINED, curve_rows
from undo_probe.config import AttackConfig, FitConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import row_scores
from undo_probe.models import HookedTransformer, clone, to_device
from undo_probe.randomness import derive_seed, deterministic
from undo_probe.records import Arm, Curve
from undo_probe.tasks import Task, TokenSet
from undo_probe.training import Context, Fit, Row, Watch, fit, step_cost

EVALUATED = {"forget": "forget_V", "retain": "retain_test"}
Score = Callable[[HookedTransformer, TokenSet], np.ndarray]


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


def core_rows(task: Task) -> np.ndarray:
    """Which rows of V count for the primary figures: all but the stratum that can be guessed."""
    return (task.rows(EVALUATED["forget"]).labels["subset"] != "trivial").to_numpy()


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
    while (rates := extended(table.rates, [table], config, core)) != list(table.rates):
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
