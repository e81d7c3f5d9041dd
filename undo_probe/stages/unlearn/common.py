"""What the output-level methods share: one forget and one retain batch a step, in one forward pass."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe import losses
from undo_probe.collapse_config import CollapseFit
from undo_probe.config import FitConfig, OutputFit, UnlearnFit
from undo_probe.divided import divide
from undo_probe.models import HookedTransformer, clone, to_device
from undo_probe.stages import StageResult
from undo_probe.stages.pretrain import accuracy_rows
from undo_probe.stages.unlearn.budget import Budget
from undo_probe.tasks import Batch, Task
from undo_probe.training import Context, Loss, Row, Watch, fit, step_cost

ForgetLoss = Callable[[Tensor, Batch], Tensor]


def two_batches(
    task: Task, settings: FitConfig | CollapseFit, context: Context, step: int
) -> tuple[Batch, Batch]:
    """The forget and the retain batch of a step, on the device."""
    pair = []
    for mixture in ("unlearn", "retain"):
        batch = task.batch(mixture, settings.batch_size, context.seed, step)
        pair.append(Batch(batch.tokens.to(context.device), batch.answer_mask.to(context.device)))
    return pair[0], pair[1]


def frozen_logits(
    model: HookedTransformer, context: Context
) -> Callable[[Int[Tensor, "row pos"]], Float[Tensor, "row read vocab"]]:
    """What the model says before it is trained, as a function of tokens, of which the last predicts nothing."""
    before = divide(to_device(clone(model).eval(), context.device))

    def logits(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return before(tokens[:, :-1], return_type="logits")

    return logits


def forget_and_retain(
    model: HookedTransformer,
    task: Task,
    settings: OutputFit,
    retain_weight: float,
    context: Context,
    forget_loss: ForgetLoss,
    teacher_forwards: float = 0.0,
) -> StageResult:
    """Minimises ``forget_loss + retain_weight * cross-entropy(retain)``.

    With ``settings.retain_loss = "kl"`` the second term is forward KL from the model as it came.
    """
    was = frozen_logits(model, context) if settings.retain_loss == "kl" else None

    def loss(student: torch.nn.Module, step: int) -> Tensor:
        forget, retain = two_batches(task, settings, context, step)
        logits = student(torch.cat([forget.tokens, retain.tokens])[:, :-1], return_type="logits")
        on_forget, on_retain = logits.split([len(forget.tokens), len(retain.tokens)])
        if was is None:
            kept = losses.next_token(on_retain, retain.tokens, retain.answer_mask)
        else:
            pair = [
                losses.answer_logits(each, retain.answer_mask) for each in (on_retain, was(retain.tokens))
            ]
            kept = losses.forward_kl(*pair)
        return forget_loss(on_forget, forget) + retain_weight * kept

    return run(model, task, settings, context, loss, teacher_forwards=teacher_forwards + (was is not None))


def run(
    model: HookedTransformer,
    task: Task,
    settings: UnlearnFit,
    context: Context,
    loss: Loss,
    trainable: Callable[[str], bool] | None = None,
    teacher_forwards: float = 0.0,
    depth: float = 1.0,
    read: int = 0,
) -> StageResult:
    """Trains with the shared history and ledger of unlearning stages, within ``settings.budget`` where there is one.

    For the ledger: ``teacher_forwards`` in batches of one side, ``depth`` as the share of the model that is run,
    ``read`` as in :func:`undo_probe.training.step_cost`.
    """
    budget = None
    if settings.budget is not None:
        budget = Budget(to_device(clone(model).eval(), context.device), task, settings.budget, context.device)
        context = replace(context, folder=None)  # where the limits last held is not kept over a kill

    def measure(student: HookedTransformer, step: int) -> list[Row]:
        over = budget is not None and step > 0 and budget.look(student)
        shown = over or step % settings.eval_every == 0 or step == settings.steps
        return accuracy_rows(student, task) if shown else []

    watch = Watch(
        measure,
        lambda step: budget is not None or step % settings.eval_every == 0,
        stop=None if budget is None else lambda rows: bool(budget.bound),
    )
    passes = (6 + teacher_forwards) / 2 * (2 if settings.sharpness else 1) * depth
    rows = 2 * settings.batch_size * settings.accumulate  # half of them forget rows
    cost = step_cost(model, rows, task.n_ctx, passes, labelled=0.5, read=read)
    done = fit(model, settings, loss, context, watch=watch, cost=cost, trainable=trainable)
    result = StageResult(done.model, rows=done.rows, ledger=done.ledger, stopped=done.stopped)
    return result if budget is None else with_budget(result, budget)


def with_budget(result: StageResult, budget: Budget) -> StageResult:
    """The result with its harm in the record and in words, and with what reading it cost."""
    result.ledger = result.ledger.replace(flops=result.ledger.flops + budget.gauge.spent)
    result.extra["budget"] = budget.record(result.model)
    result.stopped = f"{result.stopped}: {budget.said()}"
    return result
