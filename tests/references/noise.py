"""Shrink and perturb, written from its published form and PyTorch's own initialiser.

Source: "Distillation Robustifies Unlearning", arXiv 2506.06278, and its code (AddieFoote,
distillation-robustify-unlearning): matrices get ``(1 - alpha) W + alpha beta N`` with N a fresh Xavier-uniform
draw, vectors are only shrunk, any other rank is refused there.
"""

import torch
from torch import Tensor


def shrink_perturb_matrix(
    weight: Tensor, alpha: float, beta: float, generator: torch.Generator, fans: tuple[int, int]
) -> Tensor:
    """One weight; ``fans`` is the shape of the matrix that it is, however it is stored."""
    draw = torch.empty(fans)
    torch.nn.init.xavier_uniform_(draw, generator=generator)
    return weight * (1 - alpha) + draw.reshape(weight.shape) * alpha * beta


def shrink_vector(weight: Tensor, alpha: float) -> Tensor:
    return weight * (1 - alpha)
