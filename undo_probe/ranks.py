"""The processes that ``accelerate launch`` starts to train one model together: how many, which one, what they agree on.

Without a launcher there is one process, and nothing here does anything.
"""

import os
from typing import Any

from undo_probe.errors import UndoProbeError


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_main() -> bool:
    """Whether this process measures and writes; the others only train."""
    return rank() == 0


def join(device: str) -> None:
    """Waits until all processes are there; a second call does nothing."""
    import torch.distributed as dist

    if size() > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=device == "cpu")


def agree(value: Any) -> Any:
    """The main process's value, in every process; whoever is first waits for the others."""
    if size() == 1:
        return value
    import torch.distributed as dist

    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def refuse(what: str, instead: str) -> None:
    """Says that ``what`` is done by one process.

    Raises:
        UndoProbeError: there are several.
    """
    if size() > 1:
        raise UndoProbeError(
            f"{what} was asked for in {size()} processes of accelerate launch, which train models together and do "
            f"nothing else: {instead}"
        )
