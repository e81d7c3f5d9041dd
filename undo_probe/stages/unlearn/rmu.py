"""RMU: steer the forget states of one block to a fixed random point, hold the retain states."""

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe import losses
from undo_probe.activations import capture
from undo_probe.config import RMUConfig
from undo_probe.divided import divide
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, clone, to_device
from undo_probe.randomness import generator
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.common import run, two_batches
from undo_probe.tasks import Task
from undo_probe.training import Context


def control_vector(d_model: int, kind: str, seed: int) -> Float[Tensor, " d_model"]:
    """The unit vector u of RMU (arXiv 2403.03218), drawn once.

    ``uniform`` draws entries on [0, 1) as published: cosine 0.87 with the all-ones direction, which LayerNorm
    removes; ``centred`` is the same with its mean removed; ``gaussian`` is isotropic.
    """
    draw = generator(seed, "control vector")
    vector = (
        torch.randn(d_model, generator=draw) if kind == "gaussian" else torch.rand(d_model, generator=draw)
    )
    if kind == "centred":
        vector = vector - vector.mean()
    return vector / vector.norm()


def rmu(model: HookedTransformer, task: Task, settings: RMUConfig, context: Context) -> StageResult:
    """Moves the residual stream after block ``settings.layer`` to ``c * u`` on forget rows (arXiv 2403.03218).

    Only ``settings.tensors`` of blocks up to the layer (or of ``settings.blocks``) are trained, chosen by name. States
    of every position but the first count. ``tensors["control_vector"]`` of the result is u.

    Raises:
        UndoProbeError: a named tensor is not in the model.
    """
    names = _trained(model, settings)
    vector = control_vector(model.cfg.d_model, settings.target, context.seed)
    target = (settings.c * vector).to(context.device)
    before = divide(to_device(clone(model), context.device))

    def loss(student: torch.nn.Module, step: int) -> Tensor:
        forget, retain = two_batches(task, settings, context, step)
        states = _states(student, torch.cat([forget.tokens, retain.tokens]), settings.layer)
        with torch.no_grad():
            held = _states(before, retain.tokens, settings.layer)
        on_forget, on_retain = states.split([len(forget.tokens), len(retain.tokens)])
        return losses.rmu(
            on_forget.flatten(0, 1),
            target,
            on_retain.flatten(0, 1),
            held.flatten(0, 1),
            settings.retain_weight,
        )

    result = run(
        model, task, settings, context, loss,
        trainable=names.__contains__,
        teacher_forwards=1,
        depth=(settings.layer + 1) / model.cfg.n_layers,  # nothing after the block is computed
        read=task.n_ctx,
    )  # fmt: skip
    result.tensors["control_vector"] = vector
    return result


def _trained(model: HookedTransformer, settings: RMUConfig) -> set[str]:
    known = {name for name, _ in model.named_parameters()}
    blocks = range(settings.layer + 1) if settings.blocks is None else settings.blocks
    wanted = {f"blocks.{block}.{name}" for block in blocks for name in settings.tensors}
    missing = sorted(wanted - known)
    if missing:
        choices = sorted(name.removeprefix("blocks.0.") for name in known if name.startswith("blocks.0."))
        raise UndoProbeError(
            f"unlearn.rmu.tensors: the model has no {missing[0]!r}; a block has {', '.join(choices)}"
        )
    return wanted


def _states(model: torch.nn.Module, tokens: Tensor, layer: int) -> Float[Tensor, "row pos d_model"]:
    """Residual stream after block ``layer`` (0-based) at every position but the first."""
    name, captured = f"blocks.{layer}.hook_resid_post", {}
    with capture(model, [name], captured):
        model(tokens, return_type=None, stop_at_layer=layer + 1)
    return captured[name][:, 1:]
