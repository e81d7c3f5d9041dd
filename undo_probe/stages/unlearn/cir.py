"""CIR: unlearning along a gradient from which what forget inputs share with all others was taken."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from undo_probe import collapse
from undo_probe.collapse import Bases, Side
from undo_probe.collapse_config import CIRConfig
from undo_probe.linear_maps import LinearMap, kept_places, linear_maps
from undo_probe.models import HookedTransformer, as_matrix
from undo_probe.randomness import generator
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.collapsible import ForgetLoss
from undo_probe.stages.unlearn.common import two_batches
from undo_probe.stages.unlearn.plain_steps import (
    Found,
    Gradient,
    batches_of,
    forget_loss,
    gradient_passes,
    summed_gradient,
    take_steps,
    trained_weights,
)
from undo_probe.tasks import Batch, Task
from undo_probe.training import Context


def default_k(d_model: int) -> int:
    """``3 sqrt(d_model)``, the mean counted: 24 of 64, where a sweep on memorised facts was best, 192 of 4096.

    The paper takes 24 and 36 of 4096, RepSelect 512.
    """
    return min(round(3 * math.sqrt(d_model)), d_model)


def cir(model: HookedTransformer, task: Task, settings: CIRConfig, context: Context) -> StageResult:
    """Descends ``settings.loss`` along collapsed gradients (arXiv 2509.11816), steps of equal norm.

    Every ``settings.refresh`` steps, the first before the first step, the shared directions of each linear map's inputs
    and output gradients are found anew; both are then taken out of the update. With ``k_act`` and ``k_grad`` 0 it is
    the loss's own gradient.

    Raises:
        UndoProbeError: a weight or a set is not there.
    """
    names, loss = trained_weights(model, settings), forget_loss(model, settings, context)
    width = default_k(model.cfg.d_model)
    if settings.band is not None:
        width = settings.band[1]
    counts = [width if k is None else k for k in (settings.k_act, settings.k_grad)]
    held: list[Bases] = []

    def direction(student: HookedTransformer, step: int) -> Found:
        passes = 0.0
        if step % settings.refresh == 0:
            held[:] = [_bases(student, task, settings, context, step, (names, counts, loss))]
            if settings.basis != "random" and any(counts):
                both = 2 if settings.basis == "both" else 1
                passes += both * settings.basis_batches * gradient_passes(settings)
        pairs = batches_of(task, settings, context, step)
        gradient = _collapsed(student, pairs, held[0], loss, settings)
        return Found(gradient, passes + len(pairs) * gradient_passes(settings))

    return take_steps(model, task, settings, context, direction)


def _collapsed(
    student: HookedTransformer,
    pairs: Sequence[tuple[Batch, Batch]],
    bases: Bases,
    loss: ForgetLoss,
    settings: CIRConfig,
) -> Gradient:
    if settings.form == "projected":
        return collapse.collapse_gradients(summed_gradient(student, bases.weights, pairs, loss), bases)
    total: Gradient = {}
    for forget, retain in pairs:
        found = collapse.token_gradients(
            student,
            forget.tokens[:, :-1],
            kept_places(forget.answer_mask, settings.tokens),
            lambda model, _, pair=(forget, retain): loss(model, *pair),
            bases,
        )
        total = {name: each + total.get(name, 0.0) for name, each in found.items()}
    return total


def _bases(
    student: HookedTransformer,
    task: Task,
    settings: CIRConfig,
    context: Context,
    step: int,
    what: tuple[Sequence[str], Sequence[int], ForgetLoss],
) -> Bases:
    """The directions that are taken out until the next refresh."""
    names, (k_act, k_grad), loss = what
    maps = linear_maps(student, names)
    if not k_act and not k_grad:
        return Bases(tuple(names), {}, {})
    if settings.basis == "random":
        return _random(student, maps, (k_act, k_grad), context.seed + step)
    batches = list(_shown(task, settings, context, step))
    rows = [(batch.tokens[:, :-1], kept_places(batch.answer_mask, settings.tokens)) for batch in batches]
    of = {id(tokens): batch for (tokens, _), batch in zip(rows, batches, strict=True)}

    def of_tokens(model: HookedTransformer, tokens: Tensor) -> Tensor:
        return loss(model, of[id(tokens)], None)

    return collapse.collapse_bases(
        student,
        rows,
        of_tokens,
        k_act,
        k_grad,
        weights=names,
        softness=settings.softness,
        at_most=True,
        band=settings.band,
    )


def _shown(task: Task, settings: CIRConfig, context: Context, step: int) -> Iterable[Batch]:
    """The batches whose vectors make up the directions, none of which is a batch of the steps themselves."""
    for number in range(settings.basis_batches):
        place = 10**6 + step * settings.basis_batches + number
        forget, retain = two_batches(task, settings, context, place)
        if settings.basis != "retain":
            yield forget
        if settings.basis != "forget":
            yield retain


def _random(
    student: HookedTransformer, maps: Sequence[LinearMap], counts: tuple[int, int], seed: int
) -> Bases:
    """As many directions, drawn evenly: what collapse does by the number of its directions alone."""

    def side(kind: str, place: object, width: int, k: int) -> Side:
        k = min(k, width)
        drawn = torch.randn(width, k, generator=generator(seed, "random basis", kind, str(place)))
        basis = torch.linalg.qr(drawn.double()).Q.float()
        return Side(basis, torch.ones(k))

    read, written = {}, {}
    for each in maps:
        fan_in, fan_out = as_matrix(each.weight, student.get_parameter(each.weight).detach()).shape
        if counts[0]:
            read[each.weight] = side("inputs", each.inputs, fan_in, counts[0])
        if counts[1]:
            written[each.weight] = side("gradients", each.outputs, fan_out, counts[1])
    return Bases(tuple(each.weight for each in maps), read, written)
