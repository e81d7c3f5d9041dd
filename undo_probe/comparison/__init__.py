"""Two models side by side: how far apart their states and answers are, layer by layer, beside noise and a twin."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from undo_probe import intervals
from undo_probe.comparison.parts import BASE, PARTS, Found, Pair
from undo_probe.comparison.pictures import joint_points, token_rows
from undo_probe.comparison.result import Comparison
from undo_probe.comparison.sides import READ, Side, ask
from undo_probe.comparison.subjects import Place, Subject, open_neutral, open_subject, open_task
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, Statistic

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare"]

DRAWS = 999
CONTRASTED = ("kl", "answer_log_probability", "relative_distance")
"""What is asked to be larger on forget than on retain rows; the layers of one measure are tested together."""

Key = tuple[str, str, str, str, str]


def compare(
    a: Place,
    b: Place,
    task: Any = None,
    *,
    twin: Place | None = None,
    second_seed: Place | None = None,
    gold: Place | None = None,
    neutral: Any = None,
    tokenizer: str | None = None,
    names: tuple[str, str] | None = None,
    seed: int = 0,
    max_rows: int = 256,
    also: Sequence[str] = tuple(PARTS),
) -> Comparison:
    """What differs between two models, where, and by how much more than noise.

    Every model runs once over the rows and its states are shared by all measures; they take rows x (positions + answer
    tokens) x (layers + 1) x width x 4 bytes a model, of three at most at a time: ``a``, ``b`` and a twin or second
    seed.

    Args:
        a: the model that is the reference: a HookedTransformer, a folder or hub id, or ``RUN:arm``.
        b: the model that is compared with it.
        task: a task or its configuration, a preset's name, a run folder, or prompts by split: ``{"forget": [...],
            "retain": [...], "neutral": [...]}`` of texts, (prompt, answer) pairs or token ids (or a JSON file of them).
            By default that of the run that ``a`` is an arm of.
        twin: a model that lost nothing but its basis, such as the student of the original; stands beside every figure.
        second_seed: ``a`` again from another seed; then it is the noise floor, otherwise halves of the prompts are.
        gold: a model that never knew, for the depth score.
        neutral: text that is neither, beside a task that has none: a file or folder of it, texts, or token rows.
        tokenizer: of texts, where neither the task nor a model brings one.
        names: what to call ``a`` and ``b``.
        seed: of the choice of rows and halves.
        max_rows: rows of a split, at most.
        also: parts beside behaviour and geometry, all by default: ``lens``, ``tuned``, ``stitches``,
            ``probes``, ``depth``, ``attribution``, ``weights``.

    Returns:
        A :class:`Comparison`. Of models of different width only what needs no common basis; of different depth,
        layers at the same relative depth.

    Raises:
        UndoProbeError: the models read other tokens, nothing says what to ask, or a part is unknown.
    """
    _check_parts(also)
    started = time.perf_counter()
    first, second = open_subject(a, "A"), open_subject(b, "B")
    rows = open_task(task, first, second, tokenizer)
    beyond = None if neutral is None else open_neutral(neutral, rows, first, second, tokenizer, max_rows)
    asked = ask(rows, max_rows, seed, beyond)
    called = names or _apart(first, second)
    side, other = Side(first.model, called[0], asked), Side(second.model, called[1], asked)
    golden = None if gold is None else open_subject(gold, "gold").model
    pair = Pair(side, other, rows, seed, golden, floors=second_seed is None)
    found = _measured(pair, also)
    pictures = joint_points(pair), token_rows(pair)
    others = {name: place for name, place in (("twin", twin), ("floor", second_seed)) if place is not None}
    beside = {name: _beside(pair, place, name, also) for name, place in others.items()}
    table = _table(found, beside)
    spent = round(time.perf_counter() - started, 1)
    return Comparison(table, *pictures, _facts(pair, beside) | {"seed": seed, "seconds": spent})


def _check_parts(also: Sequence[str]) -> None:
    unknown = [name for name in also if name not in PARTS]
    if unknown:
        raise UndoProbeError(f"no part is called {unknown[0]!r}: also takes {', '.join(PARTS)}")


def _measured(pair: Pair, also: Sequence[str]) -> list[Found]:
    parts = [*BASE.values(), *(part for name, part in PARTS.items() if name in also)]
    found = [each for part in parts for each in part(pair)]
    return [*found, *_contrasts(found)]


def _beside(pair: Pair, place: Place, name: str, also: Sequence[str]) -> list[Found]:
    """The same measures of another model against ``a``; its states are gone afterwards."""
    other = open_subject(place, name)
    side = Side(other.model, other.name, pair.a.asked)
    return _measured(Pair(pair.a, side, pair.task, pair.seed, pair.gold, floors=False, first=pair), also)


def _apart(a: Subject, b: Subject) -> tuple[str, str]:
    return (a.name, b.name) if a.name != b.name else (f"{a.name} (A)", f"{b.name} (B)")


def _contrasts(found: Sequence[Found]) -> list[Found]:
    """Forget less retain, with intervals that hold for all layers of a measure together."""
    made = []
    for measure in CONTRASTED:
        sides: dict[str, dict[str | None, ItemScores]] = {"forget": {}, "retain": {}}
        for each in found:
            scores = each.scores
            if scores.measure == measure and scores.task_split in sides and each.position in (READ, "answer"):
                assert isinstance(scores, ItemScores)
                sides[scores.task_split][scores.layer] = scores
        level = 1 - 0.05 / max(1, len(sides["forget"]))
        for layer, forget in sides["forget"].items():
            retain = sides["retain"][layer]
            of, on = (
                intervals.mean_interval(side.values, side.families, level, draws=0)
                for side in (forget, retain)
            )
            value = of.value - on.value
            # square-and-add: each limit from the two means' own (Zou and Donner 2008)
            low = value - float(np.hypot(of.value - of.low, on.high - on.value))
            high = value + float(np.hypot(of.high - of.value, on.value - on.low))
            n, clusters = of.n + on.n, of.n_clusters + on.n_clusters
            limits = (low, high) if np.isfinite([low, high]).all() else (None, None)
            statistic = Statistic(
                "forget_less_retain", "forget", measure, layer, forget.unit, value, *limits, n, clusters
            )
            made.append(Found(READ if layer else "answer", statistic))
    return made


def _key(found: Found) -> Key:
    scores = found.scores
    return scores.measure, scores.task_split, scores.layer or "", found.position, scores.subset


def _table(found: Sequence[Found], beside: Mapping[str, Sequence[Found]]) -> "pd.DataFrame":
    import pandas as pd

    known = {name: {_key(each): each for each in other} for name, other in beside.items()}
    lines = []
    for each in found:
        twin, second = (known.get(name, {}).get(_key(each)) for name in ("twin", "floor"))
        lines.append(_line(each, twin, second))
    return pd.DataFrame(lines)


def _line(found: Found, twin: Found | None, second: Found | None) -> dict[str, Any]:
    value, low, high, n, clusters = _limits(found)
    measure, split, layer, position, reading = _key(found)
    over: tuple[float | None, float | None, float | None] = (None, None, None)
    if twin is not None and isinstance(found.scores, ItemScores) and isinstance(twin.scores, ItemScores):
        if len(found.scores.values) == len(twin.scores.values):
            difference = intervals.paired_difference(
                found.scores.values, twin.scores.values, found.scores.families, draws=DRAWS
            )
            over = difference.value, _finite(difference.low), _finite(difference.high)
    return {
        "measure": measure, "split": split, "layer": layer, "position": position, "reading": reading,
        "value": value, "low": low, "high": high, "a": found.a, "b": found.b,
        "floor": found.floor if second is None else _limits(second)[0],
        "twin": None if twin is None else _limits(twin)[0],
        "over_twin": over[0], "over_twin_low": over[1], "over_twin_high": over[2],
        "n": n, "n_clusters": clusters, "unit": found.scores.unit,
        "control": found.scores.control, "control_value": found.scores.control_value, "note": found.scores.note,
    }  # fmt: skip


def _limits(found: Found) -> tuple[float | None, float | None, float | None, int, int]:
    scores = found.scores
    if isinstance(scores, ItemScores):
        outcomes = None if scores.unit == "share of rows" else False
        mean = intervals.mean_interval(scores.values, scores.families, draws=DRAWS, outcomes=outcomes)
        return mean.value, _finite(mean.low), _finite(mean.high), mean.n, mean.n_clusters
    return scores.value, scores.low, scores.high, scores.n, scores.n_clusters


def _finite(limit: float) -> float | None:
    return limit if np.isfinite(limit) else None


def _facts(pair: Pair, beside: Mapping[str, Any]) -> dict[str, Any]:
    """What was compared, how and on what; plain values for JSON."""
    shapes = [(c.n_layers, c.d_model) for c in (side.model.cfg for side in (pair.a, pair.b))]
    notes = list(dict.fromkeys(pair.notes))
    if shapes[0][0] != shapes[1][0]:
        notes.insert(
            0,
            f"{shapes[0][0]} and {shapes[1][0]} blocks: layers are matched by relative depth and called as in A",
        )
    if not pair.one_width:
        notes.insert(0, f"widths {shapes[0][1]} and {shapes[1][1]}: nothing that needs one basis is measured")
    return {
        "a": pair.a.name,
        "b": pair.b.name,
        "task": pair.task.name,
        "words": pair.task.words.to_dict(),
        "metric": pair.task.metric,
        "layers": [hook for hook, _ in pair.hooks],
        "floor": "second seed" if "floor" in beside else "halves of the prompts",
        "twin": "twin" in beside,
        "rows": {each.split: len(each.rows) for each in pair.a.asked},
        "families": {each.split: len(np.unique(each.families)) for each in pair.a.asked},
        "positions": {each.split: each.names for each in pair.a.asked},
        "shapes": [list(shape) for shape in shapes],
        "megabytes": round((pair.a.bytes + pair.b.bytes) / 2**20, 1),
        "notes": notes,
    }
