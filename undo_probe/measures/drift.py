"""How far a model's states have moved from the original's, layer by layer and position by position.

Everything here also sees a change of basis that loses nothing: read it beside the twin (same noise and
distillation, taught by the original).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy import stats
from torch import Tensor

from undo_probe import linalg
from undo_probe.activations import Positions, residual_streams
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.probes import side_rows
from undo_probe.models import HookedTransformer
from undo_probe.tasks.protocol import Task, TokenSet

ROWS_PER_DIMENSION = 5
"""CKA on fewer rows than this times the width is flagged."""

States = Mapping[str, Float[Tensor, "row kept d_model"]]


def drift_measures(
    model: HookedTransformer,
    original: HookedTransformer,
    task: Task,
    seed: int = 0,
    max_rows: int = 800,
    positions: Sequence[int] | None = None,
) -> list[ItemScores | Statistic]:
    """:func:`drift` on the forget rows (T and V) and on retain rows, held-out ones first.

    Args:
        model: the model to place.
        original: what it is compared with.
        task: gives the rows.
        seed: of the choice of rows.
        max_rows: limit on the rows of a side; at least five a dimension are used where the task has them.
        positions: as in :func:`drift`; of running text, a few places along the row.
    """
    if positions is None and task.metric == "bits":
        positions = sorted({1, task.n_ctx // 4, task.n_ctx // 2, task.n_ctx - 2})
    limit = max(max_rows, ROWS_PER_DIMENSION * model.cfg.d_model)
    found: list[ItemScores | Statistic] = []
    for split in ("forget", "retain"):
        found += drift(model, original, side_rows(task, split, limit, seed), split, positions)
    return found


def drift(
    model: HookedTransformer,
    original: HookedTransformer,
    rows: TokenSet,
    split: str,
    positions: Sequence[int] | None = None,
    reference: States | None = None,
    read_label: str = "=",
) -> list[ItemScores | Statistic]:
    """Distances of the residual stream from the original's on the same rows.

    Args:
        model: the model to place.
        original: what it is compared with.
        rows: the same tokens for both.
        split: ``forget`` or ``retain``.
        positions: token positions; by default every position of the prompt, or its last where prompts differ in length.
        reference: the original's ``residual_streams`` at these positions, to harvest them once.
        read_label: the subset's name at the read position; others are ``pos 0``, ``pos 1``, ...

    Returns:
        Per layer and position ``norm_ratio`` (|h| / |h0|), ``relative_distance`` (|h - h0| / |h0|) and
        ``cosine`` for every row, and ``cka`` (debiased, with a jackknife interval over families).
    """
    chosen: Positions
    if isinstance(rows.read_position, int):
        listed = list(range(rows.read_position + 1)) if positions is None else list(positions)
        chosen, subsets = listed, [read_label if p == rows.read_position else f"pos {p}" for p in listed]
    elif positions is None:
        chosen, subsets = (
            rows.read_position,
            [read_label],
        )  # all that prompts of different lengths have in common
    else:
        chosen, subsets = list(positions), [f"pos {place}" for place in positions]
    theirs = reference or residual_streams(original, rows.tokens, chosen)
    ours = residual_streams(model, rows.tokens, chosen)
    if list(ours) != list(theirs) or any(ours[name].shape != theirs[name].shape for name in ours):
        raise UndoProbeError("the two models' residual streams differ in shape: compare models of one shape")
    found: list[ItemScores | Statistic] = []
    for layer in ours:
        for index, subset in enumerate(subsets):
            pair = ours[layer][:, index], theirs[layer][:, index]
            named = (split, subset, layer)
            found += [
                ItemScores(measure, *named, unit, values, rows.families)
                for measure, unit, values in row_distances(*pair)
            ]
            found.append(cka_statistic(*pair, rows.families, named))
    return found


def row_distances(
    states: Float[Tensor, "row d_model"], reference: Float[Tensor, "row d_model"]
) -> list[tuple[str, str, Float[np.ndarray, " row"]]]:
    """Measure, unit and one value a row: ``norm_ratio``, ``relative_distance``, ``cosine``."""
    h, h0 = states.double(), reference.double()
    tiny = torch.finfo(h.dtype).tiny
    length = h0.norm(dim=1).clamp_min(tiny)
    cosine = (h * h0).sum(1) / (h.norm(dim=1) * length).clamp_min(tiny)
    return [
        ("norm_ratio", "ratio", (h.norm(dim=1) / length).numpy()),
        ("relative_distance", "ratio", ((h - h0).norm(dim=1) / length).numpy()),
        ("cosine", "cosine", cosine.clamp(-1, 1).numpy()),
    ]


def cka_interval(
    x: Float[Tensor, "row d_x"],
    y: Float[Tensor, "row d_y"],
    families: Shaped[np.ndarray, " row"],
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Debiased linear CKA and its jackknife interval (t, families left out one at a time)."""
    value = linalg.linear_cka(x, y)
    _, member = np.unique(families, return_inverse=True)
    without = linalg.cka_without_groups(x, y, member)
    count = len(without)
    error = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    reach = float(stats.t.ppf(0.5 + level / 2, count - 1) * error)
    return value, value - reach, value + reach


def cka_statistic(
    x: Float[Tensor, "row d_x"],
    y: Float[Tensor, "row d_y"],
    families: Shaped[np.ndarray, " row"],
    named: tuple[str, str, str],
    width: int | None = None,
) -> Statistic:
    """:func:`cka_interval` as a reading; the value is None, with the reason in ``note``, where rows do not vary.

    Args:
        x: one model's states.
        y: another's, of the same rows.
        families: the cluster of each row.
        named: split, subset and layer.
        width: of the states, where ``x`` holds them in fewer dimensions; fewer than five rows a dimension are noted.
    """
    n, clusters = len(x), len(np.unique(families))
    blank = Statistic("cka", *named, "cka", None, None, None, n, clusters)
    if _still(x) or _still(y):
        return Statistic(**{**vars(blank), "note": "all rows have the same state here"})
    value, low, high = cka_interval(x, y, families)
    if not np.isfinite([value, low, high]).all():
        return Statistic(
            **{**vars(blank), "note": "the states hold too little beside noise for a debiased CKA"}
        )
    floor = ROWS_PER_DIMENSION * (width or x.shape[1])
    note = f"{n} rows are fewer than {floor} (5 a dimension)" if n < floor else ""
    return Statistic("cka", *named, "cka", value, low, high, n, clusters, note=note)


def _still(states: Tensor) -> bool:
    spread = (states - states.mean(0)).norm()
    return bool(spread <= 1e-5 * states.norm())
