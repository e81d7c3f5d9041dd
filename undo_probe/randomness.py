"""Seeds and determinism: every draw of the suite goes through here."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part, and on nothing else.

    The parts say what the draw is for, for example ``derive_seed(run_seed, "noise", alpha)``. Two
    purposes never share a stream, so a stage's numbers do not depend on which other stages ran.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: object) -> "torch.Generator":
    """A CPU generator seeded with :func:`derive_seed` of the parts."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*parts))


@contextlib.contextmanager
def deterministic(threads: int | None = 1) -> Iterator[None]:
    """Torch's deterministic algorithms and a fixed thread count, both restored on leaving.

    New tensors are not filled before they are written, which torch does by default beside deterministic algorithms: it
    took a tenth of a training step, and nothing here reads what it has not written.

    Args:
        threads: intra-op threads inside the block; None leaves the count as it is.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    threads_before = torch.get_num_threads()
    memory: Any = torch.utils.deterministic  # its one setting is not known to type checkers
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled
        torch.set_num_threads(threads_before)
