from functools import cache

import numpy as np
import pytest
import tiny

from undo_probe.config import ProbeConfig
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, cluster_error
from undo_probe.measures.folds import family_folds
from undo_probe.measures.probe_items import ProbeItems, fit_context, probe_items, transfer_accuracy
from undo_probe.measures.probes import best_inner_layer, context_fits, probe_measures

CONFIG = ProbeConfig(folds=4, shuffles=2)
ROWS, WIDTH = 400, 12


class World:
    """Two labels a row: one that the context gives away, one that it does not."""

    def __init__(self, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self.families = np.repeat(np.arange(ROWS // 4), 4)
        self.operations = np.array(["*", "/"])[draw.integers(0, 2, ROWS)]
        self.known, self.hidden = (draw.integers(0, 4, ROWS // 4)[self.families] for _ in range(2))
        self.labels = np.stack([self.known, self.hidden], axis=1)
        self.context = np.concatenate([np.eye(4)[self.known], (self.operations == "*")[:, None]], axis=1)
        self.noise = draw.normal(size=(ROWS, WIDTH))
        self.directions = draw.normal(size=(2, 4, WIDTH))

    def features(self, known: float, hidden: float) -> np.ndarray:
        parts = known * self.directions[0][self.known], hidden * self.directions[1][self.hidden]
        return self.noise + parts[0] + parts[1]

    def items(self, features: np.ndarray) -> ProbeItems:
        args = (self.context, self.labels, self.families, self.operations)
        return probe_items(features, *args, CONFIG, seed=0)


@cache
def world() -> World:
    return World()


def test_a_planted_label_is_read_and_shuffled_labels_are_not() -> None:
    items = world().items(world().features(known=0, hidden=2))
    assert items.accuracy[:, 1].mean() > 0.95
    assert items.bits[:, 1].mean() == pytest.approx(2, abs=0.25)
    assert items.shuffled_accuracy[:, 1].mean() < 0.35
    assert abs(items.shuffled_bits).mean(0).max() < 0.2


def test_what_the_context_says_already_gives_no_bits() -> None:
    items = world().items(world().features(known=2, hidden=0))
    assert items.accuracy[:, 0].mean() > 0.9
    assert abs(items.bits[:, 0].mean()) < 0.02
    assert abs(items.bits[:, 1].mean()) < 0.05


def test_pure_noise_and_constant_states_hold_nothing() -> None:
    noise = world().items(world().noise)
    assert abs(noise.bits.mean(0)).max() < 0.05
    still = world().items(np.ones((ROWS, WIDTH)))
    assert np.isinf(still.penalties).all()
    assert (still.bits == 0).all()


def test_bits_grow_with_the_signal_and_ignore_a_change_of_basis() -> None:
    bits = [world().items(world().features(0, signal)).bits[:, 1].mean() for signal in (0, 0.4, 1.0)]
    assert bits == sorted(bits)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
    features = world().features(0, 1.0)
    # Standardising is not rotation invariant, so the figures agree closely and not exactly.
    assert world().items(features @ turn).bits[:, 1].mean() == pytest.approx(bits[2], abs=0.15)


def test_a_transferred_probe_falls_under_a_change_of_basis_that_a_refitted_one_survives() -> None:
    features = world().features(0, 2)
    turned = np.roll(features, 3, axis=1)
    folds = family_folds(world().families, 4, seed=0)
    assert transfer_accuracy(features, features, world().labels, folds)[:, 1].mean() > 0.95
    assert transfer_accuracy(features, turned, world().labels, folds)[:, 1].mean() < 0.6
    assert world().items(turned).accuracy[:, 1].mean() > 0.95


def test_families_are_not_read_by_heart() -> None:
    # The features name the family, and families alone decide the label: grouped folds must see nothing.
    features = np.random.default_rng(5).normal(size=(ROWS // 4, WIDTH))[world().families] * 5
    assert world().items(features).accuracy[:, 1].mean() < 0.4


def test_a_class_that_training_never_saw_costs_finitely_many_bits() -> None:
    labels = world().labels.copy()
    labels[:4] = 9
    args = (world().context, labels, world().families, world().operations)
    items = probe_items(world().features(1, 1), *args, CONFIG, seed=0)
    assert np.isfinite(items.bits).all() and np.isfinite(items.shuffled_bits).all()


def test_a_context_fitted_once_gives_the_same_scores() -> None:
    w, features = world(), world().features(1, 1)
    folds = family_folds(w.families, CONFIG.folds, 0)
    fit = fit_context(w.context, w.labels, w.operations, folds, CONFIG, 0)
    args = (w.context, w.labels, w.families, w.operations, CONFIG, 0)
    np.testing.assert_array_equal(probe_items(features, *args, fit).bits, probe_items(features, *args).bits)
    few = features[:10], w.context[:10], w.labels[:10], w.families[:10], w.operations[:10]
    with pytest.raises(UndoProbeError, match="fitted on 400 rows, the activations have 10"):
        probe_items(*few, CONFIG, 0, fit)


def test_a_model_is_scored_at_every_layer_on_both_sides_the_same_way_twice() -> None:
    task, config = tiny.task(), ProbeConfig(folds=3, shuffles=1, penalties=(0.1, 1.0), max_rows=150)
    context = context_fits(task, config, seed=0)
    assert {len(entry.rows) <= 150 for entry in context.values()} == {True}
    scores = probe_measures(tiny.model(), task, config, 0, context)
    again = probe_measures(tiny.model(), task, config, 0)
    assert [score.measure for score in scores] == [score.measure for score in again]
    assert all(np.array_equal(a.values, b.values) for a, b in zip(scores, again, strict=True))
    found = {(s.measure, s.task_split, s.subset, s.layer) for s in scores}
    layers = ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    for split in ("forget", "retain"):
        for target in task.probe_targets:
            assert ("context_accuracy", split, target, None) in found
            assert {
                (m, split, target, la) for m in ("probe_accuracy", "probe_bits") for la in layers
            } <= found
    # Every row reads "=" at one position: before the first block nothing of the prompt is there.
    start = [s for s in scores if s.layer == layers[0] and s.measure == "probe_bits"]
    assert all((s.values == 0).all() for s in start)
    assert all(s.control == "shuffled labels" and s.control_value is not None for s in start)


def test_development_probes_score_d_only_and_choose_an_inner_layer() -> None:
    task, config = tiny.task(), ProbeConfig(shuffles=1, penalties=(0.1, 1.0))
    scores = probe_measures(tiny.model(), task, config, 0, context_fits(task, config, 0, development=True))
    assert {len(score.values) for score in scores} == {len(task.rows("forget_D"))}
    assert best_inner_layer(scores) in ("blocks.0.hook_resid_pre", "blocks.0.hook_resid_post")
    with pytest.raises(UndoProbeError, match="no inner layer"):
        best_inner_layer([])


def test_the_cluster_error_is_that_of_family_means() -> None:
    draw = np.random.default_rng(0)
    means = draw.normal(size=50)
    values, families = np.repeat(means, 3), np.repeat(np.arange(50), 3)
    assert cluster_error(values, families) == pytest.approx(means.std(ddof=1) / np.sqrt(50))
    assert np.isnan(cluster_error(values[:3], families[:3]))


def test_scores_that_have_no_mean_are_refused() -> None:
    with pytest.raises(UndoProbeError, match="not finite"):
        ItemScores("m", "forget", "s", None, "share", np.array([np.inf]), np.array(["a"]))
    with pytest.raises(UndoProbeError, match="2 values for 1 rows"):
        ItemScores("m", "forget", "s", None, "share", np.ones(2), np.array(["a"]))
