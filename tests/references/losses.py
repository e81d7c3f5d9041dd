"""Published losses, each written another way than in the package: loops, NumPy, PyTorch's own kl_div.

Sources: MaxEnt and distillation, arXiv 2506.06278 and its code; RMU, arXiv 2403.03218, equation 3, with the
mean over width that its public code takes.
"""

import math

import numpy as np
import torch
from torch import Tensor


def answers(logits: Tensor, tokens: Tensor, mask: Tensor) -> list[tuple[Tensor, int]]:
    """(logits, true token) for every answer token, read one place before it."""
    found = []
    for row in range(len(tokens)):
        for place in range(1, tokens.shape[1]):
            if mask[row, place]:
                found.append((logits[row, place - 1], int(tokens[row, place])))
    return found


def cross_entropy(logits: Tensor, tokens: Tensor, mask: Tensor) -> float:
    terms = []
    for place, token in answers(logits, tokens, mask):
        odds = place.double().exp()
        terms.append(-math.log(float(odds[token] / odds.sum())))
    return sum(terms) / len(terms)


def maxent(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """KL(uniform || model) by kl_div, which takes log-probabilities of the model and probabilities of the target."""
    chosen = torch.stack([place for place, _ in answers(logits, tokens, mask)])
    uniform = torch.full_like(chosen, 1 / chosen.shape[-1])
    return torch.nn.functional.kl_div(chosen.log_softmax(-1), uniform, reduction="batchmean")


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
    )


def rmu(
    forget: np.ndarray,
    unit: np.ndarray,
    c: float,
    retain: np.ndarray,
    retain_frozen: np.ndarray,
    alpha: float,
) -> float:
    width = forget.shape[-1]
    steer = np.mean([np.sum((state - c * unit) ** 2) / width for state in forget])
    hold = np.mean([np.sum((a - b) ** 2) / width for a, b in zip(retain, retain_frozen, strict=True)])
    return float(steer + alpha * hold)
