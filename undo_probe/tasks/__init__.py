"""Tasks: what is to be forgotten, what is to be kept, and how both are asked."""

from functools import lru_cache

from undo_probe.config import ArithmeticConfig
from undo_probe.tasks.protocol import Batch, Task, TokenSet

__all__ = ["TASKS", "Batch", "Task", "TokenSet", "build_task"]


def _arithmetic(settings: str, seed: int) -> Task:
    from undo_probe.tasks.arithmetic import ArithmeticTask

    return ArithmeticTask(ArithmeticConfig.model_validate_json(settings), seed)


TASKS = {"arithmetic": _arithmetic}


@lru_cache(maxsize=4)
def _built(name: str, settings: str, seed: int) -> Task:
    return TASKS[name](settings, seed)


def build_task(config: ArithmeticConfig, seed: int) -> Task:
    """The task that a run's ``task`` section describes.

    The last few are kept: a worker process runs many short jobs on one task.

    Args:
        config: a task section of the configuration.
        seed: the run's split seed; it decides which families fall into which set.
    """
    return _built(config.name, config.model_dump_json(), seed)
