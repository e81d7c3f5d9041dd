"""Every measure on one model, as a job whose result is kept in the stage store."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe.config import RunConfig
from undo_probe.evaluation import row_scores
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.capability import capability
from undo_probe.measures.drift import drift_measures
from undo_probe.measures.junk_direction import junk_direction, junk_measures
from undo_probe.measures.probes import ProbeRows, best_inner_layer, context_fits, probe_measures
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.records import Arm
from undo_probe.store import Run, Store
from undo_probe.tasks import Task, asked_task, build_task

VERSION = 2
Measured = ItemScores | Statistic


@dataclass(frozen=True)
class Subject:
    """One model under measurement and what it is compared with.

    ``before`` is the model that unlearning started from; ``placebo`` is the same unlearner's result on the
    oracle, and the oracle. Both are there only for unlearned arms that have them.
    """

    arm: Arm
    model: HookedTransformer
    task: Task
    config: RunConfig
    original: HookedTransformer
    tensors: dict[str, Tensor]
    before: HookedTransformer | None = None
    placebo: tuple[HookedTransformer, HookedTransformer] | None = None

    @property
    def seed(self) -> int:
        """Seed of what measures draw: one for all arms, so that they are compared on equal draws."""
        return derive_seed(self.config.seed, "measures")


def _capability(subject: Subject) -> Sequence[Measured]:
    return capability(subject.model, subject.task)


# a worker measures several arms of one task: what does not depend on the model is made once
_context: Callable[..., dict[str, ProbeRows]] = lru_cache(maxsize=1)(context_fits)


def _probes(subject: Subject) -> Sequence[Measured]:
    """Nothing where the task has no labels to be read from states."""
    task, config = subject.task, subject.config.score.probes
    if not task.probe_targets:
        return []
    return probe_measures(subject.model, task, config, subject.seed, _context(task, config, subject.seed))


def _drift(subject: Subject) -> Sequence[Measured]:
    return drift_measures(subject.model, subject.original, subject.task, subject.seed)


def _junk(subject: Subject) -> Sequence[Measured]:
    """RMU only: other methods have no known control vector to compare a direction with."""
    if "control_vector" not in subject.tensors or subject.before is None:
        return []
    layer = subject.config.unlearn.rmu.layer
    placebo = None
    if subject.placebo is not None:
        placebo = junk_direction(*subject.placebo, subject.task.rows("forget_T"), layer, seed=subject.seed)
    return junk_measures(
        subject.model,
        subject.before,
        subject.task,
        subject.tensors["control_vector"],
        layer,
        controls=subject.config.score.junk_controls,
        seed=subject.seed,
        accuracy=lambda model, rows: row_scores(model, rows, subject.task.metric),
        placebo_direction=placebo,
    )


# name -> measure: adding one is a function and a line
MEASURES: dict[str, Callable[[Subject], Sequence[Measured]]] = {
    "capability": _capability,
    "probes": _probes,
    "drift": _drift,
    "junk": _junk,
}


def inner_layer(subject: Subject) -> str:
    """The layer before the last at which probes of this model read most, chosen on D; empty where none read."""
    if not subject.task.probe_targets:
        return ""
    fits = context_fits(subject.task, subject.config.score.probes, subject.seed, development=True)
    found = probe_measures(subject.model, subject.task, subject.config.score.probes, subject.seed, fits)
    return best_inner_layer(found)


def identity(run: Run, arm: Arm) -> dict[str, Any]:
    """What the store key of an arm's measurements is the hash of."""
    keys = run.keys
    wanted = [arm.name, "original"]
    if arm.stage == "unlearned":
        wanted += [*_parents(run, arm), *_placebo_names(run, arm)]
    return {
        "kind": "measures",
        "version": VERSION,
        "settings": {
            "measures": sorted(MEASURES),
            "probes": run.config.score.probes.model_dump(mode="json"),
            "junk_controls": run.config.score.junk_controls,
            "junk_layer": run.config.unlearn.rmu.layer,
        },
        "seed": derive_seed(run.config.seed, "measures"),
        "parents": [keys[name] for name in wanted],
        "task": run.task.fingerprint,
    }


def _parents(run: Run, arm: Arm) -> list[str]:
    return next(line["parents"] for line in run.manifest["arms"] if line["name"] == arm.name)


def _placebo_names(run: Run, arm: Arm) -> list[str]:
    """The placebo of an unlearned arm and the model it started from, or nothing."""
    placebo = [other for other in run.arms if other.stage == "unlearned" and other.variant == "placebo"]
    placebo = [other for other in placebo if other.method == arm.method and other != arm]
    return [placebo[0].name, *_parents(run, placebo[0])] if placebo else []


def job(
    arm: Arm, what: dict[str, Any], config: RunConfig, split_seed: int, folder: str, report: Any = None
) -> str:
    """Runs every measure on one arm and stores the result; called in worker processes. Returns the key."""
    store = Store(folder)

    def make() -> dict[str, Any]:
        subject = _subject(arm, what["parents"], store, config, split_seed)
        found: list[Measured] = []
        for done, measure in enumerate(MEASURES.values()):
            found += measure(subject)
            if report is not None:
                report(done + 1, len(MEASURES))
        tensors, extra = pack(found)
        if arm.name == "original":
            extra["inner_layer"] = inner_layer(subject)
        return {"tensors": tensors, "extra": extra}

    return store.once(what, make)


def _subject(arm: Arm, parents: list[str], store: Store, config: RunConfig, split_seed: int) -> Subject:
    models = [store.model(parent) for parent in parents]
    return Subject(
        arm,
        models[0],
        build_task(asked_task(config), split_seed),
        config,
        models[1],
        store.tensors(parents[0]),
        models[2] if len(models) > 2 else None,
        (models[3], models[4]) if len(models) > 4 else None,
    )


def pack(found: Sequence[Measured]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Measured values as tensors and JSON; equal family lists are kept once."""
    tensors: dict[str, Tensor] = {}
    items: list[dict[str, Any]] = []
    families: list[list[str]] = []
    for item in found:
        if isinstance(item, Statistic):
            items.append({"type": "statistic", **asdict(item)})
            continue
        names = [str(name) for name in item.families]
        if names not in families:
            families.append(names)
        tensors[f"values.{len(items)}"] = torch.from_numpy(np.asarray(item.values, dtype=np.float64))
        fields = {name: getattr(item, name) for name in _FIELDS}
        items.append({"type": "items", "families": families.index(names), **fields})
    return tensors, {"items": items, "families": families}


def unpack(store: Store, key: str) -> list[Measured]:
    """The measured values that :func:`job` stored."""
    tensors, extra = store.tensors(key), store.entry(key).extra
    families = [np.array(names) for names in extra["families"]]
    found: list[Measured] = []
    for index, line in enumerate(extra["items"]):
        fields = {name: value for name, value in line.items() if name not in ("type", "families")}
        if line["type"] == "statistic":
            found.append(Statistic(**fields))
        else:
            values = tensors[f"values.{index}"].numpy()
            found.append(ItemScores(**fields, values=values, families=families[line["families"]]))
    return found


_FIELDS = ("measure", "task_split", "subset", "layer", "unit", "control", "control_value", "note")
