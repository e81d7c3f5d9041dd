"""The original, both oracles, and the random floor: models trained from scratch on a mixture."""

from undo_probe import losses
from undo_probe.config import FitConfig, ModelConfig
from undo_probe.evaluation import by_operation, row_scores
from undo_probe.models import HookedTransformer, build
from undo_probe.stages import StageResult
from undo_probe.tasks import Task
from undo_probe.training import Context, Row, Watch, fit, step_cost

VERSION = 3
WATCHED = ("retain_dev", "forget_D")


def fresh(task: Task, shape: ModelConfig, context: Context) -> StageResult:
    """A model with random weights: the floor of every probe."""
    return StageResult(
        build(shape, task.d_vocab, task.n_ctx, context.seed, context.device), stopped="not trained"
    )


def pretrain(
    task: Task, shape: ModelConfig, settings: FitConfig, mixture: str, context: Context
) -> StageResult:
    """Trains a fresh model on ``mixture`` by next-token cross-entropy on answers.

    ``pretrain`` gives the original, ``retain`` the oracle that never saw the forget data, ``matched`` the
    oracle that saw the same forget prompts with answers drawn anew at each step.
    """
    start = build(shape, task.d_vocab, task.n_ctx, context.seed, context.device)

    def loss(model, step):
        batch = task.batch(mixture, settings.batch_size, context.seed, step)
        tokens, mask = batch.tokens.to(context.device), batch.answer_mask.to(context.device)
        return losses.next_token(model(tokens[:, :-1], return_type="logits"), tokens, mask)

    cost = step_cost(start, settings.batch_size * settings.accumulate, task.n_ctx, passes=3)
    watch = Watch(
        lambda model, step: accuracy_rows(model, task), lambda step: step % settings.eval_every == 0
    )
    done = fit(start, settings, loss, context, watch=watch, cost=cost)
    return StageResult(done.model, rows=done.rows, ledger=done.ledger, stopped=done.stopped)


def accuracy_rows(model: HookedTransformer, task: Task, splits: tuple[str, ...] = WATCHED) -> list[Row]:
    """Mean score by operation on development rows, for training histories and stop rules."""
    rows = []
    for split in splits:
        part = task.rows(split)
        for operation, value in by_operation(row_scores(model, part, task.metric), part).items():
            count = int((part.operations == operation).sum())
            side = split.partition("_")[0]
            rows.append({"task_split": side, "subset": operation, "value": value, "n": count})
    return rows
