"""Interventions on a model's activations: context managers that leave nothing behind."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer
from undo_probe.subspace import Subspace

Site = Literal["resid_pre", "attn_out", "mlp_out"]
SITES: tuple[Site, ...] = ("resid_pre", "attn_out", "mlp_out")


@dataclass(frozen=True, eq=False)
class Swap:
    """Activations that take the place of a model's own at one hook point.

    ``positions`` and ``rows`` (of what is run) say where, all by default; ``values`` hold these only. With ``head``
    it is one head of ``hook_z``, and ``values`` have no axis of heads.
    """

    hook: str
    values: Float[Tensor, "row pos ..."]
    positions: Sequence[int] | None = None
    rows: slice | None = None
    head: int | None = None

    def into(self, h: Float[Tensor, "all_rows all_pos ..."]) -> Float[Tensor, "all_rows all_pos ..."]:
        """A copy of ``h`` with the values in their place.

        Raises:
            UndoProbeError: that place of ``h`` has another shape.
        """
        rows = slice(None) if self.rows is None else self.rows
        pos = slice(None) if self.positions is None else list(self.positions)
        place = (rows, pos) if self.head is None else (rows, pos, self.head)
        if h[place].shape != self.values.shape:
            raise UndoProbeError(
                f"patch at {self.hook}: the model has {tuple(h[place].shape)}, the values are "
                f"{tuple(self.values.shape)}; patch exactly the rows and positions that are run"
            )
        new = h.clone()
        new[place] = self.values.to(h)
        return new


@contextlib.contextmanager
def intervene(
    model: HookedTransformer, edits: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[HookedTransformer]:
    """Inside the block, each named hook point gives what its function returns for its activation.

    The functions must return a new tensor. Handles are removed on leaving, also when the body raises, and
    only they are: other hooks on the model stay. Blocks may be nested; the inner one sees the outer's edits.

    Raises:
        UndoProbeError: a hook point does not exist.
    """
    unknown = [name for name in edits if name not in model.hook_dict]
    if unknown:
        raise UndoProbeError(
            f"the model has no hook point {unknown[0]!r}: see model.hook_dict for their names"
        )
    handles = [
        model.hook_dict[name].register_forward_hook(lambda module, inputs, output, edit=edit: edit(output))
        for name, edit in edits.items()
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def ablate(
    model: HookedTransformer,
    subspace: Subspace,
    layers: Sequence[int] | None = None,
    sites: Sequence[Site] = SITES,
    value: Literal["zero", "mean"] = "zero",
) -> Iterator[HookedTransformer]:
    """Inside the block, the model cannot use a subspace of its residual stream.

    The directional ablation of Arditi et al. (arXiv 2406.11717): the component is removed from the input of
    every block and from what attention and MLP write, at all positions.

    Args:
        model: hooked inside the block only; its weights are untouched.
        subspace: what is removed.
        layers: blocks to act on, all by default; ``range(b, n_layers)`` acts from block ``b`` on.
        sites: where in each block.
        value: ``mean`` sets the block inputs' component to that of ``subspace.mean``. What attention and
            MLP write is set to zero in either case: the stream holds the mean already.

    Raises:
        UndoProbeError: widths differ, a block or site does not exist, or ``mean`` without a mean.
    """
    edits = _ablation(model, subspace, layers, sites, value)
    with intervene(model, edits):
        yield model


@contextlib.contextmanager
def steer(
    model: HookedTransformer, vector: Float[Tensor, " d_model"], hook: str, scale: float = 1.0
) -> Iterator[HookedTransformer]:
    """Inside the block, ``scale * vector`` is added at a hook point, at all positions.

    Raises:
        UndoProbeError: the hook point does not exist or the width differs.
    """
    _check_width(model, len(vector))
    with intervene(model, {hook: lambda h: h + scale * vector.to(h)}):
        yield model


@contextlib.contextmanager
def patch(
    model: HookedTransformer,
    values: Mapping[str, Float[Tensor, "row pos ..."]],
    positions: Sequence[int] | None = None,
) -> Iterator[HookedTransformer]:
    """Inside the block, activations are replaced by given ones, for example those of another model.

    Args:
        model: hooked inside the block only.
        values: hook name to activations of exactly the rows that will be run.
        positions: which positions are replaced, all by default; ``values`` hold these positions only.

    Raises:
        UndoProbeError: a hook point does not exist; on running, that shapes differ.
    """
    with swap(model, [Swap(name, value, positions) for name, value in values.items()]):
        yield model


@contextlib.contextmanager
def swap(model: HookedTransformer, swaps: Sequence[Swap]) -> Iterator[HookedTransformer]:
    """Inside the block, every swap is made; several at one hook point one after another, the last wins.

    Swaps of different rows put many patched runs into one forward pass.

    Raises:
        UndoProbeError: a hook point does not exist; on running, that shapes differ.
    """
    at: dict[str, list[Swap]] = {}
    for one in swaps:
        at.setdefault(one.hook, []).append(one)
    with intervene(model, {name: _in_turn(here) for name, here in at.items()}):
        yield model


def _ablation(
    model: HookedTransformer,
    subspace: Subspace,
    layers: Sequence[int] | None,
    sites: Sequence[Site],
    value: Literal["zero", "mean"],
) -> dict[str, Callable[[Tensor], Tensor]]:
    _check_width(model, subspace.d_model)
    if value == "mean" and subspace.mean is None:
        raise UndoProbeError(
            'ablate(value="mean") needs a subspace with a mean: fit it with one, or use "zero"'
        )
    n_layers = model.cfg.n_layers
    blocks = list(range(n_layers)) if layers is None else list(layers)
    outside = [block for block in blocks if not 0 <= block < n_layers]
    wrong = [site for site in sites if site not in SITES]
    if outside or wrong or not blocks or not sites:
        raise UndoProbeError(
            f"cannot ablate in layers {blocks} at sites {list(sites)}: "
            f"layers go from 0 to {n_layers - 1}, sites are {', '.join(SITES)}"
        )
    return {
        f"blocks.{block}.hook_{site}": _removal(subspace, to_mean=value == "mean" and site == "resid_pre")
        for block in blocks
        for site in sites
    }


def _removal(subspace: Subspace, to_mean: bool) -> Callable[[Tensor], Tensor]:
    return lambda h: subspace.remove(h, to_mean)


def _in_turn(swaps: Sequence[Swap]) -> Callable[[Tensor], Tensor]:
    def edit(h: Tensor) -> Tensor:
        for one in swaps:
            h = one.into(h)
        return h

    return edit


def _check_width(model: HookedTransformer, d_model: int) -> None:
    if d_model != model.cfg.d_model:
        raise UndoProbeError(
            f"a vector of width {d_model} does not fit a model of width {model.cfg.d_model}: "
            "use a direction that was found in this model"
        )
