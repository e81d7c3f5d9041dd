"""Distill on outputs: the student learns what the teacher still says, and nothing else."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.config import DistillConfig
from undo_probe.evaluation import answers_correct, by_operation
from undo_probe.models import HookedTransformer, clone, flops_per_token, to_device
from undo_probe.stages import StageResult
from undo_probe.stages.pretrain import accuracy_rows
from undo_probe.tasks import Task
from undo_probe.training import Context, Cost, Row, Watch, fit

VERSION = 2
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

    Forward KL(teacher || student) at temperature 1 on the ``distill`` mixture, forget prompts included and
    unlabelled. Stops when mean retain accuracy on ``retain_dev`` is within ``tolerance`` of the teacher's,
    looked at before the first step and every ``eval_every``; ``steps`` is the cap. With ``stop = "never"`` all
    steps are done.
    """
    frozen = to_device(clone(teacher).eval(), context.device)
    dev = task.rows("retain_dev")
    goal = float(np.mean(list(by_operation(answers_correct(frozen, dev), dev).values())))

    capped = any(each.cfg.output_logits_soft_cap > 0 for each in (student, frozen))
    chunked = student.cfg.d_vocab >= CHUNKED_FROM and not capped

    def loss(model: torch.nn.Module, step: int) -> Tensor:
        batch = task.batch("distill", settings.batch_size, context.seed, step)
        tokens, mask = batch.tokens.to(context.device), batch.answer_mask.to(context.device)
        if chunked:
            return _chunked_kl(model, frozen, tokens, mask)
        with torch.no_grad():
            wanted = losses.answer_logits(frozen(tokens, return_type="logits"), mask)
        return losses.forward_kl(losses.answer_logits(model(tokens, return_type="logits"), mask), wanted)

    def recovered(rows: list[Row]) -> bool:
        values = [row["value"] for row in rows if row["task_split"] == "retain"]
        return float(np.mean(values)) > goal - settings.tolerance

    tokens = settings.batch_size * task.n_ctx * settings.accumulate
    # one teacher forward beside the student's forward and backward
    cost = Cost(4 * tokens * flops_per_token(student, task.n_ctx), tokens)
    watch = Watch(
        lambda model, step: accuracy_rows(model, task),
        lambda step: step % settings.eval_every == 0,
        recovered if settings.stop == "retain" else None,
    )
    done = fit(student, settings, loss, context, watch=watch, cost=cost)
    return StageResult(done.model, rows=done.rows, ledger=done.ledger, stopped=done.stopped)


def _chunked_kl(model: torch.nn.Module, teacher: HookedTransformer, tokens: Tensor, mask: Tensor) -> Tensor:
    inner: Any = getattr(model, "module", model)  # what a wrapper for several devices holds
    with torch.no_grad():
        wanted = _final_states(teacher, teacher, tokens, mask)
    own = _final_states(model, inner, tokens, mask)
    unembeds = [(each.unembed.W_U, each.unembed.b_U) for each in (inner, teacher)]
    return losses.chunked_forward_kl(own, unembeds[0], wanted, unembeds[1])


def _final_states(model: torch.nn.Module, inner: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """States after the final norm at the places that predict an answer token."""
    states = model(tokens, return_type=None, stop_at_layer=inner.cfg.n_layers)
    return losses.answer_logits(inner.ln_final(states), mask)
