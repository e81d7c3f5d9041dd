import numpy as np
import pytest
import tiny
import torch

from undo_probe.activations import residual_streams
from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.drift import cka_interval, drift, drift_measures, row_distances


def test_a_model_has_not_drifted_from_itself() -> None:
    model, rows = tiny.model(), tiny.task().rows("forget_T")
    for found in drift(model, model, rows, "forget", [3, 6]):
        if isinstance(found, Statistic):
            assert found.value is None or found.value == pytest.approx(1)
            continue
        expected = {"norm_ratio": 1, "relative_distance": 0, "cosine": 1}[found.measure]
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        assert found.subset in ("=", "pos 3")


def test_row_distances_equal_their_definitions() -> None:
    h, h0 = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 10.0], [2.0, 0.0]])
    values = {name: v for name, _, v in row_distances(h, h0)}
    np.testing.assert_allclose(values["norm_ratio"], [0.5, 0])
    np.testing.assert_allclose(values["relative_distance"], [np.sqrt(45) / 10, 1])
    np.testing.assert_allclose(values["cosine"], [0.8, 0])


def test_rotation_moves_cosines_and_not_cka() -> None:
    states = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    turned = states @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    families = np.repeat(np.arange(25), 4)
    value, low, high = cka_interval(turned, states, families)
    assert value == pytest.approx(1, abs=1e-5) and high - low < 1e-4
    assert abs(dict((n, v) for n, _, v in row_distances(turned, states))["cosine"].mean()) < 0.5


def test_the_cka_interval_covers_and_widens_with_clusters() -> None:
    draw = np.random.default_rng(0)

    def pair(families: int) -> tuple[torch.Tensor, torch.Tensor]:
        # Rows of a family are copies: 5 rows add no information to one.
        x = np.repeat(draw.normal(size=(families, 4)), 5, axis=0)
        y = x + np.repeat(draw.normal(size=(families, 4)), 5, axis=0)
        return torch.from_numpy(x), torch.from_numpy(y)

    inside, widths = 0, {20: [], 80: []}
    large = cka_interval(*pair(2000), np.repeat(np.arange(2000), 5))[0]
    for families in widths:
        for _ in range(40):
            value, low, high = cka_interval(*pair(families), np.repeat(np.arange(families), 5))
            widths[families].append(high - low)
            inside += families == 80 and low <= large <= high
    assert inside >= 33
    assert np.mean(widths[80]) < 0.7 * np.mean(widths[20])


def test_few_rows_and_still_states_are_flagged() -> None:
    model, other, rows = tiny.model(0), tiny.model(1), tiny.task().rows("forget_D")
    found = [f for f in drift(model, other, rows, "forget", [6]) if isinstance(f, Statistic)]
    assert "same state" in found[0].note and found[0].value is None
    assert f"{len(rows)} rows are fewer than 80" in found[1].note
    assert found[1].n_clusters == len(np.unique(rows.families))


def test_reference_states_may_be_given_and_must_fit() -> None:
    model, original, rows = tiny.model(0), tiny.model(1), tiny.task().rows("forget_V")
    states = residual_streams(original, rows.tokens, [6])
    given = drift(model, original, rows, "forget", [6], states)
    asked = drift(model, original, rows, "forget", [6])
    for a, b in zip(given, asked, strict=True):
        if isinstance(a, ItemScores) and isinstance(b, ItemScores):
            np.testing.assert_array_equal(a.values, b.values)
    with pytest.raises(UndoProbeError, match="differ in shape"):
        drift(model, tiny.model(0, d_model=8), rows, "forget", [6])


def test_both_sides_are_reported_at_every_prompt_position() -> None:
    found = drift_measures(tiny.model(0), tiny.model(1), tiny.task(), seed=0, max_rows=60)
    assert {f.task_split for f in found} == {"forget", "retain"}
    assert {f.subset for f in found} == {"=", *(f"pos {i}" for i in range(6))}
    assert len(found) == 2 * 3 * 7 * 4
