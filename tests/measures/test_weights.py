import numpy as np
import pytest
import tiny
import torch
from basis import reordered

from undo_probe.errors import UndoProbeError
from undo_probe.measures import ItemScores, Statistic
from undo_probe.measures.patching import plain_bits
from undo_probe.measures.stitches import asked_rows
from undo_probe.measures.weights import (
    barrier,
    cosine,
    interpolated,
    path_bits,
    spectrum,
    weight_change,
    weight_measures,
)
from undo_probe.models import HookedTransformer, clone


def scaled(model: HookedTransformer, factor: float) -> HookedTransformer:
    copy = clone(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.mul_(factor)
    return copy


def numbers(found: list[ItemScores | Statistic]) -> dict[tuple[str, str], float | None]:
    return {(f.measure, f.subset): f.value for f in found if isinstance(f, Statistic)}


def test_a_model_is_at_distance_0_from_itself_with_no_barrier() -> None:
    model = tiny.knowing()
    found = weight_measures(model, model, tiny.small_task(), related=True)
    distances = [value for (measure, _), value in numbers(found).items() if measure == "weight_distance"]
    assert len(distances) > 10 and set(distances) == {0.0}
    assert not [f for f in found if f.measure == "change_stable_rank"]
    for item in found:
        if isinstance(item, ItemScores):
            np.testing.assert_allclose(item.values, 0, atol=1e-5)


def test_distances_are_relative_and_cosines_of_opposite_changes_minus_one() -> None:
    model = tiny.knowing()
    found = numbers(weight_measures(scaled(model, 1.5), model, tiny.small_task(), related=True))
    for (measure, _), value in found.items():
        if measure == "weight_distance":
            assert value == pytest.approx(0.5, rel=1e-5)
    up, down = weight_change(scaled(model, 1.5), model), weight_change(scaled(model, 0.8), model)
    assert cosine(up, down) == pytest.approx(-1)
    assert cosine(up, weight_change(model, model)) is None
    other = weight_change(reordered(model), model)
    assert abs(cosine(up, other) or 1) < 1


def test_stable_rank_of_known_matrices() -> None:
    assert spectrum(torch.eye(5)).stable_rank == pytest.approx(5)
    assert spectrum(torch.eye(5)).rank_90 == 5
    one = spectrum(torch.outer(torch.arange(1.0, 4), torch.ones(6)))
    assert (one.stable_rank, one.rank_90) == (pytest.approx(1), 1)
    two = spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.0])))
    assert two.stable_rank == pytest.approx(5 / 4)
    assert two.values == pytest.approx((2, 1, 0))
    with pytest.raises(UndoProbeError, match="did not change"):
        spectrum(torch.zeros(3, 2))


def test_the_line_ends_at_both_models_and_leaves_them_alone() -> None:
    a, b = tiny.knowing(), tiny.half_trained()
    rows = asked_rows(tiny.small_task(), "forget")
    before = plain_bits(a, rows)
    path = path_bits(a, b, rows, [0.0, 1.0])
    np.testing.assert_allclose(path, np.stack([-before, -plain_bits(b, rows)]), atol=1e-6)
    np.testing.assert_array_equal(plain_bits(a, rows), before)
    middle = interpolated(a, b, 0.25)
    name = "blocks.0.mlp.W_in"
    expected = 0.75 * a.get_parameter(name) + 0.25 * b.get_parameter(name)
    torch.testing.assert_close(middle.get_parameter(name), expected)


def test_a_barrier_stands_between_bases_and_not_along_training() -> None:
    """The same function with its coordinates in another order: equal losses at both ends, a wall between."""
    model, rows = tiny.knowing(), asked_rows(tiny.small_task(), "forget")
    wall = barrier(model, reordered(model), rows, "forget")
    near = barrier(model, scaled(model, 0.99), rows, "forget")
    assert wall.values.mean() > 1
    assert near.values.mean() < 0.05
    assert "of the way from the original" in wall.note


def test_no_barrier_is_claimed_for_models_of_other_initial_weights() -> None:
    found = weight_measures(tiny.half_trained(), tiny.knowing(), tiny.small_task(), related=False)
    walls = [f for f in found if f.measure == "barrier"]
    assert [(f.task_split, f.subset) for f in walls] == [("forget", "V"), ("retain", "all")]
    assert all(isinstance(f, Statistic) and f.value is None and "not applicable" in f.note for f in walls)


def test_models_of_other_shapes_are_refused() -> None:
    with pytest.raises(UndoProbeError, match="different tensors"):
        weight_change(tiny.knowing(), tiny.model())
