"""What a sweep of attacks says, worked by hand and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undo_probe.attacks.envelope import AttackTable, extended, halves
from undo_probe.config import AttackConfig
from undo_probe.errors import UndoProbeError

RATES, STEPS = (1e-4, 1e-3, 1e-2), (0, 10, 20)


def table(
    forget: np.ndarray, retain: np.ndarray | None = None, half: np.ndarray | None = None
) -> AttackTable:
    """Rows are families; ``forget`` is rate x seed x step x row."""
    rows = forget.shape[-1]
    retain = np.ones((*forget.shape[:3], 4), dtype=bool) if retain is None else retain
    half = np.arange(rows) % 2 if half is None else half
    families = np.array([f"family {row:03d}" for row in range(rows)])
    return AttackTable(RATES[: forget.shape[0]], STEPS[: forget.shape[2]], forget, retain, families, half)


# rate x step x row; rows 0 and 2 are half 0, rows 1 and 3 half 1
BY_HAND = np.array(
    [
        [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]],  # this rate only ever helps half 0
        [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1]],  # this one only half 1
        [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]],
    ],
    dtype=bool,
)[:, None]


def test_the_running_maximum_of_an_example_worked_by_hand() -> None:
    found = table(BY_HAND).cumulative_max()
    # step 10: half 1 (rows 1, 3) chooses rate 1, at which rows 0 and 2 are wrong; half 0 chooses rate 0
    assert found[1].tolist() == [0, 0, 0, 0]
    # step 20: half 1's best is rate 1 at step 10 (both rows right; the earliest of equals): rows 0, 2 wrong.
    # half 0 is fully right at rates 0 and 2 by step 20; the lower rate is taken: rows 1, 3 wrong
    assert found[2].tolist() == [0, 0, 0, 0]
    assert found[0].tolist() == [0, 0, 0, 0]
    # the plain maximum would have said 3/4
    assert BY_HAND.mean(axis=(1, 3)).max() == 0.75


def test_a_rate_that_is_best_on_both_halves_is_reported_as_it_is() -> None:
    forget = BY_HAND.copy()
    forget[1] = False
    forget[2, 0, 1] = [1, 1, 1, 1]
    found = table(forget).cumulative_max()
    assert found[1].tolist() == found[2].tolist() == [1, 1, 1, 1]
    assert found[0].tolist() == [0, 0, 0, 0]


def test_a_point_once_reached_stays_reached_though_the_envelope_falls_again() -> None:
    forget = np.zeros((1, 1, 3, 4), dtype=bool)
    forget[0, 0, 1] = True  # reached at step 10, lost again at step 20
    assert table(forget).cumulative_max().mean(axis=1).tolist() == [0, 1, 1]


def test_attack_seeds_are_averaged_before_anything_is_chosen() -> None:
    forget = np.zeros((2, 2, 2, 4), dtype=bool)
    forget[0, 0, 1] = True  # rate 0 is right with one seed only, rate 1 on three of four rows with both
    forget[1, :, 1, :3] = True
    found = table(forget)
    assert found.at_rate(1e-4)[1].tolist() == [0.5] * 4
    assert found.best_rate() == 1e-3
    # half 1 (rows 1, 3): 0.5 against 0.5, the lower rate; half 0 (rows 0, 2): 0.5 against 1
    assert found.cumulative_max()[1].tolist() == [0.5, 1, 0.5, 0]


def test_on_pure_noise_the_crossed_maximum_is_unbiased_and_the_plain_one_is_not() -> None:
    """Every rate fails alike: a model that relearns nothing must not seem to because rates are many."""
    draw = np.random.default_rng(0)
    truth, crossed, plain = 0.2, [], []
    for _ in range(400):
        forget = draw.random((5, 1, 9, 40)) < truth
        found = AttackTable(
            (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
            tuple(range(9)),
            forget,
            np.ones((5, 1, 9, 2), dtype=bool),
            np.array([str(row) for row in range(40)]),
            np.arange(40) % 2,
        )
        crossed.append(found.cumulative_max().mean(axis=1))
        plain.append(np.maximum.accumulate(forget[:, 0].mean(axis=2), axis=1).max(axis=0))
    error = np.std(crossed, axis=0) / np.sqrt(400)
    assert (np.abs(np.mean(crossed, axis=0) - truth) < 4 * error).all()
    assert np.mean(plain, axis=0)[-1] > truth + 0.1


def test_where_rates_differ_the_crossed_maximum_finds_the_best_one() -> None:
    draw = np.random.default_rng(1)
    chances = np.array([0.1, 0.6, 0.2])[:, None, None, None] * np.array([0, 0.5, 1])[None, None, :, None]
    found = [table(draw.random((3, 1, 3, 200)) < chances).cumulative_max().mean(axis=1) for _ in range(30)]
    np.testing.assert_allclose(np.mean(found, axis=0), [0, 0.3, 0.6], atol=0.02)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6))
def test_every_value_is_between_the_smallest_and_the_plain_maximum(seed: int) -> None:
    forget = np.random.default_rng(seed).random((3, 2, 3, 10)) < 0.4
    average = forget.mean(axis=1)
    found = table(forget).cumulative_max()
    highest = np.maximum.accumulate(average, axis=1).max(axis=0)
    assert (found <= highest + 1e-12).all()
    assert (found >= 0).all()
    # before the attack the rates do not differ, so nothing is chosen
    forget[:, :, 0] = forget[:1, :1, 0]
    np.testing.assert_array_equal(table(forget).cumulative_max()[0], forget[0, 0, 0])


def test_rows_that_do_not_take_part_are_nan_and_decide_nothing() -> None:
    keep = np.array([True, True, False, False])
    forget = BY_HAND.copy()
    without = table(forget).cumulative_max(keep)
    assert np.isnan(without[:, ~keep]).all()
    forget[..., 2:] = ~forget[..., 2:]
    np.testing.assert_array_equal(table(forget).cumulative_max(keep)[:, keep], without[:, keep])
    assert table(BY_HAND).best_rate(np.array([True, False, True, False])) == 1e-4
    assert table(BY_HAND).best_rate(np.array([False, True, False, True])) == 1e-3


def test_the_utility_limit_leaves_out_points_at_which_retain_was_lost() -> None:
    forget = np.zeros((2, 1, 3, 4), dtype=bool)
    forget[0, 0, 1:, :2] = True  # careful: half of the rows
    forget[1, 0, 1:] = True  # all of them, but retain breaks at step 20
    retain = np.ones((2, 1, 3, 10), dtype=bool)
    retain[1, 0, 1, :1] = False
    retain[1, 0, 2, :6] = False
    found = table(forget, retain)
    assert found.cumulative_max()[2].mean() == 1
    assert found.cumulative_max(utility=0.9)[2].mean() == 1  # step 10 kept exactly nine tenths
    assert found.cumulative_max(utility=0.95)[2].mean() == 0.5
    retain[:, 0, 1:] = False
    nothing = table(forget, retain).cumulative_max(utility=0.9)
    assert nothing.mean() == 0  # only the model before the attack is left


def test_the_utility_limit_is_a_share_of_what_the_model_had() -> None:
    forget = np.zeros((1, 1, 2, 4), dtype=bool)
    forget[0, 0, 1] = True
    retain = np.zeros((1, 1, 2, 10), dtype=bool)
    retain[0, 0, 0, :5] = True
    retain[0, 0, 1, :4] = True  # four fifths of what there was
    assert table(forget, retain).cumulative_max(utility=0.8)[1].mean() == 1
    assert table(forget, retain).cumulative_max(utility=0.9)[1].mean() == 0


def reaching(*shares: float, rows: int = 100) -> AttackTable:
    forget = np.zeros((3, 1, 2, rows), dtype=bool)
    for rate, share in enumerate(shares):
        forget[rate, 0, 1, : round(share * rows)] = True
    return table(forget)


def test_a_best_rate_inside_the_grid_is_no_edge() -> None:
    assert reaching(0.2, 0.8, 0.3).edge() == 0


def test_a_best_rate_at_the_end_is_an_edge_on_that_side() -> None:
    assert reaching(0.8, 0.4, 0.1).edge() == -1
    assert reaching(0.1, 0.4, 0.8).edge() == 1


def test_a_best_rate_at_the_end_by_less_than_a_standard_error_is_no_edge() -> None:
    assert reaching(0.1, 0.50, 0.53).edge() == 0
    assert reaching(0.1, 0.50, 0.57).edge() == 1


def test_a_model_that_relearns_nothing_asks_for_no_further_rate() -> None:
    assert reaching(0.0, 0.0, 0.0).edge() == 0


def test_without_a_rate_inside_there_is_no_edge_to_judge() -> None:
    forget = np.zeros((2, 1, 2, 4), dtype=bool)
    forget[1, 0, 1] = True
    assert table(forget).edge() == 0


def test_only_rows_that_count_decide_about_the_edge() -> None:
    forget = np.zeros((3, 1, 2, 100), dtype=bool)
    forget[2, 0, 1, :50] = True
    forget[1, 0, 1, 50:] = True
    core = np.arange(100) >= 50
    assert table(forget).edge(core) == 0
    assert table(forget).edge(~core) == 1


def edge_table(side: int) -> AttackTable:
    forget = np.zeros((3, 1, 2, 200), dtype=bool)
    forget[1 + side, 0, 1] = True
    families = np.array([str(row) for row in range(200)])
    return AttackTable((1e-4, 1e-3, 1e-2), (0, 5), forget, forget[..., :5], families, np.arange(200) % 2)


CORE = np.ones(200, dtype=bool)
GRID = AttackConfig(learning_rates=(1e-4, 1e-3, 1e-2), max_extensions=2)


def grown(rates: list[float], *sides: int, config: AttackConfig = GRID) -> list[float]:
    return extended(rates, [edge_table(side) for side in sides], config, CORE)


def test_a_best_rate_at_the_edge_grows_the_grid_by_three_on_that_side() -> None:
    rates = list(GRID.learning_rates)
    assert grown(rates, 0) == rates
    assert grown(rates, 0, 1) == [*rates, 3e-2]
    assert grown(rates, -1) == [3.33e-5, *rates]
    assert grown(rates, -1, 1) == [3.33e-5, *rates, 3e-2]


@pytest.mark.parametrize("side", [-1, 1])
def test_the_grid_stops_growing_after_the_allowed_extensions(side: int) -> None:
    rates = list(GRID.learning_rates)
    seen = [rates]
    while (longer := grown(seen[-1], side)) != seen[-1]:
        seen.append(longer)
    assert [len(found) for found in seen] == [3, 4, 5]
    none = GRID.model_copy(update={"max_extensions": 0})
    assert grown(rates, side, config=none) == rates


def test_the_grid_does_not_grow_past_what_a_rate_may_be() -> None:
    high = AttackConfig(learning_rates=(0.1, 0.3, 0.5), max_extensions=2)
    assert grown(list(high.learning_rates), 1, config=high) == [0.1, 0.3, 0.5]


def test_halves_divide_whole_families_evenly_and_by_seed() -> None:
    families = np.repeat([f"f{n}" for n in range(21)], [1 + n % 4 for n in range(21)])
    side = halves(families, seed=0)
    for family in set(families):
        assert len(set(side[families == family])) == 1
    counts = [len(set(families[side == half])) for half in (0, 1)]
    assert sorted(counts) == [10, 11]
    assert np.array_equal(side, halves(families, seed=0))
    assert not np.array_equal(side, halves(families, seed=1))
    order = np.random.default_rng(3).permutation(len(families))
    assert np.array_equal(halves(families[order], seed=0), side[order])


def test_one_family_cannot_be_halved() -> None:
    with pytest.raises(UndoProbeError, match="V has 1 families: at least 2 are needed"):
        halves(["a", "a"], seed=0)


def test_a_rate_that_was_not_run_is_refused_with_those_that_were() -> None:
    with pytest.raises(
        UndoProbeError, match=r"no attack was run at rate 0\.5: there are 0\.0001, 0\.001, 0\.01"
    ):
        table(BY_HAND).at_rate(0.5)
    with pytest.raises(UndoProbeError, match=r"no attack was run at rate 0\.5"):
        table(BY_HAND).retain_at(0.5)


def test_scores_that_are_numbers_are_chosen_like_right_and_wrong() -> None:
    """Scores in bits may lie below any share: what must not be chosen is below them all."""
    draw = np.random.default_rng(0)
    forget = draw.normal(-5.0, 1.0, size=(3, 2, 3, 40))
    retain = np.full((3, 2, 3, 4), 0.5)
    retain[:, :, 1:] = 0.1  # every attack wrecks what should stay
    retain[1, :, 1] = 0.46
    found = table(forget, retain)
    averaged = forget.mean(axis=1)
    limited = found.cumulative_max(utility=0.9)
    allowed = [averaged[rate, 0] for rate in range(3)] + [averaged[1, 1]]
    for row in range(40):
        assert any(np.isclose(limited[2, row], option[row]) for option in allowed)
    assert found.best_rate() == RATES[int(averaged.mean(axis=2).max(axis=1).argmax())]


@pytest.mark.parametrize(("gain", "side"), [(0.0, 0), (0.05, 0), (3.0, 1)])
def test_an_edge_of_numbers_counts_only_beyond_the_spread_of_families(gain: float, side: int) -> None:
    spread = np.random.default_rng(1).normal(size=40)
    forget = np.broadcast_to(spread, (3, 1, 3, 40)).copy()
    forget[1, :, 2] += 0.01
    forget[2, :, 2] += gain
    assert table(forget).edge() == side
