"""Selectivity: whether an update that forgets some answers is particular to them, and what collapse does to that.

An update moves another answer, to first order, by the product with that answer's gradient. CIR's claim (arXiv
2509.11816) is that taking shared directions out of the update costs little along other wordings of the same fact and
nearly all along facts that are only alike.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from undo_probe.collapse import side_of
from undo_probe.linalg import project_out
from undo_probe.linear_maps import LinearMap
from undo_probe.measures import ItemScores
from undo_probe.measures.subspaces import (
    MAX_ROWS,
    MOST,
    SIDES,
    Seen,
    answer_loss,
    mlp_maps,
    parts_of,
    taught_rows,
    taught_seen,
)
from undo_probe.models import HookedTransformer, as_matrix
from undo_probe.tasks.protocol import Task, TokenSet

SHARES = (0.0, 1 / 64, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, MOST)
"""How many directions are taken out, as a share of the narrowest space that they are taken from."""


def selectivity(model: HookedTransformer, task: Task, forget: Seen | None = None) -> list[ItemScores]:
    """How far an update that forgets T moves other answers along, before and after collapse, by first order.

    The cosine of the collapsed gradient on T's rows of one operation with the plain gradient of other rows:
    ``paraphrase`` (the same facts in another wording, where the task has them), ``other forget facts`` (V's, of the
    same operation), ``sibling`` (retain rows of the same operation) and ``unrelated`` (retain rows of the others). One
    value an operation, which is what an interval is over. CIR's claim is that siblings fall far more than paraphrases.

    Args:
        model: left as it is.
        task: gives the rows.
        forget: from :func:`~undo_probe.measures.subspaces.taught_seen`; made if not given.
    """
    maps = mlp_maps(model)
    taught = taught_rows(task)
    forget = forget or taught_seen(model, task)
    sizes = sorted({round(share * forget.narrowest) for share in SHARES})
    asked = task.rows("forget_T")
    reworded = None if taught is asked else asked
    operations = [o for o in dict.fromkeys(taught.operations) if o in set(task.rows("forget_V").operations)]
    grad = partial(_gradient, model, maps)
    retain = {o: grad(part.evenly(MAX_ROWS)) for o, part in _by_operation(task.rows("retain_test")).items()}
    values: dict[tuple[str, int], list[tuple[str, float]]] = {}
    for operation in operations:
        update = grad(_of(taught, operation).evenly(MAX_ROWS))
        others = {"other forget facts": grad(_of(task.rows("forget_V"), operation).evenly(MAX_ROWS))}
        if reworded is not None:
            others["paraphrase"] = grad(_of(reworded, operation).evenly(MAX_ROWS))
        if operation in retain:
            others["sibling"] = retain[operation]
        rest = [gradient for other, gradient in retain.items() if other != operation]
        if rest:
            others["unrelated"] = {weight: sum(g[weight] for g in rest) for weight in update}  # pyright: ignore
        for k in sizes:
            collapsed = _collapsed(update, forget, k)
            for kind, gradient in others.items():
                cosine = _cosine(collapsed, gradient)
                if cosine is not None:
                    values.setdefault((kind, k), []).append((str(operation), cosine))
    return [
        ItemScores(
            "selectivity", "forget" if kind in ("paraphrase", "other forget facts") else "retain", f"{kind}, k={k}",
            None, "cosine", np.array([v for _, v in cosines]), np.array([o for o, _ in cosines]),
        )
        for (kind, k), cosines in values.items()
    ]  # fmt: skip


def _of(rows: TokenSet, operation: str) -> TokenSet:
    return rows.select(rows.operations == operation)


def _by_operation(rows: TokenSet) -> dict[str, TokenSet]:
    return {str(operation): _of(rows, operation) for operation in dict.fromkeys(rows.operations)}


def _gradient(model: HookedTransformer, maps: Sequence[LinearMap], rows: TokenSet) -> dict[str, Tensor]:
    """The gradient of the answers' cross-entropy over all rows, by weight; the model's own stays as it is."""
    parameters = dict(model.named_parameters())
    chosen = [parameters[each.weight] for each in maps]
    total = [torch.zeros_like(p) for p in chosen]
    for part in parts_of(model, rows):
        with torch.enable_grad():
            loss = answer_loss(part, model, part.tokens.to(chosen[0].device))
            found = torch.autograd.grad(loss * len(part) / len(rows), chosen)
        total = [a + b for a, b in zip(total, found, strict=True)]
    return {each.weight: as_matrix(each.weight, g) for each, g in zip(maps, total, strict=True)}


def _collapsed(update: Mapping[str, Tensor], forget: Seen, k: int) -> dict[str, Tensor]:
    if not k:
        return dict(update)
    found = {}
    for weight, matrix in update.items():
        read, written = (_leading(forget, side, weight, k) for side in SIDES)
        found[weight] = project_out(project_out(matrix.T, read).T, written)
    return found


def _leading(forget: Seen, side: str, weight: str, k: int) -> Float[Tensor, "width kept"]:
    """The mean's direction and ``k - 1`` components, or as many as there are."""
    if k == 1:
        return side_of(forget.side(side)[weight], 1).basis
    return forget.leading(side, weight, k - 1).basis_with_mean()


def _cosine(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float | None:
    """Over all weights together; None where one of them is zero."""
    lengths = [sum(float(t.double().square().sum()) for t in each.values()) ** 0.5 for each in (a, b)]
    if not min(lengths) > 0:
        return None
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a) / lengths[0] / lengths[1]
