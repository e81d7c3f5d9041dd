"""Asking a model: exact match and answer probabilities, batched."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from undo_probe.models import HookedTransformer
from undo_probe.tasks import Task, TokenSet


def _logits(model: HookedTransformer, rows: TokenSet, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits at every position but the last, which predicts nothing."""
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield part, model(rows.tokens[part, :-1].to(device), return_type="logits").float().cpu()


def answers_correct(model: HookedTransformer, rows: TokenSet, size: int = 1024) -> np.ndarray:
    """Whether greedy decoding writes each row's answer, end mark included, exactly.

    One pass over the complete rows: greedy decoding is right exactly when every answer token is the most
    likely one after the true tokens before it, so nothing has to be generated token by token.

    Returns:
        Array of bool, shape (row,).
    """
    correct = np.zeros(len(rows), dtype=bool)
    for part, logits in _logits(model, rows, size):
        hit = logits.argmax(dim=-1) == rows.tokens[part][:, 1:]
        correct[part] = (hit | ~rows.answer_mask[part][:, 1:]).all(dim=1).numpy()
    return correct


def answer_log_probability(model: HookedTransformer, rows: TokenSet, size: int = 1024) -> np.ndarray:
    """Log-probability of each row's whole answer in nats, shape (row,)."""
    total = np.zeros(len(rows))
    for part, logits in _logits(model, rows, size):
        log_p = logits.log_softmax(dim=-1)
        each = log_p.gather(-1, rows.tokens[part][:, 1:, None])[..., 0]
        total[part] = (each * rows.answer_mask[part][:, 1:]).sum(dim=1).numpy()
    return total


def decode_greedily(
    model: HookedTransformer, prompts: Int[Tensor, "row prompt"], n_new: int
) -> Int[Tensor, "row new"]:
    """Greedy continuation of prompts of one length, all rows at once."""
    tokens = prompts
    with torch.no_grad():
        for _ in range(n_new):
            logits: Float[Tensor, "row pos vocab"] = model(tokens, return_type="logits")
            tokens = torch.cat([tokens, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return tokens[:, prompts.shape[1] :]


def accuracy_by_operation(model: HookedTransformer, task: Task, split: str) -> dict[str, float]:
    """Exact-match share of each operation of a split."""
    rows = task.rows(split)
    correct = answers_correct(model, rows)
    return by_operation(correct, rows)


def by_operation(correct: Bool[np.ndarray, " row"], rows: TokenSet) -> dict[str, float]:
    """Mean of ``correct`` for each operation, in the order of the rows' first appearance."""
    return {op: float(correct[rows.operations == op].mean()) for op in dict.fromkeys(rows.operations)}
