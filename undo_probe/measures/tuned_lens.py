"""The tuned lens: what each layer's states say of the answer, through maps that the original was given once.

An affine translator a layer, fitted on retain states of the *original* so that its own decoder finds its own final
distribution in them (Belrose et al., arXiv 2303.08112). Every model is then read through these same translators:
fitted to each model anew, they would learn to be as silent as it is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from undo_probe.activations import residual_names
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import LOGITS
from undo_probe.losses import forward_kl
from undo_probe.measures import ItemScores
from undo_probe.measures.folds import INNER_PARTS, deal_families
from undo_probe.measures.lens import Reader, decode, decoded, lens_readings
from undo_probe.measures.stitches import answer_families, answer_states, asked_rows, fit_rows
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.stitch import Stitch, fit_stitch
from undo_probe.tasks.protocol import Task

STEPS = 200
RATE = 3e-3
"""Of Adam, in standard deviations of the final states for one of the layer's."""
BATCH = 256
LOOKS = 10
"""How often a fit looks at the states that choose; the best look is kept."""


@dataclass(frozen=True, eq=False)
class Translator:
    """An affine map from a layer's states to the final ones: ``h @ weight + bias``."""

    weight: Float[Tensor, "d_model d_model"]
    bias: Float[Tensor, " d_model"]

    def __call__(self, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The states as the last block would have left them."""
        return states @ self.weight + self.bias


@dataclass(frozen=True, eq=False)
class TunedLens:
    """The original's translators by hook name; the last layer's is the identity. ``n`` states made them."""

    original: HookedTransformer
    translators: Mapping[str, Translator]
    n: int

    def logits(self, hook: str, states: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
        """What the original would say if a layer's states were these, in float32 on the CPU.

        Raises:
            UndoProbeError: the lens was not fitted at this hook point.
        """
        if hook not in self.translators:
            raise UndoProbeError(
                f"the lens has no translator for {hook!r}: it was fitted at {', '.join(self.translators)}"
            )
        return decode(self.original, self.translators[hook](states))


def fit_tuned_lens(
    original: HookedTransformer,
    states: Mapping[str, Float[Tensor, "state d_model"]],
    choose: Bool[Tensor, " state"],
    seed: int = 0,
    steps: int = STEPS,
) -> TunedLens:
    """A translator for every layer, towards the original's own final distribution.

    Each starts as the identity (the logit lens) or as the ridge map to the final states, whichever diverges less on
    the states of ``choose``, and takes steps of Adam on the KL divergence; the best on ``choose`` is kept, so there
    no layer is worse than through the logit lens.

    Args:
        original: the decoder, and the model whose states these are.
        states: hook name to states on the same tokens; the last block's output must be among them.
        choose: states that choose; they should share no family with the rest.
        seed: of the batches.
        steps: 0 keeps the better start.

    Raises:
        UndoProbeError: the last block's output is missing, or no state is left on either side of ``choose``.
    """
    last = residual_names(original)[-1]
    if last not in states or not 0 < int(choose.sum()) < len(choose) - 1:
        raise UndoProbeError(
            f"a tuned lens needs states at {last!r}, and some on either side of choose: got {', '.join(states)} and "
            f"{int(choose.sum())} of {len(choose)} states that choose"
        )
    final = states[last].float()
    found = {
        hook: _identity(final)
        if hook == last
        else _fit(original, x.float(), final, choose, derive_seed(seed, "tuned lens", hook), steps)
        for hook, x in states.items()
    }
    return TunedLens(original, found, len(choose))


def task_lens(original: HookedTransformer, task: Task, seed: int = 0, steps: int = STEPS) -> TunedLens:
    """:func:`fit_tuned_lens` at every layer, where an answer token of a training retain row is predicted."""
    rows = fit_rows(task, seed)
    states = answer_states(original, rows, residual_names(original))
    part = deal_families(answer_families(rows), INNER_PARTS, derive_seed(seed, "tuned lens"))
    return fit_tuned_lens(original, states, torch.from_numpy(part == 0), seed, steps)


def tuned_lens_measures(
    model: HookedTransformer, task: Task, lens: TunedLens, stitches: Mapping[str, Stitch] | None = None
) -> list[ItemScores]:
    """The readings of :func:`lens_measures` through the original's translators.

    Args:
        model: whose states are read.
        task: gives V and held-out retain rows.
        lens: of the original.
        stitches: maps to the original's basis, for a reading after them.

    Returns:
        For every layer ``lens_log_probability``, ``lens_rank`` and ``lens_kl`` (divergence from what the lens reads in
        the original at that layer; 0 for the original), a value a row, as ``tuned`` and ``tuned, mapped``.
    """
    readers = {"tuned": Reader(lens.logits, lens.logits)}
    if stitches is not None:
        through: Callable[[str, Tensor], Tensor] = lambda hook, h: lens.logits(hook, stitches[hook](h))  # noqa: E731
        readers["tuned, mapped"] = Reader(through, lens.logits, frozenset(stitches))
    return lens_readings(model, lens.original, task, readers)


def fit_measures(task: Task, lens: TunedLens) -> list[ItemScores]:
    """How much of the original's own final distribution the lens misses, on rows that it was not fitted on.

    Returns:
        ``lens_fit`` for every layer, a value a state of V and of held-out retain rows; control: the plain logit lens.
    """
    found: list[ItemScores] = []
    hooks = residual_names(lens.original)
    note = f"fitted on {lens.n} retain states"
    for split in ("forget", "retain"):
        rows = asked_rows(task, split)
        states = answer_states(lens.original, rows, hooks)
        families = answer_families(rows)
        for hook in hooks:
            tuned, plain = (
                _divergence(lens.original, translator, states[hook], states[hooks[-1]]) / np.log(2)
                for translator in (lens.translators[hook], _identity(states[hook]))
            )
            named = ("lens_fit", split, "tuned", hook, "bits a token")
            beside = ("plain logit lens", float(plain.mean()))
            found.append(ItemScores(*named, tuned.numpy(), families, *beside, note))
    return found


def _identity(states: Tensor) -> Translator:
    return Translator(torch.eye(states.shape[-1]), torch.zeros(states.shape[-1]))


def _closed_form(x: Tensor, y: Tensor, choose: Tensor) -> Translator:
    """The ridge map; the mean of ``y`` where all states are one, as at the embedding of one common last token."""
    if float((x - x.mean(0)).norm()) <= 1e-5 * float(x.norm()):
        return Translator(torch.zeros(x.shape[1], y.shape[1]), y.mean(0))
    stitch = fit_stitch(x, y, choose)
    return Translator(stitch.weight.float(), (stitch.target - stitch.centre @ stitch.weight).float())


def _fit(
    original: HookedTransformer, x: Tensor, y: Tensor, choose: Tensor, seed: int, steps: int
) -> Translator:
    """The better start, then Adam on the KL divergence; the best look is kept."""

    def miss(translator: Translator) -> float:
        return float(_divergence(original, translator, x[choose], y[choose]).mean())

    starts = _identity(x), _closed_form(x, y, choose)
    missed = [miss(each) for each in starts]
    lowest = min(missed)
    best = start = starts[missed.index(lowest)]
    x_fit, y_fit = x[~choose], y[~choose]
    centre, size = x_fit.mean(0), _spread(y_fit) / _spread(x_fit)
    turn = torch.zeros_like(start.weight, requires_grad=True)
    shift = torch.zeros_like(start.bias, requires_grad=True)

    def moved() -> Translator:
        weight, bias = start.weight + size * turn, _spread(y_fit) * shift - size * centre @ turn
        return Translator(weight, start.bias + bias)

    adam = torch.optim.Adam([turn, shift], lr=RATE)
    draw = torch.Generator().manual_seed(seed)
    rows = max(1, min(BATCH, LOGITS // original.cfg.d_vocab))
    for step in range(steps):
        adam.param_groups[0]["lr"] = RATE * (1 - step / steps)
        chosen = torch.randint(len(x_fit), (rows,), generator=draw)
        loss = forward_kl(
            decoded(original, moved()(x_fit[chosen])), decoded(original, y_fit[chosen]).detach()
        )
        turn.grad, shift.grad = torch.autograd.grad(loss, (turn, shift))
        adam.step()
        if (step + 1) % max(1, steps // LOOKS) == 0:
            with torch.no_grad():
                now = moved()
            if (reached := miss(now)) < lowest:
                best, lowest = now, reached
    return best


def _spread(states: Tensor) -> float:
    """Standard deviation of a dimension, over all of them; 1 where all states are one."""
    return float((states - states.mean(0)).square().mean().sqrt()) or 1.0


def _divergence(
    original: HookedTransformer, translator: Translator, x: Tensor, y: Tensor
) -> Float[Tensor, " state"]:
    """KL(final distribution || what the lens reads) of each state in nats, float64."""
    size = max(1, LOGITS // (4 * original.cfg.d_vocab))
    parts = []
    for start in range(0, len(x), size):
        chunk = slice(start, start + size)
        wanted = decode(original, y[chunk]).double().log_softmax(-1)
        got = decode(original, translator(x[chunk])).double().log_softmax(-1)
        parts.append((wanted.exp() * (wanted - got)).sum(-1).clamp_min(0))
    return torch.cat(parts)
