"""Linear probes on arrays: scored out of fold, on families they have not seen, with their controls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from undo_probe.config import ProbeConfig
from undo_probe.errors import UndoProbeError
from undo_probe.measures.folds import Fold, family_folds, shuffle_within
from undo_probe.measures.linear_probe import LinearProbe, Standardiser, fit_softmax
from undo_probe.randomness import derive_seed

GAIN = 1e-3
"""Bits a row by which a weaker penalty must do better to be chosen: more than the solver's own error."""

ROUGH, FINE = 1e-4, 3e-6
"""Solver tolerances (nats) while choosing a penalty, in float32, and for the probe that is scored."""


@dataclass(frozen=True, eq=False)
class ContextFit:
    """What the prompt alone says about the labels: the same for every model, so fitted once a task.

    A column is a target, then each target again with shuffled labels, once a shuffle.
    """

    context: Float[np.ndarray, "row feature"]
    labels: Int[np.ndarray, "row column"]
    n_classes: int
    n_targets: int
    folds: tuple[Fold, ...]
    fit: "Selected"
    log2: Float[np.ndarray, "scored column"]
    correct: Bool[np.ndarray, "scored column"]
    constant: Bool[np.ndarray, "scored column"]
    constant_by_operation: Bool[np.ndarray, "scored column"]

    @property
    def scored(self) -> Int[np.ndarray, " scored"]:
        """Numbers of the rows that some fold tests on, ascending; all results are in this order."""
        return np.sort(np.concatenate([fold.test for fold in self.folds]))


@dataclass(frozen=True, eq=False)
class Selected:
    """Probes of every fold and column, with the penalty that the fold's inner validation families chose.

    A penalty of infinity means that the inputs did not help: the probe is its starting point. ``inner`` was
    trained without those families, ``final`` on all training rows; ``loss`` is in bits.
    """

    inner: Float[Tensor, "fold column weight class"]
    final: Float[Tensor, "fold column weight class"]
    penalties: Float[Tensor, "fold column"]
    loss: Float[Tensor, "fold column"]


@dataclass(frozen=True, eq=False)
class ProbeItems:
    """Out-of-fold scores of each row and target, with their controls."""

    accuracy: Float[np.ndarray, "scored target"]
    bits: Float[np.ndarray, "scored target"]
    shuffled_accuracy: Float[np.ndarray, "scored target"]
    shuffled_bits: Float[np.ndarray, "scored target"]
    penalties: Float[np.ndarray, "fold target"]


def fit_context(
    context: Float[np.ndarray, "row feature"],
    labels: Int[np.ndarray, "row target"],
    operations: Shaped[np.ndarray, " row"],
    folds: Sequence[Fold],
    config: ProbeConfig,
    seed: int,
) -> ContextFit:
    """Prompt-only probes for the labels and for their shuffled copies, on given folds."""
    shuffles = [shuffle_within(labels, operations, derive_seed(seed, i)) for i in range(config.shuffles)]
    columns = np.concatenate([labels, *shuffles], axis=1)
    problem = _Problem(torch.from_numpy(columns.T.copy()), int(columns.max()) + 1, tuple(folds))
    designs = [_design(context, fold, common=True) for fold in folds]
    fit = _select(problem, designs, config.penalties, problem.constants(context.shape[1]), rough=FINE)
    log2, correct = _score(problem, fit.final, designs)
    together = np.zeros(len(columns))
    constant, by_operation = (
        _in_order(folds, [_majority(columns, fold, strata) for fold in folds])
        for strata in (together, operations)
    )
    return ContextFit(
        context,
        columns,
        problem.n_classes,
        labels.shape[1],
        tuple(folds),
        fit,
        log2,
        correct,
        constant,
        by_operation,
    )


def probe_items(
    features: Float[np.ndarray, "row d_model"],
    context: Float[np.ndarray, "row feature"],
    labels: Int[np.ndarray, "row target"],
    families: Shaped[np.ndarray, " row"],
    operations: Shaped[np.ndarray, " row"],
    config: ProbeConfig,
    seed: int,
    context_fit: ContextFit | None = None,
) -> ProbeItems:
    """Probes of one layer, out of fold.

    Args:
        features: activations.
        context: one-hot features of the prompt.
        labels: class numbers from 0, one column a target.
        families: no family is both trained and tested on.
        operations: labels are shuffled within these.
        config: folds, penalties per row, number of shuffles.
        seed: of folds and shuffles; not of the model, so that models are scored on the same splits.
        context_fit: of the same rows, to save fitting it again for every model and layer.
    """
    known = context_fit or fit_context(
        context, labels, operations, family_folds(families, config.folds, seed), config, seed
    )
    if len(features) != len(known.labels):
        raise UndoProbeError(
            f"the context was fitted on {len(known.labels)} rows, the activations have {len(features)}: "
            "use the fit made for these rows"
        )
    problem = _Problem(torch.from_numpy(known.labels.T.copy()), known.n_classes, known.folds)
    own = [_design(features, fold) for fold in known.folds]
    residual = _select(problem, own, config.penalties, problem.constants(features.shape[1]))
    both = [
        _design(known.context, fold, common=True).beside(part)
        for fold, part in zip(known.folds, own, strict=True)
    ]
    start = tuple(_widen(weights, features.shape[1]) for weights in (known.fit.inner, known.fit.final))
    combined = _select(problem, both, config.penalties, start, known.fit)
    correct = _score(problem, residual.final, own)[1].astype(float)
    bits = _score(problem, combined.final, both)[0] - known.log2
    n = known.n_targets
    return ProbeItems(
        accuracy=correct[:, :n],
        bits=bits[:, :n],
        shuffled_accuracy=over_shuffles(correct, n),
        shuffled_bits=over_shuffles(bits, n),
        penalties=residual.penalties[:, :n].numpy(),
    )


def transfer_accuracy(
    source: Float[np.ndarray, "row d_model"],
    target: Float[np.ndarray, "row d_model"],
    labels: Int[np.ndarray, "row target"],
    folds: Sequence[Fold],
    penalty: float = 1e-2,
) -> Float[np.ndarray, "scored target"]:
    """1 where a probe trained on one model's states reads the label from another's, on unseen families.

    It falls under a mere change of basis, which a refitted probe would not notice.
    """
    parts = []
    for fold in folds:
        columns = []
        for labelled in labels.T:
            probe = LinearProbe(penalty=penalty, tolerance=FINE).fit(source[fold.train], labelled[fold.train])
            columns.append(probe.predict(target[fold.test]) == labelled[fold.test])
        parts.append(np.stack(columns, axis=1))
    return _in_order(folds, parts).astype(float)


@dataclass(frozen=True, eq=False)
class _Design:
    """Inputs of a fold: standardised on the rows to fit while choosing, on all training rows at the end."""

    fit: Tensor
    choose: Tensor
    train: Tensor
    test: Tensor

    def beside(self, other: "_Design") -> "_Design":
        return _Design(
            *(torch.cat([getattr(self, n), getattr(other, n)], dim=1) for n in self.__dataclass_fields__)
        )


def _design(values: np.ndarray, fold: Fold, common: bool = False) -> _Design:
    rows = torch.from_numpy(np.asarray(values)).double()
    inner = Standardiser.fit(rows[fold.fit], common)
    outer = Standardiser.fit(rows[fold.train], common)
    return _Design(
        inner(rows[fold.fit]), inner(rows[fold.choose]), outer(rows[fold.train]), outer(rows[fold.test])
    )


@dataclass(frozen=True, eq=False)
class _Problem:
    """What all probes of one set of rows share."""

    labels: Tensor  # (column, row)
    n_classes: int
    folds: tuple[Fold, ...]

    def part(self, name: str) -> list[Tensor]:
        return [self.labels[:, getattr(fold, name)] for fold in self.folds]

    def constants(self, width: int) -> tuple[Tensor, Tensor]:
        """The probes that see nothing: class frequencies as intercepts, for choosing and at the end."""
        pair = []
        for name in ("fit", "train"):
            shares = [
                torch.nn.functional.one_hot(own, self.n_classes).double().mean(1) for own in self.part(name)
            ]
            intercept = torch.stack(shares).log()[:, :, None]
            pair.append(
                torch.cat(
                    [intercept.new_zeros(*intercept.shape[:2], width, self.n_classes), intercept], dim=2
                )
            )
        return pair[0], pair[1]

    def choice_loss(self, weights: Tensor, designs: Sequence[_Design]) -> Tensor:
        """Bits per row on the families that choose, shape (fold, column)."""
        parts = zip(weights, designs, self.part("choose"), strict=True)
        return torch.stack([-_log2(own, d.choose, labels, len(d.fit)).mean(0) for own, d, labels in parts])


def _select(
    problem: _Problem,
    designs: Sequence[_Design],
    grid: Sequence[float],
    start: tuple[Tensor, ...],
    prompt: Selected | None = None,
    rough: float = ROUGH,
) -> Selected:
    """Walks from strong to weak penalties, lets the inner families choose, and refits on all training rows.

    ``start`` is the probe without the inputs in question. Given ``prompt``, the first features are the
    prompt's and keep the penalty they chose alone. A column whose loss fell in no fold is not followed to
    weaker penalties.
    """
    best = problem.choice_loss(start[0], designs) if prompt is None else prompt.loss.clone()
    inner, chosen = start[0].clone(), torch.full_like(best, torch.inf)
    walking = torch.arange(len(problem.labels))
    weights = start[0]
    inputs, labels = [design.fit.float() for design in designs], problem.part("fit")
    for penalty in sorted(grid, reverse=True):
        diagonal = _penalties(torch.full_like(best, penalty), inputs[0].shape[1], prompt)[:, walking]
        own = [part[walking] for part in labels]
        weights = fit_softmax(inputs, own, diagonal.float(), problem.n_classes, weights, rough).double()
        everywhere = inner.clone()
        everywhere[:, walking] = weights
        loss = problem.choice_loss(everywhere, designs)
        lower = loss < best - GAIN
        best, chosen = torch.where(lower, loss, best), chosen.masked_fill(lower, penalty)
        inner = torch.where(lower[..., None, None], everywhere, inner)
        follow = lower[:, walking].any(0)
        walking, weights = walking[follow], weights[:, follow]
        if not len(walking):
            break
    helps = chosen < torch.inf
    used = helps.any(0)
    final = start[1].clone()
    if bool(used.any()):
        diagonal = _penalties(chosen.clamp(max=max(grid)), inputs[0].shape[1], prompt)[:, used]
        own = [part[used] for part in problem.part("train")]
        train = [design.train for design in designs]
        final[:, used] = fit_softmax(train, own, diagonal, problem.n_classes, inner[:, used], FINE)
        final = torch.where(helps[..., None, None], final, start[1])
    return Selected(inner, final, chosen, best)


def _penalties(searched: Tensor, width: int, prompt: Selected | None) -> Tensor:
    """Penalties of all features, (fold, column, feature), from the one that is searched."""
    if prompt is None:
        return searched[..., None].expand(-1, -1, width)
    known = prompt.inner.shape[2] - 1
    # Where the prompt alone was no help its weights are held near 0, not exactly there.
    kept = prompt.penalties.clamp(max=1e3)[..., None].expand(-1, -1, known)
    return torch.cat([kept, searched[..., None].expand(-1, -1, width - known)], dim=2)


def _widen(weights: Tensor, width: int) -> Tensor:
    """The same probe on inputs that got ``width`` further features before the intercept."""
    blank = weights.new_zeros(*weights.shape[:2], width, weights.shape[3])
    return torch.cat([weights[:, :, :-1], blank, weights[:, :, -1:]], dim=2)


def _logits(weights: Tensor, inputs: Tensor) -> Tensor:
    count, width, classes = weights.shape
    flat = weights[:, :-1].permute(1, 0, 2).reshape(width - 1, -1)
    return (inputs @ flat).view(len(inputs), count, classes) + weights[:, -1]


def _log2(weights: Tensor, inputs: Tensor, labels: Tensor, n_train: int) -> Tensor:
    """log2 of the probability of the true label, shape (row, column).

    Every probe is mixed with one part in ``n_train`` of the uniform distribution: a class that training
    never saw costs finitely many bits.
    """
    logits = _logits(weights, inputs)
    rest = torch.logsumexp(logits, dim=2)
    own = logits.gather(2, labels.T[..., None]).squeeze(2)
    mix = 1.0 / n_train
    return ((1 - mix) * (own - rest).exp() + mix / logits.shape[2]).log2()


def _score(problem: _Problem, weights: Tensor, designs: Sequence[_Design]) -> tuple[np.ndarray, np.ndarray]:
    """log2 probability of the true label and whether it is the most probable, both (scored, column)."""
    log2, hit = [], []
    for own, design, labels in zip(weights, designs, problem.part("test"), strict=True):
        log2.append(_log2(own, design.test, labels, len(design.train)).numpy())
        hit.append((_logits(own, design.test).argmax(2) == labels.T).numpy())
    return _in_order(problem.folds, log2), _in_order(problem.folds, hit)


def _majority(labels: np.ndarray, fold: Fold, strata: np.ndarray) -> np.ndarray:
    """Whether each test row has its stratum's most frequent training label, shape (test, column)."""
    hit = np.zeros((len(fold.test), labels.shape[1]), dtype=bool)
    for stratum in np.unique(strata[fold.test]):
        test = strata[fold.test] == stratum
        train = labels[fold.train][strata[fold.train] == stratum]
        for column in range(labels.shape[1] if len(train) else 0):
            hit[test, column] = labels[fold.test][test, column] == np.bincount(train[:, column]).argmax()
    return hit


def _in_order(folds: Sequence[Fold], parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts)[np.argsort(np.concatenate([fold.test for fold in folds]), kind="stable")]


def over_shuffles(
    values: Shaped[np.ndarray, "scored column"], n_targets: int
) -> Float[np.ndarray, "scored target"]:
    """The mean over shuffles of the columns that come after the targets themselves."""
    shuffled = values[:, n_targets:].astype(float)
    return shuffled.reshape(len(values), -1, n_targets).mean(1)
