"""Capability: what the model answers, by operation and by stratum."""

import numpy as np

from undo_probe.evaluation import answers_correct
from undo_probe.measures import ItemScores
from undo_probe.models import HookedTransformer
from undo_probe.tasks import Task, TokenSet

TRIVIAL, ALL = "trivial", "all"


def core(rows: TokenSet) -> np.ndarray:
    """Rows that count for the primary figures: all but the stratum that can be guessed, bool, shape (row,)."""
    return (rows.labels["subset"] != TRIVIAL).to_numpy()


def capability(model: HookedTransformer, task: Task) -> list[ItemScores]:
    """Exact match on forget sets T, V and W (and V by operation and stratum) and on held-out retain rows.

    ``V``, ``T``, ``W`` and the operations leave the trivial stratum out; it has a line of its own, as have
    the task's extra splits. D is where settings are chosen, so nothing is reported on it.
    """
    chance = task.chance()
    scores = []
    for split in ("forget_V", "forget_T", "forget_W", *task.extra_splits):
        rows = task.rows(split)
        correct = answers_correct(model, rows).astype(float)
        inside = core(rows)
        parts = {split.removeprefix("forget_"): inside}
        if split == "forget_V":
            operations = rows.operations
            parts |= {op: inside & (operations == op) for op in task.forget_operations}
            strata = rows.labels["subset"].to_numpy()
            parts |= {name: strata == name for name in sorted(set(strata) - {ALL})}
        scores += [
            _item("forget", name, correct, rows, keep, chance) for name, keep in parts.items() if keep.any()
        ]
    rows = task.rows("retain_test")
    correct = answers_correct(model, rows).astype(float)
    operations = rows.operations
    parts = {"all": np.ones(len(rows), dtype=bool)} | {op: operations == op for op in task.retain_operations}
    return scores + [_item("retain", name, correct, rows, keep, chance) for name, keep in parts.items()]


def _item(
    side: str, subset: str, correct: np.ndarray, rows: TokenSet, keep: np.ndarray, chance: dict[str, float]
) -> ItemScores:
    operations = rows.operations[keep]
    guessed = float(np.mean([chance[operation] for operation in operations]))
    return ItemScores(
        "accuracy",
        side,
        subset,
        None,
        "share",
        correct[keep],
        rows.families[keep],
        "best constant answer",
        guessed,
    )
