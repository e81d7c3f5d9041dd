"""Noise: damage every weight a little, before distillation repairs what the teacher still shows."""

import torch

from undo_probe.models import HookedTransformer, clone
from undo_probe.perturb import shrink_and_perturb
from undo_probe.stages import StageResult

VERSION = 1


def noise(model: HookedTransformer, alpha: float, beta: float, seed: int, gains: str = "one") -> StageResult:
    """A noised copy of the model; see :func:`undo_probe.perturb.shrink_and_perturb`."""
    noised = clone(model)
    own = dict(noised.named_parameters())
    changed = shrink_and_perturb({name: p.detach() for name, p in own.items()}, alpha, beta, seed, gains)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(changed[name])
    return StageResult(noised, stopped="one draw")
