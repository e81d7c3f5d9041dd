"""Unlearning methods: one short file each, behind one dict."""

from collections.abc import Callable
from typing import Any

from undo_probe.models import HookedTransformer
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.graddiff import graddiff
from undo_probe.stages.unlearn.maxent import maxent
from undo_probe.stages.unlearn.rmu import rmu
from undo_probe.tasks import Task
from undo_probe.training import Context

__all__ = ["METHODS", "VERSION", "Unlearner"]

VERSION = 1
# the third argument is the method's own section of the configuration
Unlearner = Callable[[HookedTransformer, Task, Any, Context], StageResult]
METHODS: dict[str, Unlearner] = {"maxent": maxent, "graddiff": graddiff, "rmu": rmu}
