"""The sparse autoencoder that is trained: untied encoder and decoder, and what makes outputs of pre-activations."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.engineered import weights
from undo_probe.randomness import generator

DECODERS = ("relu", "linear", "jumprelu", "topk", "gated")
STARTS = ("random", "tied", "rug")
WINDOW = 0.05
"""Width of the window through which a threshold has a gradient (arXiv 2407.14435)."""
THRESHOLD = 0.05
"""Where the thresholds of jumprelu start: a twentieth of the largest feature."""


class _Step(torch.autograd.Function):
    """1 where positive; backwards a rectangle of width :data:`WINDOW` and area 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() < WINDOW / 2) / WINDOW


class Autoencoder(torch.nn.Module):
    """``decoder(W_out W_in x + b)``, no bias and no activation on the hidden state.

    Decoders: ``relu``; ``linear``, nothing; ``jumprelu``, pre-activations above a threshold of each output;
    ``topk``, the ``k`` largest positive ones of a row; ``gated``, a relu times a step, each with a scale or bias of
    its own on the same ``W_out h`` (arXiv 2404.16014).
    """

    def __init__(self, n_s: int, n_d: int, decoder: str = "relu", k: int = 1) -> None:
        """All parameters zero; :func:`start` draws them.

        Raises:
            UndoProbeError: an unknown decoder, or k outside 1..n_s.
        """
        super().__init__()
        if decoder not in DECODERS or not 1 <= k <= n_s:
            raise UndoProbeError(
                f"decoder {decoder!r} with k = {k}: expected one of {', '.join(DECODERS)}, and k from 1 to n_s = {n_s}"
            )
        self.decoder, self.k = decoder, k
        self.W_in = torch.nn.Parameter(torch.zeros(n_d, n_s))
        self.W_out = torch.nn.Parameter(torch.zeros(n_s, n_d))
        self.b = torch.nn.Parameter(torch.zeros(n_s))
        if decoder == "jumprelu":
            self.log_threshold = torch.nn.Parameter(torch.full((n_s,), math.log(THRESHOLD)))
        if decoder == "gated":
            self.log_scale = torch.nn.Parameter(torch.zeros(n_s))
            self.b_gate = torch.nn.Parameter(torch.zeros(n_s))

    def encode(self, x: Float[Tensor, "row n_s"]) -> Float[Tensor, "row n_d"]:
        """Hidden states."""
        return x @ self.W_in.T

    def forward(self, x: Float[Tensor, "row n_s"]) -> Float[Tensor, "row n_s"]:
        """Outputs for features."""
        return self.decode(self.encode(x))

    def decode(self, h: Float[Tensor, "row n_d"]) -> Float[Tensor, "row n_s"]:
        """Outputs for hidden states."""
        y = torch.addmm(self.b, h, self.W_out.T)
        if self.decoder == "linear":
            return y
        if self.decoder == "jumprelu":
            # the threshold alone is trained through the step, as published
            return y * _Step.apply(y.detach() - self.log_threshold.exp())
        if self.decoder == "topk":
            least = y.topk(self.k, dim=1).values[:, -1:]
            return torch.relu(y) * (y >= least)
        if self.decoder == "gated":
            plain = y - self.b
            return torch.relu(plain * self.log_scale.exp() + self.b) * _Step.apply(plain + self.b_gate)
        return torch.relu(y)


def start(model: Autoencoder, kind: str, p: float, seed: int, jitter: float = 0.0) -> Autoencoder:
    """Draws the model's parameters in place, and returns it.

    ``random`` is the usual linear layer's: uniform within one over the root of the fan-in, biases too. Diagonal
    entries then start near zero and half of them below, and a sparse model may never open those outputs. ``tied``
    has unit columns drawn at random and the transpose as decoder, so every diagonal entry is one. ``rug`` are the
    weights of :func:`undo_probe.persian_rug.engineered.weights`, each moved by ``jitter`` times their root mean
    square.

    Raises:
        UndoProbeError: an unknown start.
    """
    if kind not in STARTS:
        raise UndoProbeError(f"the start is {kind!r}: expected one of {', '.join(STARTS)}")
    n_d, n_s = model.W_in.shape
    source = generator(seed, "rug start", kind, n_s, n_d)
    with torch.no_grad():
        if kind == "random":
            for parameter, fan_in in ((model.W_in, n_s), (model.W_out, n_d), (model.b, n_d)):
                parameter.copy_((2 * torch.rand(parameter.shape, generator=source) - 1) / fan_in**0.5)
            return model
        if kind == "tied":
            columns = torch.randn(n_d, n_s, generator=source)
            model.W_in.copy_(columns / columns.norm(dim=0))
            model.W_out.copy_(model.W_in.T)
            return model
        rug = weights(n_s, n_d / n_s, p, seed=seed)
        encoder, decoder = rug.matrices()
        for parameter, exact in ((model.W_in, encoder), (model.W_out, decoder)):
            size = jitter * exact.square().mean().sqrt()
            parameter.copy_(exact + size * torch.randn(exact.shape, generator=source))
        model.b.copy_(rug.bias)
    return model
