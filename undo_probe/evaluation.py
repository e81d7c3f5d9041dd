"""Asking a model: exact match, bits and answer probabilities, batched."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer
from undo_probe.tasks import Metric, Task, TokenSet
from undo_probe.tasks.protocol import answers_end

LOGITS = 2**24
"""Numbers of a forward pass's logits that are held at once: with a large vocabulary a batch has few rows."""


def _logits(model: HookedTransformer, rows: TokenSet, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Logits at every position but the last, which predicts nothing; of filling behind all answers none."""
    device = next(model.parameters()).device
    end = answers_end(rows.answer_mask)
    size = max(1, min(size, LOGITS // (end * model.cfg.d_vocab)))
    with torch.no_grad():
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            tokens = rows.tokens[part, : answers_end(rows.answer_mask[part]) - 1]
            yield part, model(tokens.to(device), return_type="logits").float()


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
    run at that one place only. Options of several tokens are compared by the log-probability of them all, that of the
    right one being a fourth score, ``log_probability`` in nats; ``exact`` is then whether greedy decoding writes it.

    Raises:
        UndoProbeError: the rows have no options.
    """
    if rows.options is None:
        raise UndoProbeError(f"the rows of {rows.name} have no options: score them as exact")
    if rows.options.dim() == 3:
        return _answer_scores(model, rows, rows.options)
    device = next(model.parameters()).device
    size = max(1, min(size, LOGITS // max(model.cfg.d_vocab, rows.tokens.shape[1] * model.cfg.d_model)))
    right = torch.tensor(rows.labels["answer"].to_numpy(dtype=np.int64))
    reads = torch.as_tensor(rows.read_position).expand(len(rows))
    found: dict[str, list[Tensor]] = {"choice": [], "probability": [], "exact": []}
    with torch.no_grad():
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            logits = _logits_at(model, rows.tokens[part, :-1].to(device), reads[part, None].to(device))[:, 0]
            options = rows.options[part].to(device)
            given = logits.gather(1, options.clamp_min(0)).masked_fill(options < 0, -torch.inf)
            true = right[part, None].to(device)
            found["choice"].append(given.argmax(dim=1) == true[:, 0])
            found["probability"].append(given.double().softmax(dim=1).gather(1, true)[:, 0])
            found["exact"].append(logits.argmax(dim=1) == options.gather(1, true)[:, 0])
    return {name: torch.cat(each).cpu().numpy() for name, each in found.items()}


def _logits_at(
    model: HookedTransformer, tokens: Int[Tensor, "row read"], places: Int[Tensor, "row place"]
) -> Float[Tensor, "row place vocab"]:
    """Logits at some places of each row; nothing after the farthest of them is computed."""
    tokens = tokens[:, : int(places.max()) + 1]
    states = model(tokens, return_type=None, stop_at_layer=model.cfg.n_layers)
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    logits = model.unembed(model.ln_final(states[rows, places])).float()
    cap = model.cfg.output_logits_soft_cap
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def _answer_scores(
    model: HookedTransformer, rows: TokenSet, options: Int[Tensor, "row option token"]
) -> dict[str, np.ndarray]:
    reads = torch.as_tensor(rows.read_position).expand(len(rows)).tolist()
    prompts = [tokens[: read + 1].tolist() for tokens, read in zip(rows.tokens, reads, strict=True)]
    offered = [[tokens[tokens >= 0].tolist() for tokens in row if tokens[0] >= 0] for row in options]
    said = continuations(model, prompts, offered)
    right = rows.labels["answer"].tolist()
    total = np.array([each.log_probability[at] for each, at in zip(said, right, strict=True)])
    among = np.array([np.logaddexp.reduce(each.log_probability) for each in said])
    return {
        "choice": np.array([each.log_probability.argmax() for each in said]) == right,
        "probability": np.exp(total - among),
        "exact": np.array([each.greedy[at] for each, at in zip(said, right, strict=True)]),
        "log_probability": total,
    }


class Said(NamedTuple):
    """What a model says to each continuation: its log-probability in nats, and whether greedy decoding writes it."""

    log_probability: Float[np.ndarray, " option"]
    greedy: Bool[np.ndarray, " option"]


def continuations(
    model: HookedTransformer,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    size: int = 1024,
) -> list[Said]:
    """Log-probabilities of several continuations of each prompt, their own tokens alone.

    Continuations of a prompt that begin alike share one pass, those of one token the pass of any other: the last token
    of a continuation is never read. Rows go in batches of similar length.

    Args:
        model: is asked.
        prompts: tokens of each, at least one.
        options: the tokens of each of its continuations, at least one.
        size: rows in a pass at most.
    """
    passes = sorted(
        (each for row, own in enumerate(options) for each in _passes(row, own)),
        key=lambda each: (len(prompts[each.row]) + len(each.prefix), len(each.prefix)),
    )
    said = [Said(np.zeros(len(own)), np.ones(len(own), dtype=bool)) for own in options]
    width = 1 + max((len(each.prefix) for each in passes), default=0)
    size = max(1, min(size, LOGITS // (width * model.cfg.d_vocab)))
    for start in range(0, len(passes), size):
        part = passes[start : start + size]
        log_p = _log_probabilities(
            model, [[*prompts[each.row]] for each in part], [each.prefix for each in part]
        )
        asked = [
            (number, place, token, each.row, at)
            for number, each in enumerate(part)
            for at in each.options
            for place, token in enumerate(options[each.row][at])
        ]
        number, place, token, rows, ats = np.array(asked).T
        values = log_p[number, place, token].double().cpu().numpy()
        best = log_p.argmax(dim=-1).cpu().numpy()[number, place] == token
        for row, at, value, hit in zip(rows, ats, values, best, strict=True):
            said[row].log_probability[at] += value
            said[row].greedy[at] &= hit
    return said


class _Pass(NamedTuple):
    """One pass of the model: a row's prompt and what is read after it, and the continuations that this answers."""

    row: int
    prefix: tuple[int, ...]
    options: list[int]


def _passes(row: int, options: Sequence[Sequence[int]]) -> list[_Pass]:
    """As few passes as answer all continuations of a row; each is answered by one."""
    found: list[_Pass] = []
    # longest first: what another begins with needs no pass of its own
    for at in sorted(range(len(options)), key=lambda at: -len(options[at])):
        prefix = tuple(options[at][:-1])
        fitting = (each for each in found if each.prefix[: len(prefix)] == prefix)
        if (there := next(fitting, None)) is None:
            found.append(_Pass(row, prefix, [at]))
        else:
            there.options.append(at)
    return found


def _log_probabilities(
    model: HookedTransformer, prompts: list[list[int]], prefixes: list[tuple[int, ...]]
) -> Float[Tensor, "row place vocab"]:
    """Log-probabilities of the next token at the end of each prompt and after each token of the prefix behind it."""
    device = next(model.parameters()).device
    rows = [[*prompt, *prefix] for prompt, prefix in zip(prompts, prefixes, strict=True)]
    length = max(map(len, rows))
    # whatever fills a row up stands after all that is read
    tokens = torch.tensor([[*row, *row[:1] * (length - len(row))] for row in rows], device=device)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    after = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    steps = torch.arange(int(after.max()) + 1, device=device)
    with torch.no_grad():
        places = last[:, None] + steps.minimum(after[:, None])
        return _logits_at(model, tokens, places).log_softmax(dim=-1)


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
        read = slice(1, logits.shape[1] + 1)
        hit = logits.argmax(dim=-1).cpu() == rows.tokens[part, read]
        correct[part] = (hit | ~rows.answer_mask[part, read]).all(dim=1).numpy()
    return correct


def answer_log_probability(model: HookedTransformer, rows: TokenSet, size: int = 1024) -> np.ndarray:
    """Log-probability of each row's whole answer in nats, float64, shape (row,)."""
    total = np.zeros(len(rows))
    for part, logits in _logits(model, rows, size):
        read = slice(1, logits.shape[1] + 1)
        tokens, mask = (each[part, read].to(logits.device) for each in (rows.tokens, rows.answer_mask))
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
