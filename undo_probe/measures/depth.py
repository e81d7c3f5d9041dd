"""Unlearning depth: from which block on a model's states no longer carry the answer for the original to read.

The Unlearning Depth Score of Lee, Kim and Jo (arXiv 2605.24614), between the original and the matched oracle. It
also sees a change of basis that loses nothing: a depth is evidence only by its excess over the twin's. The stitched
form first maps states to the original's basis, and can be trusted where an original of another seed comes out near 0.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.patching import Adapt, Place, patched_bits, places, plain_bits
from undo_probe.measures.stitches import answer_positions, asked_rows, block_outputs
from undo_probe.models import HookedTransformer
from undo_probe.stitch import Stitch
from undo_probe.subspace import Subspace
from undo_probe.tasks.protocol import Task, TokenSet

TAU = 0.05 / np.log(2)
"""Blocks at which the oracle's states cost a question less are left out of its score: the paper's 0.05 nats."""

Drops = Float[np.ndarray, "block row"]


def depth_measures(
    model: HookedTransformer,
    original: HookedTransformer,
    gold: HookedTransformer,
    task: Task,
    stitches: tuple[Mapping[str, Stitch], Mapping[str, Stitch]] | None = None,
    junk: Subspace | None = None,
) -> list[ItemScores | Statistic]:
    """Depth of one model, by block and over blocks, with what each block's states cost and could return.

    Args:
        model: whose states are patched in.
        original: what they are patched into; of its states the depth is 0.
        gold: a model that never knew (the matched oracle); of its states the depth is 1.
        task: gives V and held-out retain rows.
        stitches: maps to the original's basis, of the model and of ``gold``.
        junk: a direction to take out of the model's states from its block on.

    Returns:
        ``depth`` a row of V, ``raw``, ``stitched`` and ``junk removed`` (control: the original's own states with
        that direction removed), each over all blocks, without the last, and of one block; ``patch_drop``, bits a
        token that the original loses with the model's states after a block (forget and retain), and
        ``patch_gain``, bits a token that the model gains with the original's.
    """
    rows, retain = asked_rows(task, "forget"), asked_rows(task, "retain")
    hooks = block_outputs(original)
    blocks = places(original, "resid_post", answer_positions(rows), together=True)
    kept = places(original, "resid_post", answer_positions(retain), together=True)
    kinds: dict[str, tuple[Adapt, Adapt]] = {"raw": ({}, {})}
    if stitches is not None:
        kinds["stitched"] = (dict(stitches[0]), dict(stitches[1]))
    found: list[ItemScores | Statistic] = []
    for kind, (ours, theirs) in kinds.items():
        drop = drops(original, model, rows, blocks, ours)
        floor = drops(original, gold, rows, blocks, theirs)
        found += _depths(kind, drop, floor, rows, hooks)
        found += _by_block("patch_drop", "forget", kind, drop, rows, hooks)
        found += _by_block(
            "patch_drop", "retain", kind, drops(original, model, retain, kept, ours), retain, hooks
        )
    found += _by_block("patch_gain", "forget", "raw", -drops(model, original, rows, blocks), rows, hooks)
    if junk is not None:
        floor = drops(original, gold, rows, blocks)
        found += _without_junk(model, original, rows, blocks, floor, junk)
    return found


def drops(
    into: HookedTransformer,
    source: HookedTransformer,
    rows: TokenSet,
    blocks: list[Place],
    adapt: Adapt | None = None,
) -> Drops:
    """Bits a token that each answer loses when ``into`` runs with ``source``'s states after a block."""
    return plain_bits(into, rows) - patched_bits(into, source, rows, blocks, adapt)


def depth_of(drop: Drops, floor: Drops, tau: float = TAU) -> tuple[Float[np.ndarray, " kept"], np.ndarray]:
    """The depth score of each question, and which questions have one.

    ``sum_l clip(drop, 0, floor) / sum_l floor`` over the blocks where the oracle's drop ``floor`` exceeds ``tau``,
    which is the floor-weighted mean of ``clip(drop / floor, 0, 1)``.

    Returns:
        Scores in [0, 1], and a bool for each question: whether any block counts.
    """
    counts = np.where(floor > tau, floor, 0.0)
    weight = counts.sum(0)
    usable = weight > 0
    reached = np.clip(drop, 0.0, counts).sum(0)
    return reached[usable] / weight[usable], usable


def _depths(
    kind: str, drop: Drops, floor: Drops, rows: TokenSet, hooks: list[str], control: Drops | None = None
) -> list[ItemScores | Statistic]:
    """Over all blocks, without the last (whose depth is behaviour itself), and of every block."""
    parts: list[tuple[str, str | None, slice]] = [("all blocks", None, slice(None))]
    if len(hooks) > 1:
        parts.append(("without the last", None, slice(0, -1)))
    parts += [("one block", hook, slice(block, block + 1)) for block, hook in enumerate(hooks)]
    found: list[ItemScores | Statistic] = []
    for part, layer, chosen in parts:
        values, usable = depth_of(drop[chosen], floor[chosen])
        named = ("depth", "forget", f"{kind}, {part}", layer, "share of the oracle's drop")
        if not usable.any():
            note = "the oracle's states cost no question more than 0.05 nats here"
            found.append(Statistic(*named, None, None, None, 0, 0, note=note))
            continue
        beside = ("", None)
        if control is not None:
            level = float(depth_of(control[chosen], floor[chosen])[0].mean())
            beside = ("the original's states, junk direction removed", level)
        note = f"{int(usable.sum())} of {len(rows)} questions have a block that counts"
        found.append(ItemScores(*named, values, rows.families[usable], *beside, note))
    return found


def _by_block(
    measure: str, split: str, kind: str, drop: Drops, rows: TokenSet, hooks: list[str]
) -> list[ItemScores]:
    return [
        ItemScores(measure, split, kind, hook, "bits a token", drop[block], rows.families)
        for block, hook in enumerate(hooks)
    ]


def _without_junk(
    model: HookedTransformer,
    original: HookedTransformer,
    rows: TokenSet,
    blocks: list[Place],
    floor: Drops,
    junk: Subspace,
) -> list[ItemScores | Statistic]:
    """Depth with the junk component of the states set to the original's mean, from the junk's own block on."""
    hooks = [place.hook for place in blocks]
    first = hooks.index(junk.hook)

    def cleaned(states: Tensor) -> Tensor:
        return junk.remove(states, to_mean=junk.mean is not None)

    adapt = {hook: cleaned for hook in hooks[first:]}
    drop = drops(original, model, rows, blocks, adapt)
    own = drops(original, original, rows, blocks, adapt)
    return _depths("junk removed", drop, floor, rows, hooks, own)
