"""The one training loop: pretraining, unlearning, distillation and relearning are calls of :func:`fit`.

Over 400 lines because the loop, what it keeps, and how it goes on from that after a kill have to agree.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from undo_probe import ranks
from undo_probe.config import FitConfig
from undo_probe.divided import divide, mean_gradient
from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, digest, read_json, sweep, write_json
from undo_probe.models import HookedTransformer, clone, flops_per_token, load_tensors, save_tensors, to_device
from undo_probe.randomness import deterministic
from undo_probe.records import Ledger

Loss = Callable[[torch.nn.Module, int], Tensor]
Row = dict[str, Any]
Progress = Callable[..., None]
Model = TypeVar("Model", bound=torch.nn.Module)
Adapt = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Context:
    """Where and how a stage runs; nothing in here changes its numbers except ``seed``.

    ``folder`` is where the loop keeps what it needs to go on after a kill, every ``save_seconds``; None keeps
    nothing. ``cache`` is for what stages may share, such as a teacher's answers. ``report(step, total, **numbers)``
    is told about progress. ``source`` is where the original is loaded from, and of which revision.
    """

    seed: int = 0
    device: str = "cpu"
    precision: str = "no"
    threads: int | None = 1
    folder: Path | None = None
    cache: Path | None = None
    save_seconds: float = 20.0
    report: Progress | None = None
    source: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Cost:
    """What one optimiser step costs: FLOPs (teacher forwards included), tokens, labelled forget tokens."""

    flops: float = 0.0
    tokens: int = 0
    labelled_tokens: int = 0


def step_cost(
    model: HookedTransformer, rows: int, n_ctx: int, passes: float, *, labelled: float = 0.0, read: int = 0
) -> Cost:
    """The cost of a step over ``rows`` rows of ``n_ctx`` tokens.

    Args:
        model: what reads them.
        rows: in all micro-batches of the step.
        n_ctx: tokens of a row.
        passes: forward passes over these rows; a backward pass counts as two.
        labelled: share of the rows that are labelled forget rows.
        read: positions of a row that the model computes; all but the last unless given.
    """
    read = read or n_ctx - 1
    tokens = rows * n_ctx
    return Cost(passes * rows * read * flops_per_token(model, read), tokens, round(labelled * tokens))


@dataclass(frozen=True)
class Watch:
    """What the loop looks at while it trains.

    ``measure(model, step)`` gives history rows at every step for which ``at(step)`` holds (step 0 is before
    the first update); ``stop(rows)`` says, from the rows of one step, whether training is over.
    """

    measure: Callable[[Any, int], list[Row]] | None = None
    at: Callable[[int], bool] = lambda step: True
    stop: Callable[[list[Row]], bool] | None = None


@dataclass
class Fit(Generic[Model]):
    """A finished training run: the trained copy, its history, what it cost, why it stopped."""

    model: Model
    rows: list[Row] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    stopped: str = ""


def resolve_device(device: str) -> str:
    """``auto`` becomes ``cuda`` where there is one; asking for a missing one is the user's error.

    Of several processes of ``accelerate launch``, each has a device of its own.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UndoProbeError(
            "device is 'cuda', but torch sees no CUDA device here: use device=cpu or device=auto"
        )
    if device == "cuda" and ranks.size() > 1:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def learning_rate(settings: FitConfig, step: int) -> float:
    """The rate of update ``step`` (from 0): linear warm-up, then constant or cosine, in absolute steps."""
    peak = settings.learning_rate
    if step < settings.warmup:
        return peak * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return peak
    span = settings.horizon or settings.steps
    done = (step - settings.warmup) / max(1, span - settings.warmup)
    low = settings.final_fraction
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def fit(
    model: Model,
    settings: FitConfig,
    loss: Loss,
    context: Context,
    *,
    watch: Watch | None = None,
    cost: Cost | None = None,
    trainable: Callable[[str], bool] | None = None,
    adapt: Adapt | None = None,
) -> Fit[Model]:
    """Trains a copy of ``model`` with AdamW; the argument is untouched.

    Killed and called again with the same arguments and ``context.folder``, it continues from its last saved
    step and ends at the same bits, because the batch of a step depends on nothing but seed and step.

    Called in every process of ``accelerate launch``, it divides the rows of each batch between them (see
    :mod:`undo_probe.divided`); the first one measures, decides when to stop, and keeps what is needed to resume.
    The ledger counts whole batches, and the seconds of the process it is read in.

    Args:
        model: where training starts; a HookedTransformer, or any module without tied parameters.
        settings: steps, batch, schedule.
        loss: ``loss(model, micro_step)``, a scalar; with ``accumulate`` a step takes several micro-steps.
        context: seed, device, precision, threads, resume folder, progress.
        watch: what to measure, when, and when to stop.
        cost: for the ledger.
        trainable: parameter name to bool; all parameters that require a gradient by default.
        adapt: what the copy is trained through (see :mod:`undo_probe.lora`); left, and merged, before it is
            returned.
    """
    watch = watch or Watch()
    ranks.join(context.device)
    student = _copy(model, context.device)
    frozen = {name: p.requires_grad for name, p in student.named_parameters()}
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(frozen[name] and (trainable is None or trainable(name)))
    adapted = nullcontext() if adapt is None else adapt(student)
    with adapted, deterministic(context.threads), _accelerator(context) as accelerator:
        run = _Loop(student, settings, loss, context, watch, cost or Cost(), accelerator)
        result = run.train()
    for name, parameter in result.model.named_parameters():
        parameter.requires_grad_(frozen[name])
        parameter.grad = None
    return result


def _copy(model: Any, device: str) -> Any:
    if isinstance(model, HookedTransformer):
        return to_device(clone(model), device)
    return deepcopy(model).to(device)


@contextmanager
def _accelerator(context: Context) -> Iterator[Any]:
    """A fresh Accelerator, and no trace of it afterwards.

    A second Accelerator of a process would silently keep the first one's precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    try:
        # placement is ours: the model lies on its device already, and HookedTransformer prints when it is moved
        yield Accelerator(
            cpu=context.device == "cpu", mixed_precision=context.precision, device_placement=False
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


class _Loop:
    """The state of one call of :func:`fit`."""

    def __init__(
        self,
        model: torch.nn.Module,
        settings: FitConfig,
        loss: Loss,
        context: Context,
        watch: Watch,
        cost: Cost,
        accelerator: Any,
    ) -> None:
        self.settings, self.loss, self.context = settings, loss, context
        self.watch, self.cost, self.accelerator = watch, cost, accelerator
        self.model = model
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        # in evaluation mode accelerate puts no DistributedDataParallel around it: the mean over processes of the
        # losses of their shares is not the loss of the batch
        self.prepared = divide(accelerator.prepare_model(model, evaluation_mode=True))
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.parameters = parameters
        self.rows: list[Row] = []
        self.step = 0
        self.ledger = Ledger()

    def train(self) -> Fit[Any]:
        self._restore()
        clock, cpu, saved = time.monotonic(), time.process_time(), time.monotonic()
        before = self.ledger
        # a run killed after its last look at a step must not look, or train past a met stop rule, again
        here = [row for row in self.rows if row["step"] == self.step]
        stopped = self._verdict(here) if here else self._look()
        while not stopped and self.step < self.settings.steps:
            if not self._update():
                stopped = f"diverged at step {self.step}"
                break
            self.step += 1
            self.ledger = Ledger(
                flops=self.step * self.cost.flops,
                tokens=self.step * self.cost.tokens,
                labelled_tokens=self.step * self.cost.labelled_tokens,
                steps=self.step,
                seconds=before.seconds + time.monotonic() - clock,
                cpu_seconds=before.cpu_seconds + time.process_time() - cpu,
            )
            stopped = self._look()
            due = time.monotonic() - saved >= self.context.save_seconds
            if self.context.folder is not None and due and ranks.is_main():
                self._save(self.context.folder)
                saved = time.monotonic()
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        vars(model).pop("forward", None)  # accelerate leaves a bound method in place of the class's own
        return Fit(model, self.rows, self.ledger, stopped or f"all {self.settings.steps} steps done")

    def _update(self) -> bool:
        """One optimiser step; False, with nothing changed, when loss or gradient is not finite."""
        value = self._gradient()
        if value is None:
            return False
        if self.settings.sharpness:
            with self._uphill(self.settings.sharpness):
                if self._gradient() is None:
                    return False
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip, foreach=False)
        if not torch.isfinite(norm):
            return False
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        self.optimizer.step()
        if self.context.report is not None:
            self.context.report(self.step + 1, self.settings.steps, loss=value)
        return True

    def _gradient(self) -> float | None:
        """The gradient over all micro-batches of this step, in ``.grad``, and the last one's loss."""
        accumulate = self.settings.accumulate
        self.optimizer.zero_grad(set_to_none=True)
        value = torch.zeros(())
        for part in range(accumulate):
            with self.accelerator.autocast():
                value = self.loss(self.prepared, self.step * accumulate + part) / accumulate
            if not torch.isfinite(value):
                return None
            self.accelerator.backward(value)
        mean_gradient(self.parameters)
        return float(value.detach()) * accumulate

    @contextmanager
    def _uphill(self, radius: float) -> Iterator[None]:
        """The weights moved by ``radius`` along the gradient, and put back bit for bit.

        The gradient there is taken over every micro-batch, not the last one alone.
        """
        moved = [p for p in self.parameters if p.grad is not None]
        before = [p.detach().clone() for p in moved]
        gradients = [p.grad for p in moved if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        with torch.no_grad():
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.add_(gradient * (radius / (norm + 1e-12)))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(moved, before, strict=True):
                    parameter.copy_(value)

    def _look(self) -> str:
        """Measures where the watch says so; the reason to stop, or an empty text."""
        if self.watch.measure is None or not (self.watch.at(self.step) or self.step == self.settings.steps):
            return ""
        rows: list[Row] = []
        if ranks.is_main():
            self.model.eval()
            with torch.no_grad():
                rows = [{"step": self.step, **row} for row in self.watch.measure(self.model, self.step)]
            self.model.train()
        rows = ranks.agree(rows)
        self.rows += rows
        return self._verdict(rows)

    def _verdict(self, rows: list[Row]) -> str:
        if self.watch.stop is not None and ranks.agree(self.watch.stop(rows)):
            return f"stop rule met at step {self.step}"
        return ""

    def _save(self, folder: Path) -> None:
        """Writes everything the loop needs to go on, as a folder named by its step; older ones go after it."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        state = self.optimizer.state_dict()["state"]
        for index, values in state.items():
            tensors |= {f"adam.{index}.{key}": value for key, value in values.items()}
        with atomic_folder(folder / f"step-{self.step:09d}", keep_existing=True) as target:
            content = save_tensors(tensors, target / "state.safetensors")
            meta = {"step": self.step, "rows": self.rows, "ledger": self.ledger.to_dict(), "content": content}
            write_json(target / "state.json", {**meta, "digest": digest(meta)})
        for old in _saved(folder)[:-1]:
            _remove(old)

    def _restore(self) -> None:
        """Continues from the newest saved step that is whole; a damaged one is dropped."""
        if self.context.folder is None:
            return
        name, found = _newest(self.context.folder) if ranks.is_main() else ("", None)
        name = ranks.agree(name)
        if name and not ranks.is_main():
            found = _whole(self.context.folder / name)
            if found is None:
                raise UndoProbeError(
                    f"process {ranks.rank()} cannot read {self.context.folder / name}, which the first one wrote: put "
                    "the store on a disk that all processes see"
                )
        if found is not None:
            self._take(*found)

    def _take(self, meta: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": state})
        self.step, self.rows, self.ledger = meta["step"], meta["rows"], Ledger.from_dict(meta["ledger"])


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*")) if folder.is_dir() else []


def _newest(folder: Path) -> tuple[str, tuple[dict[str, Any], dict[str, Tensor]] | None]:
    """Name and content of the newest saved step that is whole; damaged ones are deleted."""
    sweep(folder)
    for path in reversed(_saved(folder)):
        found = _whole(path)
        if found is not None:
            return path.name, found
        _remove(path)
    return "", None


def _whole(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The record and the tensors of a saved step; None where a bit of either has changed."""
    try:
        meta = read_json(path / "state.json")
        if not isinstance(meta, dict) or meta.pop("digest", None) != digest(meta):
            return None
        return meta, load_tensors(path / "state.safetensors", meta["content"])
    except UndoProbeError:
        return None


def _remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)
