"""What the attacks beside relearning brought back, and how little training was enough."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from undo_probe.attacks.arms import attack_tables, recorded_attacks
from undo_probe.attacks.envelope import AttackTable
from undo_probe.attacks.one_model import EVALUATED, core_rows
from undo_probe.attacks.recipes import CONTROL
from undo_probe.attacks.record import UNTRAINED
from undo_probe.measures import ItemScores
from undo_probe.records import Arm, Reading
from undo_probe.store import Run

MEASURE = "after_"
"""Before the name of an attack: its measure, ``after_mixed``, ``after_lora-4``."""
Tables = Mapping[str, Mapping[str, AttackTable]]
SMALLEST = {
    "lora": ("intrinsic_rank", "rank of the adapters"),
    "subspace": ("intrinsic_dimension", "trained numbers"),
}
_DRAWS = 999


def recovery_tables(run: Run) -> dict[str, dict[str, AttackTable]]:
    """Attack name to arm name to its table, of every attack on the run but relearning."""
    return {name: attack_tables(run, attack=name) for name in recorded_attacks(run) if name != "relearn"}


def recovery_items(run: Run, tables: Tables, name: str) -> list[ItemScores]:
    """What each attack leaves one arm with at its end, a value a row.

    For a trained attack: the most that any rate and step reached, chosen on the other half of V, without and
    with the utility limit. Where nothing is trained: what the model answers then, forget and retain; and over all
    numbers of solved questions together, the number chosen on the other half.
    """
    core, utility = core_rows(run.task), run.config.attack.utility
    found: list[ItemScores] = []
    for attack, own in tables.items():
        if name not in own:
            continue
        table, measure = own[name], MEASURE + attack
        families = table.families[core]
        if table.rates == (UNTRAINED,):
            kept = run.task.rows(EVALUATED["retain"]).families
            after, retain = (rows[0, 0, -1].astype(float) for rows in (table.forget, table.retain))
            control = _random_answers(tables, attack, name, core)
            found += [
                ItemScores(measure, "forget", "V", None, "share", after[core], families, *control),
                ItemScores(measure, "retain", "all", None, "share", retain, kept),
            ]
            continue
        last, note = f"step {table.steps[-1]}", f"retain accuracy at least {utility:g} of before"
        most, careful = (table.cumulative_max(core, limit)[-1, core] for limit in (None, utility))
        found += [
            ItemScores(measure, "forget", last, None, "share", most, families),
            ItemScores(
                measure, "forget", f"{last}, retain kept", None, "share", careful, families, note=note
            ),
        ]
    return [*found, *any_number(tables, name, core)]


def _random_answers(tables: Tables, attack: str, name: str, core: np.ndarray) -> tuple[str, float | None]:
    """The control of a few-shot attack: what the same questions bring back when solved at random."""
    kind, _, shots = attack.rpartition("-")
    table = tables.get(f"{CONTROL}-{shots}", {}).get(name) if kind == "few_shot" else None
    if table is None:
        return "", None
    return "the same questions with random answers", float(table.forget[0, 0, -1, core].mean())


def any_number(tables: Tables, name: str, core: np.ndarray) -> list[ItemScores]:
    """What the few-shot attack and its control reach with the number of solved questions that serves them best.

    The number (or none) is chosen on one half of V and read on the other.
    """
    found = []
    for kind in ("few_shot", CONTROL):
        own = [of[name] for attack, of in tables.items() if attack.startswith(f"{kind}-") and name in of]
        if own:
            forget, retain = (
                np.concatenate([getattr(table, side) for table in own]) for side in ("forget", "retain")
            )
            numbers = tuple(float(number) for number in range(len(own)))
            together = replace(own[0], rates=numbers, forget=forget, retain=retain)
            most = together.cumulative_max(core)[-1, core]
            families = together.families[core]
            found.append(ItemScores(MEASURE + kind, "forget", "V", None, "share", most, families))
    return found


def intrinsic_readings(
    run: Run, relearned: Mapping[str, AttackTable], tables: Tables, seed: int
) -> list[Reading]:
    """The smallest rank and dimension, and the block, that bring back a share of the original's accuracy on V.

    Args:
        run: its configuration says which share (``attack.recovery.threshold``).
        relearned: arm name to its relearning table, for accuracies before any attack.
        tables: those of :func:`recovery_tables`.
        seed: of the bootstrap over families.
    """
    if "original" not in relearned:
        return []
    core = core_rows(run.task)
    families = relearned["original"].families[core]
    before = {name: table.forget[0, 0, 0, core].astype(float) for name, table in relearned.items()}
    share, readings = run.config.attack.recovery.threshold, []
    for arm in (arm for arm in run.arms if arm.name in before):
        for kind, (measure, unit) in SMALLEST.items():
            sizes, reached = _reached(tables, kind, arm.name, core)
            if not sizes:
                continue
            # without any training is the size 0
            sizes, reached = [0, *sizes], np.stack([before[arm.name], *reached])
            found = smallest_enough(sizes, reached, before["original"], share, families, seed)
            readings.append(_smallest(arm, measure, unit, found, sizes, families, share))
        sizes, reached = _reached(tables, "block", arm.name, core)
        if sizes:
            readings.append(_block(arm, sizes, np.stack(reached), before["original"], families, share))
    return readings


def _reached(tables: Tables, kind: str, name: str, core: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Sizes, rising, and what the attack of each size reached on every row that counts."""
    own = {
        int(attack.removeprefix(f"{kind}-")): found[name]
        for attack, found in tables.items()
        if attack.startswith(f"{kind}-") and name in found
    }
    sizes = sorted(own)
    return sizes, [own[size].cumulative_max(core)[-1, core] for size in sizes]


def smallest_enough(
    sizes: Sequence[int],
    reached: Float[np.ndarray, "size row"],
    original: Float[np.ndarray, " row"],
    share: float,
    families: np.ndarray,
    seed: int,
) -> tuple[float, float, float]:
    """The first size whose accuracy is at least ``share`` of the original's, with a percentile interval.

    Families are drawn again for sizes and original together. Infinity stands for "no size tried".
    """
    names, member = np.unique(families, return_inverse=True)
    sums = np.stack([np.bincount(member, weights=row, minlength=len(names)) for row in reached])
    goal = share * np.bincount(member, weights=original, minlength=len(names))
    draw = np.random.default_rng(seed)
    weight = draw.multinomial(len(names), np.full(len(names), 1 / len(names)), size=_DRAWS)
    # the first line is what was observed; a hair of tolerance, for both sides are sums of floats
    weight = np.concatenate([np.ones((1, len(names))), weight])
    enough = weight @ sums.T >= (weight @ goal)[:, None] - 1e-9
    first = np.where(enough.any(axis=1), np.asarray(sizes, dtype=float)[enough.argmax(axis=1)], np.inf)
    # by rank: np.quantile would subtract infinities
    ordered, tail = np.sort(first[1:]), int(0.025 * _DRAWS)
    return float(first[0]), float(ordered[tail]), float(ordered[-1 - tail])


def _smallest(
    arm: Arm,
    measure: str,
    unit: str,
    found: tuple[float, float, float],
    sizes: Sequence[int],
    families: np.ndarray,
    share: float,
) -> Reading:
    value, low, high = (None if np.isinf(number) else number for number in found)
    note = f"for {share:g} of the original's accuracy on V; tried: {', '.join(map(str, sizes[1:]))}"
    note += "; none was enough" if value is None else ""
    note += "; the upper limit lies beyond them" if value is not None and high is None else ""
    return Reading(
        arm, measure, "forget", "V", None, value, low, high, len(families), len(np.unique(families)), unit, note=note
    )  # fmt: skip


def _block(
    arm: Arm,
    blocks: Sequence[int],
    reached: np.ndarray,
    original: np.ndarray,
    families: np.ndarray,
    share: float,
) -> Reading:
    """The block that alone brings back most, where that is enough; no interval, for blocks have no order."""
    accuracies, goal = reached.mean(axis=1), share * float(original.mean())
    best = int(accuracies.argmax())
    enough = [str(block) for block, value in zip(blocks, accuracies, strict=True) if value >= goal]
    note = f"for {share:g} of the original's accuracy on V; enough alone: {', '.join(enough) or 'none'}"
    return Reading(
        arm, "intrinsic_block", "forget", "V", None, float(blocks[best]) if enough else None, None, None,
        len(families), len(np.unique(families)), "block", note=note,
    )  # fmt: skip
