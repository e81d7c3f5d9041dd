"""Solved questions before a question: what a model answers when it is shown how, and nothing is trained."""

from collections.abc import Callable
from typing import Literal

import torch

from undo_probe.randomness import derive_seed
from undo_probe.tasks import Task, TokenSet
from undo_probe.tasks.pool import Pool

Answers = Literal["true", "random"]
"""Those of the solved questions, or of other questions of the same operation: the format without the knowledge."""
Asking = Callable[[Task, TokenSet, int], list[TokenSet]]
"""Rows as an attacker asks them, once for each draw; scores are averaged over the draws."""


def with_shots(task: Task, rows: TokenSet, shots: int, seed: int, answers: Answers = "true") -> TokenSet:
    """``rows`` with so many solved questions of T before each, drawn for each row by itself.

    Operations are drawn evenly, then rows of T with replacement. The same seed gives the same questions, whatever the
    ``answers``, and whichever model is asked.
    """
    solved = task.rows("forget_T")
    operations = list(dict.fromkeys(solved.operations))
    redrawn = operations if answers == "random" else ()
    before = Pool([solved], [solved.operations], operations, redrawn, packed=shots).batch(len(rows), seed, 0)
    return TokenSet(
        rows.name,
        torch.cat([before.tokens, rows.tokens], dim=1),
        torch.cat([torch.zeros_like(before.answer_mask), rows.answer_mask], dim=1),
        before.tokens.shape[1] + rows.read_position,
        rows.labels,
    )


def asking(shots: int, draws: int, answers: Answers) -> Asking:
    """Asks every question after ``shots`` solved ones, in several draws of these."""

    def ask(task: Task, rows: TokenSet, seed: int) -> list[TokenSet]:
        seeds = [derive_seed(seed, "shots", shots, draw) for draw in range(draws)]
        return [with_shots(task, rows, shots, each, answers) for each in seeds]

    return ask
