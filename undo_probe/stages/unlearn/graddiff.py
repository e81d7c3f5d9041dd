"""GradDiff: climb the loss of the forget answers, descend on retain."""

from undo_probe import losses
from undo_probe.config import GradDiffConfig
from undo_probe.models import HookedTransformer
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.common import forget_and_retain
from undo_probe.tasks import Task
from undo_probe.training import Context


def graddiff(model: HookedTransformer, task: Task, settings: GradDiffConfig, context: Context) -> StageResult:
    """``- cross-entropy(forget) + retain_weight * cross-entropy(retain)``.

    Source: UNDO (arXiv 2506.06278), GradDiff. The forget term has no lower bound: the number of steps is
    what keeps the model whole.
    """
    return forget_and_retain(
        model,
        task,
        settings,
        settings.retain_weight,
        context,
        lambda logits, batch: -losses.next_token(logits, batch.tokens, batch.answer_mask),
    )
