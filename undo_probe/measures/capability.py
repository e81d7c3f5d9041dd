"""Capability: what the model answers, by operation and by stratum."""

import numpy as np

from undo_probe.evaluation import answer_bits, option_scores, row_scores
from undo_probe.measures import ItemScores
from undo_probe.models import HookedTransformer
from undo_probe.tasks import Task, TokenSet

TRIVIAL, ALL = "trivial", "all"


def core(rows: TokenSet) -> np.ndarray:
    """Rows that count for the primary figures: all but the stratum that can be guessed, bool, shape (row,)."""
    return (rows.labels["subset"] != TRIVIAL).to_numpy()


def capability(model: HookedTransformer, task: Task) -> list[ItemScores]:
    """Row scores on forget sets T, V and W (and V by operation and stratum) and on held-out retain rows.

    ``V``, ``T``, ``W`` and the operations leave the trivial stratum out; it has a line of its own, as have
    the task's extra splits. D is where settings are chosen, so nothing is reported on it. Where rows are scored in
    bits, bits per token and per character of V, T, W and held-out retain rows stand beside.
    """
    chance = task.chance()
    exact = task.metric != "bits"
    scores = []
    for split in ("forget_V", "forget_T", "forget_W", *task.extra_splits):
        rows = task.rows(split)
        correct = row_scores(model, rows, task.metric).astype(float)
        inside = core(rows)
        parts = {split.removeprefix("forget_"): inside}
        if split == "forget_V":
            operations = rows.operations
            parts |= {op: inside & (operations == op) for op in task.forget_operations}
            strata = rows.labels["subset"].to_numpy()
            parts |= {name: strata == name for name in sorted(set(strata) - {ALL})}
        scores += [
            _item("forget", name, correct, rows, keep, chance, exact)
            for name, keep in parts.items()
            if keep.any()
        ]
    rows = task.rows("retain_test")
    correct = row_scores(model, rows, task.metric).astype(float)
    operations = rows.operations
    parts = {"all": np.ones(len(rows), dtype=bool)} | {op: operations == op for op in task.retain_operations}
    scores += [_item("retain", name, correct, rows, keep, chance, exact) for name, keep in parts.items()]
    more = {"bits": _bits, "choice": _options}
    return scores + more[task.metric](model, task) if task.metric in more else scores


def _options(model: HookedTransformer, task: Task) -> list[ItemScores]:
    """The right option's probability among the options, and whether it is the likeliest token of all.

    Of answers of several tokens, whether greedy decoding writes it, and its log-probability beside.
    """
    scores = []
    for split in ("forget_V", "forget_T", "forget_W", "retain_test"):
        rows = task.rows(split)
        side, _, name = split.partition("_")
        found = option_scores(model, rows)
        subset = name if side == "forget" else "all"
        for measure, key in (("option_probability", "probability"), ("exact_match", "exact")):
            values = found[key].astype(float)
            scores.append(ItemScores(measure, side, subset, None, "share", values, rows.families))
        if "log_probability" in found:
            values = found["log_probability"]
            scores.append(
                ItemScores("answer_log_probability", side, subset, None, "nats", values, rows.families)
            )
    return scores


def _bits(model: HookedTransformer, task: Task) -> list[ItemScores]:
    """Bits per token and per character of running text.

    A row's bits are divided by the mean number of tokens, or characters, of all rows: the mean over rows is then
    all bits over all characters, and languages and tokenisers can be compared.
    """
    scores = []
    for split in ("forget_V", "forget_T", "forget_W", "retain_test"):
        rows = task.rows(split)
        side, _, name = split.partition("_")
        bits = answer_bits(model, rows)
        units = {
            "bits_per_token": rows.answer_mask[:, 1:].sum(dim=1).numpy(),
            "bits_per_character": rows.labels["characters"].to_numpy(),
        }
        for measure, counted in units.items():
            subset = name if side == "forget" else "all"
            scores.append(
                ItemScores(measure, side, subset, None, "bits", bits / counted.mean(), rows.families)
            )
    return scores


def _item(
    side: str,
    subset: str,
    correct: np.ndarray,
    rows: TokenSet,
    keep: np.ndarray,
    chance: dict[str, float],
    exact: bool,
) -> ItemScores:
    operations = rows.operations[keep]
    guessed = float(np.mean([chance[operation] for operation in operations]))
    return ItemScores(
        "accuracy",
        side,
        subset,
        None,
        "share" if exact else "share of a uniform guess's bits",
        correct[keep],
        rows.families[keep],
        "best constant answer" if exact else "token frequencies",
        guessed,
    )
