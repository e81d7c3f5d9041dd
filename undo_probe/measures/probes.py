"""What a linear probe reads from the residual stream, beyond what the prompt itself says.

For every layer and target, on families the probe has not seen: accuracy of a probe on the residual stream,
and conditional V-information in bits (Hewitt et al. 2021, with linear predictors): how much more probable
the true label becomes when the residual stream is added to the operand digits. Beside them stand the
prompt-only probe, the best constant by operation, and probes on labels shuffled within each operation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from undo_probe.activations import residual_streams
from undo_probe.config import ProbeConfig
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, cluster_error
from undo_probe.measures.folds import Fold, codes, family_folds, held_out_fold, sample_families
from undo_probe.measures.probe_items import ContextFit, ProbeItems, fit_context, over_shuffles, probe_items
from undo_probe.models import HookedTransformer
from undo_probe.randomness import derive_seed
from undo_probe.tasks.protocol import Task, TokenSet, join


@dataclass(frozen=True, eq=False)
class ProbeRows:
    """The rows of one side of a task that are probed, with everything that does not depend on the model."""

    split: str
    rows: TokenSet
    targets: tuple[str, ...]
    fit: ContextFit


def context_fits(
    task: Task, config: ProbeConfig, seed: int, development: bool = False
) -> dict[str, ProbeRows]:
    """Rows, folds, shuffles and prompt-only probes of the forget and the retain side.

    The forget side is T and V together; the retain side is the held-out rows and, up to
    ``config.max_rows``, families of the training rows. With ``development`` there is one entry instead,
    which trains on T and V and scores D, for choosing a layer.
    """
    if development:
        known = join("forget_TV", task.rows("forget_T"), task.rows("forget_V"))
        rows = join("development", known, task.rows("forget_D"))
        test = np.arange(len(known), len(rows))
        fold = held_out_fold(rows.families, test, derive_seed(seed, "probe development"))
        return {"development": _probe_rows(task, "forget", rows, [fold], config, seed)}
    entries = {}
    for split in ("forget", "retain"):
        rows = side_rows(task, split, config.max_rows, seed)
        folds = family_folds(rows.families, config.folds, derive_seed(seed, "probe folds", split))
        entries[split] = _probe_rows(task, split, rows, folds, config, seed)
    return entries


def side_rows(task: Task, split: str, max_rows: int, seed: int) -> TokenSet:
    """Rows on which the states of one side are measured: T and V, or held-out retain and some of the rest."""
    if split == "forget":
        rows = join("forget_TV", task.rows("forget_T"), task.rows("forget_V"))
        return rows.select(sample_families(rows.families, max_rows, seed))
    held, rest = task.rows("retain_test"), task.rows("retain_train")
    held = held.select(sample_families(held.families, max_rows, seed))
    extra = sample_families(rest.families, max(max_rows - len(held), 0), seed)
    return join("retain_rows", held, rest.select(extra)) if len(extra) else held


def probe_measures(
    model: HookedTransformer,
    task: Task,
    config: ProbeConfig,
    seed: int,
    context: Mapping[str, ProbeRows] | None = None,
) -> list[ItemScores]:
    """Probes at every layer on both sides, read at the last prompt token.

    Args:
        model: left as it is.
        task: gives rows, targets and prompt features.
        config: folds, penalties, shuffles.
        seed: of folds and shuffles.
        context: what :func:`context_fits` returned, to share it between models.

    Returns:
        ``probe_accuracy`` (control: shuffled labels) and ``probe_bits`` (control: the same with shuffled
        labels) for each layer and target, and once a target ``context_accuracy`` (control: the best constant
        by operation). A failed control is named in ``note``.
    """
    known = context or context_fits(task, config, seed)
    scores: list[ItemScores] = []
    for entry in known.values():
        rows = entry.rows
        streams = residual_streams(model, rows.tokens, rows.read_position)
        families, operations = rows.families, rows.labels["operation"].to_numpy()
        labels = entry.fit.labels[:, : entry.fit.n_targets]
        scores += _context_scores(entry)
        for layer, states in streams.items():
            features = states[:, 0].double().numpy()
            items = probe_items(
                features, entry.fit.context, labels, families, operations, config, seed, entry.fit
            )
            scores += _layer_scores(entry, layer, items)
    return scores


def best_inner_layer(items: Sequence[ItemScores], measure: str = "probe_bits") -> str:
    """The layer before the last with the highest mean score over targets.

    Args:
        items: scores of the original on development rows (``context_fits(..., development=True)``).
        measure: which of the scores decides.

    Raises:
        UndoProbeError: there is no inner layer among the scores.
    """
    layers = list(dict.fromkeys(item.layer for item in items if item.measure == measure and item.layer))
    if len(layers) < 2:
        raise UndoProbeError(f"no inner layer to choose: {measure} was scored at {layers or 'no layer'}")
    mean = {
        layer: float(np.mean([i.values.mean() for i in items if i.measure == measure and i.layer == layer]))
        for layer in layers[:-1]
    }
    return max(mean, key=lambda layer: mean[layer])


def _probe_rows(
    task: Task, split: str, rows: TokenSet, folds: Sequence[Fold], config: ProbeConfig, seed: int
) -> ProbeRows:
    labels, _ = codes([rows.labels[target].to_numpy() for target in task.probe_targets])
    context = np.asarray(task.context_features(rows), dtype=float)
    operations = rows.labels["operation"].to_numpy()
    fit = fit_context(context, labels, operations, folds, config, derive_seed(seed, "probe", split))
    return ProbeRows(split, rows, task.probe_targets, fit)


def _context_scores(entry: ProbeRows) -> list[ItemScores]:
    fit, families = entry.fit, entry.rows.families[entry.fit.scored]
    return [
        ItemScores(
            "context_accuracy", entry.split, target, None, "share", fit.correct[:, i].astype(float), families,
            "constant by operation", float(fit.constant_by_operation[:, i].mean()),
        )
        for i, target in enumerate(entry.targets)
    ]  # fmt: skip


def _layer_scores(entry: ProbeRows, layer: str, items: ProbeItems) -> list[ItemScores]:
    fit, families = entry.fit, entry.rows.families[entry.fit.scored]
    by_operation = over_shuffles(fit.constant_by_operation, fit.n_targets)
    majority = over_shuffles(fit.constant, fit.n_targets)
    scores = []
    for i, target in enumerate(entry.targets):
        control, floor = items.shuffled_accuracy[:, i], fit.correct[:, i].mean()
        note = f"prompt-only {floor:.3f}, majority {fit.constant[:, i].mean():.3f}"
        verdict = control_verdict(control, by_operation[:, i], majority[:, i], families)
        note += f"; {verdict}" if verdict else ""
        named = (entry.split, target, layer)
        shuffled = float(items.shuffled_bits[:, i].mean())
        scores += [
            ItemScores("probe_accuracy", *named, "share", items.accuracy[:, i], families, "shuffled labels",
                       float(control.mean()), note),
            ItemScores("probe_bits", *named, "bits", items.bits[:, i], families, "shuffled labels", shuffled),
        ]  # fmt: skip
    return scores


def control_verdict(
    control: np.ndarray, by_operation: np.ndarray, majority: np.ndarray, families: np.ndarray
) -> str:
    """A note where shuffled labels are read better than either constant, or worse than the majority."""

    def exceeds(a: np.ndarray, b: np.ndarray) -> bool:
        return bool((a - b).mean() > 2 * cluster_error(a - b, families))

    if exceeds(control, by_operation) and exceeds(control, majority):
        return "control fails: shuffled labels are read better than by the best constant"
    if exceeds(majority, control):
        return "control fails: the probe of shuffled labels is below the majority (over-fitted)"
    return ""
