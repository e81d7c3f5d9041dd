"""Activations of a model on tokens, held in memory, and captured while something else runs it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.divided import Divided
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer

Positions = Sequence[int] | int | Int[Tensor, "row ..."] | None


def residual_names(model: HookedTransformer) -> list[str]:
    """The residual stream's hook names: into the first block, then after each block."""
    return ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(model.cfg.n_layers))]


def residual_streams(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    positions: Positions = None,
    batch_size: int = 512,
) -> dict[str, Float[Tensor, "row kept d_model"]]:
    """The residual stream before the first block and after every block.

    Args:
        model: left as it is; no hook stays.
        tokens: token ids.
        positions: which positions to keep (one, several in this order, or None for all); or a tensor with one or
            several for each row, of shape (row,) or (row, kept).
        batch_size: rows in one forward pass.

    Returns:
        Hook name to activations on the CPU, in the model's dtype. The last is before the final norm.
    """
    return harvest_points(model, tokens, residual_names(model), positions, batch_size)


@torch.no_grad()
def harvest_points(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    names: Sequence[str],
    positions: Positions = None,
    batch_size: int = 512,
) -> dict[str, Float[Tensor, "row kept ..."]]:
    """Activations at named hook points whose first two axes are row and position.

    Written straight into buffers allocated once, so memory is known in advance and no cache is built. The
    unembedding is not run. Gradients are off.

    Raises:
        UndoProbeError: a name or a position does not exist, or there are no rows.
    """
    if not len(tokens) or not names:
        raise UndoProbeError(
            f"nothing to harvest: {len(tokens)} rows and {len(names)} hook points were given"
        )
    _check_names(model, names)
    kept = _positions(positions, tokens.shape[1])
    device = next(model.parameters()).device
    buffers: dict[str, Tensor] = {}
    start, size = 0, batch_size

    def keep(activation: Tensor, hook: Any) -> None:
        part = (
            activation[:, kept]
            if isinstance(kept, list)
            else _gathered(activation, kept[start : start + size])
        )
        if hook.name not in buffers:
            buffers[hook.name] = torch.empty(len(tokens), *part.shape[1:], dtype=part.dtype)
        buffers[hook.name][start : start + len(part)] = part

    wanted = set(names)
    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [(wanted.__contains__, keep)]
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size].to(device)
        model.run_with_hooks(rows, return_type=None, fwd_hooks=hooks, stop_at_layer=model.cfg.n_layers)
    missing = [name for name in names if name not in buffers]
    if missing:
        raise UndoProbeError(f"the hook point {missing[0]} was not reached: it lies behind the last block")
    return {name: buffers[name] for name in names}


def _check_names(model: HookedTransformer, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in model.hook_dict]
    if unknown:
        example = residual_names(model)[-1]
        raise UndoProbeError(f"the model has no hook point {unknown[0]!r}: names look like {example!r}")


def _positions(positions: Positions, n_pos: int) -> list[int] | Tensor:
    if positions is None:
        return list(range(n_pos))
    if isinstance(positions, Tensor):
        if not ((-n_pos <= positions) & (positions < n_pos)).all():
            raise UndoProbeError(
                f"positions from {int(positions.min())} to {int(positions.max())} do not fit rows of {n_pos} tokens"
            )
        return (positions if positions.ndim == 2 else positions[:, None]) % n_pos
    chosen = [positions] if isinstance(positions, int) else list(positions)
    outside = [p for p in chosen if not -n_pos <= p < n_pos]
    if outside or not chosen:
        raise UndoProbeError(f"positions {chosen} do not fit rows of {n_pos} tokens (0 to {n_pos - 1})")
    return [p % n_pos for p in chosen]


def _gathered(activation: Tensor, kept: Tensor) -> Tensor:
    """Each row at its own positions."""
    return activation[torch.arange(len(kept))[:, None], kept.to(activation.device)]


@contextmanager
def capture(model: torch.nn.Module, names: Iterable[str], into: dict[str, Tensor]) -> Iterator[None]:
    """Keeps the outputs of hook points while the block runs.

    Module hooks, not run_with_hooks: they also fire when the model's rows are divided between processes; what
    is kept is then that of all rows.
    """
    inner = getattr(model, "module", model)
    handles = []

    def keeper(name: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(_module: torch.nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            into[name] = model.gather(output) if isinstance(model, Divided) else output

        return keep

    try:
        for name in names:
            handles.append(inner.get_submodule(name).register_forward_hook(keeper(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
