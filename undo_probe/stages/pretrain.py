"""The original, both oracles, and the random floor: trained from scratch on a mixture, or the original loaded."""

from pathlib import Path

from undo_probe import losses
from undo_probe.config import FitConfig, ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import by_operation, row_scores
from undo_probe.models import HookedTransformer, build, content_hash, fresh_like, load_model
from undo_probe.stages import StageResult
from undo_probe.tasks import Task
from undo_probe.tasks.facts import FactsTask
from undo_probe.training import Context, Row, Watch, fit, step_cost

VERSION, LOAD_VERSION = 3, 1
WATCHED = ("retain_dev", "forget_D")


def fresh(task: Task, shape: ModelConfig | HookedTransformer, context: Context) -> StageResult:
    """A model with random weights, of a shape or of another model's: the floor of every probe."""
    if isinstance(shape, ModelConfig):
        model = build(shape, task.d_vocab, task.n_ctx, context.seed, context.device)
    else:
        model = fresh_like(shape, context.seed, context.device)
    return StageResult(model, stopped="not trained")


def load(task: Task, context: Context, given: bool = False) -> StageResult:
    """A finished model from ``context.source``; ``given`` where it is not the original.

    Raises:
        UndoProbeError: it cannot be read, or does not fit the task's tokens and rows.
    """
    place, revision = context.source
    model = load_model(place, context.device, revision=revision, n_ctx=task.n_ctx)
    # families pad their vocabularies: a tokenizer of theirs may have fewer tokens than the model
    theirs = task.name in ("choice", "facts")
    fits = task.d_vocab <= model.cfg.d_vocab if theirs else task.d_vocab == model.cfg.d_vocab
    if not fits:
        raise UndoProbeError(
            f"the model of {place} reads {model.cfg.d_vocab} tokens, the task {task.name} has {task.d_vocab}: "
            "take a model that was trained on this task, or task.name=choice or facts with the model's own tokenizer"
        )
    if task.n_ctx > model.cfg.n_ctx:
        raise UndoProbeError(
            f"a row of the task has {task.n_ctx} tokens, but the model of {place} reads {model.cfg.n_ctx} at "
            "most: lower task.n_ctx"
        )
    if not given and isinstance(task, FactsTask) and task.known_model not in ("", content_hash(model)):
        raise UndoProbeError(
            f"task.known ({task.config.known}) was measured on another model than that of original.source, or with "
            "another task.n_ctx: measure this one with `undo-probe known`"
        )
    return StageResult(model, stopped=f"loaded {Path(place).name}")


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
