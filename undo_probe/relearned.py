"""What relearning says of every model: scores by step, log steps to a threshold, robustness, recovered gap."""

from collections.abc import Sequence

import numpy as np

from undo_probe import intervals
from undo_probe.attacks.envelope import AttackTable
from undo_probe.attacks.one_model import core_rows
from undo_probe.measures import ItemScores
from undo_probe.records import Arm, Reading
from undo_probe.store import Run

ANCHOR_0, ANCHOR_1, FLOOR = "oracle_matched", "original", "random"
NO_ORACLE = "no oracle"
"""The gate of a normalised reading in a run without a model that was trained on all but the forgotten."""
WHY_NONE = (
    "the original was loaded (original.source), so there is no model that learned all but the forgotten"
)


def attack_items(run: Run, tables: dict[str, AttackTable], name: str) -> list[ItemScores]:
    """Relearned accuracy by step and its area, a value a row of V: what intervals and survival are made of."""
    if name not in tables:
        return []
    core = core_rows(run.task)
    families = tables[name].families[core]
    reached = tables[name].cumulative_max(core)[:, core]
    steps = tables[name].steps
    items = [
        ItemScores("relearned", "forget", f"step {step}", None, "share", values, families)
        for step, values in zip(steps, reached, strict=True)
    ]
    if len(steps) > 1:
        area = np.array([intervals.area_under_log_steps(steps, curve) for curve in reached.T])
        items.append(ItemScores("relearn_area", "forget", "V", None, "share", area, families))
    limited = tables[name].cumulative_max(core, run.config.attack.utility)[-1, core]
    note = f"retain accuracy at least {run.config.attack.utility:g} of before"
    return [
        *items,
        ItemScores(
            "relearned_utility", "forget", f"step {max(steps)}", None, "share", limited, families, note=note
        ),
    ]


def attack_statistics(run: Run, tables: dict[str, AttackTable], seed: int) -> list[Reading]:
    """Robustness between teacher and matched oracle, and the log steps to theta, for every attacked arm.

    Without a matched oracle theta starts at the attacked untrained model, and there is no robustness.
    """
    floor = ANCHOR_0 if ANCHOR_0 in tables else FLOOR
    if not {floor, ANCHOR_1} <= set(tables):
        return []
    core = core_rows(run.task)
    curves = {name: table.cumulative_max(core)[:, core] for name, table in tables.items()}
    families = tables[floor].families[core]
    teacher = curves.get(Arm("unlearned", run.config.teacher).name)
    low, high = curves[floor][-1].mean(), curves[ANCHOR_1][-1].mean()
    theta = float(low + 0.25 * (high - low))
    readings = []
    for arm in run.arms:
        if arm.name not in curves:
            continue
        readings.append(_log_steps(arm, curves[arm.name], tables[arm.name].steps, families, theta, seed))
        if floor != ANCHOR_0:
            lacking = Reading(
                arm, "robustness", "forget", "V", unit="share of the gap", gate=NO_ORACLE, note=WHY_NONE
            )
            readings.append(lacking)
        elif teacher is not None:
            # of relearned accuracy at the last step
            ends = (teacher[-1], "teacher"), (curves[floor][-1], "oracle")
            readings.append(
                _share_of_gap((arm, "robustness", "V"), curves[arm.name][-1], ends, families, seed)
            )
    return readings


def recovered_gaps(run: Run, tables: dict[str, AttackTable], seed: int) -> list[Reading]:
    """After the attack, (model - teacher) / (original - teacher) of forget scores, the two ends before any attack.

    0 is what unlearning left, 1 is what the original knew; unclipped. The untrained model has a line too: that much
    comes of the attack's own teaching.
    """
    teacher = Arm("unlearned", run.config.teacher).name
    if not {teacher, ANCHOR_1} <= set(tables):
        return []
    core = core_rows(run.task)
    before = {name: tables[name].forget[0, :, 0][:, core].mean(axis=0) for name in (teacher, ANCHOR_1)}
    readings = []
    for arm in run.arms:
        if arm.name not in tables:
            continue
        table = tables[arm.name]
        families, reached = table.families[core], table.cumulative_max(core)[-1, core]
        named = arm, "recovered_gap", f"step {table.steps[-1]}"
        ends = (before[teacher], "teacher"), (before[ANCHOR_1], "original")
        readings.append(_share_of_gap(named, reached, ends, families, seed))
    return readings


def _log_steps(
    arm: Arm, curve: np.ndarray, steps: Sequence[int], families: np.ndarray, theta: float, seed: int
) -> Reading:
    """Restricted mean of log2(1 + steps) to theta, with a bootstrap over families."""
    names, member = np.unique(families, return_inverse=True)
    sums = np.stack([np.bincount(member, weights=row, minlength=len(names)) for row in curve])
    counts = np.bincount(member, minlength=len(names))
    draw = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=999)
    drawn = (draw @ sums.T) / (draw @ counts)[:, None]
    found = intervals.restricted_mean(steps, curve.mean(axis=1), theta, steps[-1])
    spread = intervals.restricted_mean(steps, drawn, theta, steps[-1])
    low, high = np.quantile(spread.per_curve, (0.025, 0.975))
    note = f"to {theta:.3f}" + (f"; not reached in {steps[-1]} steps (censored)" if found.censored[0] else "")
    note += f"; {np.mean(spread.censored):.0%} of resamples censored; percentile bootstrap"
    return Reading(
        arm, "relearn_log_steps", "forget", "V", None, found.value, float(low), float(high), curve.shape[1],
        len(names), "log2(1 + steps)", note=note,
    )  # fmt: skip


def _share_of_gap(
    named: tuple[Arm, str, str],
    reached: np.ndarray,
    ends: tuple[tuple[np.ndarray, str], tuple[np.ndarray, str]],
    families: np.ndarray,
    seed: int,
) -> Reading:
    """Where scores a row lie between two ends, (value - first) / (second - first), unclipped; null where both are near.

    ``named`` are arm, measure and subset; each end has its scores and what it is called.
    """
    (zero, low_name), (one, high_name) = ends
    found = intervals.survival(reached, zero, one, families, draws=0, seed=seed)
    apart = f"{low_name} and {high_name} are {found.gap_in_se:.1f} standard errors apart"
    arm, measure, subset = named
    return Reading(
        arm, measure, "forget", subset, None, finite(found.value), finite(found.low), finite(found.high),
        len(reached), found.n_clusters or 0, "share of the gap", gate=found.gate,
        note="" if found.gate == "ok" else apart,
    )  # fmt: skip


def finite(value: float | None) -> float | None:
    """The number, or None for what JSON cannot hold."""
    return None if value is None or not np.isfinite(value) else float(value)
