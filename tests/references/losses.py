"""Published losses, each written another way than in the package: loops, NumPy, PyTorch's own kl_div.

Sources: MaxEnt and distillation, arXiv 2506.06278 and its code; RMU, arXiv 2403.03218, equation 3, with the
mean over width that its public code takes; NPO, arXiv 2404.05868, equation 3; SimNPO, arXiv 2410.07163, equation
5; UNDIAL, arXiv 2402.10052, equation 3; the kernels of MMD as in arXiv 2405.14577.
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


def row_log_probabilities(logits: Tensor, tokens: Tensor, mask: Tensor) -> list[float]:
    found = []
    for row in range(len(tokens)):
        one = slice(row, row + 1)
        terms = [
            math.log(float(place.double().softmax(-1)[token]))
            for place, token in answers(logits[one], tokens[one], mask[one])
        ]
        found.append(sum(terms))
    return found


def npo(policy: list[float], reference: list[float], beta: float) -> float:
    """(2 / beta) E log(1 + (p / p_ref)^beta): the form of the paper, without the sigmoid."""
    ratios = [math.exp(p - r) for p, r in zip(policy, reference, strict=True)]
    return 2 / beta * float(np.mean([math.log(1 + ratio**beta) for ratio in ratios]))


def simnpo(policy: list[float], lengths: list[int], beta: float, gamma: float) -> float:
    terms = []
    for p, length in zip(policy, lengths, strict=True):
        score = -beta / length * p - gamma
        terms.append(math.log(1 / (1 + math.exp(-score))))
    return -2 / beta * float(np.mean(terms))


def undial(logits: np.ndarray, reference: np.ndarray, true: list[int], strength: float) -> float:
    terms = []
    for student, teacher, token in zip(logits, reference, true, strict=True):
        lowered = teacher.copy()
        lowered[token] -= strength
        wanted = np.exp(lowered) / np.exp(lowered).sum()
        terms.append(-float((wanted * np.log(np.exp(student) / np.exp(student).sum())).sum()))
    return float(np.mean(terms))


def mmd(one: np.ndarray, other: np.ndarray) -> float:
    both = [*one, *other]
    squares = [[float(((a - b) ** 2).sum()) for b in both] for a in both]
    count = len(both)
    width = sum(sum(row) for row in squares) / (count * count - count)

    def kernel(i: int, j: int) -> float:
        return sum(math.exp(-squares[i][j] / (width * factor)) for factor in (0.25, 0.5, 1, 2, 4))

    first, second = range(len(one)), range(len(one), count)
    within = np.mean([kernel(i, j) for i in first for j in first])
    beyond = np.mean([kernel(i, j) for i in second for j in second])
    return float(within + beyond - 2 * np.mean([kernel(i, j) for i in first for j in second]))


def mlp_breaking(now: list[np.ndarray], before: list[np.ndarray]) -> float:
    """One layer of CIR's loss (its released code): token by token, over the square of the tokens' mean norm."""
    norm = sum(float(np.sqrt((was**2).sum())) for was in before) / len(before)
    return sum(max(0.0, float(o @ was) / norm**2) for o, was in zip(now, before, strict=True)) / len(now)


def shrinking(now: list[np.ndarray], before: list[np.ndarray]) -> float:
    """Circuit breaker on norms, same code: how long the states still are."""
    lengths = [sum(float(np.linalg.norm(state)) for state in states) for states in (now, before)]
    return lengths[0] / lengths[1]


def turning(now: list[np.ndarray], before: list[np.ndarray]) -> float:
    """Circuit breaker of arXiv 2406.04313: rectified cosine."""
    cosines = [
        float(o @ was) / math.sqrt(float(o @ o) * float(was @ was))
        for o, was in zip(now, before, strict=True)
    ]
    return sum(max(0.0, cosine) for cosine in cosines) / len(cosines)
