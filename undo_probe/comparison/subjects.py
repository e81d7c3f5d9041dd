"""What is compared: models and prompts from whatever names them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from undo_probe.comparison.prompts import GivenPrompts, neutral_rows
from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.files import read_json
from undo_probe.models import HookedTransformer, load_model
from undo_probe.pipeline import split_seed
from undo_probe.presets import load_config
from undo_probe.sources import find_source
from undo_probe.store import Run, arm_at
from undo_probe.tasks import Task, TokenSet, asked_task, build_task
from undo_probe.tasks.reader import Reader, source_reader

LONGEST = 1024
"""Tokens that a Hugging Face model reads here at most: its masks are as wide as its context, whatever the rows are."""

Place = HookedTransformer | str | Path
"""A model, a folder or hub id that :func:`undo_probe.load_model` reads, or ``RUN:arm``."""


@dataclass(frozen=True)
class Subject:
    """A model with its name for a reader, and where it came from."""

    model: HookedTransformer
    name: str
    run: Run | None = None
    tokenizer: str = ""


def open_subject(place: Place, name: str) -> Subject:
    """The model that a place names.

    Args:
        place: a model, its folder or hub id, or ``RUN:arm``: a run folder and an arm by name (``distilled-simnpo-0.6``)
            or label (``UNDO 0.6``).
        name: used where the place has no name of its own.

    Raises:
        UndoProbeError: there is no such folder, or the run has no such arm.
    """
    if isinstance(place, HookedTransformer):
        return Subject(place, name)
    named = arm_at(place)
    if named is not None:
        run, arm = named
        return Subject(run.load(arm), arm.label, run)
    source = find_source(str(place))
    tokenizer = "" if source.kind == "checkpoint" else str(place)
    return Subject(load_model(place, n_ctx=LONGEST), Path(str(place)).name, None, tokenizer)


def open_task(task: Any, a: Subject, b: Subject, tokenizer: str | None) -> Task:
    """The rows that two models are compared on.

    Args:
        task: a task, its configuration or that of a run, a preset's name or a file, a run folder, prompts by split or a
            JSON file of them; None for the task of the run that ``a`` is an arm of.
        a: whose tokenizer reads prompts.
        b: refused where it has another tokenizer.
        tokenizer: the tokenizer of prompts where the models come without one: a Hugging Face folder or hub id.

    Raises:
        UndoProbeError: nothing says what to ask, or the two models read other tokens.
    """
    if a.model.cfg.d_vocab != b.model.cfg.d_vocab:
        raise UndoProbeError(
            f"{a.name} has {a.model.cfg.d_vocab} tokens and {b.name} {b.model.cfg.d_vocab}: two models are compared on "
            "the same tokens"
        )
    _same_tokenizer(a, b)
    if isinstance(task, (str, Path)) and str(task).endswith(".json"):
        values = read_json(task)
        task = values if isinstance(values, dict) and "forget" in values and "retain" in values else task
    if isinstance(task, Mapping):
        found: Task = GivenPrompts(task, a.model.cfg.d_vocab, _reader(a, b, tokenizer))
    else:
        found = _built(task, a, b)
    if found.d_vocab > a.model.cfg.d_vocab:
        raise UndoProbeError(
            f"the task {found.name} has {found.d_vocab} tokens and the models {a.model.cfg.d_vocab}: give the task "
            "that they were trained on"
        )
    _check_width(found.n_ctx, a, b)
    return found


def open_neutral(
    given: Any, task: Task, a: Subject, b: Subject, tokenizer: str | None, most: int
) -> TokenSet:
    """The rows of neutral text beside a task; texts are read with its own tokenizer where it has one.

    Raises:
        UndoProbeError: what is given is no text or tokens, is too long, or nothing tells tokens from it.
    """
    reads = min(a.model.cfg.n_ctx, b.model.cfg.n_ctx)
    reader = getattr(task, "reader", None) or _reader(a, b, tokenizer)
    rows = neutral_rows(given, a.model.cfg.d_vocab, reads, reader, most)
    _check_width(rows.tokens.shape[1], a, b)
    return rows


def _check_width(width: int, a: Subject, b: Subject) -> None:
    reads = min(a.model.cfg.n_ctx, b.model.cfg.n_ctx)
    if width > reads:
        raise UndoProbeError(
            f"a row has {width} tokens and the models read {reads} at most: give shorter ones"
        )


def _reader(a: Subject, b: Subject, tokenizer: str | None) -> Reader | None:
    place = tokenizer or a.tokenizer or b.tokenizer
    return source_reader(place, "main") if place else None


def _same_tokenizer(a: Subject, b: Subject) -> None:
    if not a.tokenizer or not b.tokenizer or a.tokenizer == b.tokenizer:
        return
    readers = [source_reader(place, "main") for place in (a.tokenizer, b.tokenizer)]
    if _vocabulary(readers[0]) != _vocabulary(readers[1]):
        raise UndoProbeError(
            f"{a.name} and {b.name} have different tokenizers: two models are compared on the same tokens"
        )


def _vocabulary(reader: Reader) -> dict[str, int]:
    return reader.tokenizer.get_vocab(with_added_tokens=True)


def _built(task: Any, a: Subject, b: Subject) -> Task:
    run = a.run or b.run
    if task is None:
        if run is None:
            raise UndoProbeError(
                "what are the models to be compared on? give task=: a preset's name, a run folder, a configuration, a "
                "task, or prompts by split, {'forget': [...], 'retain': [...]}"
            )
        return run.task
    if isinstance(task, (str, Path)):
        if (Path(task) / "run.json").is_file():
            return Run(task).task
        task = load_config(task)
    if isinstance(task, RunConfig):
        return build_task(asked_task(task), split_seed(task))
    if isinstance(task, Task):
        return task
    return build_task(task, 0)
