"""Tasks: what is to be forgotten, what is to be kept, and how both are asked."""

from functools import lru_cache

from undo_probe.config import RunConfig
from undo_probe.sources import find_source
from undo_probe.task_config import (
    ArithmeticConfig,
    ChoiceConfig,
    FactsConfig,
    InventedConfig,
    LanguageConfig,
    TaskConfig,
)
from undo_probe.tasks.protocol import Batch, Metric, Task, TokenSet

__all__ = ["TASKS", "Batch", "Metric", "Task", "TokenSet", "build_task"]


def _arithmetic(settings: str, seed: int) -> Task:
    from undo_probe.tasks.arithmetic import ArithmeticTask
    from undo_probe.tasks.worded import WordedArithmeticTask

    config = ArithmeticConfig.model_validate_json(settings)
    worded = config.word_problems or config.background is not None
    return WordedArithmeticTask(config, seed) if worded else ArithmeticTask(config, seed)


def _invented(settings: str, seed: int) -> Task:
    from undo_probe.tasks.invented import InventedTask

    return InventedTask(InventedConfig.model_validate_json(settings), seed)


def _language(settings: str, seed: int) -> Task:
    from undo_probe.tasks.language import LanguageTask

    return LanguageTask(LanguageConfig.model_validate_json(settings), seed)


def _choice(settings: str, seed: int) -> Task:
    from undo_probe.tasks.choice import ChoiceTask

    return ChoiceTask(ChoiceConfig.model_validate_json(settings), seed)


def _facts(settings: str, seed: int) -> Task:
    from undo_probe.tasks.facts import FactsTask

    return FactsTask(FactsConfig.model_validate_json(settings), seed)


# name -> builder: adding a task is a module, a section of the configuration and a line here
TASKS = {
    "arithmetic": _arithmetic,
    "invented": _invented,
    "language": _language,
    "choice": _choice,
    "facts": _facts,
}


@lru_cache(maxsize=4)
def _built(name: str, settings: str, seed: int) -> Task:
    return TASKS[name](settings, seed)


def asked_task(config: RunConfig) -> TaskConfig:
    """The task section of a run; text is read with the tokenizer of ``original.source`` where the task names none."""
    task, original = config.task, config.original
    if not isinstance(task, ChoiceConfig | FactsConfig) or task.tokenizer or not original.source:
        return task
    if find_source(original.source, original.revision).kind == "checkpoint":
        return task
    return task.model_copy(update={"tokenizer": original.source, "tokenizer_revision": original.revision})


def build_task(config: TaskConfig, seed: int) -> Task:
    """The task that a run's ``task`` section describes.

    The last few are kept: a worker process runs many short jobs on one task.

    Args:
        config: a task section of the configuration.
        seed: the run's split seed; it decides which families fall into which set,
            and what the invented people are.

    Raises:
        UndoProbeError: the task cannot be built: a split is empty, or the user's text is missing.
    """
    return _built(config.name, config.model_dump_json(), seed)
