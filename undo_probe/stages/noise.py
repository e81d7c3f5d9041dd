"""Noise: damage the weights a little, before distillation repairs what the teacher still shows."""

import torch

from undo_probe.config import NoiseRule
from undo_probe.models import HookedTransformer, clone
from undo_probe.perturb import damage
from undo_probe.stages import StageResult

VERSION = 2


def noise(
    model: HookedTransformer,
    rule: NoiseRule,
    alpha: float,
    seed: int,
    before: HookedTransformer | None = None,
) -> StageResult:
    """A noised copy of the model; see :func:`undo_probe.perturb.damage`.

    Args:
        model: untouched.
        rule: how, and where.
        alpha: how much.
        seed: of the noise.
        before: what unlearning started from, where the rule looks for what it moved.
    """
    noised = clone(model)
    own = dict(noised.named_parameters())
    given = {name: p.detach() for name, p in own.items()}
    start = None if before is None else {name: p.detach() for name, p in before.named_parameters()}
    # the library draws N(0, initializer_range) in this mode, and by other rules in its others
    std = model.cfg.initializer_range if model.cfg.init_mode == "gpt2" else None
    changed = damage(given, rule, alpha, seed, std, start)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(changed[name])
    return StageResult(noised, stopped="one draw")
