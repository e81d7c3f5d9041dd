"""Facts as rows of tokens: prompt, answer and filling, with the other answers that are offered."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from undo_probe.tasks.fact import Fact
from undo_probe.tasks.protocol import TokenSet


@dataclass(frozen=True)
class Kept:
    """A fact that is used, and the name of its family."""

    fact: Fact
    family: str


@dataclass(frozen=True)
class Asked:
    """A fact in one wording as tokens: the prompt, and the answers that are offered, of which one is right."""

    kept: Kept
    wording: int
    prompt: Sequence[int]
    options: Sequence[Sequence[int]]
    texts: Sequence[str]
    answer: int


def width(asked: Sequence[Asked]) -> tuple[int, int]:
    """The most answers that a row offers, and the most tokens that one has."""
    return max(len(one.options) for one in asked), max(len(each) for one in asked for each in one.options)


def redrawn(one: Asked) -> Iterator[Asked]:
    """The prompt with each of its answers: it is seen, and which is right is not learnt."""
    for at in range(len(one.options)):
        yield Asked(one.kept, one.wording, one.prompt, one.options, one.texts, at)


def token_set(name: str, asked: Sequence[Asked], n_ctx: int, pad: int, most: tuple[int, int]) -> TokenSet:
    """Rows of prompt, answer and filling."""
    rows, options = [], []
    for one in asked:
        row = [*one.prompt, *one.options[one.answer]]
        rows.append([*row, *[pad] * (n_ctx - len(row))])
        filled = [[*option, *[-1] * (most[1] - len(option))] for option in one.options]
        options.append(filled + [[-1] * most[1]] * (most[0] - len(filled)))
    first = torch.tensor([len(one.prompt) for one in asked])
    count = torch.tensor([len(one.options[one.answer]) for one in asked])
    place = torch.arange(n_ctx)
    mask = (place >= first[:, None]) & (place < (first + count)[:, None])
    labels = pd.DataFrame(
        {
            "operation": [one.kept.fact.relation for one in asked],
            "family": [one.kept.family for one in asked],
            "subset": "all",
            "group": [one.kept.fact.group for one in asked],
            "wording": [one.wording for one in asked],
            "answer": [one.answer for one in asked],
            "text": [one.texts[one.answer] for one in asked],
            "offered": [list(one.texts) for one in asked],
            "question": [one.kept.fact.question for one in asked],
        }
    )
    return TokenSet(name, torch.tensor(rows), mask, first - 1, labels, torch.tensor(options))
