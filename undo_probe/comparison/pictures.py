"""What a comparison shows beside its table: states on shared principal components, and prompts token by token."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from undo_probe.activations import harvest_points
from undo_probe.comparison.parts import Pair
from undo_probe.comparison.sides import READ, Asked
from undo_probe.linalg import StreamedPCA
from undo_probe.measures.geometry import compact
from undo_probe.measures.lens import decode

if TYPE_CHECKING:
    import pandas as pd

POINTS, PROMPTS, LONGEST = 80, 3, 64
"""Rows of a split that are drawn as points; rows shown token by token, and their tokens."""


def shown_hooks(pair: Pair) -> list[tuple[str, str]]:
    """A third and two thirds of the way, and the last layer."""
    last = len(pair.hooks) - 1
    return [pair.hooks[at] for at in sorted({max(1, round(last / 3)), max(1, round(2 * last / 3)), last})]


def joint_points(pair: Pair) -> "pd.DataFrame":
    """Both models' states at the read position on the two leading components of all of them together.

    One line a row and model: ``layer``, ``split``, ``row``, ``model`` (a or b), ``x``, ``y`` and ``explained``, the
    share of the variance that the two components hold. Empty where the models have different widths.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for hooks in shown_hooks(pair) if pair.one_width else []:
        parts = [
            (asked.split, side, states[:POINTS])
            for asked in pair.a.asked
            for side, states in _at_read(pair, asked, hooks).items()
        ]
        everything = torch.cat([states for _, _, states in parts]).double()
        drawn, _ = compact(everything, everything)
        pca = StreamedPCA(drawn.shape[1]).update(drawn).components(2)
        at = ((drawn - pca.mean) @ pca.basis).tolist()
        share = float(pca.variances.sum()) / pca.total_variance
        for split, side, states in parts:
            for row in range(len(states)):
                x, y = at.pop(0)
                lines.append(
                    {
                        "layer": hooks[0],
                        "split": split,
                        "row": row,
                        "model": side,
                        "x": x,
                        "y": y,
                        "explained": share,
                    }
                )
    return pd.DataFrame(lines, columns=["layer", "split", "row", "model", "x", "y", "explained"])


def _at_read(pair: Pair, asked: Asked, hooks: tuple[str, str]) -> dict[str, torch.Tensor]:
    at = asked.names.index(READ)
    return {
        "a": pair.a.at_places(asked, hooks[0])[:, at],
        "b": pair.b.at_places(asked, hooks[1])[:, at],
    }


def token_rows(pair: Pair) -> list[dict[str, Any]]:
    """A few rows of every split: each token's text, the divergence of what the models say next, and how far it moved.

    ``kl`` is in bits, of the token that follows; ``moved`` is the distance over the norm by layer, empty where the
    models have different widths. Numbers are rounded: they are shown, not computed with.
    """
    found: list[dict[str, Any]] = []
    for asked in pair.a.asked:
        _, first = np.unique(asked.families, return_index=True)
        for row in np.sort(first)[:PROMPTS].tolist():
            end = min(LONGEST, int(torch.nonzero(asked.rows.answer_mask[row]).max()) + 1)
            found.append(_token_row(pair, asked, row, end))
    return found


def _token_row(pair: Pair, asked: Asked, row: int, end: int) -> dict[str, Any]:
    tokens = asked.rows.tokens[row : row + 1, :end]
    hooks = [*shown_hooks(pair), pair.hooks[-1]]
    models = pair.a.model, pair.b.model
    streams = [
        harvest_points(model, tokens, [hook[side] for hook in hooks]) for side, model in enumerate(models)
    ]
    logs = [
        decode(model, found[hook])[0].double().log_softmax(-1)
        for model, found, hook in zip(models, streams, hooks[-1], strict=True)
    ]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).clamp_min(0) / np.log(2)
    moved: dict[str, list[float]] = {}
    for hook_a, hook_b in hooks[:-1] if pair.one_width else []:
        theirs, ours = streams[0][hook_a][0].double(), streams[1][hook_b][0].double()
        far = (ours - theirs).norm(dim=1) / theirs.norm(dim=1).clamp_min(1e-300)
        moved[hook_a] = [round(value, 4) for value in far.tolist()]
    return {
        "split": asked.split,
        "tokens": [pair.task.decode(tokens[0, at : at + 1]) for at in range(end)],
        "answer": asked.rows.answer_mask[row, :end].tolist(),
        "kl": [round(value, 4) for value in kl.tolist()],
        "moved": moved,
    }
