"""UNDIAL: distil from the model itself, with the true answer made less likely."""

from undo_probe import losses
from undo_probe.config import UNDIALConfig
from undo_probe.models import HookedTransformer
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.common import forget_and_retain, frozen_logits
from undo_probe.tasks import Task
from undo_probe.training import Context


def undial(model: HookedTransformer, task: Task, settings: UNDIALConfig, context: Context) -> StageResult:
    """:func:`undo_probe.losses.undial` on forget answers plus cross-entropy on retain (2402.10052).

    It is not among the baselines of the UNDO paper's released code.
    """
    before = frozen_logits(model, context)

    def imitated(logits, batch):
        now, was = (losses.answer_logits(each, batch.answer_mask) for each in (logits, before(batch.tokens)))
        true = batch.tokens[:, 1:][batch.answer_mask[:, 1:]]
        return losses.undial(now, was, true, settings.strength)

    weight = settings.retain_weight
    return forget_and_retain(model, task, settings, weight, context, imitated, teacher_forwards=1)
