"""The maps from a model's states to the original's, fitted on retain questions, and how far they can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from undo_probe.activations import harvest_points
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.capability import core
from undo_probe.measures.folds import INNER_PARTS, deal_families, sample_families
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.stitch import Stitch, fit_stitch
from undo_probe.tasks.protocol import Task, TokenSet

MAX_STATES = 12_000
"""Retain states that a map is fitted on, at most."""


@dataclass(frozen=True, eq=False)
class Stitched:
    """A map for every block's output, and the readings that say how good they are."""

    maps: dict[str, Stitch]
    checks: list[ItemScores | Statistic]


def block_outputs(model: HookedTransformer) -> list[str]:
    """Hook names of the residual stream after each block; the last is before the final norm."""
    return [f"blocks.{block}.hook_resid_post" for block in range(model.cfg.n_layers)]


def answer_positions(rows: TokenSet) -> list[int]:
    """Positions that predict a token of some row's answer."""
    return torch.nonzero(rows.answer_mask[:, 1:].any(0)).flatten().tolist()


def asked_rows(task: Task, split: str) -> TokenSet:
    """What the two models are compared on: V without what can be guessed, or held-out retain rows."""
    if split == "retain":
        return task.rows("retain_test")
    rows = task.rows("forget_V")
    return rows.select(core(rows))


def fit_stitches(
    model: HookedTransformer, original: HookedTransformer, task: Task, seed: int = 0
) -> Stitched:
    """Maps from ``model`` to ``original`` at every block's output, over all positions that predict an answer token.

    Args:
        model: whose states are mapped.
        original: whose basis they are mapped to.
        task: the maps are fitted on training retain rows and checked on held-out ones.
        seed: of the choice of rows and of the families that choose the penalty.

    Returns:
        The maps, and for every layer ``stitch_explained``, the share of the original's variance that the map
        explains on held-out retain states and on forget states, and ``stitch_outside``, the share of the forget
        states' variance outside the span that the map was fitted on (control: held-out retain states).
    """
    rows = fit_rows(task, seed)
    sets = {"fit": rows, "retain": asked_rows(task, "retain"), "forget": asked_rows(task, "forget")}
    ours = {name: answer_states(model, part) for name, part in sets.items()}
    theirs = {name: answer_states(original, part) for name, part in sets.items()}
    families = {name: answer_families(part) for name, part in sets.items()}
    part = deal_families(families["fit"], INNER_PARTS, derive_seed(seed, "stitch penalty"))
    maps, checks = {}, []
    for hook in block_outputs(original):
        maps[hook] = fit_stitch(ours["fit"][hook], theirs["fit"][hook], torch.from_numpy(part == 0))
        x, y = ({name: states[hook] for name, states in side.items()} for side in (ours, theirs))
        checks += _checks(maps[hook], x, y, families, hook)
    return Stitched(maps, checks)


def fit_rows(task: Task, seed: int) -> TokenSet:
    """The training retain rows that maps are fitted on: whole families, about :data:`MAX_STATES` answer tokens."""
    rows = task.rows("retain_train")
    wanted = max(1, MAX_STATES // max(1, int(rows.answer_mask[:, 1:].sum()) // len(rows)))
    if len(rows) <= wanted:
        return rows
    return rows.select(sample_families(rows.families, wanted, derive_seed(seed, "stitch rows")))


def answer_states(
    model: HookedTransformer, rows: TokenSet, hooks: Sequence[str] | None = None
) -> dict[str, Float[Tensor, "state d_model"]]:
    """The residual stream where a token of the answer is predicted, row by row; every block's output by default."""
    positions = answer_positions(rows)
    kept = rows.answer_mask[:, 1:][:, positions]
    found = harvest_points(model, rows.tokens, hooks or block_outputs(model), positions)
    return {hook: states[kept] for hook, states in found.items()}


def answer_families(rows: TokenSet) -> Shaped[np.ndarray, " state"]:
    """The family of each state of :func:`answer_states`."""
    return np.repeat(rows.families, rows.answer_mask[:, 1:].sum(1).numpy())


def _checks(
    stitch: Stitch, x: dict[str, Tensor], y: dict[str, Tensor], families: dict[str, np.ndarray], hook: str
) -> list[ItemScores | Statistic]:
    held = stitch.explained(x["retain"], y["retain"])
    note = f"fitted on {stitch.n} retain states, penalty {stitch.penalty:g}"

    def explained(
        split: str, subset: str, value: float, control: str, control_value: float | None
    ) -> Statistic:
        n, clusters = len(x[split]), len(np.unique(families[split]))
        named = ("stitch_explained", split, subset, hook, "share of variance")
        return Statistic(*named, value, None, None, n, clusters, control, control_value, note)

    beside = "held-out retain states"
    outside = stitch.outside(x["forget"]).numpy()
    floor = float(stitch.outside(x["retain"]).mean())
    named = ("stitch_outside", "forget", "V", hook, "share of variance")
    return [
        explained("retain", "held out", held, "", None),
        explained("forget", "V", stitch.explained(x["forget"], y["forget"]), beside, held),
        ItemScores(*named, outside, families["forget"], beside, floor),
    ]
