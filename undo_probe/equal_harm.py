"""Ways of unlearning compared fairly: from one model, until the same harm is done, and then attacked.

The families of T and V are dealt anew in folds, so that over all folds every forgotten fact is once among those that
the attacker is not shown. The attack itself disturbs what it does not teach; so the model as it came is attacked, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from undo_probe.attacks.one_model import bracketed_attack_table
from undo_probe.collapse_config import BudgetConfig, CollapseFit
from undo_probe.config import UnlearnConfig, UnlearnFit
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answer_log_probability
from undo_probe.files import digest
from undo_probe.intervals import Interval, paired_difference
from undo_probe.jobs import Job, run_jobs, values_of
from undo_probe.models import HookedTransformer
from undo_probe.parquet import read_table, write_table
from undo_probe.pipeline import load_run
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn import METHODS
from undo_probe.task_config import FOLDS
from undo_probe.tasks import TokenSet, asked_task, build_task
from undo_probe.training import Context

if TYPE_CHECKING:
    import pandas as pd

INTACT = "intact"
"""The model as it came, under the same attack."""


def answer_probability(model: HookedTransformer, rows: TokenSet) -> np.ndarray:
    """P(answer) of each row, float64, shape (row,)."""
    return np.exp(answer_log_probability(model, rows))


SCORES: dict[str, Callable[[HookedTransformer, TokenSet], np.ndarray]] = {
    "probability": answer_probability,
    "log_probability": answer_log_probability,
}


@dataclass(frozen=True)
class Way:
    """A way of unlearning: a method, with settings other than the run's.

    A control is matched by other things than harm: ``like`` names another way, and ``by`` what of it ends this one, the
    change of its weights (``moved``) or what the answers of D lost (``forgotten``).
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""
    like: str = ""


def equal_harm(
    folders: Sequence[str | Path],
    ways: Mapping[str, Way],
    budget: BudgetConfig,
    *,
    unlearn: UnlearnConfig | None = None,
    folds: Sequence[int] = tuple(range(FOLDS)),
    score: str = "probability",
    attacked: bool = True,
    table: str | Path | None = None,
    workers: int = 1,
) -> "pd.DataFrame":
    """Unlearns in each way within the budget, attacks each model at every rate, and reads V; without attack, D.

    Args:
        folders: runs whose original was trained; nothing in them is changed.
        ways: by name; a way that another one is ``like`` stands before it.
        budget: harm that ends each, see :class:`~undo_probe.collapse_config.BudgetConfig`.
        unlearn: settings of the methods; by default the run's own.
        folds: of T and V; the task must have a setting ``fold``.
        score: ``probability`` of the answer, or ``log_probability`` in nats: what the attacker maximises, too.
        attacked: without, settings can be chosen: D is read, and V stays unseen.
        table: a Parquet file in which results are kept as they come; what it holds is not run again.
        workers: how many ways run at once, a way with the controls that are matched to it.

    Returns:
        One line a question and way (of two that are alike only the last), :data:`INTACT` first: run, fold, split, way,
        family; the score ``before`` and ``after`` the attack (NaN without one); what the attack reaches is its best
        step at the rate that is best on the other half of V. These repeat on each line: ``rate`` (the best on all of
        V), ``rates`` (how many were tried), ``edge`` (-1 or 1 where the best is the lowest or highest by more than
        chance), ``moved`` (L2 norm of the change of all weights), ``bound`` (the limit that ended it) and KL by set.

    Raises:
        UndoProbeError: a way is not known, the task has no folds, or ``table`` is damaged or holds something else.
    """
    import pandas as pd

    _check(ways, score)
    split = "forget_V" if attacked else "forget_D"
    known = pd.DataFrame({"key": []})
    if table is not None and Path(table).is_file():
        known = read_table(table, ["key"])
    plans = [
        _plan(Path(folder), fold, ways, budget, unlearn, split, score) for folder in folders for fold in folds
    ]
    # those of one way take about as long as each other, so that pairs of them leave no worker idle
    parts = [plan.only(group) for group in _groups(ways) for plan in plans]
    lacking = [part for part in parts if not part.keys.keys() <= set(known["key"])]
    for start in range(0, len(lacking), workers):
        jobs = [
            Job(f"{part.folder} {part.fold} {' '.join(part.keys)}", _unlearnt, (part, set(known["key"])))
            for part in lacking[start : start + workers]
        ]
        known = pd.concat([known, *values_of(run_jobs(jobs, workers))], ignore_index=True)
        if table is not None:
            write_table(known, table)
    names = {key: name for plan in plans for key, name in plan.keys.items()}
    found = known.loc[known["key"].isin(list(names))]
    return found.assign(way=found["key"].map(names)).drop(columns="key").reset_index(drop=True)


def difference(table: "pd.DataFrame", one: str, other: str, value: str = "after") -> Interval:
    """How much more the answers of V have in one way than in another: paired by question, resampled by family.

    ``value`` is a column of :func:`equal_harm`'s table, or one made of it, for one run.
    """
    keys = ["fold", "family", "question"]
    first, second = (table[table["way"] == name].set_index(keys)[value] for name in (one, other))
    second = second.reindex(first.index)
    return paired_difference(
        first.to_numpy(), second.to_numpy(), first.index.get_level_values("family").to_numpy()
    )


def _check(ways: Mapping[str, Way], score: str) -> None:
    if score not in SCORES:
        raise UndoProbeError(f"the score is {score!r}; expected one of {', '.join(SCORES)}")
    seen: list[str] = []
    for name, way in ways.items():
        if way.method not in METHODS:
            raise UndoProbeError(f"{name}: there is no method {way.method!r}; there are {', '.join(METHODS)}")
        if name == INTACT or (way.by != "") != (way.like in seen) or way.by not in ("", "moved", "forgotten"):
            raise UndoProbeError(
                f"{name}: a control needs by='moved' or by='forgotten', and like= a way before it; {INTACT!r} is "
                "the name of the model as it came"
            )
        seen.append(name)


@dataclass(frozen=True)
class _Plan:
    """What is to be done of one run and fold; ``keys`` tell results apart, and give the way of each."""

    folder: Path
    fold: int
    ways: Mapping[str, Way]
    budget: BudgetConfig
    unlearn: UnlearnConfig
    split: str
    score: str
    keys: Mapping[str, str]

    def only(self, group: Sequence[str]) -> "_Plan":
        """What is to be done in these ways alone."""
        ways = {name: way for name, way in self.ways.items() if name in group}
        return replace(self, ways=ways, keys={key: name for key, name in self.keys.items() if name in group})


def _groups(ways: Mapping[str, Way]) -> list[list[str]]:
    """Names that need nothing of each other's: the intact model, and each way with those that are like it."""
    groups: dict[str, list[str]] = {INTACT: [INTACT]}
    first: dict[str, str] = {}
    for name, way in ways.items():
        first[name] = first.get(way.like, name)
        groups.setdefault(first[name], []).append(name)
    return list(groups.values())


def _plan(
    folder: Path,
    fold: int,
    ways: Mapping[str, Way],
    budget: BudgetConfig,
    unlearn: UnlearnConfig | None,
    split: str,
    score: str,
) -> _Plan:
    run = load_run(folder)
    if "fold" not in type(run.config.task).model_fields:
        raise UndoProbeError(f"{folder}: the task {run.config.task.name} has no folds (task.fold)")
    unlearn = unlearn or run.config.unlearn
    attack = None
    if split != "forget_D":
        attack = {**run.config.attack.model_dump(mode="json"), "bracketed": True}
    same = {
        "run": folder.name,
        "original": run.keys["original"],
        "fold": fold,
        "split": split,
        "score": score,
        "attack": attack,
    }
    keys = {digest(same): INTACT}
    for name, way in ways.items():
        like = ways.get(way.like)
        asked = [_settings(each, unlearn, budget).model_dump(mode="json") for each in (way, like) if each]
        keys[digest({**same, "method": way.method, "settings": asked, "by": way.by})] = name
    return _Plan(folder, fold, ways, budget, unlearn, split, score, keys)


def _settings(way: Way, unlearn: UnlearnConfig, budget: BudgetConfig) -> UnlearnFit | CollapseFit:
    section = getattr(unlearn, way.method)
    return type(section)(**{**section.model_dump(), **way.settings, "budget": budget})


def _unlearnt(plan: _Plan, known: set[str]) -> "pd.DataFrame":
    """The lacking ways of one run and fold, from the same original."""
    import pandas as pd

    run = load_run(plan.folder)
    fold = run.config.task.model_copy(update={"fold": plan.fold})
    task = build_task(asked_task(run.config.model_copy(update={"task": fold})), run.manifest["split_seed"])
    rows, original, context = task.rows(plan.split), run.model("original"), Context(run.config.seed)
    lacking = {name: key for key, name in plan.keys.items() if key not in known}
    needed = {plan.ways[name].like for name in lacking if name != INTACT}
    done: dict[str, StageResult] = {}
    for name, way in plan.ways.items():
        if name not in lacking and name not in needed:
            continue
        budget = plan.budget
        if way.by:
            budget = BudgetConfig(**{way.by: done[way.like].extra["budget"][way.by]}, rows=plan.budget.rows)
        done[name] = METHODS[way.method](original, task, _settings(way, plan.unlearn, budget), context)
    parts = []
    for name, key in lacking.items():
        model, harm = original, {"kl": {}, "moved": 0.0, "bound": "", "forgotten": 0.0}
        if name != INTACT:
            model, harm = done[name].model, done[name].extra["budget"]
        before = SCORES[plan.score](model, rows)
        lines = pd.DataFrame(
            {
                "key": key, "run": plan.folder.name, "fold": plan.fold, "split": plan.split, "way": name,
                "family": rows.families, "question": _numbered(rows), "before": before, "after": np.nan,
                "moved": harm["moved"], "forgotten": harm["forgotten"], "bound": harm["bound"],
                **{f"kl_{of}": value for of, value in harm["kl"].items()},
            }
        )  # fmt: skip
        if plan.split == "forget_V":
            found = bracketed_attack_table(
                model, task, run.config.attack, run.config.seed, score=SCORES[plan.score], sides=("forget",)
            )
            lines = lines.assign(
                after=found.cumulative_max()[-1],
                rate=found.best_rate(),
                rates=len(found.rates),
                edge=found.edge(),
            )
        parts.append(lines)
    return pd.concat(parts, ignore_index=True)


def _numbered(rows: TokenSet) -> list[int]:
    """Which of its family's questions each is: the rows of a fold come in one order in every way."""
    import pandas as pd

    return pd.Series(rows.families).groupby(rows.families).cumcount().tolist()
