"""RepSelect: one step along the forget gradient of a model that has learnt the forget set again, softly collapsed."""

from undo_probe import collapse, losses
from undo_probe.collapse_config import RepSelectConfig
from undo_probe.config import FitConfig
from undo_probe.lora import low_rank
from undo_probe.models import HookedTransformer, clone
from undo_probe.randomness import derive_seed
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.cir import default_k
from undo_probe.stages.unlearn.common import two_batches
from undo_probe.stages.unlearn.plain_steps import (
    Found,
    batches_of,
    forget_loss,
    gradient_passes,
    summed_gradient,
    take_steps,
    trained_weights,
)
from undo_probe.tasks import Task
from undo_probe.training import Context, fit


def repselect(
    model: HookedTransformer, task: Task, settings: RepSelectConfig, context: Context
) -> StageResult:
    """Soft collapse by the gradient's own singular vectors (arXiv 2606.17168).

    A LoRA adversary learns the forget rows; with it in place the base weights' gradient is summed over
    ``settings.accumulate`` forget batches; its leading singular directions are weakened on both sides; and the model
    without the adversary goes that way, until the budget is met. Published: one step, 512 directions of 4096.

    Raises:
        UndoProbeError: a gradient is zero; a weight or a set is not there.
    """
    names, loss = trained_weights(model, settings), forget_loss(model, settings, context)
    k = default_k(model.cfg.d_model) if settings.k is None else settings.k

    def direction(student: HookedTransformer, step: int) -> Found:
        attacked = _adversary(student, task, settings, context, step)
        pairs = batches_of(task, settings, context, step)
        gradient = summed_gradient(attacked, names, pairs, loss)
        bases = collapse.gradient_bases(gradient, k, names, settings.softness)
        passes = len(pairs) * gradient_passes(settings) + 3 * settings.adversary_steps
        return Found(collapse.collapse_gradients(gradient, bases), passes)

    return take_steps(model, task, settings, context, direction, search=True)


def _adversary(
    student: HookedTransformer, task: Task, settings: RepSelectConfig, context: Context, step: int
) -> HookedTransformer:
    """The model with a LoRA that was trained on forget answers merged in; itself where none is asked for."""
    if not settings.adversary_steps:
        return student
    seed = derive_seed(context.seed, "adversary", step)

    def loss(adapted, at):
        forget, _ = two_batches(task, settings, Context(seed, context.device), at)
        return losses.next_token(
            adapted(forget.tokens[:, :-1], return_type="logits"), forget.tokens, forget.answer_mask
        )

    fitted = FitConfig(
        steps=settings.adversary_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.adversary_rate,
        warmup=0,
        schedule="constant",
    )
    alone = Context(seed, context.device, context.precision, context.threads)
    adapt = lambda copy: low_rank(copy, settings.adversary_rank, seed)  # noqa: E731
    return fit(clone(student), fitted, loss, alone, adapt=adapt).model
