"""The attacks by name: what each changes about fine-tuning every weight on T.

An entry of :data:`ATTACKS` gives one recipe for each number that the configuration asks it to try. A recipe that
trains goes through :func:`undo_probe.training.fit` like relearning does; the others change the weights once, or only
what stands before a question.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe import lora as adapters
from undo_probe.attacks.few_shot import Answers, Asking, asking
from undo_probe.config import AttackConfig, RecoveryConfig
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, as_matrix, block_matrices, from_matrix
from undo_probe.perturb import prune, quantise, shrink_and_perturb
from undo_probe.randomness import derive_seed
from undo_probe.tasks import Batch, Task, TokenSet
from undo_probe.tasks.pool import Pool

CONTROL = "few_shot_random"
"""Name of the few-shot attack's control, in place of ``few_shot``."""
Batches = Callable[[int, int], Batch]
"""The batch of so many rows at a step."""


def of_mixture(mixture: str) -> Callable[[Task, int], Batches]:
    """Batches of one of the task's mixtures."""
    return lambda task, seed: lambda size, step: task.batch(mixture, size, seed, step)


@dataclass(frozen=True)
class Recipe:
    """One attack; the defaults are relearning.

    ``settings`` is what its store key holds besides what relearning's does. ``change`` is done to the attacker's copy
    before training, or instead of it where ``trained`` is False; like ``draw`` and ``adapt`` it depends on the
    attack's seed and not on the attacked model. ``labelled`` is the share of forget rows in a batch. ``asking`` is how
    the model is asked afterwards, where that is the attack; ``done`` says what was done where nothing is trained.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[Task, int], Batches] = of_mixture("attack")
    labelled: float = 1.0
    change: Callable[[HookedTransformer, int], None] | None = None
    adapt: Callable[[HookedTransformer, int], AbstractContextManager[None]] | None = None
    trainable: Callable[[str], bool] | None = None
    trained: bool = True
    asking: Asking | None = None
    done: str = "the weights were changed once"

    def steps(self, config: AttackConfig) -> tuple[int, ...]:
        """When the attacked model is evaluated: before, and after what is done to it or along training."""
        return config.eval_steps if self.trained else (0, 1)


Recipes = dict[str, Recipe]


def relearning(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Every weight, on rows of T alone."""
    return {"relearn": Recipe()}


def mixed(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Forget and retain rows together: the attacker who keeps the model useful (arXiv 2506.06278, "all data")."""
    # operations are drawn evenly, and as many are forgotten as kept
    recipe = Recipe({"mixture": "attack_mixed"}, of_mixture("attack_mixed"), labelled=0.5)
    return {"mixed": recipe}


def retain_only(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Retain rows alone: what benign fine-tuning brings back by itself."""
    return {"retain_only": Recipe({"mixture": "retain"}, of_mixture("retain"), labelled=0.0)}


def noised(config: RecoveryConfig, n_layers: int) -> Recipes:
    """The attacker shrinks and perturbs before relearning, to leave the minimum that unlearning found."""

    def change(model: HookedTransformer, seed: int) -> None:
        own = {name: p.detach() for name, p in model.named_parameters()}
        seed = derive_seed(seed, "the attacker's noise")
        _write(model, shrink_and_perturb(own, config.alpha, config.beta, seed))

    return {"noised": Recipe({"alpha": config.alpha, "beta": config.beta}, change=change)}


def dose(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Relearning on a few families of T: how much the attacker must know to get the rest."""
    return {f"dose-{k}": Recipe({"families": k}, _few(k)) for k in config.doses}


def lora(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Relearning through low-rank adapters."""

    def recipe(rank: int) -> Recipe:
        return Recipe({"rank": rank}, adapt=lambda model, seed: adapters.low_rank(model, rank, seed))

    return {f"lora-{rank}": recipe(rank) for rank in config.ranks}


def subspace(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Relearning inside a random subspace of all weights."""

    def recipe(size: int) -> Recipe:
        return Recipe({"dimension": size}, adapt=lambda model, seed: adapters.subspace(model, size, seed))

    return {f"subspace-{size}": recipe(size) for size in config.dimensions}


def block(config: RecoveryConfig, n_layers: int) -> Recipes:
    """Relearning in one block, all else frozen."""

    def recipe(layer: int) -> Recipe:
        return Recipe({"block": layer}, trainable=lambda name: name.startswith(f"blocks.{layer}."))

    return {f"block-{layer}": recipe(layer) for layer in range(n_layers)}


def quantised(config: RecoveryConfig, n_layers: int) -> Recipes:
    """No training: the blocks' weights rounded to few bits."""
    return {
        f"quantised-{bits}": _rule({"bits": bits}, lambda w, b=bits: quantise(w, b)) for bits in config.bits
    }


def pruned(config: RecoveryConfig, n_layers: int) -> Recipes:
    """No training: the smallest weights of each matrix of the blocks set to zero."""
    return {
        f"pruned-{share:g}": _rule({"share": share}, lambda w, s=share: prune(w, s))
        for share in config.shares
    }


def few_shot(config: RecoveryConfig, n_layers: int) -> Recipes:
    """No training: solved questions of T before each question; and as a control, solved with random answers."""

    def recipe(shots: int, answers: Answers) -> Recipe:
        settings = {"shots": shots, "draws": config.draws, "answers": answers}
        ask = asking(shots, config.draws, answers)
        return Recipe(settings, trained=False, asking=ask, done="solved questions were put before each")

    kinds: dict[str, Answers] = {"few_shot": "true", CONTROL: "random"}
    return {f"{name}-{k}": recipe(k, answers) for name, answers in kinds.items() for k in config.shots}


ATTACKS: dict[str, Callable[[RecoveryConfig, int], Recipes]] = {
    "relearn": relearning,
    "mixed": mixed,
    "retain_only": retain_only,
    "noised": noised,
    "dose": dose,
    "lora": lora,
    "subspace": subspace,
    "block": block,
    "quantised": quantised,
    "pruned": pruned,
    "few_shot": few_shot,
}


def recipes(config: AttackConfig, n_layers: int) -> Recipes:
    """Every attack that the configuration asks for, relearning first."""
    found: Recipes = {}
    for name in ("relearn", *config.also):
        found |= ATTACKS[name](config.recovery, n_layers)
    return found


def dose_rows(task: Task, families: int, seed: int) -> TokenSet:
    """Rows of T's first families in an order drawn from the seed: a larger dose holds every smaller one.

    Families that can be guessed come last, or the smallest dose would be one question with a factor of 1.

    Raises:
        UndoProbeError: T has fewer families.
    """
    rows = task.rows("forget_T")
    names, first = np.unique(rows.families, return_index=True)
    if families > len(names):
        raise UndoProbeError(
            f"attack.recovery.doses asks for {families} families, but T has {len(names)}: give smaller doses, or a "
            "larger task"
        )
    order = np.random.default_rng(derive_seed(seed, "families of a dose")).permutation(len(names))
    guessed = (rows.labels["subset"].to_numpy() == "trivial")[first][order]
    chosen = names[np.concatenate([order[~guessed], order[guessed]])][:families]
    return rows.select(np.isin(rows.families, chosen))


def _few(families: int) -> Callable[[Task, int], Batches]:
    """Batches of one dose: operations evenly, then rows, as the task's own mixtures are drawn."""

    def draw(task: Task, seed: int) -> Batches:
        rows = dose_rows(task, families, seed)
        operations, packed = list(dict.fromkeys(rows.operations)), task.n_ctx // rows.tokens.shape[1]
        pool = Pool([rows], [rows.operations], operations, packed=packed)
        return lambda size, step: pool.batch(size, seed, step)

    return draw


def _rule(settings: dict[str, Any], rule: Callable[[Tensor], Tensor]) -> Recipe:
    """A recipe that sends each weight matrix of the blocks through ``rule`` and trains nothing."""

    def change(model: HookedTransformer, seed: int) -> None:
        own = {name: model.get_parameter(name).detach() for name in block_matrices(model)}
        _write(model, {name: from_matrix(name, rule(as_matrix(name, w)), w.shape) for name, w in own.items()})

    return Recipe(settings, change=change, trained=False)


def _write(model: HookedTransformer, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)
