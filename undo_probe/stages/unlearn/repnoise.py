"""RepNoise: what every layer holds of the forget answers is drawn toward noise."""

from typing import Any

import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.activations import capture
from undo_probe.config import RepNoiseConfig
from undo_probe.models import HookedTransformer
from undo_probe.randomness import generator
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.common import run, two_batches
from undo_probe.tasks import Task
from undo_probe.training import Context


def repnoise(model: HookedTransformer, task: Task, settings: RepNoiseConfig, context: Context) -> StageResult:
    """Cross-entropy on retain, plus noise at every MLP, minus what every layer can still say.

    ``retain_weight CE(retain) + noise_weight MMD - ascent_weight log(1 + CE)``: MMD compares MLP outputs at the
    places that predict a forget answer with standard Gaussian draws, averaged over blocks; CE is the forget
    loss read after each block through the model's own final norm and unembedding, averaged over blocks.
    Source: arXiv 2405.14577 as the code of arXiv 2506.06278 uses it, on a MaxEnt model. That code pairs forget
    and retain texts token by token and leaves its hooks behind; here nothing is paired and no hook stays.
    """
    blocks = range(model.cfg.n_layers)
    mlp = [f"blocks.{block}.hook_mlp_out" for block in blocks]
    stream = [f"blocks.{block}.hook_resid_post" for block in blocks]

    def loss(student: torch.nn.Module, step: int) -> Tensor:
        forget, retain = two_batches(task, settings, context, step)
        states: dict[str, Tensor] = {}
        with capture(student, [*mlp, *stream], states):
            student(forget.tokens[:, :-1], return_type="logits")
        inner: Any = getattr(student, "module", student)  # what the wrapper for several processes holds
        here = forget.answer_mask[:, 1:]
        draw = generator(context.seed, "repnoise", step)
        distances, surprise = [], []
        for held, after in zip(mlp, stream, strict=True):
            own = states[held][here]
            noise = torch.randn(own.shape, generator=draw).to(own)
            distances.append(losses.mmd(own, noise))
            read = inner.unembed(inner.ln_final(states[after]))
            surprise.append(losses.next_token(read, forget.tokens, forget.answer_mask))
        kept = losses.next_token(
            student(retain.tokens[:, :-1], return_type="logits"), retain.tokens, retain.answer_mask
        )
        climbed = torch.log1p(torch.stack(surprise).mean())
        return (
            settings.retain_weight * kept
            + settings.noise_weight * torch.stack(distances).mean()
            - settings.ascent_weight * climbed
        )

    return run(model, task, settings, context, loss)
