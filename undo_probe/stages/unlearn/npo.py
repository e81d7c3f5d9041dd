"""NPO and SimNPO: the forget answers as dispreferred ones."""

from undo_probe import losses
from undo_probe.config import NPOConfig, SimNPOConfig
from undo_probe.models import HookedTransformer
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.common import forget_and_retain, frozen_logits
from undo_probe.tasks import Task
from undo_probe.training import Context


def npo(model: HookedTransformer, task: Task, settings: NPOConfig, context: Context) -> StageResult:
    """:func:`undo_probe.losses.npo` against the model as it came, plus cross-entropy on retain (2404.05868)."""
    before = frozen_logits(model, context)

    def pushed(logits, batch):
        now, was = (
            losses.answer_log_probability(each, batch.tokens, batch.answer_mask)
            for each in (logits, before(batch.tokens))
        )
        return losses.npo(now, was, settings.beta)

    weight = settings.retain_weight
    return forget_and_retain(model, task, settings, weight, context, pushed, teacher_forwards=1)


def simnpo(model: HookedTransformer, task: Task, settings: SimNPOConfig, context: Context) -> StageResult:
    """:func:`undo_probe.losses.simnpo` plus cross-entropy on retain (2410.07163)."""

    def pushed(logits, batch):
        now = losses.answer_log_probability(logits, batch.tokens, batch.answer_mask)
        return losses.simnpo(now, batch.answer_mask.sum(dim=1), settings.beta, settings.gamma)

    return forget_and_retain(model, task, settings, settings.retain_weight, context, pushed)
