import numpy as np
import pytest
import torch

from undo_probe.linalg import linear_cka, principal_angles, procrustes_distance
from undo_probe.measures.geometry import (
    Floored,
    Named,
    compact,
    halvings,
    row_geometry,
    shape_geometry,
    spread,
)

FAMILIES = np.repeat(np.arange(30), 4)
NAMED = Named("forget", "", "blocks.0.hook_resid_post")


def normal(seed: int, rows: int = 120, width: int = 12) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(x: torch.Tensor, y: torch.Tensor, families: np.ndarray = FAMILIES) -> dict[str, Floored]:
    halves = halvings(families, 0)
    found = [*row_geometry(x, y, families, halves, NAMED), *shape_geometry(x, y, families, halves, NAMED)]
    return {each.scores.measure: each for each in found}


def level(found: dict[str, Floored], measure: str) -> float:
    scores = found[measure].scores
    values = getattr(scores, "values", None)
    value = scores.value if values is None else values.mean()  # pyright: ignore[reportAttributeAccessIssue]
    assert value is not None
    return float(value)


def test_equal_states_are_no_distance_apart() -> None:
    found = read(normal(0), normal(0))
    for measure in ("relative_distance", "mean_shift", "shift_share", "procrustes", "subspace_angle"):
        assert level(found, measure) == pytest.approx(0, abs=1e-6)
    for measure in ("cka", "cosine", "norm_ratio"):
        assert level(found, measure) == pytest.approx(1)


def test_a_rotation_moves_cosines_but_neither_cka_nor_procrustes() -> None:
    x, y = normal(0) * torch.linspace(3, 0.3, 12), normal(1)
    y = x + 0.5 * y
    turn = torch.linalg.qr(normal(2, 12))[0]
    plain, turned = read(x, y), read(x @ turn, y)
    for measure in ("cka", "procrustes"):
        assert level(turned, measure) == pytest.approx(level(plain, measure))
    for measure in ("cosine", "relative_distance", "subspace_angle"):
        assert abs(level(turned, measure) - level(plain, measure)) > 0.1


def test_one_shift_is_all_of_the_shift_and_shifts_apart_share_none() -> None:
    y, step = normal(0), torch.ones(12).double()
    found = read(y + step, y)
    assert level(found, "shift_share") == pytest.approx(1)
    assert level(found, "mean_shift") == pytest.approx(float(step.norm() / y.norm(dim=1).mean()))
    assert level(read(y + normal(3), y), "shift_share") < 3 / 12


def test_the_floor_of_the_mean_is_what_two_halves_of_the_prompts_are_apart() -> None:
    y = normal(0) + 5 * normal(1, 30).repeat_interleave(4, 0)
    halves = halvings(FAMILIES, 0)
    apart = max(float((y[half].mean(0) - y[~half].mean(0)).norm()) for half in halves)
    found = read(y + 0.01, y)["mean_shift"]
    floor = found.floor
    assert floor is not None and floor == pytest.approx(apart / float(y.norm(dim=1).mean()))
    assert level({"mean_shift": found}, "mean_shift") < floor  # a shift far below what other prompts would do


def test_halves_are_of_whole_families_and_too_few_have_none() -> None:
    halves = halvings(FAMILIES, 0)
    for half in halves:
        assert all(len(set(half[FAMILIES == family])) == 1 for family in range(30))
        assert half.sum() == 60
    assert halvings(np.repeat(np.arange(7), 10), 0) == []
    assert spread(np.arange(5.0), []) is None
    assert spread(np.array([1.0, 3.0]), [np.array([True, False])]) == 2


def test_fewer_dimensions_change_no_angle_and_no_distance() -> None:
    x, y = normal(0, 20, 100), normal(1, 20, 100)
    y = x + y
    small = compact(x, y)
    assert small[0].shape == (20, 40)
    torch.testing.assert_close((small[0] - small[1]).norm(dim=1), (x - y).norm(dim=1))
    for measure in (linear_cka, procrustes_distance):
        assert measure(*small) == pytest.approx(measure(x, y))
    angles = [
        principal_angles(*(torch.linalg.svd(s, full_matrices=False)[2][:4].T for s in pair))
        for pair in (small, (x, y))
    ]
    torch.testing.assert_close(*angles)


def test_rows_that_do_not_differ_have_no_likeness_and_say_so() -> None:
    still = torch.ones(120, 12).double()
    found = read(still, still)
    for measure in ("cka", "procrustes", "subspace_angle"):
        scores = found[measure].scores
        assert scores.value is None and "same state" in scores.note  # pyright: ignore[reportAttributeAccessIssue]


def test_widths_may_differ_where_no_basis_is_needed() -> None:
    found = shape_geometry(normal(0, width=7), normal(0), FAMILIES, halvings(FAMILIES, 0), NAMED)
    assert [each.scores.measure for each in found] == ["cka", "procrustes"]
