"""Training a sparse autoencoder with the package's one loop, and reading its loss curve."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from pydantic import ValidationError, model_validator
from torch import Tensor

from undo_probe.config import FitConfig
from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.engineered import Measured, features, measured_loss
from undo_probe.persian_rug.theory import optimal_loss, variance
from undo_probe.randomness import derive_seed
from undo_probe.records import Ledger
from undo_probe.task_config import Count, Rate, Section, Steps
from undo_probe.training import Context, Cost, Loss, Row, Watch, fit, resolve_device

Lesson = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Drawn features to what a student is shown and what it is to answer."""

VERSION = 1
"""Raised when the same settings give other numbers."""
LEARNT = 0.9
"""A plateau counts from where the loss is this share of the variance: before, nothing has been learnt."""

FLAT, LEFT = 0.3, 0.95
"""A plateau's steepest slope in a doubly logarithmic plot, and below which share of its level it has been left."""


class RugFit(FitConfig):
    """How an autoencoder is trained: Adam, a cosine down to nothing, fresh features at every step.

    The clip does not bite: the loss is summed over outputs, and Adam does not see its scale.
    """

    steps: Steps = 1500
    batch_size: Count = 512
    learning_rate: Rate = 1e-3
    warmup: Steps = 0
    final_fraction: float = 0.0
    clip: float = 1e9
    eval_every: Count = 50


class RugConfig(Section):
    """An autoencoder of ``n_s`` features of rate ``p`` in ``round(r n_s)`` dimensions, and its training.

    ``k`` is for top-k, about the number of features that are on where it is null. ``jitter`` is for the start
    ``rug``. ``held_out`` rows are the final measurement; an eighth of them, the same each time, the curve.
    """

    n_s: Count = 256
    r: Rate = 0.25
    p: Rate = 0.045
    decoder: Literal["relu", "linear", "jumprelu", "topk", "gated"] = "relu"
    k: Count | None = None
    start: Literal["random", "tied", "rug"] = "random"
    jitter: float = 0.0
    frozen_encoder: bool = False
    held_out: Count = 8192
    seed: int = 0
    fit: RugFit = RugFit()

    @model_validator(mode="after")
    def _sizes_make_an_autoencoder(self) -> Self:
        if not 1 <= self.n_d < self.n_s:
            raise ValueError(
                f"r = {self.r:g} of n_s = {self.n_s} features is {self.n_d} dimensions: expected 1 to n_s - 1"
            )
        if self.k is not None and self.k > self.n_s:
            raise ValueError(f"k is {self.k}, but there are only {self.n_s} outputs")
        return self

    @property
    def n_d(self) -> int:
        """Dimensions of the hidden state."""
        return round(self.r * self.n_s)

    def model(self) -> Autoencoder:
        """The autoencoder before training."""
        k = self.k or max(1, round(self.n_s * self.p))
        made = Autoencoder(self.n_s, self.n_d, self.decoder, k)
        return start(made, self.start, self.p, self.seed, self.jitter)


@dataclass(frozen=True)
class Plateau:
    """A stretch of a loss curve that is nearly flat in log time: its first and last step, and where it is flattest.

    ``left`` says that the loss falls below :data:`LEFT` times the level later on.
    """

    level: float
    start: int
    end: int
    left: bool


def plateaus(steps: Sequence[int], losses: Sequence[float]) -> list[Plateau]:
    """Stretches of at least three looks over which ``|d ln loss / d ln step|`` stays below :data:`FLAT`.

    In log time, because a small model passes the rug within a hundred steps and a large one stays for thousands: in
    plain time either the one is no plateau or the end of every training is one. The level is the mean over the
    flattest pair of looks. Step 0 is left out.
    """
    looks = [(step, loss) for step, loss in zip(steps, losses, strict=True) if step > 0]
    slopes = [abs(math.log(b / a) / math.log(t / s)) for (s, a), (t, b) in pairwise(looks)]
    found: list[Plateau] = []
    at = 0
    while at < len(slopes):
        end = at
        while end < len(slopes) and slopes[end] < FLAT:
            end += 1
        if end - at >= 2:
            flattest = min(range(at, end), key=slopes.__getitem__)
            level = math.sqrt(looks[flattest][1] * looks[flattest + 1][1])
            left = any(loss < LEFT * level for _, loss in looks[end:])
            found.append(Plateau(level, looks[at][0], looks[end][0], left))
        at = end + 1
    return found


@dataclass(frozen=True, eq=False)
class TrainedRug:
    """A trained autoencoder, its held-out loss with its standard error, and its loss curve."""

    config: RugConfig
    model: Autoencoder
    loss: Measured
    curve: tuple[tuple[int, float], ...]
    ledger: Ledger
    stopped: str

    @property
    def theory(self) -> float:
        """L* of the symmetric code at the model's own ratio."""
        return float(optimal_loss(self.config.n_d / self.config.n_s, self.config.p))

    @property
    def plateau(self) -> Plateau | None:
        """The first plateau on which something has been learnt; None where the loss never stood still there."""
        known = LEARNT * float(variance(self.config.p))
        found = plateaus([step for step, _ in self.curve], [loss for _, loss in self.curve])
        return next((each for each in found if each.level < known), None)

    @property
    def plateau_match(self) -> float | None:
        """The plateau's level over L*: 1 where training passed by, or stayed at, the rug."""
        return None if self.plateau is None else self.plateau.level / self.theory

    @property
    def converged_gap(self) -> float:
        """Final loss over L*, less 1: below 0 where training found a better code, above where it got stuck."""
        return self.loss.value / self.theory - 1


def train(
    config: RugConfig | None = None,
    *,
    context: Context | None = None,
    begin: Autoencoder | None = None,
    **settings: Any,
) -> TrainedRug:
    """Trains one autoencoder: ``train(n_s=256, r=0.5, p=0.2, fit={"steps": 3000})``.

    Features of step t are a function of seed and t alone, so a run that was killed goes on bit for bit
    (``context.folder``), drawn on the device that trains. ``begin`` is where training starts in place of the
    configuration's own start; it is left as it is.

    Raises:
        UndoProbeError: a setting that is unknown or wrong.
    """
    config = rug_config(**settings) if config is None else config
    context = context or Context()
    device = resolve_device(context.device)
    held_out = max(64, config.held_out // 8)

    def look(model: Autoencoder, step: int) -> list[Row]:
        found = measured_loss(model, config.n_s, config.p, held_out, config.seed, device=device)
        return [{"value": found.value, "error": found.error, "n": held_out}]

    every = config.fit.eval_every
    watch = Watch(look, lambda step: step % every == 0)
    made = fit(
        begin or config.model(),
        config.fit,
        objective(config, device),
        Context(config.seed, device, context.precision, context.threads, context.folder,
                save_seconds=context.save_seconds, report=context.report),
        watch=watch,
        cost=Cost(flops=step_flops(config)),
        trainable=trained_parts(config),
    )  # fmt: skip
    final_seed = derive_seed(config.seed, "final")
    final = measured_loss(made.model, config.n_s, config.p, config.held_out, final_seed, device=device)
    curve = tuple((row["step"], row["value"]) for row in made.rows)
    return TrainedRug(config, made.model.to("cpu"), final, curve, made.ledger, made.stopped)


def rug_config(**settings: Any) -> RugConfig:
    """The configuration of these settings; ``fit`` is a mapping of its own.

    Raises:
        UndoProbeError: a setting that is unknown or wrong, in one line.
    """
    try:
        return RugConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UndoProbeError(
            f"{where or 'the rug'}: {first['msg'].removeprefix('Value error, ')}; "
            f"the settings are {', '.join(RugConfig.model_fields)}, and those of a training under fit"
        ) from None


def settings_from(words: Sequence[str]) -> dict[str, Any]:
    """``["decoder=topk", "fit.steps=10"]`` as nested settings; values are read as JSON where they are JSON.

    Raises:
        UndoProbeError: a word without ``=``.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UndoProbeError(f"{word!r} is no setting: write key=value, for example decoder=topk")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        section, dot, leaf = key.partition(".")
        found |= {section: {**found.get(section, {}), leaf: value}} if dot else {key: value}
    return found


def objective(config: RugConfig, device: str, lesson: Lesson = lambda x: (x, x)) -> Loss:
    """The loss of a step: square errors summed over outputs, on fresh features as the ``lesson`` has them."""

    def loss(model: torch.nn.Module, step: int) -> Tensor:
        source = torch.Generator(device).manual_seed(derive_seed(config.seed, "rug batch", step))
        shown, wanted = lesson(features(config.fit.batch_size, config.n_s, config.p, source, device))
        return (model(shown) - wanted).square().sum(1).mean()

    return loss


def trained_parts(config: RugConfig) -> Callable[[str], bool] | None:
    """Which parameters are trained: None is all of them."""
    return (lambda name: name != "W_in") if config.frozen_encoder else None


def step_flops(config: RugConfig) -> float:
    """Forward and backward through both matrices."""
    return 6.0 * config.fit.batch_size * 2 * config.n_s * config.n_d
