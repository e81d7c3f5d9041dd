"""Distill on outputs: the student learns what the teacher still says, and nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.activations import capture
from undo_probe.config import DistillConfig
from undo_probe.divided import divide
from undo_probe.evaluation import recovered
from undo_probe.models import HookedTransformer, clone, to_device
from undo_probe.stages import StageResult
from undo_probe.stages.pretrain import accuracy_rows
from undo_probe.stages.teacher import TopKTeacher
from undo_probe.tasks import Task
from undo_probe.training import Context, Loss, Row, Watch, fit, step_cost

VERSION = 3
CHUNKED_FROM = 8192
"""Vocabulary from which the logits of a whole batch are never held at once; below it there is nothing to save."""


def distill(
    student: HookedTransformer,
    teacher: HookedTransformer,
    task: Task,
    settings: DistillConfig,
    context: Context,
) -> StageResult:
    """Trains ``student`` on the teacher's answer distributions over all operations (arXiv 2506.06278).

    By default forward KL(teacher || student) at temperature 1 on the ``distill`` mixture, forget prompts included
    and unlabelled. Stops when the mean retain score on ``retain_dev`` is back within ``tolerance`` of the teacher's
    (:func:`undo_probe.evaluation.recovered`), and where asked the forget score on D too, looked at before the first
    step and every ``eval_every``; ``steps`` is the cap. With ``stop = "never"`` all steps are done. Other settings:
    :class:`undo_probe.config.DistillConfig`.
    """
    frozen = to_device(clone(teacher).eval(), context.device)
    # one teacher forward beside the student's forward and backward, also where it was found on disk
    cost = step_cost(student, settings.batch_size * settings.accumulate, task.n_ctx, passes=4)
    watch = Watch(
        lambda model, step: accuracy_rows(model, task),
        lambda step: step % settings.eval_every == 0,
        None if settings.stop == "never" else _recovered(frozen, task, settings),
    )
    loss = _objective(student, frozen, task, settings, context)
    done = fit(student, settings, loss, context, watch=watch, cost=cost)
    return StageResult(done.model, rows=done.rows, ledger=done.ledger, stopped=done.stopped)


def _recovered(
    teacher: HookedTransformer, task: Task, settings: DistillConfig
) -> Callable[[list[Row]], bool]:
    """Whether the rows of a look satisfy the stop rule."""
    known = accuracy_rows(teacher, task)
    retain, forget = _mean(known, "retain"), _mean(known, "forget")

    def rule(rows: list[Row]) -> bool:
        back = recovered(_mean(rows, "retain"), retain, settings.tolerance, task.metric)
        allowed = settings.forget_tolerance
        return back and (allowed is None or _mean(rows, "forget") <= forget + allowed)

    return rule


def _mean(rows: list[Row], side: str) -> float:
    return float(np.mean([row["value"] for row in rows if row["task_split"] == side]))


def _objective(
    student: HookedTransformer,
    teacher: HookedTransformer,
    task: Task,
    settings: DistillConfig,
    context: Context,
) -> Loss:
    """The loss of a micro-step: on outputs, and where asked on the residual stream beside them."""
    mixture = "retain" if settings.text == "retain" else "distill"
    capped = any(each.cfg.output_logits_soft_cap > 0 for each in (student, teacher))
    chunked = student.cfg.d_vocab >= CHUNKED_FROM and not capped and settings.loss == "forward_kl"
    divergence = {"forward_kl": losses.forward_kl, "reverse_kl": losses.reverse_kl}[settings.loss]
    cached = None if settings.top_k is None else TopKTeacher(teacher, task, mixture, settings, context)
    answering = divide(teacher)

    def outputs(model: torch.nn.Module, tokens: Tensor, mask: Tensor, step: int) -> Tensor:
        if cached is not None:
            own = losses.answer_logits(model(tokens, return_type="logits"), mask)
            return losses.topk_kl(own, *cached(step))
        if chunked:
            return _chunked_kl(model, answering, tokens, mask)
        with torch.no_grad():
            wanted = losses.answer_logits(answering(tokens, return_type="logits"), mask)
        return divergence(losses.answer_logits(model(tokens, return_type="logits"), mask), wanted)

    def loss(model: torch.nn.Module, step: int) -> Tensor:
        batch = task.batch(mixture, settings.batch_size, context.seed, step)
        # the last token of a row is a target only: nothing reads it
        tokens, mask = batch.tokens[:, :-1].to(context.device), batch.answer_mask.to(context.device)
        if not settings.activations:
            return outputs(model, tokens, mask, step)
        theirs: dict[str, Tensor] = {}
        own: dict[str, Tensor] = {}
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(student.cfg.n_layers)]
        with capture(model, names, own), capture(answering, names, theirs):
            on_outputs = outputs(model, tokens, mask, step)
            if cached is not None:  # found on disk, the teacher did not run
                with torch.no_grad():
                    answering(tokens, return_type="logits")
        pairs = [[losses.answer_logits(part[name], mask) for part in (own, theirs)] for name in names]
        distance = torch.stack([losses.stream_distance(mine, aim) for mine, aim in pairs]).mean()
        return on_outputs + settings.activations * distance

    return loss


def _chunked_kl(model: torch.nn.Module, teacher: torch.nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    # what the wrapper for several processes holds
    inner: list[Any] = [getattr(each, "module", each) for each in (model, teacher)]
    with torch.no_grad():
        wanted = _final_states(teacher, inner[1], tokens, mask)
    own = _final_states(model, inner[0], tokens, mask)
    unembeds = [(each.unembed.W_U, each.unembed.b_U) for each in inner]
    return losses.chunked_forward_kl(own, unembeds[0], wanted, unembeds[1])


def _final_states(model: torch.nn.Module, inner: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """States after the final norm at the places that predict an answer token."""
    states = model(tokens, return_type=None, stop_at_layer=inner.cfg.n_layers)
    return losses.answer_logits(inner.ln_final(states), mask)
