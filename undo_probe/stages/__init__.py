"""Stages: functions that take a model (or none) and return a new one with its history and cost."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from undo_probe.models import HookedTransformer
from undo_probe.records import Ledger


@dataclass
class StageResult:
    """What a stage made.

    ``tensors`` are things other measures need (RMU's control vector); ``rows`` is the training history;
    ``stopped`` says why training ended; ``extra`` is what else the record of it keeps (the harm of a budget).
    """

    model: HookedTransformer
    tensors: dict[str, Tensor] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    stopped: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
