"""Plain steps along a given direction: what CIR and RepSelect share.

Not :func:`undo_probe.training.fit`: there is no optimiser, a gradient is taken with hooks, and a step may have to be
searched for. A stage is short, so nothing is kept over a kill; all processes of a launch do the same work.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.collapse_config import CollapseFit
from undo_probe.linear_maps import linear_maps
from undo_probe.models import HookedTransformer, clone, to_device
from undo_probe.randomness import deterministic
from undo_probe.records import Ledger
from undo_probe.stages import StageResult
from undo_probe.stages.pretrain import accuracy_rows
from undo_probe.stages.unlearn.budget import Budget
from undo_probe.stages.unlearn.collapsible import LOSSES, STATE_LOSSES, ForgetLoss
from undo_probe.stages.unlearn.common import frozen_logits, two_batches, with_budget
from undo_probe.tasks import Batch, Task
from undo_probe.training import Context, step_cost

Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """What a step goes down, and how many passes over a batch of one side it took (a backward pass counts as two)."""

    gradient: Gradient
    passes: float


Direction = Callable[[HookedTransformer, int], Found]
"""Of the model as it stands and the step from 0."""


def trained_weights(model: HookedTransformer, settings: CollapseFit) -> list[str]:
    """Names of the weights that ``settings.weights`` asks for and the loss depends on.

    Raises:
        UndoProbeError: no linear map has such an ending.
    """
    endings = {"all": (), "mlp": ("mlp.W_gate", "mlp.W_in", "mlp.W_out")}
    asked = settings.weights
    wanted = asked if isinstance(asked, tuple) else endings[asked]
    if asked == "mlp":
        known = [each.weight for each in linear_maps(model)]
        wanted = tuple(ending for ending in wanted if any(name.endswith(ending) for name in known))
    names = [each.weight for each in linear_maps(model, wanted)]
    if settings.loss in STATE_LOSSES and settings.layers is not None:
        names = [name for name in names if int(name.split(".")[1]) <= max(settings.layers)]
    return names


def forget_loss(model: HookedTransformer, settings: CollapseFit, context: Context) -> ForgetLoss:
    """The loss that the settings name, beside a frozen copy of the model where it compares."""
    kind = LOSSES[settings.loss]
    before = to_device(clone(model).eval(), context.device) if kind.compares else model
    return kind.make(before, settings)


def gradient_passes(settings: CollapseFit) -> float:
    """Of one batch's gradient: forward and backward, the frozen model's forward, GradDiff's retain batch."""
    return 3 + LOSSES[settings.loss].compares + 3 * (settings.loss == "graddiff")


def summed_gradient(
    student: HookedTransformer,
    names: Sequence[str],
    pairs: Sequence[tuple[Batch, Batch]],
    loss: ForgetLoss,
) -> Gradient:
    """The loss's gradient over several batches, in the named weights only; ``.grad`` stays as it is."""
    weights = [student.get_parameter(name) for name in names]
    total = [torch.zeros_like(weight) for weight in weights]
    for forget, retain in pairs:
        with torch.enable_grad():
            found = torch.autograd.grad(loss(student, forget, retain), weights)
        total = [held + each for held, each in zip(total, found, strict=True)]
    return dict(zip(names, total, strict=True))


def batches_of(task: Task, settings: CollapseFit, context: Context, step: int) -> list[tuple[Batch, Batch]]:
    """The forget and retain batches of a step, as many as it accumulates."""
    first = step * settings.accumulate
    return [two_batches(task, settings, context, first + part) for part in range(settings.accumulate)]


def norm_of(gradient: Mapping[str, Tensor]) -> float:
    """L2 norm over all tensors together."""
    return float(torch.stack([each.square().sum() for each in gradient.values()]).sum().sqrt())


def take_steps(
    model: HookedTransformer,
    task: Task,
    settings: CollapseFit,
    context: Context,
    direction: Direction,
    search: bool = False,
) -> StageResult:
    """Goes ``settings.steps`` steps of norm ``settings.step_norm``, or to where the budget is met.

    Args:
        model: left as it is.
        task: whose retain rows are held, where ``settings.retain_rate`` asks for it.
        settings: steps, their norm, the budget.
        context: seed, device, threads, progress.
        direction: what each step goes down.
        search: under a budget, a step is as long as its share of the budget allows, whatever its norm.
    """
    student = to_device(clone(model), context.device).eval()
    before = to_device(clone(model).eval(), context.device)
    limits, names = settings.budget, trained_weights(student, settings)
    budget = None if limits is None else Budget(before, task, limits, context.device)
    was = frozen_logits(model, context) if settings.retain_rate else None
    rows = [{"step": 0, **row} for row in accuracy_rows(student, task)]
    passes, stopped, done = 0.0, f"all {settings.steps} steps done", 0
    clock, cpu = time.monotonic(), time.process_time()
    with deterministic(context.threads):
        for step in range(settings.steps):
            found = direction(student, step)
            norm, passes = norm_of(found.gradient), passes + found.passes
            if not 0 < norm < float("inf"):
                stopped = f"{'nothing left to change' if norm == 0 else 'diverged'} at step {step}"
                break
            change = {name: -settings.step_norm / norm * each for name, each in found.gradient.items()}
            if budget is not None and search:
                budget.along(student, change, share=(step + 1) / settings.steps)
                over = budget.bound != "" and step + 1 == settings.steps
            else:
                _add(student, change)
                if was is not None:
                    held = _retain_gradient(
                        student, names, two_batches(task, settings, context, step)[1], was
                    )
                    _add(student, {name: -settings.retain_rate * each for name, each in held.items()})
                    passes += 4
                over = budget is not None and budget.look(student)
            done = step + 1
            if context.report is not None:
                context.report(done, settings.steps, norm=norm)
            if over or done % settings.eval_every == 0 or done == settings.steps:
                rows += [{"step": done, **row} for row in accuracy_rows(student, task)]
            if over:
                stopped = f"stop rule met at step {done}"
                break
    forgotten = done * settings.accumulate * settings.batch_size
    cost = step_cost(model, settings.batch_size, task.n_ctx, passes=passes)
    ledger = Ledger(
        flops=cost.flops,
        tokens=2 * forgotten * task.n_ctx,
        labelled_tokens=forgotten * task.n_ctx,
        steps=done,
        seconds=time.monotonic() - clock,
        cpu_seconds=time.process_time() - cpu,
    )
    result = StageResult(student, rows=rows, ledger=ledger, stopped=stopped)
    return result if budget is None else with_budget(result, budget)


def _add(student: HookedTransformer, change: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, each in change.items():
            student.get_parameter(name).add_(each)


def _retain_gradient(
    student: HookedTransformer, names: Sequence[str], batch: Batch, was: Callable[[Tensor], Tensor]
) -> Gradient:
    """Of KL from the model as it came, on the answers of a retain batch."""

    def loss(model: HookedTransformer, held: Batch, _: Batch | None) -> Tensor:
        now = model(held.tokens[:, :-1], return_type="logits")
        pair = [losses.answer_logits(each, held.answer_mask) for each in (now, was(held.tokens))]
        return losses.forward_kl(*pair)

    return summed_gradient(student, names, [(batch, batch)], loss)
