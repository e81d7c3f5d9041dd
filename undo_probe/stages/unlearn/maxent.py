"""MaxEnt: make the forget answers uniformly unlikely."""

from undo_probe import losses
from undo_probe.config import MaxEntConfig
from undo_probe.models import HookedTransformer
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.common import forget_and_retain
from undo_probe.tasks import Task
from undo_probe.training import Context


def maxent(model: HookedTransformer, task: Task, settings: MaxEntConfig, context: Context) -> StageResult:
    """``KL(uniform || model)`` on forget answers plus ``retain_weight`` times cross-entropy on retain.

    Source: UNDO (arXiv 2506.06278), MaxEnt; the reference code's ``balance_alpha`` is ``retain_weight``.
    """
    return forget_and_retain(
        model,
        task,
        settings,
        settings.retain_weight,
        context,
        lambda logits, batch: losses.uniform_target(logits, batch.answer_mask),
    )
