"""How two models' states on the same rows lie to each other at one layer and position. Arrays only; no model here.

Distances, cosines and the shift of the mean see a rotation; CKA and Procrustes do not. The noise floor beside each is
what choosing other prompts alone would do: rows are halved by family, several times over.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from scipy import stats
from torch import Tensor

from undo_probe import linalg
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.drift import cka_statistic, row_distances
from undo_probe.measures.folds import deal_families
from undo_probe.randomness import derive_seed

COMPONENTS = 4
"""Leading principal components whose spans are compared."""
HALVINGS = 9
"""The floor is the largest of so many random halvings: about what one choice of prompts in ten exceeds."""

Halvings = Sequence[Bool[np.ndarray, " row"]]


class Floored(NamedTuple):
    """A measured number and what prompts alone would make of it; None where there are too few families to say."""

    scores: ItemScores | Statistic
    floor: float | None


class Named(NamedTuple):
    """What a reading is of, in the order of :class:`ItemScores`."""

    split: str
    position: str
    layer: str


def halvings(families: Shaped[np.ndarray, " row"], seed: int, count: int = HALVINGS) -> Halvings:
    """Random halves of the rows, whole families each (True is the first half); none of fewer than 8 families."""
    if len(np.unique(families)) < 8:
        return []
    return [deal_families(families, 2, derive_seed(seed, "halving", number)) == 0 for number in range(count)]


def spread(values: Float[np.ndarray, " row"], halves: Halvings) -> float | None:
    """How far the mean moves when half of the prompts are replaced by the other half, at most."""
    return max((abs(float(values[half].mean() - values[~half].mean())) for half in halves), default=None)


def row_geometry(
    states: Float[Tensor, "row d_model"],
    reference: Float[Tensor, "row d_model"],
    families: Shaped[np.ndarray, " row"],
    halves: Halvings,
    named: Named,
) -> list[Floored]:
    """What needs one basis: distance, norm, cosine, and how much of the shift is one shift of the mean.

    Args:
        states: of the model that is compared.
        reference: of the model it is compared with, the same rows in the same width.
        families: the cluster of each row.
        halves: of :func:`halvings`.
        named: split, position and layer.

    Returns:
        A value a row: ``norm_ratio``, ``relative_distance``, ``cosine``, and ``shift_share`` in [0, 1], the share of
        each row's squared shift along the mean shift of the other families (1 / d_model for a shift in no direction in
        particular). And ``mean_shift``, the distance between the two means over the mean norm of the reference, whose
        floor is that distance between two halves of the reference's own rows.
    """
    found = [
        Floored(ItemScores(name, *named, unit, values, families), _level(name, spread(values, halves)))
        for name, unit, values in row_distances(states, reference)
    ]
    shift, length = (states - reference).double(), reference.double().norm(dim=1).mean().clamp_min(1e-300)
    share = _shift_share(shift, families)
    found.append(
        Floored(
            ItemScores("shift_share", *named, "share of the shift", share, families), spread(share, halves)
        )
    )
    low, high = _norm_of_mean(shift / length, families)
    centre = reference.double()
    floor = max(
        (float((centre[h].mean(0) - centre[~h].mean(0)).norm() / length) for h in halves), default=None
    )
    n, clusters = len(states), len(np.unique(families))
    value = float(shift.mean(0).norm() / length)
    return [*found, Floored(Statistic("mean_shift", *named, "ratio", value, low, high, n, clusters), floor)]


def shape_geometry(
    states: Float[Tensor, "row d_states"],
    reference: Float[Tensor, "row d_reference"],
    families: Shaped[np.ndarray, " row"],
    halves: Halvings,
    named: Named,
) -> list[Floored]:
    """What a rotation leaves alone, and which directions vary most.

    Returns:
        ``cka`` (debiased, with a jackknife interval over families); ``procrustes`` in [0, 2]; and, of models of one
        width, ``subspace_angle`` in degrees, the mean principal angle between the spans of the leading components,
        whose floor is that angle between two halves of the reference's own rows. A width of its own is no error.
    """
    x, y = compact(states, reference)
    n, clusters = len(x), len(np.unique(families))
    cka = cka_statistic(x, y, families, named, width=states.shape[1])
    found = [
        Floored(cka, _level("cka", None if cka.value is None else _between(linalg.linear_cka, x, y, halves)))
    ]
    distance = _defined(linalg.procrustes_distance, x, y)
    note = "" if distance is not None else cka.note
    statistic = Statistic(
        "procrustes", *named, "squared distance", distance, None, None, n, clusters, note=note
    )
    found.append(Floored(statistic, _between(linalg.procrustes_distance, x, y, halves)))
    if states.shape[1] != reference.shape[1]:
        return found
    angle = _angle(x, y)
    statistic = Statistic("subspace_angle", *named, "degrees", angle, None, None, n, clusters, note=note)
    floors = [_angle(y[half], y[~half]) for half in map(torch.from_numpy, halves)]
    return [*found, Floored(statistic, max((floor for floor in floors if floor is not None), default=None))]


def compact(
    x: Float[Tensor, "row d_x"], y: Float[Tensor, "row d_y"]
) -> tuple[Float[Tensor, "row k_x"], Float[Tensor, "row k_y"]]:
    """The same rows in as many dimensions as they span, where that is fewer: no angle or distance changes."""
    if x.shape[1] != y.shape[1] or 2 * len(x) >= x.shape[1]:
        return x.double(), y.double()
    basis = torch.linalg.qr(torch.cat([x, y]).double().T)[0]
    return x.double() @ basis, y.double() @ basis


def _level(measure: str, moved: float | None) -> float | None:
    """The floor on the measure's own scale: those that are 1 between equal models fall below 1."""
    return moved if moved is None or measure == "relative_distance" else 1 - moved


def _shift_share(shift: Float[Tensor, "row d_model"], families: np.ndarray) -> Float[np.ndarray, " row"]:
    """Along the mean shift of the other half of the families, so that no row vouches for itself."""
    if len(np.unique(families)) < 2:
        return np.zeros(len(shift))
    first = torch.from_numpy(deal_families(families, 2, derive_seed(0, "shift share")) == 0)
    share = torch.zeros(len(shift), dtype=torch.float64)
    for half in (first, ~first):
        mean = shift[~half].mean(0)
        if float(mean.norm()) > 0:
            share[half] = linalg.projection_share(shift[half], (mean / mean.norm())[:, None])
    return share.numpy()


def _norm_of_mean(
    shift: Float[Tensor, "row d_model"], families: np.ndarray, level: float = 0.95
) -> tuple[float | None, float | None]:
    """Jackknife limits (t) of the norm of the mean, families left out one at a time; None for one family."""
    _, member = np.unique(families, return_inverse=True)
    count = int(member.max()) + 1
    if count < 2:
        return None, None
    index = torch.from_numpy(member)
    sums = torch.zeros(count, shift.shape[1], dtype=shift.dtype).index_add_(0, index, shift)
    sizes = torch.bincount(index, minlength=count)[:, None]
    without = ((shift.sum(0) - sums) / (len(shift) - sizes)).norm(dim=1)
    error = float(((count - 1) / count * (without - without.mean()).square().sum()).sqrt())
    reach = float(stats.t.ppf(0.5 + level / 2, count - 1)) * error
    value = float(shift.mean(0).norm())
    return max(0.0, value - reach), value + reach


def _between(
    measure: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor, halves: Halvings
) -> float | None:
    """How far a measure of pairs moves from one half of the rows to the other, at most."""
    moved = []
    for half in map(torch.from_numpy, halves):
        pair = [_defined(measure, x[rows], y[rows]) for rows in (half, ~half)]
        if pair[0] is not None and pair[1] is not None:
            moved.append(abs(pair[0] - pair[1]))
    return max(moved, default=None)


def _defined(measure: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> float | None:
    """The measure, or None where rows that do not differ give it nothing to go by."""
    try:
        value = measure(x, y)
    except UndoProbeError:
        return None
    return value if np.isfinite(value) else None


def _angle(x: Float[Tensor, "row d_model"], y: Float[Tensor, "_ d_model"]) -> float | None:
    bases = []
    for states in (x, y):
        centred = states - states.mean(0)
        # of X'X and XX' the smaller; their eigenvalues are the squares of the singular values
        few = len(states) < states.shape[1]
        values, vectors = torch.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
        sizes, leading = values[-COMPONENTS:].clamp_min(0).sqrt(), vectors[:, -COMPONENTS:]
        if len(sizes) < COMPONENTS or float(sizes[0]) <= 1e-6 * float(states.norm()):
            return None
        bases.append(centred.T @ leading / sizes if few else leading)
    return float(torch.rad2deg(linalg.principal_angles(*bases).mean()))
