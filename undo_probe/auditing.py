"""Finished models side by side: what was published as unlearned is measured, and nothing is trained unless asked.

An audit is a run whose models are all loaded, so its folder, tables and page are those of any run.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from undo_probe.attacks.arms import attack as run_attack
from undo_probe.comparison import compare
from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.jobs import OnEvent
from undo_probe.pipeline import run_undo
from undo_probe.plan import places_of
from undo_probe.presets import PRESETS, load_config, near, override, preset
from undo_probe.records import Arm
from undo_probe.report import write_report
from undo_probe.scorecard import score
from undo_probe.sources import described, find_source
from undo_probe.store import Run, arm_at
from undo_probe.task_config import TASKS

ALONE = "Unlearned"
"""What an unlearned model is called that was given no name."""


def audit(
    original: str | Path,
    unlearned: str | Path | Mapping[str, str | Path],
    task: str | Path | RunConfig,
    folder: str | Path,
    *overrides: str,
    oracle: str | Path = "",
    attack: bool = False,
    also: Sequence[str] = (),
    neutral: Any = None,
    workers: int | None = None,
    progress: OnEvent | None = None,
) -> Run:
    """Measure finished models on a task: capability, probes, drift, and the attack and depth where asked.

    Args:
        original: the model that was unlearned: a folder of undo_probe or transformers, a hub id, or ``RUN:arm``.
        unlearned: what came of it, or several by name.
        task: a task's name, a preset, a settings file or a run folder; of these the sections task, attack, score and
            the seed count.
        folder: the run folder, with ``report.html`` at the end, and ``compare-NAME.html`` for each unlearned model
            beside the original, layer by layer; the same call goes on in it.
        overrides: settings such as ``task.text=quiz`` or ``attack.steps=40``.
        oracle: a model trained like the original without what is to be forgotten; survival then lies between it and the
            original, without it survival is null.
        attack: relearn every model (the only training that an audit does).
        also: measures beside the usual ones, as of ``score.also``.
        neutral: text that is neither forget nor retain, for the comparisons: as of :func:`undo_probe.compare`.
        workers: processes, one a core by default.
        progress: called as ``progress(name, step, total, numbers)``.

    Raises:
        UndoProbeError: a model cannot be read, does not fit the task, or has not the original's shape.
    """
    config = audit_config(original, unlearned, task, *overrides, oracle=oracle)
    _check_alike(config)
    run = run_undo(config, folder, workers=workers, progress=progress)
    if attack:
        run = run_attack(run, workers=workers, progress=progress)
    score(run, workers=workers, progress=progress, also=also or None)
    write_report(run.folder)
    for arm, page in compared(run).items():
        if page.is_file():
            continue  # minutes for a large model; its checkpoints are those of the configuration
        gold = run.model("oracle_matched") if oracle else None
        names = (run.arm("original").label, arm.label)
        original_model, model = run.model("original"), run.load(arm)
        compare(original_model, model, run.task, gold=gold, neutral=neutral, names=names).write(page)
    return run


def compared(run: Run) -> dict[Arm, Path]:
    """The unlearned models of an audit, and where each one's comparison with the original lies."""
    given = [arm for arm in run.arms if arm.stage == "unlearned"]
    return {arm: run.folder / f"compare-{arm.method.replace(' ', '-')}.html" for arm in given}


def audit_config(
    original: str | Path,
    unlearned: str | Path | Mapping[str, str | Path],
    task: str | Path | RunConfig,
    *overrides: str,
    oracle: str | Path = "",
) -> RunConfig:
    """The configuration of :func:`audit`; arguments as there.

    Raises:
        UndoProbeError: no such task or preset, or a setting that does not fit.
    """
    named = unlearned if isinstance(unlearned, Mapping) else {ALONE: unlearned}
    given = {
        "unlearned": {name: _checkpoint(place) for name, place in named.items()},
        "oracle": _checkpoint(oracle) if oracle else "",
    }
    base = task if isinstance(task, RunConfig) else _base(str(task))
    return override(
        base,
        f"original.source={_checkpoint(original)}",
        f"given={json.dumps(given)}",
        'name="audit"',
        *overrides,
    )


def _checkpoint(place: str | Path) -> str:
    """Where a model lies: of ``RUN:arm``, the run's stored checkpoint."""
    named = arm_at(place)
    return str(place) if named is None else str(named[0].store.path(named[0].keys[named[1].name]))


def _check_alike(config: RunConfig) -> None:
    """Every measure goes block by block and reads the same tokens, so the models must have one shape."""
    shapes = {name: described(find_source(*place)).fields for name, place in places_of(config).items()}
    for name, fields in shapes.items():
        for field in ("n_layers", "d_model", "d_vocab"):
            own, wanted = fields.get(field), shapes["original"].get(field)
            if own != wanted:
                raise UndoProbeError(
                    f"{places_of(config)[name][0]} has {field} {own}, the original {wanted}: an audit compares models "
                    "of one shape, block by block"
                )


def _base(task: str) -> RunConfig:
    """The settings that a task's name, a preset, a file or a run stands for."""
    if task in TASKS:
        return preset("tiny", f"task.name={task}")
    if task in PRESETS or Path(task).is_file():
        return load_config(task)
    if (Path(task) / "run.json").is_file():
        return load_config(Path(task) / "config.json")
    known = [*TASKS, *PRESETS]
    raise UndoProbeError(
        f"{task!r} is no task, preset, settings file or run{near(task, known)}: tasks are {', '.join(TASKS)}, presets "
        f"{', '.join(PRESETS)}"
    )


def named_places(words: Sequence[str]) -> dict[str, str]:
    """``NAME=PLACE`` words as a mapping; a place without a name is numbered where there are several.

    Raises:
        UndoProbeError: two of one name.
    """
    found: dict[str, str] = {}
    for number, word in enumerate(words, start=1):
        name, sign, place = word.partition("=")
        if not sign:
            name, place = (ALONE if len(words) == 1 else f"{ALONE} {number}"), word
        if name in found:
            raise UndoProbeError(f"two unlearned models are called {name!r}: give each a name of its own")
        found[name] = place
    return found
