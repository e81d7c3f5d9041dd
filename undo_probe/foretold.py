"""Which measure foretells what an attack brings back? Rank correlations over the stages of finished runs.

Cells are the stages in between (unlearned, students, twins, placebos, variations), not the original and the oracles,
which fix the ends of any correlation; correlations are taken within a seed, and seeds are the unit of every interval; a
measure is worth something only beyond what accuracy before the attack already says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from undo_probe import intervals
from undo_probe.errors import UndoProbeError
from undo_probe.figures.look import layer_order
from undo_probe.intervals import rank_correlation

Values = Float[np.ndarray, " cell"]
BEFORE = "accuracy before"
TARGET = "relearned"
STAGES = ("unlearned", "distilled")


@dataclass(frozen=True)
class Predictor:
    """Readings that are one number an arm, by a query; ``sign`` makes more mean more knowledge left.

    Of a reading by layer the mean is taken, without the last layer where that is behaviour itself. ``beyond_twin``
    takes the twin's value off, which stands beside as the control.
    """

    query: str
    sign: int = 1
    beyond_twin: bool = False


def _lens(subset: str) -> Predictor:
    return Predictor(f'measure == "lens_log_probability" and task_split == "forget" and subset == "{subset}"')


_READ = 'task_split == "forget" and subset == "="'
PREDICTORS: dict[str, Predictor] = {
    BEFORE: Predictor('measure == "accuracy" and task_split == "forget" and subset == "V"'),
    "distance": Predictor(f'measure == "relative_distance" and {_READ}', -1),
    "CKA": Predictor(f'measure == "cka" and {_READ}'),
    "depth": Predictor('measure == "depth" and subset == "raw, without the last"', -1),
    "depth, stitched": Predictor('measure == "depth" and subset == "stitched, without the last"', -1),
    "depth beyond the twin's": Predictor(
        'measure == "depth" and subset == "raw, without the last"', -1, beyond_twin=True
    ),
    "lens, own": _lens("own"),
    "lens, original's": _lens("original's"),
    "lens, mapped": _lens("mapped"),
    "tuned lens": _lens("tuned"),
    "tuned lens, mapped": _lens("tuned, mapped"),
    "transferred probe": Predictor('measure == "transfer_accuracy" and subset.str.endswith(", mapped")'),
    "probe bits": Predictor('measure == "probe_bits" and task_split == "forget"'),
    "attribution": Predictor('measure == "attribution_cosine" and task_split == "forget"'),
    "weights": Predictor('measure == "weight_distance" and subset == "all weights"', -1),
    "barrier": Predictor('measure == "barrier" and task_split == "forget"', -1),
}


def cells(readings: Any) -> Any:
    """A table with a line for every attacked stage in between: seed, arm, alpha, what came back, every predictor.

    Args:
        readings: the table of :func:`undo_probe.replicates.read_runs`.

    Raises:
        UndoProbeError: nothing in between was attacked.
    """
    between = readings[readings["stage"].isin(STAGES)]
    reached = between.query('measure == "relearned" and task_split == "forget"')
    steps = reached["subset"].str.extract(r"^step (\d+)$")[0].astype(float)
    reached = reached[steps == steps.max()].set_index(["seed", "arm"])
    if reached.empty:
        raise UndoProbeError(
            "no stage between original and oracle was attacked: run `undo-probe attack` and score"
        )
    table = reached[["alpha", "method", "variant"]].assign(**{TARGET: reached["value"]})
    for name, predictor in PREDICTORS.items():
        found = _one_number(between.query(predictor.query), predictor)
        if found is not None:
            table[name] = found
    return table.reset_index()


def _one_number(found: Any, predictor: Predictor) -> Any:
    """Seed and arm to the mean over layers; None where nothing was measured."""
    found = found[found["value"].notna()]
    layers = sorted(set(found["layer"].dropna()), key=layer_order)
    if len(layers) > 1:
        found = found[found["layer"] != layers[-1]]
    if predictor.beyond_twin:
        found = found[found["control_value"].notna()]
        found = found.assign(value=found["value"] - found["control_value"])
    if found.empty:
        return None
    return predictor.sign * found.groupby(["seed", "arm"])["value"].mean()


def partial_correlation(a: Values, b: Values, given: Values) -> float:
    """Spearman's of ``a`` and ``b`` with the ranks of ``given`` taken out of both; needs six cells.

    ``(r_ab - r_ag r_bg) / sqrt((1 - r_ag^2)(1 - r_bg^2))``; NaN where ``given`` orders one of them alone.
    """
    ab, ag, bg = rank_correlation(a, b), rank_correlation(a, given), rank_correlation(b, given)
    rest = (1 - ag**2) * (1 - bg**2)
    return float("nan") if len(a) < 6 or not rest > 1e-12 else float((ab - ag * bg) / np.sqrt(rest))


@dataclass(frozen=True)
class Foretold:
    """How one measure orders the stages beside how relearning does: means over seeds, with Student's interval.

    ``within`` is over cells of one alpha, averaged over alphas that have three; None where no seed has a value.
    """

    predictor: str
    overall: intervals.Interval | None
    within: intervals.Interval | None
    beyond: intervals.Interval | None
    cells: int


def foretelling(table: Any) -> list[Foretold]:
    """A line for each predictor of :func:`cells`, the best first by what it says beyond accuracy."""
    found = []
    for name in (name for name in PREDICTORS if name in table):
        known = table[table[name].notna() & table[TARGET].notna()]
        seeds = [each for _, each in known.groupby("seed")]
        before = [each[BEFORE].to_numpy(float) for each in seeds]
        overall = [rank_correlation(*_pair(each, name)) for each in seeds]
        within = [
            _mean([rank_correlation(*_pair(part, name)) for _, part in each.groupby("alpha")])
            for each in seeds
        ]
        beyond = [
            partial_correlation(*_pair(each, name), given) for each, given in zip(seeds, before, strict=True)
        ]
        rest = None if name == BEFORE else _over_seeds(beyond)
        found.append(Foretold(name, _over_seeds(overall), _over_seeds(within), rest, len(known)))
    key: Callable[[Foretold], float] = lambda f: -1.0 if f.beyond is None else f.beyond.value  # noqa: E731
    return sorted(found, key=key, reverse=True)


def _pair(part: Any, name: str) -> tuple[Values, Values]:
    return part[name].to_numpy(float), part[TARGET].to_numpy(float)


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _over_seeds(values: list[float]) -> intervals.Interval | None:
    known = [value for value in values if np.isfinite(value)]
    return intervals.t_interval(known) if known else None
