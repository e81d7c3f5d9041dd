"""A budget of harm: unlearning goes on until what should stay has moved so far, and not a step further.

Methods that destroy as much as they are allowed can be compared only at equal harm, and harm on running text alone is
blind: an update can leave text as it was and wipe out every fact beside the forgotten ones. So KL from the model as it
came is read on three sets (:func:`undo_probe.tasks.bystanders.bystanders`), and the first limit that is met ends it.
Relative cross-entropy would not do: of rows that are known by heart it starts at almost nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe import losses
from undo_probe.collapse_config import BudgetConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answer_log_probability
from undo_probe.models import HookedTransformer
from undo_probe.tasks import Task, TokenSet
from undo_probe.tasks.bystanders import bystanders
from undo_probe.training import step_cost

HALVINGS = 20
"""How often a step is halved at most to meet a limit."""
NEAR_ENOUGH = 0.98
"""A step that uses this share of its limit is not made longer."""
DOUBLINGS = 30
HELD = 2**26
"""Logits of the first model that are kept: with a large vocabulary fewer rows are read than asked for."""
BESIDE_HARM = "moved", "forgotten"
"""Limits that are no harm: for controls that are matched by them."""
_BATCH = 2**24


class Gauge:
    """How far a model is from the one that it came from.

    By set, KL(model as it came || model) in nats, averaged over the answer tokens; where that is limited, also
    ``forgotten``, what the answers of D have lost in nats.
    """

    def __init__(self, before: HookedTransformer, task: Task, budget: BudgetConfig, device: str) -> None:
        """Reads every set once.

        Raises:
            UndoProbeError: a set that is limited is not there.
        """
        self._sets: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.flops, self.readings = 0.0, 0
        for name, rows in bystanders(task).items():
            part = _some(rows, budget.rows, before.cfg.d_vocab)
            tokens, mask = part.tokens.to(device), part.answer_mask.to(device)
            self.flops += step_cost(before, len(part), tokens.shape[1], passes=1).flops
            self._sets[name] = tokens, mask, _answers(before, tokens, mask)
        lacking = [name for name in budget.limits if name not in (*self._sets, *BESIDE_HARM)]
        if lacking:
            raise UndoProbeError(
                f"unlearn.budget limits {lacking[0]}, but the task {task.name} has {', '.join(self._sets)} only: leave "
                "that limit out"
            )
        self._limited = budget.forgotten is not None
        self._asked, self._knew = task.rows("forget_D").evenly(budget.rows), 0.0
        self._asking = step_cost(before, len(self._asked), self._asked.tokens.shape[1], passes=1).flops
        self._asks = 0
        self._knew = -self.forgotten(before)

    def __call__(self, model: HookedTransformer) -> dict[str, float]:
        """As the class says; 0 or more but for ``forgotten``, up to rounding."""
        self.readings += 1
        found = {}
        with torch.no_grad():
            for name, (tokens, mask, before) in self._sets.items():
                found[name] = float(losses.forward_kl(_answers(model, tokens, mask), before))
        return {**found, "forgotten": self.forgotten(model)} if self._limited else found

    def forgotten(self, model: HookedTransformer) -> float:
        """What the answers of D have lost on average, in nats."""
        self._asks += 1
        return self._knew - float(answer_log_probability(model, self._asked).mean())

    @property
    def names(self) -> tuple[str, ...]:
        """The sets that the task has."""
        return tuple(self._sets)

    @property
    def spent(self) -> float:
        """FLOPs of all readings until now, the first model's among them."""
        return (1 + self.readings) * self.flops + self._asks * self._asking


def budget_rows(task: Task, fit: Mapping[str, Any]) -> int:
    """Rows that are read at most: once before, after every step, and to meet a limit at the end."""
    rows = sum(min(fit["budget"]["rows"], len(part)) for part in bystanders(task).values())
    return rows * (1 + fit["steps"] + HALVINGS)


def _some(rows: TokenSet, most: int, d_vocab: int) -> TokenSet:
    """At most so many rows, evenly spread, and no more than can be kept."""
    answers = max(1, int(rows.answer_mask.sum()) // len(rows))
    return rows.evenly(max(1, min(most, HELD // (answers * d_vocab))))


def _answers(model: HookedTransformer, tokens: Tensor, mask: Tensor) -> Float[Tensor, "answer vocab"]:
    """Logits at the places that predict an answer token."""
    size = max(1, _BATCH // (tokens.shape[1] * model.cfg.d_vocab))
    with torch.no_grad():
        parts = [
            losses.answer_logits(model(part[:, :-1], return_type="logits").float(), here)
            for part, here in zip(tokens.split(size), mask.split(size), strict=True)
        ]
    return torch.cat(parts)


class Budget:
    """Watches a model on its way, and takes it back to where its limits hold.

    ``found`` is the harm at the last state that was within the limits, ``bound`` the limit that ended it (empty while
    none did), ``last`` that state's weights.
    """

    def __init__(self, before: HookedTransformer, task: Task, limits: BudgetConfig, device: str) -> None:
        """``before`` is on the device, and is where unlearning starts."""
        self.limits, self.gauge = limits.limits, Gauge(before, task, limits, device)
        self.found = dict.fromkeys(self.gauge.names, 0.0)
        self.bound = ""
        self._start = _weights(before)
        self.last = self._start

    def look(self, model: HookedTransformer) -> bool:
        """Whether unlearning is over: then the model was moved back, to where a limit is just met."""
        found = self._read(model)
        self.bound = self._broken(found)
        if self.bound:
            after = _weights(model)
            step = {name: after[name] - before for name, before in self.last.items()}
            self._between(model, step, 0.0, 1.0, 1.0)
        else:
            self.found, self.last = found, _weights(model)
        return bool(self.bound)

    def along(self, model: HookedTransformer, step: Mapping[str, Tensor], share: float = 1.0) -> None:
        """Moves the model along ``step`` until it has used up ``share`` of a limit.

        The step is doubled until it is too long, or :data:`DOUBLINGS` times; then halved in between.
        """
        scale, within = 1.0, 0.0
        for _ in range(DOUBLINGS):
            _place(model, self.last, step, scale)
            found = self._read(model)
            broken = self._broken(found, share)
            if broken:
                self.bound = broken
                self._between(model, step, within, scale, share)
                break
            within, scale, self.found = scale, 2 * scale, found
        self.last = _weights(model)

    def _between(
        self, model: HookedTransformer, step: Mapping[str, Tensor], within: float, beyond: float, share: float
    ) -> None:
        """Leaves the model at the longest part of the step found that keeps to the limits; ``within`` does."""
        for _ in range(HALVINGS):
            middle = (within + beyond) / 2
            _place(model, self.last, step, middle)
            found = self._read(model)
            broken = self._broken(found, share)
            if broken:
                beyond, self.bound = middle, broken
                continue
            within, self.found = middle, found
            if self._used(found) >= NEAR_ENOUGH * share:
                break
        _place(model, self.last, step, within)

    def _read(self, model: HookedTransformer) -> dict[str, float]:
        found = self.gauge(model)
        return {**found, "moved": self.moved(model)} if "moved" in self.limits else found

    def _used(self, found: Mapping[str, float]) -> float:
        """The largest share of a limit that is used."""
        return max(found[name] / limit for name, limit in self.limits.items())

    def _broken(self, found: Mapping[str, float], share: float = 1.0) -> str:
        """The limit that is passed by most, or none; what is not a number is past every limit."""
        over = {
            name: found[name] / limit if math.isfinite(found[name]) else math.inf
            for name, limit in self.limits.items()
            if not found[name] <= share * limit
        }
        return max(over, key=over.__getitem__) if over else ""

    def moved(self, model: HookedTransformer) -> float:
        """L2 norm of the change of all weights together."""
        squares = [(p - self._start[name]).square().sum() for name, p in _weights(model).items()]
        return float(torch.stack(squares).sum().sqrt())

    def record(self, model: HookedTransformer) -> dict[str, object]:
        """What a stored result says of its harm."""
        return {
            "kl": {name: self.found[name] for name in self.gauge.names},
            "limits": self.limits,
            "bound": self.bound,
            "moved": self.moved(model),
            "forgotten": self.gauge.forgotten(model),
            "readings": self.gauge.readings,
        }

    def said(self) -> str:
        """The three figures in words, and which of them ended it."""
        shown = {
            name: f"{name} {value:.4f}" + (f" of {self.limits[name]:g}" if name in self.limits else "")
            for name, value in self.found.items()
        }
        beside = "".join(f"; {shown.pop(name)}" for name in BESIDE_HARM if name in shown)
        kl = [*shown.values(), *(f"{name} none" for name in ("siblings", "neutral") if name not in shown)]
        ended = f"budget of {self.bound} met" if self.bound else "budget not met"
        return f"{ended} (KL in nats: {', '.join(kl)}{beside})"


def _weights(model: HookedTransformer) -> dict[str, Tensor]:
    """Copies of what can be trained, where it lies; a tied tensor once."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _place(
    model: HookedTransformer, start: Mapping[str, Tensor], step: Mapping[str, Tensor], scale: float
) -> None:
    """Sets the weights to ``start + scale * step``; those without a step stay at the start."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(start[name] + scale * step[name] if name in step and scale else start[name])
