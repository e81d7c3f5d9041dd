"""Unlearning methods: one short file each, behind one dict."""

from collections.abc import Callable
from typing import Any

from undo_probe.models import HookedTransformer
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.cir import cir
from undo_probe.stages.unlearn.graddiff import graddiff
from undo_probe.stages.unlearn.maxent import maxent
from undo_probe.stages.unlearn.npo import npo, simnpo
from undo_probe.stages.unlearn.repnoise import repnoise
from undo_probe.stages.unlearn.repselect import repselect
from undo_probe.stages.unlearn.rmu import rmu
from undo_probe.stages.unlearn.undial import undial
from undo_probe.tasks import Task
from undo_probe.training import Context

__all__ = ["METHODS", "STARTS_FROM", "VERSION", "Unlearner"]

VERSION = 3
# the third argument is the method's own section of the configuration
Unlearner = Callable[[HookedTransformer, Task, Any, Context], StageResult]
METHODS: dict[str, Unlearner] = {
    "maxent": maxent,
    "graddiff": graddiff,
    "rmu": rmu,
    "npo": npo,
    "simnpo": simnpo,
    "undial": undial,
    "sam": maxent,  # its section asks the training loop for sharpness-aware steps
    "repnoise": repnoise,
    "cir": cir,
    "repselect": repselect,
}
STARTS_FROM = {"repnoise": "maxent"}
"""Methods that begin where another one ends; all others begin at the original."""
