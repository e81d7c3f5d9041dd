"""Measures beside the battery, made where ``score.also`` asks for them: depth, lenses, attribution, weights.

Each is stored by itself, so that asking for one more computes only that one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from torch import Tensor

from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.jobs import Job, OnEvent, run_jobs, values_of
from undo_probe.measures import Statistic
from undo_probe.measures.attribution import attribution_measures
from undo_probe.measures.battery import Measured, pack, unpack
from undo_probe.measures.depth import depth_measures
from undo_probe.measures.junk_direction import junk_direction
from undo_probe.measures.lens import lens_measures, transfer_measures
from undo_probe.measures.selectivity import selectivity
from undo_probe.measures.stitches import MAX_STATES, Stitched, fit_stitches
from undo_probe.measures.subspaces import relearned, subspace_measures, taught_rows, taught_seen
from undo_probe.measures.tuned_lens import TunedLens, fit_measures, task_lens, tuned_lens_measures
from undo_probe.measures.weights import POINTS, Change, weight_change, weight_measures
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.records import Arm
from undo_probe.store import Run, Store
from undo_probe.subspace import Subspace
from undo_probe.tasks import Task, asked_task, build_task
from undo_probe.training import Context

VERSION = 1
GOLD = "oracle_matched"
BESIDE_TWIN = (
    "depth", "patch_drop", "lens_log_probability", "lens_rank", "lens_kl", "transfer_accuracy", "attribution",
    "attribution_change", "attribution_cosine",
)  # fmt: skip
"""Measures that a change of basis moves too: a twin's value is their control."""


@dataclass(frozen=True)
class Compared:
    """One model and what it is compared with; ``start`` and ``teacher`` are its own parents, where it has them.

    ``related`` says whether its weights were trained on from the original's.
    """

    arm: Arm
    model: HookedTransformer
    task: Task
    config: RunConfig
    original: HookedTransformer
    gold: HookedTransformer
    start: HookedTransformer | None
    teacher: HookedTransformer | None
    related: bool
    tensors: dict[str, Tensor]
    gold_stitched: Callable[[], Stitched]
    lens: Callable[[], TunedLens]

    @property
    def seed(self) -> int:
        """One seed for all arms, so that they are compared on equal draws."""
        return derive_seed(self.config.seed, "measures")

    @cached_property
    def stitched(self) -> Stitched:
        """The maps from this model's states to the original's."""
        return fit_stitches(self.model, self.original, self.task, self.seed)

    @property
    def junk(self) -> Subspace | None:
        """The direction that RMU added to the states of T; None for other methods."""
        if "control_vector" not in self.tensors or self.start is None or not self.related:
            return None
        rows, layer = self.task.rows("forget_T"), self.config.unlearn.rmu.layer
        return junk_direction(self.model, self.start, rows, layer, seed=self.seed)

    @property
    def changes(self) -> dict[str, tuple[Change, Change]]:
        """Distillation against the unlearning that its teacher went through."""
        if self.start is None or self.teacher is None or not self.related:
            return {}
        unlearned = weight_change(self.teacher, self.original)
        return {
            "unlearning, distillation": (unlearned, weight_change(self.model, self.start)),
            "unlearning, the whole way": (unlearned, weight_change(self.model, self.original)),
        }


def _depth(it: Compared) -> Sequence[Measured]:
    maps = it.stitched.maps, it.gold_stitched().maps
    found = depth_measures(it.model, it.original, it.gold, it.task, maps, it.junk)
    return [*found, *it.stitched.checks]


def _lens(it: Compared) -> Sequence[Measured]:
    maps = it.stitched.maps
    return [
        *lens_measures(it.model, it.original, it.task, maps),
        *transfer_measures(it.model, it.original, it.task, maps),
    ]


def _weights(it: Compared) -> Sequence[Measured]:
    return weight_measures(it.model, it.original, it.task, it.related, it.changes)


def _tuned_lens(it: Compared) -> Sequence[Measured]:
    lens = it.lens()
    own = fit_measures(it.task, lens) if it.arm.name == "original" else []
    return [*tuned_lens_measures(it.model, it.task, lens, it.stitched.maps), *own]


def _subspaces(it: Compared) -> Sequence[Measured]:
    attack, context = it.config.attack, Context(it.seed, threads=it.config.threads)
    updates = {"relearning": (it.model, relearned(it.model, it.task, attack, context))}
    if it.related and it.arm.stage != "original":
        updates["the whole way"] = (it.original, it.model)
    if it.start is not None and it.arm.stage == "distilled":
        updates["distillation"] = (it.start, it.model)
    seen = taught_seen(it.model, it.task)
    return [*subspace_measures(it.model, it.task, updates, seen), *selectivity(it.model, it.task, seen)]


def _attribution(it: Compared) -> Sequence[Measured]:
    return attribution_measures(it.model, it.original, it.task)


# name -> measure: adding one is a function, a line, and its name in config.Also
ALSO: dict[str, Callable[[Compared], Sequence[Measured]]] = {
    "depth": _depth,
    "lens": _lens,
    "weights": _weights,
    "tuned_lens": _tuned_lens,
    "attribution": _attribution,
    "subspaces": _subspaces,
}
ANCHORED = ("depth",)
"""Measures that cannot do without the matched oracle."""


def forward_rows(names: Sequence[str], task: Task, n_layers: int, attacked: int) -> int:
    """Rows that the models run to measure one arm, at most: maps that several measures share are counted for each.

    ``attacked`` are the rows of a short attack. A backward pass counts as two forward passes.
    """
    asked = {split: len(task.rows(split)) for split in ("forget_V", "retain_test")}
    fit = min(len(task.rows("retain_train")), MAX_STATES)
    v, retain = asked["forget_V"], asked["retain_test"]
    stitched = 2 * (fit + v + retain)  # by both models
    swapped = n_layers + 2  # plain, the other model, and with each block's states
    layered = 2 * 2 * (n_layers + 1) * (v + retain)  # two models, the whole answer and its first token
    taught = len(taught_rows(task))
    probed = len(task.rows("forget_T")) + len(task.rows("forget_W")) + v
    rows = {
        "depth": 2 * stitched + swapped * (5 * v + 2 * retain),
        "lens": stitched + layered + (probed if task.probe_targets else 0),
        "weights": (POINTS + 2) * (v + retain),
        "tuned_lens": stitched + layered + fit + v + retain,
        "attribution": 2 * (v + retain),
        "subspaces": 3 * (5 * taught + 3 * (v + retain) + attacked),
    }
    return sum(rows[name] for name in names)


def measure_also(
    run: Run, names: Sequence[str], workers: int, progress: OnEvent | None = None, backend: str = "loky"
) -> tuple[dict[str, list[Measured]], list[str]]:
    """What these measures say of every arm, and the store's keys; only what is missing is computed.

    Readings that a change of basis moves too have their twin's value as control, where the run has a twin at the
    same alpha.

    Raises:
        UndoProbeError: there is no measure of that name, or one needs the matched oracle and the run has none.
    """
    unknown = [name for name in names if name not in ALSO]
    if unknown:
        raise UndoProbeError(f"there is no measure {unknown[0]!r} to add: there are {', '.join(ALSO)}")
    anchored = [name for name in names if name in ANCHORED]
    if anchored and GOLD not in run.keys:
        raise UndoProbeError(
            f"{', '.join(anchored)} would be read beside the matched oracle, which this run does not have, because its "
            "original was loaded (original.source): leave it out of score.also"
        )
    what = {arm.name: {name: _identity(run, arm, name) for name in names} for arm in run.arms}
    keys = {
        arm: {name: run.store.key(identity) for name, identity in own.items()} for arm, own in what.items()
    }
    split, folder = run.manifest["split_seed"], str(run.store.folder)
    jobs = []
    for arm in run.arms:
        missing = {n: i for n, i in what[arm.name].items() if keys[arm.name][n] not in run.store}
        if missing:
            label = f"measure {', '.join(missing)} of {arm.name}"
            jobs.append(Job(label, job, (arm, missing, run.config, split, folder)))
            if progress is not None:
                progress(label, 0, None, {"cost": 1.0})
    values_of(run_jobs(jobs, workers, backend, on_event=progress, threads=run.config.threads))
    found = {
        arm: [item for key in own.values() for item in unpack(run.store, key)] for arm, own in keys.items()
    }
    beside = {arm.name: beside_twin(arm, run.arms, found) for arm in run.arms}
    return beside, sorted(key for own in keys.values() for key in own.values())


def beside_twin(arm: Arm, arms: Sequence[Arm], found: dict[str, list[Measured]]) -> list[Measured]:
    """An arm's readings with its twin's as control: the arm of the same stage and alpha that the original taught."""
    twins = [a for a in arms if a.variant == "twin" and (a.stage, a.alpha) == (arm.stage, arm.alpha)]
    if not twins or arm.variant == "twin":
        return found[arm.name]
    levels = {_place(item): _level(item) for item in found[twins[0].name]}
    return [
        replace(item, control=twins[0].label, control_value=levels[_place(item)])
        if item.measure in BESIDE_TWIN and levels.get(_place(item)) is not None
        else item
        for item in found[arm.name]
    ]


def job(
    arm: Arm,
    what: dict[str, dict[str, Any]],
    config: RunConfig,
    split_seed: int,
    folder: str,
    report: Any = None,
) -> list[str]:
    """Makes and stores the asked measures of one arm; called in worker processes. Returns the keys."""
    store = Store(folder)
    compared = _compared(arm, next(iter(what.values())), config, split_seed, store)
    keys = []
    for done, (name, identity) in enumerate(what.items()):

        def make(measure: Callable[[Compared], Sequence[Measured]] = ALSO[name]) -> dict[str, Any]:
            tensors, extra = pack(measure(compared))
            return {"tensors": tensors, "extra": extra}

        keys.append(store.once(identity, make))
        if report is not None:
            report(done + 1, len(what))
    return keys


def _identity(run: Run, arm: Arm, name: str) -> dict[str, Any]:
    """What the store key of one measure of one arm is the hash of."""
    # without a matched oracle nothing is read beside it, and the original holds its place
    gold = GOLD if GOLD in run.keys else "original"
    wanted = [arm.name, "original", gold, *_parents(run, arm.name)]
    return {
        "kind": "measures also",
        "version": VERSION,
        "settings": {
            "measure": name,
            "junk_layer": run.config.unlearn.rmu.layer,
            "related": _root(run, arm.name) == "original",
        },
        "seed": derive_seed(run.config.seed, "measures"),
        "parents": [run.keys[wanted_name] for wanted_name in wanted],
        "task": run.task.fingerprint,
    }


def _parents(run: Run, name: str) -> list[str]:
    """Of what an arm was made: where its weights started, then who taught it."""
    return next(line["parents"] for line in run.manifest["arms"] if line["name"] == name)[:2]


def _root(run: Run, name: str) -> str:
    """The arm whose random start an arm's weights descend from."""
    while parents := _parents(run, name):
        name = parents[0]
    return name


def _compared(arm: Arm, what: dict[str, Any], config: RunConfig, split_seed: int, store: Store) -> Compared:
    own, original, gold, *parents = what["parents"]
    models = [store.model(key) for key in parents]
    task = build_task(asked_task(config), split_seed)
    taught = arm.stage == "distilled" and len(models) > 1
    return Compared(
        arm,
        store.model(own),
        task,
        config,
        store.model(original),
        store.model(gold),
        models[0] if models else None,
        models[1] if taught else None,
        what["settings"]["related"],
        store.tensors(own),
        lambda: _gold_stitched(str(store.folder), gold, original, task, what["seed"]),
        lambda: _lens_of(str(store.folder), original, task, what["seed"]),
    )


@lru_cache(maxsize=1)
def _gold_stitched(folder: str, gold: str, original: str, task: Task, seed: int) -> Stitched:
    """The oracle's maps: a worker measures several arms of one task, and they are the same for all."""
    store = Store(folder)
    return fit_stitches(store.model(gold), store.model(original), task, seed)


@lru_cache(maxsize=1)
def _lens_of(folder: str, original: str, task: Task, seed: int) -> TunedLens:
    """The original's tuned lens, the same for all arms."""
    return task_lens(Store(folder).model(original), task, seed)


def _place(item: Measured) -> tuple[str, str, str, str | None]:
    return item.measure, item.task_split, item.subset, item.layer


def _level(item: Measured) -> float | None:
    return item.value if isinstance(item, Statistic) else float(item.values.mean())
