"""What a run will cost, before it runs: a few real steps of every kind on this machine, times the plan."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from undo_probe.attacks.recipes import Recipe, recipes
from undo_probe.attacks.relearn import attack_once
from undo_probe.config import RunConfig
from undo_probe.files import digest
from undo_probe.models import HookedTransformer, build
from undo_probe.pipeline import KINDS, length_of, split_seed
from undo_probe.plan import QUICK, Step, plan
from undo_probe.records import Ledger
from undo_probe.tasks import Task, build_task
from undo_probe.training import Context, resolve_device

SHORT, LONG = 2, 8
"""Steps of the two trials of a kind; what they differ by is the cost of a step, what they share that of a look."""


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

    ``seconds`` are of one process that does everything in turn; measuring (probes and the like) is not in them.
    """

    lines: tuple[Line, ...]
    parameters: int
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All rows together."""
        return sum(line.seconds for line in self.lines)

    def text(self, workers: int) -> str:
        """A table for a terminal, with the time that ``workers`` processes need at best."""
        head = f"{'':34}{'models':>7}{'steps':>10}{'tokens':>12}{'FLOPs':>10}{'CPU min':>9}"
        rows = [
            f"{line.what:34}{line.models:7d}{line.steps:10d}{line.tokens:12.3g}{line.flops:10.2g}"
            f"{line.seconds / 60:9.1f}"
            for line in self.lines
        ]
        return "\n".join(
            [
                head,
                *rows,
                f"{self.parameters:,} parameters, at most {self.peak_bytes / 2**30:.1f} GiB a process.",
                f"On this machine at most {self.seconds / 60 / workers:.0f} minutes with {workers} processes, and the "
                "scorecard after them. Steps are caps: stop rules end students sooner, often much sooner.",
            ]
        )


def estimate(config: RunConfig) -> Estimate:
    """Tries every kind of step of a run on models with random weights; writes nothing.

    Raises:
        UndoProbeError: the configuration asks for a device or a task that is not there.
    """
    task = build_task(config.task, split_seed(config))
    model = build(config.model, task.d_vocab, task.n_ctx, config.seed)
    context = Context(config.seed, resolve_device(config.device), config.precision, config.threads)
    planned: dict[str, int] = {}
    tried: dict[str, tuple[Ledger, float]] = {}
    lines: dict[str, Line] = {}
    for step in plan(config):
        if step.kind in QUICK:
            continue
        settings = _settings(step, planned)
        planned[step.arm.name] = settings["fit"]["steps"]
        key = digest({"kind": step.kind, **settings, "fit": {**settings["fit"], "steps": 0, "horizon": None}})
        if key not in tried:
            tried[key] = _trial(
                lambda n, s=step, g=settings: _stage(s, g, n, model, task, context), context.device
            )
        name = _row(step)
        line = _line(name, tried[key], settings["fit"]["steps"], settings["fit"]["eval_every"])
        lines[name] = lines[name] + line if name in lines else line
    attacks = _attacks(config, model, task, context)
    size = sum(parameter.numel() for parameter in model.parameters())
    return Estimate((*lines.values(), attacks), size, _peak(context.device))


def _settings(step: Step, planned: dict[str, int]) -> dict[str, Any]:
    settings = {name: value for name, value in step.settings.items() if name != "precision"}
    return length_of(settings, planned[step.parents[-1]]) if "length" in settings else settings


def _row(step: Step) -> str:
    arm = step.arm
    if arm.stage == "unlearned":
        return replace(arm, alpha=None, variant="").label
    return "students" if arm.stage == "distilled" else "original and oracles"


def _stage(
    step: Step, settings: dict[str, Any], steps: int, model: HookedTransformer, task: Task, context: Context
) -> Ledger:
    fit = {**settings["fit"], "steps": steps, "eval_every": steps}
    if "stop" in fit:
        fit["stop"] = "never"
    parents = [model] * max(1, len(step.parents))
    return KINDS[step.kind][0]({**settings, "fit": fit}, parents, task, context).ledger


def _attacks(config: RunConfig, model: HookedTransformer, task: Task, context: Context) -> Line:
    """Every attack on its grid as it is asked for; each extension adds one rate."""
    section = config.attack
    attacked = [step for step in plan(config) if step.arm.stage != "noised" or section.noised]
    lines = []
    for recipe in recipes(section, config.model.n_layers).values():
        if not recipe.trained:
            lines.append(Line("attacks", len(attacked), 0, 0, 0.0, 0.0))
            continue

        def run(steps: int, recipe: Recipe = recipe) -> Ledger:
            short = section.model_copy(update={"steps": steps, "eval_steps": (0, steps)})
            return attack_once(model, task, short, section.learning_rates[0], context, recipe)[0].ledger

        count = len(attacked) * len(section.learning_rates) * section.seeds
        cost, look = _trial(run, context.device)
        seconds = count * (section.steps * cost.cpu_seconds + len(section.eval_steps) * look)
        steps = count * section.steps
        lines.append(Line("attacks", count, steps, steps * cost.tokens, steps * cost.flops, seconds))
    return sum(lines[1:], lines[0])


def _trial(run: Callable[[int], Ledger], device: str) -> tuple[Ledger, float]:
    """The cost of one step, and the seconds of one look; both trials look twice."""
    run(1)  # the first call of a kind pays for what is set up once
    short, long = run(SHORT), run(LONG)
    more = LONG - SHORT
    each = Ledger(
        flops=(long.flops - short.flops) / more,
        tokens=(long.tokens - short.tokens) // more,
        cpu_seconds=max(0.0, _time(long, device) - _time(short, device)) / more,
        steps=1,
    )
    return each, max(0.0, _time(short, device) - SHORT * each.cpu_seconds) / 2


def _time(ledger: Ledger, device: str) -> float:
    # with one thread a process is as long as it computes; on an accelerator it waits
    return ledger.cpu_seconds if device == "cpu" else ledger.seconds


def _line(name: str, trial: tuple[Ledger, float], steps: int, eval_every: int) -> Line:
    cost, look = trial
    seconds = steps * cost.cpu_seconds + (1 + steps // eval_every) * look
    return Line(name, 1, steps, steps * cost.tokens, steps * cost.flops, seconds)


def _peak(device: str) -> int:
    import resource
    import sys

    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
