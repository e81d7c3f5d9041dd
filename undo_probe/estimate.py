"""What a run will cost, before it runs: a few real steps of every kind on this machine, times the plan.

Over 400 lines because a price is found in three ways (tried, extrapolated, from one block) behind one interface.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from undo_probe.attacks.one_model import EVALUATED, attack_once
from undo_probe.attacks.recipes import Recipe, recipes
from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answer_log_probability
from undo_probe.extrapolate import (
    COPIES,
    FEW_TOKENS,
    SHORT_ROW,
    block_slice,
    forward_seconds,
    glimpse,
    narrow,
    pace,
    peak_bytes,
    process_peak,
    roughly,
    scaled,
    spent,
    thinned,
    trial_fit,
    whole,
)
from undo_probe.families import Shape
from undo_probe.files import digest
from undo_probe.measures.also import forward_rows
from undo_probe.measures.subspaces import relearn_rows
from undo_probe.models import HookedTransformer, build, flops_per_token, load_model
from undo_probe.pipeline import KINDS, length_of, split_seed
from undo_probe.plan import QUICK, Step, plan
from undo_probe.records import Ledger
from undo_probe.sources import check_places, described, find_source
from undo_probe.stages.pretrain import WATCHED
from undo_probe.stages.unlearn.budget import budget_rows
from undo_probe.task_config import ChoiceConfig
from undo_probe.tasks import Task, asked_task, build_task
from undo_probe.tasks.standin import StandIn, is_here
from undo_probe.training import Context, resolve_device, step_cost

SHORT, LONG = 2, 8
"""Steps of the two trials of a kind; what they differ by is the cost of a step, what they share that of a look."""


LARGE = 2e10
"""FLOPs of a step of the original above which steps are not tried: a minute for everything on one core."""

Try = Callable[[HookedTransformer, Task, int, dict[str, int]], Ledger]
"""Runs a stage or an attack on a model and a task for so many steps; ``batch_size`` and ``accumulate`` may be given."""
Price = tuple[Ledger, float]
"""The cost of one step, and the seconds of one look."""


@dataclass(frozen=True)
class Trial:
    """What is to be priced, the rows of its steps, and the splits that it looks at."""

    run: Try
    batch_size: int
    accumulate: int
    looked_at: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One row of the estimate. Steps are the cap where a stop rule may end training sooner."""

    what: str
    models: int
    steps: int
    tokens: int
    flops: float
    seconds: float

    def __add__(self, other: "Line") -> "Line":
        """Both together, under this one's name."""
        return Line(
            self.what,
            self.models + other.models,
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True)
class Estimate:
    """Rows by stage, the model's size, and the largest memory that the trials of this process took.

    ``note`` says what was assumed where nothing was tried in full.
    ``seconds`` are of one process that does everything in turn; of measuring only the forward passes of ``score.also``
    are in them.
    """

    lines: tuple[Line, ...]
    parameters: int
    peak_bytes: int
    note: str = ""

    @property
    def seconds(self) -> float:
        """All rows together."""
        return sum(line.seconds for line in self.lines)

    def text(self, workers: int) -> str:
        """A table for a terminal, with the time that ``workers`` processes need at best."""
        head = f"{'':34}{'models':>7}{'steps':>10}{'tokens':>12}{'FLOPs':>10}{'CPU min':>14}"
        rows = [
            f"{line.what:34}{line.models:7d}{line.steps:10d}{line.tokens:12.3g}{line.flops:10.2g}"
            f"{line.seconds / 60:14,.1f}"
            for line in self.lines
        ]
        return "\n".join(
            [
                head,
                *rows,
                *([self.note] if self.note else []),
                f"{self.parameters:,} parameters, at most {self.peak_bytes / 2**30:.1f} GiB a process.",
                f"On this machine at most {_long(self.seconds / workers)} with {workers} processes, and the "
                "scorecard after them. Steps are caps: stop rules end students sooner, often much sooner.",
            ]
        )


def _long(seconds: float) -> str:
    """A time in the largest unit of which it has a few."""
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds > 3 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def estimate(config: RunConfig) -> Estimate:
    """Tries every kind of step of a run on models with random weights; writes nothing.

    A model whose step takes more than :data:`LARGE` FLOPs is not trained on whole batches: what a step takes is then
    worked out from a few rows, and the estimate's note says how.

    Raises:
        UndoProbeError: the configuration asks for a device or a task that is not there.
    """
    context = Context(config.seed, resolve_device(config.device), config.precision, config.threads)
    prices = _prices_of_source(config, context) if config.original.source else _prices(config, context)
    planned: dict[str, int] = {}
    tried: dict[str, Price] = {}
    lines: dict[str, Line] = {}
    for step in plan(config):
        if step.kind in QUICK:
            continue
        settings = _settings(step, planned)
        fit = settings["fit"]
        planned[step.arm.name] = fit["steps"]
        key = digest({"kind": step.kind, **settings, "fit": {**fit, "steps": 0, "horizon": None}})
        if key not in tried:
            trial = Trial(_stage(step, settings, context), fit["batch_size"], fit["accumulate"], WATCHED)
            tried[key] = prices.of(trial)
        name = _row(step)
        line = _line(name, tried[key], fit["steps"], fit["eval_every"])
        if fit.get("budget"):
            rows, (flops, seconds) = budget_rows(prices.task, fit), prices.row()
            line = replace(line, flops=line.flops + rows * flops, seconds=line.seconds + rows * seconds)
        lines[name] = lines[name] + line if name in lines else line
    more = [_attacks(config, prices, context), *_also(config, prices)]
    return Estimate((*lines.values(), *more), prices.parameters, prices.peak(), prices.note)


def _prices(config: RunConfig, context: Context) -> "_Tried | _Extrapolated":
    task = build_task(config.task, split_seed(config))
    model = build(config.model, task.d_vocab, task.n_ctx, config.seed)
    rows = config.original.batch_size * config.original.accumulate
    large = step_cost(model, rows, task.n_ctx, passes=3).flops > LARGE
    return _Extrapolated(config, model, task, context) if large else _Tried(model, task, context)


def _prices_of_source(config: RunConfig, context: Context) -> "_Tried | _Sliced":
    """Of a model that was not made here: itself where it is small and lies here, else what can be known offline."""
    source = find_source(config.original.source, config.original.revision)
    shape, task = described(source, offline=True), asked_task(config)
    check_places(config, shape)
    here = source.kind != "hub" and (not isinstance(task, ChoiceConfig) or is_here(task))
    rows = config.distill.batch_size * config.distill.accumulate
    if here:
        built = build_task(task, split_seed(config))
        if 3 * rows * built.n_ctx * roughly(shape) <= LARGE:
            return _Tried(load_model(source.place, n_ctx=built.n_ctx), built, context)
        return _Sliced(config, shape, built, context)
    if not isinstance(task, ChoiceConfig):
        raise UndoProbeError(
            f"{source.place} is on the hub, and only with task.name=choice can a run that starts from it be priced: "
            "give a local folder as original.source"
        )
    return _Sliced(config, shape, StandIn(task, FEW_TOKENS, task.n_ctx), context)


def _settings(step: Step, planned: dict[str, int]) -> dict[str, Any]:
    settings = {name: value for name, value in step.settings.items() if name != "precision"}
    return length_of(settings, planned[step.parents[-1]]) if "length" in settings else settings


def _row(step: Step) -> str:
    arm = step.arm
    if arm.stage == "unlearned":
        return replace(arm, alpha=None, variant="").label
    return "students" if arm.stage == "distilled" else "original and oracles"


def _stage(step: Step, settings: dict[str, Any], context: Context) -> Try:
    def run(model: HookedTransformer, task: Task, steps: int, sizes: dict[str, int]) -> Ledger:
        fit = trial_fit(settings["fit"], steps, sizes)
        own = {**settings, "fit": fit}
        if "model" in own:
            own["model"] = {**own["model"], "d_model": model.cfg.d_model, "d_mlp": model.cfg.d_mlp}
        parents = [model] * max(1, len(step.parents))
        return KINDS[step.kind][0](own, parents, task, context).ledger

    return run


def _attacks(config: RunConfig, prices: "_Tried | _Extrapolated | _Sliced", context: Context) -> Line:
    """Every attack on its grid as it is asked for; each extension adds one rate."""
    section = config.attack
    attacked = [step for step in plan(config) if step.arm.stage != "noised" or section.noised]
    lines = []
    for recipe in recipes(section, prices.n_layers).values():
        if not recipe.trained:
            lines.append(Line("attacks", len(attacked), 0, 0, 0.0, 0.0))
            continue

        def run(
            model: HookedTransformer, task: Task, steps: int, sizes: dict[str, int], recipe: Recipe = recipe
        ) -> Ledger:
            size = sizes.get("batch_size", section.batch_size)
            short = section.model_copy(update={"steps": steps, "eval_steps": (0, steps), "batch_size": size})
            return attack_once(model, task, short, section.learning_rates[0], context, recipe)[0].ledger

        count = len(attacked) * len(section.learning_rates) * section.seeds
        cost, look = prices.of(Trial(run, section.batch_size, 1, tuple(EVALUATED.values())))
        seconds = count * (section.steps * cost.cpu_seconds + len(section.eval_steps) * look)
        steps = count * section.steps
        lines.append(Line("attacks", count, steps, steps * cost.tokens, steps * cost.flops, seconds))
    return sum(lines[1:], lines[0])


def _also(config: RunConfig, prices: "_Tried | _Extrapolated | _Sliced") -> list[Line]:
    """A line for each measure of ``score.also``, on every model."""
    models, task = len(plan(config)), prices.task
    each = prices.row() if config.score.also else (0.0, 0.0)
    lines = []
    for name in config.score.also:
        rows = models * forward_rows([name], task, prices.n_layers, relearn_rows(config.attack))
        lines.append(
            Line(f"score.also: {name}", models, 0, rows * task.n_ctx, rows * each[0], rows * each[1])
        )
    return lines


class _Built:
    """Of a model that is there."""

    _model: HookedTransformer

    @property
    def parameters(self) -> int:
        """Numbers of the model."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self._model.cfg.n_layers


class _Tried(_Built):
    """Prices from real steps."""

    note = ""

    def __init__(self, model: HookedTransformer, task: Task, context: Context) -> None:
        self._model, self.task, self._context = model, task, context

    def of(self, trial: Trial) -> Price:
        """Two trials that differ in their steps and both look twice."""
        trial.run(self._model, self.task, 1, {})  # the first call of a kind pays for what is set up once
        short, long = (trial.run(self._model, self.task, steps, {}) for steps in (SHORT, LONG))
        more, device = LONG - SHORT, self._context.device
        each = Ledger(
            flops=(long.flops - short.flops) / more,
            tokens=(long.tokens - short.tokens) // more,
            cpu_seconds=max(0.0, spent(long, device) - spent(short, device)) / more,
            steps=1,
        )
        return each, max(0.0, spent(short, device) - SHORT * each.cpu_seconds) / 2

    def row(self) -> tuple[float, float]:
        """FLOPs and seconds of reading a row, from all of V."""
        asked, start = self.task.rows("forget_V"), time.process_time()
        answer_log_probability(self._model, asked)
        seconds = (time.process_time() - start) / len(asked)
        return step_cost(self._model, 1, self.task.n_ctx, passes=1).flops, seconds

    def peak(self) -> int:
        """The most memory that this process had."""
        return process_peak(self._context.device)


class _Extrapolated(_Built):
    """Prices from one-row steps of a narrow model, and the pace of the true one."""

    def __init__(self, config: RunConfig, model: HookedTransformer, task: Task, context: Context) -> None:
        self._model, self.task = model, task
        self._micro = config.original.batch_size
        self._thin = narrow(config.model, task, config.seed)
        self._pace = pace(model, task, self._micro, context)
        self.note = (
            f"Not tried in full: times assume that every stage computes {self._pace.flops / 1e9:.1f} GFLOP/s, as "
            f"pretraining did here with {self._pace.rows} rows, plus {self._pace.update:.2f} s a step; memory is "
            f"{COPIES} float32 copies of the model and the activations of {self._micro} rows."
        )

    def of(self, trial: Trial) -> Price:
        one = trial.run(self._thin, glimpse(self.task), 1, {"batch_size": 1, "accumulate": 1})
        rows = trial.batch_size * trial.accumulate
        each = scaled(one, self._model, self._thin, self.task, rows)
        look = forward_seconds(self._model, self.task, trial.looked_at, self._pace)
        return replace(each, cpu_seconds=self._pace.seconds(each)), look

    def row(self) -> tuple[float, float]:
        """FLOPs and seconds of reading a row, at the pace of training."""
        flops = step_cost(self._model, 1, self.task.n_ctx, passes=1).flops
        return flops, flops / self._pace.flops

    def peak(self) -> int:
        """What a distilling process will need."""
        return peak_bytes(self.parameters, self._pace, self._micro)


class _Sliced:
    """Prices of a model that is never built: from one-row steps of a narrow one, and the pace of one true block."""

    def __init__(self, config: RunConfig, shape: Shape, task: Task, context: Context) -> None:
        section = config.task if isinstance(config.task, ChoiceConfig) else ChoiceConfig()
        self.task, self._micro = task, config.distill.batch_size
        self._whole = whole(shape, StandIn(section, FEW_TOKENS, task.n_ctx), context)
        self._each = self._whole.flops_per_token(task.n_ctx - 1)
        block = block_slice(shape, 1, SHORT_ROW)
        timed = pace(block, StandIn(section, FEW_TOKENS, SHORT_ROW), 8, context)
        share = self._whole.parameters / sum(p.numel() for p in block.parameters())
        self._pace = replace(
            timed, update=timed.update * share, activations=self._whole.activations, relaid=0
        )
        self._thin, self._few = thinned(shape), glimpse(StandIn(section, 64, SHORT_ROW))
        self.note = (
            f"The model was not read and not tried: one block of its width computes {timed.flops / 1e9:.1f} GFLOP/s "
            f"here in steps of {timed.rows} rows of {SHORT_ROW} tokens, and every stage is thought to; to that come "
            f"{self._pace.update:.1f} s a step. Memory is {COPIES} float32 copies of the model and the activations of "
            f"{self._micro} rows of {task.n_ctx} tokens."
        )
        if isinstance(task, StandIn):
            counts = ", ".join(f"{count:,} of {name}" for name, count in task.expected.items())
            self.note += f" The questions were not read either: {counts} are expected."

    def of(self, trial: Trial) -> Price:
        one = trial.run(self._thin, self._few, 1, {"batch_size": 1, "accumulate": 1})
        rows, read = trial.batch_size * trial.accumulate, self.task.n_ctx - 1
        width = self._each / flops_per_token(self._thin, SHORT_ROW - 1) * read / (SHORT_ROW - 1)
        tokens = one.tokens // SHORT_ROW * self.task.n_ctx
        each = Ledger(flops=one.flops * width * rows, tokens=tokens * rows, steps=1)
        asked = sum(len(self.task.rows(split)) for split in trial.looked_at)
        return replace(each, cpu_seconds=self._pace.seconds(each)), asked * self.row()[1]

    def row(self) -> tuple[float, float]:
        """FLOPs and seconds of reading a row, at the pace of one block."""
        flops = (self.task.n_ctx - 1) * self._each
        return flops, flops / self._pace.flops

    def peak(self) -> int:
        """What a distilling process will need."""
        return peak_bytes(self.parameters, self._pace, self._micro)

    @property
    def parameters(self) -> int:
        """Numbers of the model."""
        return self._whole.parameters

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return self._whole.shape.fields["n_layers"]


def _line(name: str, price: Price, steps: int, eval_every: int) -> Line:
    cost, look = price
    seconds = steps * cost.cpu_seconds + (1 + steps // eval_every) * look
    return Line(name, 1, steps, steps * cost.tokens, steps * cost.flops, seconds)
