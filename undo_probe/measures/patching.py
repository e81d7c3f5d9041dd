"""Running one model with another's activations in it: what each place carries of the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe import intervals
from undo_probe.activations import harvest_points
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import LOGITS, answer_log_probability
from undo_probe.interventions import Swap, swap
from undo_probe.measures.lens import decode
from undo_probe.measures.stitches import answer_positions
from undo_probe.models import HookedTransformer
from undo_probe.tasks.protocol import TokenSet

if TYPE_CHECKING:
    import pandas as pd

Site = Literal["resid_post", "attn_out", "mlp_out", "head"]
ROWS = 4096
"""Rows of a forward pass, over all places that share it."""

Adapt = Mapping[str, Callable[[Tensor], Tensor]]
"""Hook name to what is done to the source's activations before they are put in place."""


@dataclass(frozen=True)
class Place:
    """One place of a model: a site of a block at some positions; ``head`` says which head of ``head``."""

    site: Site
    layer: int
    positions: tuple[int, ...]
    head: int | None = None

    @property
    def hook(self) -> str:
        """The hook point."""
        return f"blocks.{self.layer}.{'attn.hook_z' if self.site == 'head' else f'hook_{self.site}'}"


def places(
    model: HookedTransformer, site: Site, positions: Sequence[int], together: bool = False
) -> list[Place]:
    """The grid of a site: every block (and head) at every position, or with ``together`` at all of them at once.

    Raises:
        UndoProbeError: no position is given.
    """
    if not positions:
        raise UndoProbeError(
            "there is no position to patch: give at least one, for example answer_positions(rows)"
        )
    heads = range(model.cfg.n_heads) if site == "head" else [None]
    groups = [tuple(positions)] if together else [(position,) for position in positions]
    return [
        Place(site, layer, group, head)
        for layer in range(model.cfg.n_layers)
        for head in heads
        for group in groups
    ]


def patched_bits(
    into: HookedTransformer,
    source: HookedTransformer,
    rows: TokenSet,
    at: Sequence[Place],
    adapt: Adapt | None = None,
) -> Float[np.ndarray, "place row"]:
    """Log-probability of each row's answer, in bits a token, when ``into`` runs with ``source``'s activations.

    Many places share a forward pass: the rows are repeated, and each copy is patched at its own place. It begins at
    the first block that is patched, with what ``into`` itself has there, and only answers are decoded.

    Args:
        into: the model that runs; no hook stays.
        source: the model whose activations are put in place, on the same tokens.
        rows: what is asked.
        at: the places, one run each.
        adapt: what is done to the source's activations first, by hook name.

    Raises:
        UndoProbeError: the models differ in shape, or a place is not there.
    """
    _check_shapes(into, source, at, rows)
    read = answer_positions(rows)
    limit = max(
        1, min(ROWS, LOGITS // max(len(read) * into.cfg.d_vocab, rows.tokens.shape[1] * into.cfg.d_model))
    )
    group = max(1, min(len(at), limit // min(len(rows), 64)))
    size = max(1, limit // group)
    groups = [slice(first, first + group) for first in range(0, len(at), group)]
    begins = [min(place.layer for place in at[here]) for here in groups]
    found = np.zeros((len(at), len(rows)))
    for start in range(0, len(rows), size):
        part = rows.select(np.arange(start, min(start + size, len(rows))))
        values = _activations(source, part, [place.hook for place in at], adapt or {})
        own = _activations(into, part, [_entry(first) for first in begins], {})
        for here, first in zip(groups, begins, strict=True):
            swaps = [_swap(place, values, copy, len(part)) for copy, place in enumerate(at[here])]
            states = own[_entry(first)].repeat(len(swaps), 1, 1)
            with swap(into, swaps):
                total = _answered(into, states, first, part, read)
            found[here, start : start + len(part)] = total
    return found / answer_tokens(rows) / np.log(2)


def _entry(block: int) -> str:
    return f"blocks.{block}.hook_resid_pre"


def _answered(
    model: HookedTransformer,
    states: Float[Tensor, "copied pos d_model"],
    first: int,
    rows: TokenSet,
    read: list[int],
) -> Float[np.ndarray, "copy row"]:
    """Log-probability of each row's answer in nats when the model goes on from the states before a block."""
    with torch.no_grad():
        states = states.to(next(model.parameters()).device)
        last = model(states, return_type=None, start_at_layer=first, stop_at_layer=model.cfg.n_layers)
    log_p = decode(model, last[:, read]).log_softmax(-1).unflatten(0, (-1, len(rows)))
    targets, mask = rows.tokens[:, 1:][:, read], rows.answer_mask[:, 1:][:, read]
    said = log_p.gather(-1, targets.expand(len(log_p), -1, -1)[..., None])[..., 0]
    return (said.double() * mask).sum(-1).numpy()


def plain_bits(model: HookedTransformer, rows: TokenSet) -> Float[np.ndarray, " row"]:
    """Log-probability of each row's answer in bits a token, nothing patched."""
    return answer_log_probability(model, rows) / answer_tokens(rows) / np.log(2)


def answer_tokens(rows: TokenSet) -> Float[np.ndarray, " row"]:
    """Tokens of each row's answer."""
    return rows.answer_mask[:, 1:].sum(1).double().numpy()


def patch_map(
    a: HookedTransformer,
    b: HookedTransformer,
    rows: TokenSet,
    site: Site = "resid_post",
    positions: Sequence[int] | None = None,
    draws: int = 999,
) -> "pd.DataFrame":
    """What each place carries, both ways: ``a`` with ``b``'s activations there, and ``b`` with ``a``'s.

    Args:
        a: one model.
        b: another of the same shape.
        rows: what is asked.
        site: the residual stream after a block, what attention or MLP writes, or single heads.
        positions: positions to patch, each by itself; all that any answer can depend on by default.
        draws: bootstrap draws of the intervals.

    Returns:
        A line for each direction (``into``: a or b), layer, head and position: ``change``, mean over rows of
        the patched answer's log-probability less the unpatched one's in bits a token, with its interval over families.
    """
    import pandas as pd

    last = max(answer_positions(rows)) + 1
    at = places(a, site, list(range(last)) if positions is None else list(positions))
    lines = []
    for name, into, source in (("a", a, b), ("b", b, a)):
        changes = patched_bits(into, source, rows, at) - plain_bits(into, rows)
        for place, values in zip(at, changes, strict=True):
            found = intervals.mean_interval(values, rows.families, draws=draws, outcomes=False)
            where = {"layer": place.layer, "head": place.head, "position": place.positions[0]}
            limits = {"change": found.value, "low": found.low, "high": found.high}
            lines.append({"into": name, "site": site, **where, **limits})
    return pd.DataFrame(lines)


def _activations(
    source: HookedTransformer, rows: TokenSet, hooks: Sequence[str], adapt: Adapt
) -> dict[str, Tensor]:
    found = harvest_points(source, rows.tokens[:, :-1], list(dict.fromkeys(hooks)))
    return {name: adapt[name](states) if name in adapt else states for name, states in found.items()}


def _swap(place: Place, values: dict[str, Tensor], copy: int, rows: int) -> Swap:
    kept = values[place.hook][:, list(place.positions)]
    if place.head is not None:
        kept = kept[:, :, place.head]
    return Swap(place.hook, kept, place.positions, slice(copy * rows, (copy + 1) * rows), place.head)


def _check_shapes(
    into: HookedTransformer, source: HookedTransformer, at: Sequence[Place], rows: TokenSet
) -> None:
    shapes = [(m.cfg.n_layers, m.cfg.d_model, m.cfg.n_heads, m.cfg.d_head) for m in (into, source)]
    if shapes[0] != shapes[1]:
        raise UndoProbeError(
            "patching needs two models of one shape; layers, width, heads and head width are "
            f"{shapes[0]} and {shapes[1]}"
        )
    last = rows.tokens.shape[1] - 2
    outside = [p for place in at for p in place.positions if not 0 <= p <= last]
    if outside or not at:
        raise UndoProbeError(
            f"cannot patch {len(at)} places{f', one at position {outside[0]}' if outside else ''}: give at least "
            f"one, at positions 0 to {last} (the last token of a row predicts nothing)"
        )
