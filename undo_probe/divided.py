"""A model whose rows are divided between processes, so that any loss keeps its value and its gradient.

A loss over a batch is seldom the mean of the losses over its parts: answers differ in length, and some losses
compare rows with each other. So every process is given the whole batch, runs its share of the rows, and gets all
outputs back; the loss is then the loss of the whole batch, in every process, with nothing to weigh.
"""

from typing import Any

import torch
from torch import Tensor

from undo_probe import ranks


def divide(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself in one process, else a :class:`Divided` around it."""
    return model if ranks.size() == 1 else Divided(model)


class Divided(torch.nn.Module):
    """Runs this process's share of the rows of ``module`` and returns what all processes found, in row order.

    The gradient that reaches the parameters is right after :func:`mean_gradient`: that of the outputs is multiplied
    by the number of processes, because each has gone through its own rows only; parameters that a loss uses
    outside the forward pass (a chunked unembedding) have the whole gradient in every process already.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self._rows = 0

    def forward(self, tokens: Tensor, **settings: Any) -> Any:
        """``tokens`` are those of the whole batch, row first."""
        self._rows = len(tokens)
        each = -(-len(tokens) // ranks.size())
        start = ranks.rank() * each
        # all shares are of one length: the last ones are filled up with a row that is cut off again
        own = torch.arange(start, start + each, device=tokens.device).clamp_max(len(tokens) - 1)
        return self.gather(self.module(tokens[own], **settings))

    def gather(self, found: Tensor) -> Tensor:
        """All processes' rows of an output or of a captured state of the latest forward pass."""
        return _Gather.apply(found)[: self._rows]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        import torch.distributed as dist

        ctx.rows = len(own)
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(ranks.size())]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        # every process computed the same loss, so it has the gradient of its rows without asking the others
        start = ranks.rank() * ctx.rows
        return gradient[start : start + ctx.rows] * ranks.size()


def mean_gradient(parameters: list[torch.nn.Parameter]) -> None:
    """Replaces each ``.grad`` by its mean over the processes: the same bits in all of them."""
    if ranks.size() == 1:
        return
    import torch.distributed as dist

    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = parameter.grad.contiguous()
            dist.all_reduce(parameter.grad)
            parameter.grad /= ranks.size()
