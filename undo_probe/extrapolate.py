"""What a step of a model too large to try costs: FLOPs from a narrow model, time from few rows of the true one."""

from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from undo_probe import losses
from undo_probe.config import FitConfig, ModelConfig
from undo_probe.families import Shape
from undo_probe.models import HookedTransformer, build, flops_per_token, from_shape
from undo_probe.records import Ledger
from undo_probe.tasks import Task, TokenSet
from undo_probe.tasks.standin import StandIn
from undo_probe.training import Context, fit, step_cost

ENOUGH = 1.0
"""Seconds by which a step with four times the rows must take longer to tell the time of a row."""
COPIES = 7
"""Tensors the size of the model in a distilling process: both parents, the frozen teacher, the student, its
gradient and AdamW's two moments."""


def glimpse(task: Task, count: int = 4) -> Task:
    """The task with only the first rows of every split to look at, but all of T, on which attackers train."""

    def rows(split: str) -> TokenSet:
        part = task.rows(split)
        return part if split == "forget_T" else part.select(np.arange(min(len(part), count)))

    few = copy(task)
    vars(few)["rows"] = rows
    return few


def trial_fit(fit: dict[str, Any], steps: int, sizes: dict[str, int]) -> dict[str, Any]:
    """A stage's settings for a trial of so many steps, which nothing ends early; ``sizes`` are those of a narrow model.

    A step of CIR has its share of the next refresh, at least one batch; of a narrow model's few rows only the mean can
    be taken. RepSelect's adversary takes no more rows where a step has more batches.
    """
    short = {**fit, "steps": steps, "eval_every": max(1, steps), **sizes}
    short.pop("budget", None)  # what reading it costs is added up
    if "stop" in fit:
        short["stop"] = "never"
    if "refresh" in fit:
        short |= {"refresh": 1, "basis_batches": -(-fit["basis_batches"] // fit["refresh"])}
        short |= {name: 1 for name in ("k_act", "k_grad") if sizes and fit[name] != 0}
    if "adversary_steps" in fit and sizes:
        short["adversary_steps"] = -(-fit["adversary_steps"] // fit["accumulate"])
    return short


def narrow(shape: ModelConfig, task: Task, seed: int) -> HookedTransformer:
    """A model with the layers and heads of ``shape`` and next to no width: its steps cost nothing."""
    thin = shape.model_copy(update={"d_model": 2 * shape.n_heads, "d_mlp": 4})
    return build(thin, task.d_vocab, task.n_ctx, seed)


SHORT_ROW, FEW_TOKENS = 64, 1024
"""Tokens of a row, and of the vocabulary, at which one block of a model too large to build is timed."""


@dataclass(frozen=True)
class Whole:
    """What a model has that was never built, worked out from one and from two blocks of it.

    ``parameters`` counts biases that the family may not have: less than a thousandth too many.
    """

    shape: Shape
    parameters: int
    activations: int
    """Bytes kept of a row for the backward pass, three copies of its logits among them."""

    def flops_per_token(self, context: int) -> float:
        """Forward FLOPs of one token in a row of ``context`` tokens."""
        one, two = (flops_per_token(block_slice(self.shape, n, SHORT_ROW), context) for n in (1, 2))
        fields = self.shape.fields
        words = 2.0 * fields["d_model"] * (fields["d_vocab"] - FEW_TOKENS)
        return one + (fields["n_layers"] - 1) * (two - one) + words


def roughly(shape: Shape) -> float:
    """Forward FLOPs of a token to within a factor of two, to tell small from large."""
    fields = shape.fields
    block = (
        4 * fields["d_model"] * fields["n_heads"] * fields["d_head"] + 3 * fields["d_model"] * fields["d_mlp"]
    )
    return 2.0 * (fields["n_layers"] * block + fields["d_model"] * fields["d_vocab"])


def block_slice(shape: Shape, blocks: int, n_ctx: int) -> HookedTransformer:
    """The first blocks of a shape in their true width, over few tokens."""
    fields: dict[str, Any] = {"n_layers": blocks, "d_vocab": FEW_TOKENS, "n_ctx": n_ctx}
    if shape.fields.get("attn_types"):
        fields["attn_types"] = shape.fields["attn_types"][:blocks]
    return from_shape(shape.resized(**fields))


def whole(shape: Shape, task: StandIn, context: Context) -> Whole:
    """Counts a model that is too large to build; ``task`` has few tokens and rows of the true length."""
    fields, parameters, kept = shape.fields, [], []
    for blocks in (1, 2):
        model = block_slice(shape, blocks, task.n_ctx)
        parameters.append(sum(p.numel() for p in model.parameters()))
        kept.append(_kept_bytes(model, task, 1, context))
    more, beyond = fields["n_layers"] - 1, fields["d_vocab"] - FEW_TOKENS
    size = parameters[0] + more * (parameters[1] - parameters[0])
    size += beyond * (fields["d_model"] * (1 if shape.tied else 2) + 1)
    held = kept[0] + more * (kept[1] - kept[0]) + 3 * 4 * beyond * (task.n_ctx - 1)
    return Whole(shape, size, held)


def thinned(shape: Shape) -> HookedTransformer:
    """A model with the layers and heads of ``shape`` and next to no width: its steps cost nothing."""
    fields = {
        "d_model": 2 * shape.fields["n_heads"],
        "d_head": 2,
        "d_mlp": 4,
        "d_vocab": 64,
        "n_ctx": SHORT_ROW,
    }
    rotary = {"rotary_dim": 2} if "rotary_dim" in shape.fields else {}
    return from_shape(shape.resized(**fields, **rotary))


@dataclass(frozen=True)
class Pace:
    """How fast the true model is trained here, and what it holds meanwhile.

    ``flops`` a second in forward and backward passes, ``update`` seconds a step for what does not depend on the
    rows (AdamW, most of all), both from steps of ``rows`` rows. ``activations`` are the bytes kept of a row for the
    backward pass, ``relaid`` those of weights that are kept in another order.
    """

    flops: float
    update: float
    rows: int
    activations: int
    relaid: int

    def seconds(self, ledger: Ledger) -> float:
        """The time of one step that costs so much."""
        return self.update + ledger.flops / self.flops


def pace(model: HookedTransformer, task: Task, micro_batch: int, context: Context) -> Pace:
    """Times steps of pretraining with 2, 8, 32, ... rows, until two differ enough or a micro-batch is full."""
    few, rows = 2, 8
    short, long = (_step_seconds(model, task, count, context) for count in (few, rows))
    while long - short < ENOUGH and 4 * rows <= micro_batch:
        few, rows = rows, 4 * rows
        short, long = long, _step_seconds(model, task, rows, context)
    # a busy machine can make the longer step the shorter one: then all of it counts as passes
    each = (long - short) / (rows - few) if long > short else long / rows
    cost = step_cost(model, 1, task.n_ctx, passes=3).flops
    one, two = (_kept_bytes(model, task, count, context) for count in (1, 2))
    return Pace(cost / each, max(0.0, short - few * each), rows, two - one, 2 * one - two)


def forward_seconds(model: HookedTransformer, task: Task, splits: tuple[str, ...], pace: Pace) -> float:
    """The time of one look at all rows of some splits."""
    rows = sum(len(task.rows(split)) for split in splits)
    return step_cost(model, rows, task.n_ctx, passes=1).flops / pace.flops


def scaled(one: Ledger, model: HookedTransformer, thin: HookedTransformer, task: Task, rows: int) -> Ledger:
    """The cost of a step of ``rows`` rows of ``model``, from that of a step of one row of ``thin``."""
    width = flops_per_token(model, task.n_ctx - 1) / flops_per_token(thin, task.n_ctx - 1)
    return Ledger(flops=one.flops * width * rows, tokens=one.tokens * rows, steps=1)


def peak_bytes(parameters: int, pace: Pace, micro_batch: int) -> int:
    """What a distilling process holds at most, in float32."""
    return COPIES * 4 * parameters + pace.relaid + pace.activations * micro_batch


def process_peak(device: str) -> int:
    """The most memory that this process had, in bytes."""
    import resource
    import sys

    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _loss(model: torch.nn.Module, task: Task, rows: int, context: Context, step: int) -> torch.Tensor:
    batch = task.batch("pretrain", rows, context.seed, step)
    tokens, mask = batch.tokens.to(context.device), batch.answer_mask.to(context.device)
    return losses.next_token(model(tokens[:, :-1], return_type="logits"), tokens, mask)


def _step_seconds(model: HookedTransformer, task: Task, rows: int, context: Context) -> float:
    settings = FitConfig(steps=2, batch_size=rows, learning_rate=1e-5, warmup=0)
    alone = replace(context, folder=None, report=None)
    done = fit(model, settings, lambda m, step: _loss(m, task, rows, context, step), alone)
    return spent(done.ledger, context.device) / 2


def spent(ledger: Ledger, device: str) -> float:
    """The seconds that count: with one thread a process is as long as it computes; on an accelerator it waits."""
    return ledger.cpu_seconds if device == "cpu" else ledger.seconds


def _kept_bytes(model: HookedTransformer, task: Task, rows: int, context: Context) -> int:
    """Bytes that autograd keeps of so many rows, each tensor once and no parameter."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in own:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    held = model.to(context.device, print_details=False)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _loss(held, task, rows, context, 0)
    return sum(kept.values())
