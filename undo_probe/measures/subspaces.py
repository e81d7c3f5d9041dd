"""Shared directions: what forget and retain rows have in common inside a model, and which of it an update uses.

The premise of CIR (arXiv 2509.11816) made visible: leading principal components of what an MLP reads, and of the
gradient at what it writes, are shared by rows of all kinds. An update inside them disturbs everything and is learned
back soon; one outside them is particular to its rows. Nothing here trains the model but the short relearning whose
update is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe import losses
from undo_probe.config import AttackConfig, FitConfig
from undo_probe.errors import UndoProbeError
from undo_probe.linalg import PCA, StreamedPCA, principal_angles, project_out
from undo_probe.linear_maps import LinearMap, kept_places, linear_maps, token_vectors
from undo_probe.measures import ItemScores, Statistic
from undo_probe.models import HookedTransformer, as_matrix, clone
from undo_probe.tasks.protocol import Task, TokenSet
from undo_probe.training import Context, fit

READ, WRITTEN = SIDES = "inputs", "gradients"
EDGES = (0, 4, 16, 64)
"""Where bands of components end; the direction of the mean is a band of its own, and what is left is the last."""
MEAN, REST = "mean", "rest"
BANDS = (MEAN, *(f"{low + 1}–{high}" for low, high in zip(EDGES, EDGES[1:], strict=False)), REST)
MOST = 0.75
"""Of the narrowest space's directions: how many components are solved for."""
MAX_ROWS = 512
"""Rows of each kind that are looked at, spread evenly over the split."""
RELEARN_STEPS = 40
_TOKENS = 2**23


@dataclass(frozen=True)
class Seen:
    """Mean and covariance of what linear maps read and of the gradients at what they wrote, by weight."""

    read: dict[str, StreamedPCA] = field(default_factory=dict)
    written: dict[str, StreamedPCA] = field(default_factory=dict)
    solved: dict[tuple[str, str], PCA] = field(default_factory=dict)

    def side(self, which: str) -> dict[str, StreamedPCA]:
        """Those of ``inputs`` or of ``gradients``."""
        return self.read if which == READ else self.written

    @property
    def narrowest(self) -> int:
        """Dimensions of the narrowest of these spaces."""
        return min(len(seen.mean) for which in SIDES for seen in self.side(which).values())

    def leading(self, which: str, weight: str, k: int) -> PCA:
        """The ``k`` leading components, or as many as there are; solved once for all ``k``."""
        if (which, weight) not in self.solved:
            seen = self.side(which)[weight]
            most = min(len(seen.mean) - 1, max(EDGES[-1], round(MOST * self.narrowest), len(seen.mean) // 8))
            self.solved[which, weight] = seen.components(most, at_most=True)
        return self.solved[which, weight].first(k)


@dataclass(frozen=True, eq=False)
class Basis:
    """Orthonormal directions in bands: that of the mean first, then principal components by rank."""

    directions: Float[Tensor, "width k"]
    band: Int[Tensor, " k"]

    @property
    def width(self) -> int:
        """Dimensions of the space."""
        return len(self.directions)

    def energies(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row band"]:
        """Squared length of each row inside each band, the last being all that is left."""
        inside = (rows @ self.directions.to(rows)).square()
        found = rows.new_zeros(len(rows), len(BANDS)).index_add_(1, self.band, inside)
        found[:, -1] = project_out(rows, self.directions.to(rows)).square().sum(1)
        return found

    @property
    def chance(self) -> list[float]:
        """Share of a random direction's energy in each band."""
        sizes = torch.bincount(self.band, minlength=len(BANDS)).double()
        sizes[-1] = self.width - sizes.sum()
        return (sizes / self.width).tolist()


def subspace_measures(
    model: HookedTransformer,
    task: Task,
    updates: Mapping[str, tuple[HookedTransformer, HookedTransformer]],
    forget: Seen | None = None,
) -> list[ItemScores | Statistic]:
    """What a model's MLPs share between forget and retain rows, and where in it updates lie.

    Directions are fitted on T, and forget rows are asked about on V, which no direction was fitted on.

    Args:
        model: left as it is.
        task: gives T, V and held-out retain rows.
        updates: by name, a model before and after; each is seen in the directions of the model before.
        forget: from :func:`taught_seen`; made if not given.

    Returns:
        For each MLP weight (``layer``) and side (``inputs`` or output ``gradients``): ``shared_variance``, the share of
        V's and of retain's variance in each band of forget components; ``effective_dimension``, the participation ratio
        ``tr(C)^2 / tr(C^2)``; ``subspace_overlap``, the mean squared cosine of principal angles between T's leading
        components and retain's, beside V's, and chance. Over all layers: ``update_energy``, the share of each update in
        each band beside chance; ``selectivity``, see :mod:`undo_probe.measures.selectivity`.
    """
    maps = mlp_maps(model)
    forget = forget or taught_seen(model, task)
    found: list[ItemScores | Statistic] = []
    others: dict[str, Seen] = {}
    for split, name in (("forget", "forget_V"), ("retain", "retain_test")):
        rows = task.rows(name).evenly(MAX_ROWS)
        others[split] = vectors_seen(model, maps, rows)
        found += shared_variance(model, maps, rows, forget, others[split], split)
        found += _dimensions(maps, others[split], split, len(rows))
    found += _overlaps(maps, forget, others)
    known = {id(model): forget}
    for name, (before, after) in updates.items():
        if id(before) not in known:
            known[id(before)] = taught_seen(before, task)
        found += update_energy(name, before, after, known[id(before)])
    return found


def mlp_maps(model: HookedTransformer) -> list[LinearMap]:
    """The first and the last map of every MLP; of a gated one, the map that is not its gate.

    Raises:
        UndoProbeError: the model has no MLP.
    """
    return linear_maps(model, ("mlp.W_in", "mlp.W_out"))


def taught_rows(task: Task) -> TokenSet:
    """T as models were taught it: in the trained wordings where the task holds one out."""
    worded = any(split == "forget_V_trained" for split in task.extra_splits)
    return task.rows("forget_T_trained" if worded else "forget_T")


def answer_loss(rows: TokenSet, model: HookedTransformer, tokens: Int[Tensor, "row pos"]) -> Tensor:
    """Cross-entropy of the answers in nats a token."""
    device = tokens.device
    return losses.next_token(model(tokens[:, :-1], return_type="logits"), tokens, rows.answer_mask.to(device))


def vectors_seen(model: HookedTransformer, maps: Sequence[LinearMap], rows: TokenSet) -> Seen:
    """Statistics of inputs and output gradients over rows, for the cross-entropy of their answers."""
    seen = Seen()
    for part in parts_of(model, rows):
        for _, side, weight, vectors in _met(model, maps, part):
            kept = seen.side(side)
            if weight not in kept:
                kept[weight] = StreamedPCA(vectors.shape[1], vectors.device, torch.float32)
            kept[weight].update(vectors)
    return seen


def taught_seen(model: HookedTransformer, task: Task) -> Seen:
    """Statistics over T as the model was taught it."""
    return vectors_seen(model, mlp_maps(model), taught_rows(task).evenly(MAX_ROWS))


def in_bands(found: PCA) -> Basis:
    """The direction of the mean and leading components, as an orthonormal basis in bands."""
    joined = found.basis_with_mean()
    first = joined.shape[1] - found.basis.shape[1]
    rank = torch.arange(found.basis.shape[1], device=joined.device)
    band = 1 + torch.bucketize(rank, torch.tensor(EDGES[1:-1], device=rank.device), right=True)
    return Basis(joined, torch.cat([band.new_zeros(first), band]))


def shared_variance(
    model: HookedTransformer, maps: Sequence[LinearMap], rows: TokenSet, forget: Seen, own: Seen, split: str
) -> list[ItemScores]:
    """The share of rows' variance, about their own mean, that lies in each band of forget directions.

    A ratio of sums over rows: each row's value is the ratio and its own linear part of the ratio's error, so that the
    mean is the ratio and an interval of the mean is the ratio's (the delta method).
    """
    bases = {
        (side, each.weight): in_bands(forget.leading(side, each.weight, EDGES[-1]))
        for each in maps
        for side in SIDES
    }
    energy = {place: torch.zeros(len(rows), len(BANDS), dtype=torch.float64) for place in bases}
    start = 0
    for part in parts_of(model, rows):
        for owners, side, weight, vectors in _met(model, maps, part):
            centred = vectors - own.side(side)[weight].mean.to(vectors)
            energy[side, weight].index_add_(
                0, owners + start, bases[side, weight].energies(centred).cpu().double()
            )
        start += len(part)
    subset = "V" if split == "forget" else "all"
    found = []
    for (side, weight), inside in energy.items():
        total = inside.sum(1)
        for band, name in enumerate(BANDS):
            share = inside[:, band].sum() / total.sum()
            values = share + (inside[:, band] - share * total) / total.mean()
            found.append(
                ItemScores(
                    "shared_variance", split, f"{side}, {name}", weight, "ratio", values.numpy(), rows.families,
                    control="a random direction", control_value=bases[side, weight].chance[band], note=subset,
                )
            )  # fmt: skip
    return found


def update_energy(
    name: str, before: HookedTransformer, after: HookedTransformer, seen: Seen
) -> list[Statistic]:
    """The share of an update's squared length in each band of the directions that the model before it had.

    Over all layers together, for what the update reads (input components) and for what it writes (gradient components).

    Raises:
        UndoProbeError: the two models have different weights.
    """
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    found = []
    for ending in ("W_in", "W_out"):
        for side in SIDES:
            inside, chance, matrices = torch.zeros(len(BANDS), dtype=torch.float64), np.zeros(len(BANDS)), 0
            for weight in seen.side(side):
                if not weight.endswith(ending):
                    continue
                if weight not in new or new[weight].shape != old[weight].shape:
                    raise UndoProbeError(f"{weight} differs in shape: compare models of one shape")
                change = as_matrix(weight, (new[weight] - old[weight]).detach())
                basis = in_bands(seen.leading(side, weight, EDGES[-1]))
                energies = basis.energies(change.T if side == READ else change).sum(0).cpu().double()
                inside += energies
                chance += np.array(basis.chance)
                matrices += 1
            total = float(inside.sum())
            for band, label in enumerate(BANDS):
                value = float(inside[band]) / total if total > 0 else None
                found.append(
                    Statistic(
                        "update_energy", "forget", f"{name}: {ending} {side}, {label}", None, "ratio", value, None,
                        None, matrices, 1, "a random direction", float(chance[band] / matrices),
                        "" if total > 0 else "this update left the weights as they were",
                    )
                )  # fmt: skip
    return found


def relearn_rows(attack: AttackConfig) -> int:
    """Rows that :func:`relearned` trains on."""
    return min(RELEARN_STEPS, attack.steps) * attack.batch_size


def relearned(
    model: HookedTransformer, task: Task, attack: AttackConfig, context: Context
) -> HookedTransformer:
    """A copy after a short relearning on T at the middle one of the attack's rates: its update is the attacker's."""
    rates = sorted(attack.learning_rates)
    settings = FitConfig(
        steps=min(RELEARN_STEPS, attack.steps), batch_size=attack.batch_size, learning_rate=rates[len(rates) // 2],
        warmup=0, schedule="constant",
    )  # fmt: skip

    def loss(student: torch.nn.Module, step: int) -> Tensor:
        batch = task.batch("attack", settings.batch_size, context.seed, step)
        tokens, mask = batch.tokens.to(context.device), batch.answer_mask.to(context.device)
        return losses.next_token(student(tokens[:, :-1], return_type="logits"), tokens, mask)

    return fit(clone(model).float(), settings, loss, replace(context, folder=None, precision="no")).model


def _met(
    model: HookedTransformer, maps: Sequence[LinearMap], rows: TokenSet
) -> Iterator[tuple[Int[Tensor, " token"], str, str, Float[Tensor, "token width"]]]:
    """The row of each counted token, side, weight and vectors."""
    kept = kept_places(rows.answer_mask)
    tokens = rows.tokens.to(next(model.parameters()).device)
    vectors = token_vectors(model, maps, tokens, kept.to(tokens.device), partial(answer_loss, rows))
    owners = kept.nonzero()[:, 0]
    for each in maps:
        yield owners, READ, each.weight, vectors.inputs[each.inputs]
        yield owners, WRITTEN, each.weight, vectors.gradients[each.outputs] * len(rows)


def parts_of(model: HookedTransformer, rows: TokenSet) -> Iterator[TokenSet]:
    """Rows in parts that fit into memory with their logits."""
    size = max(1, min(256, _TOKENS // (rows.tokens.shape[1] * model.cfg.d_vocab)))
    for start in range(0, len(rows), size):
        yield rows.select(np.arange(start, min(start + size, len(rows))))


def _dimensions(maps: Sequence[LinearMap], seen: Seen, split: str, n: int) -> list[Statistic]:
    found = []
    for each in maps:
        for side in SIDES:
            spread = seen.side(side)[each.weight].covariance().double()
            squares = float(spread.square().sum())
            value = float(spread.trace()) ** 2 / squares if squares > 0 else None
            found.append(
                Statistic(
                    "effective_dimension", split, side, each.weight, "directions", value, None, None, n, 1
                )
            )
    return found


def _overlaps(maps: Sequence[LinearMap], forget: Seen, others: Mapping[str, Seen]) -> list[Statistic]:
    """Of the leading eighth of directions: how far T's and the others' span the same."""
    found = []
    for each in maps:
        for side in SIDES:
            width = len(forget.side(side)[each.weight].mean)
            for split, other in others.items():
                a, b = (seen.leading(side, each.weight, max(1, width // 8)).basis for seen in (forget, other))
                value = float(principal_angles(a, b).cos().square().mean())
                found.append(
                    Statistic(
                        "subspace_overlap", split, side, each.weight, "ratio", value, None, None,
                        min(a.shape[1], b.shape[1]), 1, "a random subspace", max(a.shape[1], b.shape[1]) / width,
                    )
                )  # fmt: skip
    return found
