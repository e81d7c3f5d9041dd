"""Activations of a model on tokens: streamed, held in memory, and captured while something else runs it."""

import re
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


def find_points(model: HookedTransformer, wanted: str | Sequence[str]) -> list[str]:
    """Full hook names, in the order of the model's layers.

    Args:
        model: whose hook points are meant.
        wanted: full names, or what they end in, which then means every block: ``resid_post``, ``attn.hook_z``.

    Raises:
        UndoProbeError: nothing fits, or nothing was asked for.
    """
    asked = [wanted] if isinstance(wanted, str) else list(wanted)
    found: set[str] = set()
    for ending in asked:
        fits = {name for name in model.hook_dict if name == ending or _ends_in(name, ending)}
        if not fits:
            raise UndoProbeError(
                f"the model has no hook point {ending!r}: give a full name such as {residual_names(model)[-1]!r}, "
                "or what it ends in, such as 'resid_post', for every block"
            )
        found |= fits
    if not found:
        raise UndoProbeError("no hook point was asked for: give at least one, such as 'resid_post'")
    return [name for name in model.hook_dict if name in found]


def _ends_in(name: str, ending: str) -> bool:
    inside = re.sub(r"^blocks\.\d+\.", "", name)
    return inside != name and (inside == ending or f".{inside}".endswith(f".hook_{ending}"))


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
    n_pos = tokens.shape[1]
    own = _row_positions(positions, n_pos) if isinstance(positions, Tensor) else None
    kept = [] if isinstance(positions, Tensor) else kept_positions(positions, n_pos)
    buffers: dict[str, Tensor] = {}

    def keep(name: str, start: int, activation: Tensor) -> None:
        rows = slice(start, start + len(activation))
        part = activation[:, kept] if own is None else _gathered(activation, own[rows])
        if name not in buffers:
            buffers[name] = torch.empty(len(tokens), *part.shape[1:], dtype=part.dtype)
        buffers[name][rows] = part

    stream_points(model, tokens, names, keep, batch_size)
    return {name: buffers[name] for name in names}


@torch.no_grad()
def stream_points(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    names: Sequence[str],
    keep: Callable[[str, int, Tensor], None],
    batch_size: int,
) -> None:
    """Runs the model batch by batch, up to the last block needed, and hands over what hook points give.

    Args:
        model: left as it is; no hook stays.
        tokens: token ids.
        names: full hook names, of points whose first two axes are row and position.
        keep: gets hook name, number of the batch's first row and the activation, which it must copy: later hooks
            may change it.
        batch_size: rows in one forward pass.

    Raises:
        UndoProbeError: a name does not exist or is not reached, its axes are others, or there is nothing to do.
    """
    if not len(tokens) or not names:
        raise UndoProbeError(
            f"nothing to harvest: {len(tokens)} rows and {len(names)} hook points were given"
        )
    _check_names(model, names)
    device = next(model.parameters()).device
    reached: set[str] = set()
    start, rows = 0, tokens[:0]

    def take(activation: Tensor, hook: Any) -> None:
        reached.add(hook.name)
        if activation.shape[:2] != rows.shape or hook.name.endswith(("hook_pattern", "hook_attn_scores")):
            raise UndoProbeError(
                f"{hook.name} gave an activation of shape {tuple(activation.shape)} for {len(rows)} rows of "
                f"{rows.shape[1]} tokens: only points whose first axes are row and position can be harvested"
            )
        keep(hook.name, start, activation)

    wanted = set(names)
    hooks: list[tuple[str | Callable[..., Any], Callable[..., Any]]] = [(wanted.__contains__, take)]
    blocks = [re.match(r"blocks\.(\d+)\.", name) for name in names]
    stop = max((int(block[1]) + 1 for block in blocks if block), default=0)
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size].to(device)
        model.run_with_hooks(rows, return_type=None, fwd_hooks=hooks, stop_at_layer=stop)
        missing = [name for name in names if name not in reached]
        if missing:
            raise UndoProbeError(
                f"the hook point {missing[0]} was not reached: it lies behind the last block, or the model's "
                "settings leave it out"
            )


def _check_names(model: HookedTransformer, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in model.hook_dict]
    if unknown:
        example = residual_names(model)[-1]
        raise UndoProbeError(f"the model has no hook point {unknown[0]!r}: names look like {example!r}")


def kept_positions(positions: Sequence[int] | int | None, n_pos: int) -> list[int]:
    """Positions counted from the start of a row, in the order given; None is all of them.

    Raises:
        UndoProbeError: one lies outside the row, or there is none.
    """
    if positions is None:
        return list(range(n_pos))
    chosen = [positions] if isinstance(positions, int) else list(positions)
    outside = [p for p in chosen if not -n_pos <= p < n_pos]
    if outside or not chosen:
        raise UndoProbeError(f"positions {chosen} do not fit rows of {n_pos} tokens (0 to {n_pos - 1})")
    return [p % n_pos for p in chosen]


def _row_positions(positions: Int[Tensor, "row ..."], n_pos: int) -> Int[Tensor, "row kept"]:
    if not ((-n_pos <= positions) & (positions < n_pos)).all():
        raise UndoProbeError(
            f"positions from {int(positions.min())} to {int(positions.max())} do not fit rows of {n_pos} tokens"
        )
    return (positions if positions.ndim == 2 else positions[:, None]) % n_pos


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
