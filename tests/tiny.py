"""Small real models and tasks for tests: built from a config, never mocked."""

from functools import cache

import torch
from torch import Tensor

from undo_probe.config import FitConfig, MaxEntConfig, ModelConfig, RunConfig
from undo_probe.evaluation import answers_correct
from undo_probe.models import HookedTransformer, build, flops_per_token
from undo_probe.presets import preset
from undo_probe.stages import StageResult
from undo_probe.stages.pretrain import pretrain
from undo_probe.stages.unlearn.maxent import maxent
from undo_probe.task_config import ArithmeticConfig
from undo_probe.tasks import Batch
from undo_probe.tasks.arithmetic import ArithmeticTask
from undo_probe.training import Context


@cache
def task() -> ArithmeticTask:
    return ArithmeticTask(ArithmeticConfig(add_max=12, mul_max=8), seed=0)


def model(seed: int = 0, d_model: int = 16, n_layers: int = 2) -> HookedTransformer:
    config = ModelConfig(n_layers=n_layers, d_model=d_model, n_heads=2, d_mlp=2 * d_model)
    return build(config, task().d_vocab, task().n_ctx, seed)


def tokens(rows: int = 6) -> Tensor:
    return task().rows("forget_T").tokens[:rows]


def hook_count(hooked: HookedTransformer) -> int:
    return sum(len(m._forward_hooks) + len(m._backward_hooks) for m in hooked.modules())


def logits(hooked: HookedTransformer, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return hooked(rows, return_type="logits")


@cache
def small_task() -> ArithmeticTask:
    """Small enough that a model of seconds knows it by heart (all but the held-out retain rows)."""
    return ArithmeticTask(ArithmeticConfig(add_max=6, mul_max=5), seed=0)


def forward_flops(model: HookedTransformer, rows: int) -> float:
    """What one pass over rows of :func:`small_task` costs; the last token of a row is a target only."""
    read = small_task().n_ctx - 1
    return rows * read * flops_per_token(model, read)


class Watched(ArithmeticTask):
    """The small task, noting which mixtures it was asked for."""

    def __init__(self) -> None:
        super().__init__(small_task().config, seed=0)
        self.asked: set[str] = set()

    def batch(self, mixture: str, size: int, seed: int, step: int) -> Batch:
        self.asked.add(mixture)
        return super().batch(mixture, size, seed, step)


SHAPE = ModelConfig(n_layers=2, d_model=32, n_heads=2, d_mlp=64)


@cache
def knowing() -> HookedTransformer:
    """A model that was trained on :func:`small_task`; shared, so tests leave it as it is."""
    settings = FitConfig(steps=300, batch_size=64, learning_rate=5e-3, eval_every=300)
    return pretrain(small_task(), SHAPE, settings, "pretrain", Context(seed=0)).model


@cache
def half_trained() -> HookedTransformer:
    """A model that is right about some rows of :func:`small_task` and wrong about others."""
    settings = FitConfig(steps=90, batch_size=64, learning_rate=5e-3, warmup=5, eval_every=90)
    return pretrain(small_task(), SHAPE, settings, "pretrain", Context(seed=1)).model


@cache
def suppressed() -> StageResult:
    """:func:`knowing` after MaxEnt: the teacher of distillation."""
    settings = MaxEntConfig(steps=60, batch_size=48, learning_rate=1e-3, eval_every=30)
    return maxent(knowing(), small_task(), settings, Context(seed=0))


def accuracy(hooked: HookedTransformer, split: str) -> float:
    return float(answers_correct(hooked, small_task().rows(split)).mean())


QUICK = (
    "task.add_max=8",
    "task.mul_max=6",
    "model.d_model=16",
    "model.d_mlp=16",
    "original.steps=6",
    "original.batch_size=16",
    "original.eval_every=3",
    "unlearn.maxent.steps=2",
    "unlearn.graddiff.steps=2",
    "unlearn.rmu.steps=2",
    "unlearn.rmu.batch_size=8",
    "noise.alphas=[0.8]",
    "arms.twins=[0.8]",
    "distill.steps=4",
    "distill.eval_every=2",
    "distill.batch_size=16",
    "distill.tolerance=0",
    "attack.steps=4",
    "attack.eval_steps=[0,2,4]",
    "attack.learning_rates=[0.001,0.003,0.01]",
    "attack.batch_size=16",
)


def quick(*overrides: str) -> RunConfig:
    """The ``smoke`` preset with fewer steps still: every arm of it, in about two seconds."""
    return preset("smoke", *QUICK, *overrides)
