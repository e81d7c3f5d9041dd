"""Linear probes on harvested activations: what each layer says about a label, with its controls, as one table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from undo_probe import intervals
from undo_probe.activation_store import ActivationStore
from undo_probe.config import ProbeConfig
from undo_probe.errors import UndoProbeError
from undo_probe.measures.folds import codes, family_folds
from undo_probe.measures.probe_items import ContextFit, ProbeItems, fit_context, over_shuffles, probe_items
from undo_probe.measures.probes import control_verdict
from undo_probe.randomness import derive_seed

if TYPE_CHECKING:
    import pandas as pd

Column = Shaped[np.ndarray, " item"] | Shaped[Tensor, " item"] | Sequence[Any]


def probe(
    store: ActivationStore,
    labels: "Column | pd.Series | Mapping[str, Column] | pd.DataFrame",
    groups: Column,
    position: int | None = None,
    context: Any = None,
    strata: Column | None = None,
    config: ProbeConfig | None = None,
    seed: int = 0,
) -> "pd.DataFrame":
    """Probes at every hook point of a store, scored on groups they have not seen.

    Args:
        store: what :func:`undo_probe.harvest` made.
        labels: one label an item, or several columns of them by name.
        groups: one an item: items of a group are never on both sides of a split, and intervals are over groups.
        position: probe the items at this position only (negative from the end); labels and groups then have one
            entry a row.
        context: features of the prompt, (item, feature). Bits are what the activation adds to them; without, to
            the labels' frequencies.
        strata: shuffled labels stay within these, one an item; by default all may change places.
        config: folds, penalties and shuffles.
        seed: of folds and shuffles, the same for every store.

    Returns:
        A line a hook point and label: ``accuracy`` and ``bits`` (V-information; Hewitt et al. 2021) with 95 %
        intervals; their controls, probes of shuffled labels; ``majority`` and ``context_accuracy``, which need no
        activation; n and the number of groups; and what is wrong with a control in ``note``.

    Raises:
        UndoProbeError: labels, groups, context or strata do not have one entry an item; a label has one class; there
            are fewer groups than folds.
    """
    import pandas as pd

    settings = config or ProbeConfig()
    count = len(store.read(store.points[0], position=position))
    columns = _columns(labels)
    families = np.asarray(groups)
    # a feature that never changes says nothing, and the solver wants one
    given = np.zeros((count, 1)) if context is None else np.asarray(context, dtype=float)
    within = np.zeros(count) if strata is None else np.asarray(strata)
    rest = {"groups": families, "context": given, "strata": within}
    _check_lengths(store, count, position, [*columns.items(), *rest.items()])
    classes, _ = codes(list(columns.values()))
    folds = family_folds(families, settings.folds, derive_seed(seed, "probe folds"))
    fit = fit_context(given, classes, within, folds, settings, derive_seed(seed, "probe"))
    lines = []
    for point in store.points:
        features = store.read(point, position=position).flatten(1).double().numpy()
        items = probe_items(features, given, classes, families, within, settings, seed, fit)
        lines += _lines(point, list(columns), items, fit, families[fit.scored], seed)
    return pd.DataFrame(lines)


def _columns(labels: Any) -> dict[str, np.ndarray]:
    import pandas as pd

    alone = str(labels.name or "label") if isinstance(labels, pd.Series) else "label"
    named = labels.items() if isinstance(labels, Mapping | pd.DataFrame) else [(alone, labels)]
    columns = {str(name): np.asarray(column) for name, column in named}
    for name, column in columns.items():
        if column.ndim != 1 or len(np.unique(column)) < 2:
            raise UndoProbeError(
                f"{name} has shape {column.shape} and {len(np.unique(column))} classes: a probe tells at least two "
                "apart, one label an item; give several labels as a dict or a DataFrame"
            )
    return columns


def _check_lengths(
    store: ActivationStore, count: int, position: int | None, columns: Sequence[tuple[str, np.ndarray]]
) -> None:
    for name, column in columns:
        if len(column) != count:
            kept = sorted(set(store.positions.tolist()))
            raise UndoProbeError(
                f"{name} has {len(column)} entries for {count} items ({store.layout.rows} rows, "
                f"{f'{len(kept)} positions' if position is None else f'position {position}'}): give one an item, or "
                f"one position to probe, such as position={kept[-1]}"
            )


def _lines(
    point: str, names: Sequence[str], items: ProbeItems, fit: ContextFit, families: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    by_stratum = over_shuffles(fit.constant_by_operation, fit.n_targets)
    majority = over_shuffles(fit.constant, fit.n_targets)
    lines = []
    for i, name in enumerate(names):
        accuracy = intervals.proportion(items.accuracy[:, i], families)
        bits = intervals.mean_interval(items.bits[:, i], families, seed=seed)
        control = items.shuffled_accuracy[:, i]
        lines.append(
            {
                "layer": point,
                "label": name,
                "accuracy": accuracy.value,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
                "shuffled_accuracy": control.mean(),
                "majority": fit.constant[:, i].mean(),
                "context_accuracy": fit.correct[:, i].mean(),
                "bits": bits.value,
                "bits_low": bits.low,
                "bits_high": bits.high,
                "shuffled_bits": items.shuffled_bits[:, i].mean(),
                "n": accuracy.n,
                "groups": accuracy.n_clusters,
                "note": control_verdict(control, by_stratum[:, i], majority[:, i], families),
            }
        )
    return lines
