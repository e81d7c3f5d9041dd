"""The known set: which facts a model answers before anything is done to it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import continuations
from undo_probe.models import HookedTransformer, content_hash, load_model
from undo_probe.randomness import deterministic
from undo_probe.task_config import FactsConfig
from undo_probe.tasks import Task, asked_task, build_task
from undo_probe.tasks.facts import Asked, FactsTask
from undo_probe.tasks.known_set import read_known, write_known
from undo_probe.training import resolve_device

_ROUND = 8


def known(model: HookedTransformer, task: Task, file: str | Path) -> pd.DataFrame:
    """Asks a model for every fact of a task in every wording, and writes down what it answers.

    A wording counts as answered where the right answer is likelier than all others of the relation (or than the
    fact's own distractors), by the log-probability of the answer's tokens alone. A run with ``task.known=FILE`` keeps
    the facts that are answered in most of their wordings.

    Args:
        model: with the run's ``task.n_ctx``, as it is before unlearning.
        task: a task ``facts``; its own known set does not matter.
        file: where the known set goes, JSON.

    Returns:
        One line a relation: ``known`` of ``facts``, those answered in each wording (``wording_0``, ...) and in all,
        and the mean ``probability`` of the right answer in the best wording.

    Raises:
        UndoProbeError: the task is another, or no fact of it can be asked.
    """
    if not isinstance(task, FactsTask):
        raise UndoProbeError(f"a known set is of facts, but the task is {task.name}: give task.name=facts")
    facts = task.every_wording()
    if not facts:
        raise UndoProbeError("no fact of this task can be asked with this tokenizer: raise task.n_ctx")
    asked = [one for wordings in facts for one in wordings]
    right, log_p = answered(model, asked)
    lines, start = [], 0
    for wordings in facts:
        part = slice(start, start := start + len(wordings))
        fact = wordings[0].kept.fact
        lines.append(
            {
                "fact": fact.name,
                "relation": fact.relation,
                "prompt": fact.prompts[0],
                "answer": fact.answer,
                "right": right[part].tolist(),
                "log_probability": log_p[part].round(4).tolist(),
            }
        )
    write_known(Path(file).expanduser(), content_hash(model), lines)
    return summary(file)


def known_of(config: RunConfig, file: str | Path) -> pd.DataFrame:
    """:func:`known` for the model that a run would start from, and the facts of its task.

    Raises:
        UndoProbeError: ``original.source`` is empty, or what :func:`known` raises.
    """
    if not config.original.source:
        raise UndoProbeError(
            "original.source is empty: give the model whose knowledge is asked, a folder or hub id"
        )
    section = asked_task(config)
    if isinstance(section, FactsConfig):
        section = section.model_copy(update={"known": ""})
    task, device = build_task(section, config.seed), resolve_device(config.device)
    model = load_model(config.original.source, device, revision=config.original.revision, n_ctx=task.n_ctx)
    with deterministic(config.threads):
        return known(model, task, file)


def answered(model: HookedTransformer, asked: Sequence[Asked]) -> tuple[np.ndarray, np.ndarray]:
    """Whether the right answer is the likeliest of all that are offered, and its log-probability; shape (row,).

    Exact, but few answers are read: one whose first token is less likely than the whole right answer cannot win.
    """
    prompts = [one.prompt for one in asked]
    first = continuations(
        model, prompts, [[one.options[one.answer], *(o[:1] for o in one.options)] for one in asked]
    )
    goal = np.array([said.log_probability[0] for said in first])
    right = np.ones(len(asked), dtype=bool)
    rivals: list[list[int]] = []
    for row, one in enumerate(asked):
        bound = first[row].log_probability[1:]
        order = [
            int(at) for at in np.argsort(-bound, kind="stable") if bound[at] > goal[row] and at != one.answer
        ]
        right[row] = all(len(one.options[at]) > 1 for at in order)
        rivals.append(order)
    while left := [row for row in range(len(asked)) if right[row] and rivals[row]]:
        tried = [[asked[row].options[at] for at in rivals[row][:_ROUND]] for row in left]
        for row, said in zip(left, continuations(model, [prompts[row] for row in left], tried), strict=True):
            right[row] = said.log_probability.max() < goal[row]
            rivals[row] = rivals[row][_ROUND:]
    return right, goal


def summary(file: str | Path) -> pd.DataFrame:
    """The table that :func:`known` returned, from its file."""
    found = read_known(str(file))
    lines = []
    for relation in dict.fromkeys(line["relation"] for line in found.lines):
        part = [line for line in found.lines if line["relation"] == relation]
        most = max(len(line["right"]) for line in part)
        by_wording = [
            sum(line["right"][at] for line in part if at < len(line["right"])) for at in range(most)
        ]
        best = [np.exp(max(line["log_probability"])) for line in part]
        lines.append(
            {
                "relation": relation,
                "facts": len(part),
                "known": sum(found.knows(line["fact"]) for line in part),
                **{f"wording_{at}": count for at, count in enumerate(by_wording)},
                "in_all": sum(all(line["right"]) for line in part),
                "probability": float(np.mean(best)),
            }
        )
    return pd.DataFrame(lines)
