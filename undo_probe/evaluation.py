"""Asking a model: exact match, bits and answer probabilities, batched."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer
from undo_probe.tasks import Metric, Task, TokenSet

LOGITS = 2**24
"""Numbers of a forward pass's logits that are held at once: with a large vocabulary a batch has few rows."""


def _logits(model: HookedTransformer, rows: TokenSet, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits at every position but the last, which predicts nothing."""
    device = next(model.parameters()).device
    size = max(1, min(size, LOGITS // (rows.tokens.shape[1] * model.cfg.d_vocab)))
    with torch.no_grad():
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield part, model(rows.tokens[part, :-1].to(device), return_type="logits").float()


def row_scores(model: HookedTransformer, rows: TokenSet, metric: Metric) -> np.ndarray:
    """How well the model does on each row; higher is more capable.

    ``exact`` is :func:`answers_correct`, bool. ``bits`` is the share of a uniform guess's cost that the model saves,
    ``1 - bits per token / log2(vocabulary)``: 1 for certainty, 0 for the uniform guess, below 0 for worse. It is
    linear in cross-entropy, so that survival, robustness and every difference of two models' shares are the same
    as in bits. ``choice`` is whether the right option is the likeliest of a question's own (:func:`option_scores`),
    whatever else the model would rather say: the accuracy of multiple choice benchmarks.

    Returns:
        Array of bool or float64, shape (row,).
    """
    if metric == "exact":
        return answers_correct(model, rows)
    if metric == "choice":
        return option_scores(model, rows)["choice"]
    tokens = rows.answer_mask[:, 1:].sum(dim=1).numpy()
    return 1 - answer_bits(model, rows) / tokens / math.log2(model.cfg.d_vocab)


def recovered(value: float, goal: float, tolerance: float, metric: Metric) -> bool:
    """Whether a mean score is back at ``goal``, by the stop rules of arXiv 2506.06278.

    ``exact`` and ``choice``: less than ``tolerance`` below it. ``bits``: cross-entropy less than ``tolerance`` times
    the goal's above it, ``(CE - CE_goal) / CE_goal < tolerance``; a score is ``1 - CE`` in units of log2(vocabulary).
    """
    if metric != "bits":
        return value > goal - tolerance
    return goal - value < tolerance * (1 - goal)


def option_scores(model: HookedTransformer, rows: TokenSet, size: int = 1024) -> dict[str, np.ndarray]:
    """What a model says to questions with options, at the last token of each prompt; three scores a row.

    ``choice``: the right option is the likeliest among the options (bool). ``probability``: the right option's
    probability, renormalised over the options. ``exact``: it is the likeliest token of all (bool). The unembedding is
    run at that one place only.

    Raises:
        UndoProbeError: the rows have no options.
    """
    if rows.options is None:
        raise UndoProbeError(f"the rows of {rows.name} have no options: score them as exact")
    device = next(model.parameters()).device
    size = max(1, min(size, LOGITS // max(model.cfg.d_vocab, rows.tokens.shape[1] * model.cfg.d_model)))
    right = torch.tensor(rows.labels["answer"].to_numpy(dtype=np.int64))
    reads = torch.as_tensor(rows.read_position).expand(len(rows))
    found: dict[str, list[Tensor]] = {"choice": [], "probability": [], "exact": []}
    with torch.no_grad():
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits = _logits_at(model, rows.tokens[part, :-1].to(device), reads[part].to(device))
            options = rows.options[part].to(device)
            given = logits.gather(1, options.clamp_min(0)).masked_fill(options < 0, -torch.inf)
            true = right[part, None].to(device)
            found["choice"].append(given.argmax(dim=1) == true[:, 0])
            found["probability"].append(given.double().softmax(dim=1).gather(1, true)[:, 0])
            found["exact"].append(logits.argmax(dim=1) == options.gather(1, true)[:, 0])
    return {name: torch.cat(each).cpu().numpy() for name, each in found.items()}


def _logits_at(
    model: HookedTransformer, tokens: Int[Tensor, "row read"], places: Int[Tensor, " row"]
) -> Float[Tensor, "row vocab"]:
    """Logits at one place of each row; nothing after the farthest of them is computed."""
    tokens = tokens[:, : int(places.max()) + 1]
    states = model(tokens, return_type=None, stop_at_layer=model.cfg.n_layers)
    logits = model.unembed(model.ln_final(states[torch.arange(len(tokens)), places][:, None]))[:, 0].float()
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def answer_bits(model: HookedTransformer, rows: TokenSet) -> np.ndarray:
    """Cross-entropy of each row's whole answer in bits, float64, shape (row,)."""
    return -answer_log_probability(model, rows) / math.log(2)


def answers_correct(model: HookedTransformer, rows: TokenSet, size: int = 1024) -> np.ndarray:
    """Whether greedy decoding writes each row's answer, end mark included, exactly.

    One pass over the complete rows: greedy decoding is right exactly when every answer token is the most
    likely one after the true tokens before it, so nothing has to be generated token by token.

    Returns:
        Array of bool, shape (row,).
    """
    correct = np.zeros(len(rows), dtype=bool)
    for part, logits in _logits(model, rows, size):
        hit = logits.argmax(dim=-1).cpu() == rows.tokens[part][:, 1:]
        correct[part] = (hit | ~rows.answer_mask[part][:, 1:]).all(dim=1).numpy()
    return correct


def answer_log_probability(model: HookedTransformer, rows: TokenSet, size: int = 1024) -> np.ndarray:
    """Log-probability of each row's whole answer in nats, float64, shape (row,)."""
    total = np.zeros(len(rows))
    for part, logits in _logits(model, rows, size):
        tokens, mask = rows.tokens[part, 1:].to(logits.device), rows.answer_mask[part, 1:].to(logits.device)
        log_p = logits.log_softmax(dim=-1).gather(-1, tokens[..., None])[..., 0]
        total[part] = (log_p.double() * mask).sum(dim=1).cpu().numpy()
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
    """Mean score of each operation of a split: a share of exact matches, or of a uniform guess's bits saved."""
    rows = task.rows(split)
    return by_operation(row_scores(model, rows, task.metric), rows)


def by_operation(correct: Shaped[np.ndarray, " row"], rows: TokenSet) -> dict[str, float]:
    """Mean of the scores for each operation, in the order of the rows' first appearance."""
    return {op: float(correct[rows.operations == op].mean()) for op in dict.fromkeys(rows.operations)}
