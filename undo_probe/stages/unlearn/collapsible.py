"""Losses whose gradients may be collapsed: what is descended on forget rows, behind one dict.

Each is made from the model as it came and the method's settings, and is then a function of the model and two batches.
Losses on outputs are those of the other methods; those on states compare with what the model said before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe import losses
from undo_probe.activations import capture
from undo_probe.collapse_config import CollapseFit
from undo_probe.linear_maps import kept_places
from undo_probe.models import HookedTransformer
from undo_probe.tasks import Batch

ForgetLoss = Callable[[HookedTransformer, Batch, Batch | None], Tensor]
"""Of the model, a forget batch, and a retain batch; None leaves the retain term out."""
OfStates = Callable[[Float[Tensor, "token width"], Float[Tensor, "token width"]], Tensor]


@dataclass(frozen=True)
class Kind:
    """How a loss is made, and whether it needs the model as it came beside the one that changes."""

    make: Callable[[HookedTransformer, CollapseFit], ForgetLoss]
    compares: bool = False


def mlp_breaking(
    now: Float[Tensor, "token width"], before: Float[Tensor, "token width"]
) -> Float[Tensor, ""]:
    """Mean over tokens of ``max(0, <o, o0>) / n^2``, n being the mean norm of ``o0`` over the tokens of the batch.

    CIR (arXiv 2509.11816) as its code has it: 1 where nothing has changed, if norms are alike; nothing is gained by
    going beyond orthogonal. The norm is the batch's, the floor each token's own.
    """
    return ((now * before).sum(dim=-1) / before.norm(dim=-1).mean().square()).clamp_min(0).mean()


def shrinking(now: Float[Tensor, "token width"], before: Float[Tensor, "token width"]) -> Float[Tensor, ""]:
    """Mean norm of the states over the mean norm that they had: the circuit breaker ``norm`` of the same code."""
    return now.norm(dim=-1).mean() / before.norm(dim=-1).mean()


def turning(now: Float[Tensor, "token width"], before: Float[Tensor, "token width"]) -> Float[Tensor, ""]:
    """Mean over tokens of the cosine with what the state was, or 0 if negative: circuit breakers (2406.04313)."""
    return torch.nn.functional.cosine_similarity(now, before, dim=-1).clamp_min(0).mean()


def _on_states(point: str, distance: OfStates) -> Callable[[HookedTransformer, CollapseFit], ForgetLoss]:
    """The mean of a distance over ``settings.layers`` at a hook point or module of each block."""

    def make(before: HookedTransformer, settings: CollapseFit) -> ForgetLoss:
        layers = range(before.cfg.n_layers) if settings.layers is None else settings.layers
        names = [f"blocks.{layer}.{point}" for layer in layers]
        last = max(layers) + 1  # nothing after it is read

        def states(model: HookedTransformer, batch: Batch) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}
            with capture(model, names, found):
                model(batch.tokens[:, :-1], return_type=None, stop_at_layer=last)
            return found

        def loss(model: HookedTransformer, forget: Batch, retain: Batch | None) -> Tensor:
            here = kept_places(forget.answer_mask, settings.tokens)
            with torch.no_grad():
                was = states(before, forget)
            now = states(model, forget)
            return torch.stack([distance(now[name][here], was[name][here]) for name in names]).mean()

        return loss

    return make


def _logits(model: HookedTransformer, batch: Batch) -> Tensor:
    return model(batch.tokens[:, :-1], return_type="logits")


def _answer(before: HookedTransformer, settings: CollapseFit) -> ForgetLoss:
    """Minus the cross-entropy of forget answers (RepSelect; GradDiff without its retain term)."""
    return lambda model, forget, retain: (
        -losses.next_token(_logits(model, forget), forget.tokens, forget.answer_mask)
    )


def _maxent(before: HookedTransformer, settings: CollapseFit) -> ForgetLoss:
    return lambda model, forget, retain: losses.uniform_target(_logits(model, forget), forget.answer_mask)


def _graddiff(before: HookedTransformer, settings: CollapseFit) -> ForgetLoss:
    """Both terms' gradients are collapsed; the directions are those of the forget term."""
    pushed = _answer(before, settings)

    def loss(model: HookedTransformer, forget: Batch, retain: Batch | None) -> Tensor:
        value = pushed(model, forget, None)
        if retain is None:
            return value
        kept = losses.next_token(_logits(model, retain), retain.tokens, retain.answer_mask)
        return value + settings.retain_weight * kept

    return loss


def _npo(before: HookedTransformer, settings: CollapseFit) -> ForgetLoss:
    def loss(model: HookedTransformer, forget: Batch, retain: Batch | None) -> Tensor:
        with torch.no_grad():
            was = losses.answer_log_probability(_logits(before, forget), forget.tokens, forget.answer_mask)
        now = losses.answer_log_probability(_logits(model, forget), forget.tokens, forget.answer_mask)
        return losses.npo(now, was, settings.beta)

    return loss


LOSSES: dict[str, Kind] = {
    "answer": Kind(_answer),
    "mlp_breaking": Kind(_on_states("mlp", mlp_breaking), compares=True),
    # circuit breakers as in the code of 2509.11816: the same product, and two more, on the residual stream
    "dot": Kind(_on_states("hook_resid_post", mlp_breaking), compares=True),
    "norm": Kind(_on_states("hook_resid_post", shrinking), compares=True),
    "cosine": Kind(_on_states("hook_resid_post", turning), compares=True),
    "maxent": Kind(_maxent),
    "graddiff": Kind(_graddiff),
    "npo": Kind(_npo, compares=True),
}
STATE_LOSSES = ("mlp_breaking", "dot", "norm", "cosine")
"""They read no block behind the last of ``layers``, so nothing behind it can be trained."""
