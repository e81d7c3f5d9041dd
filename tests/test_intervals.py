"""Intervals cover what they promise, agree with independent references, and refuse what has no answer."""

import zlib
from collections.abc import Callable
from itertools import combinations, permutations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from undo_probe import intervals
from undo_probe.errors import UndoProbeError

Array = NDArray[np.float64]
PROMISED = 0.93  # of intervals stated at 95 %
SIMULATIONS = 4000
PAIRED = 1500  # of two or three arms, whose samples seldom recur


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def t_test(values: Array, mean: float = 0.0, alternative: str = "two-sided") -> Array:
    result: Any = stats.ttest_1samp(values, mean, axis=-1, alternative=alternative)
    return result.pvalue


def outcome_rows(k: int, size: int, share: float, seed: int = 0) -> tuple[Array, NDArray[np.intp]]:
    """0/1 rows with a rate of their own in each of k clusters."""
    random = rng(seed)
    rates = np.repeat(random.beta(3 * share, 3 * (1 - share), k), size)
    return (random.random(k * size) < rates).astype(float), np.repeat(np.arange(k), size)


# --- Proportions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hits", "n"), [(1, 10), (7, 9), (50, 200), (199, 200)])
def test_proportion_of_independent_rows_is_clopper_pearson(hits: int, n: int) -> None:
    found = intervals.proportion([1] * hits + [0] * (n - hits))
    exact = stats.binomtest(hits, n).proportion_ci(method="exact")
    assert found.value == pytest.approx(hits / n)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_proportion_of_only_failures_is_clopper_pearson_on_clusters(k: int) -> None:
    rows, clusters = np.zeros(k * 7), np.repeat(np.arange(k), 7)
    none, every = intervals.proportion(rows, clusters), intervals.proportion(rows + 1, clusters)
    exact = stats.binomtest(0, k).proportion_ci(method="exact")
    assert (none.low, none.high) == pytest.approx((0, exact.high))
    assert (every.low, every.high) == pytest.approx((1 - exact.high, 1))
    assert (none.n, none.n_clusters, none.method) == (7 * k, k, "Clopper-Pearson on clusters")


@pytest.mark.parametrize("share", [0.03, 0.4, 0.9])
def test_proportion_is_mirrored_by_swapping_success_and_failure(share: float) -> None:
    rows, clusters = outcome_rows(12, 8, share)
    found, mirrored = intervals.proportion(rows, clusters), intervals.proportion(1 - rows, clusters)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_proportion_does_not_depend_on_labels_or_order_of_rows() -> None:
    rows, clusters = outcome_rows(9, 5, 0.3)
    order = rng().permutation(len(rows))
    named = [("family", f"x{c}") for c in clusters[order]]
    assert intervals.proportion(rows[order], named) == intervals.proportion(rows, clusters)


def test_copies_of_a_row_within_its_cluster_add_no_information() -> None:
    rows = np.array([0, 1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1.0])
    alone = intervals.proportion(rows)
    copied = intervals.proportion(np.repeat(rows, 50), np.repeat(np.arange(len(rows)), 50))
    believed = intervals.proportion(np.repeat(rows, 50))
    assert copied.high - copied.low >= alone.high - alone.low
    assert believed.high - believed.low < (alone.high - alone.low) / 3


def test_proportion_weighs_rows_when_clusters_differ_in_size() -> None:
    # one large cluster carries nearly all rows: the share of clusters with a success bounds nothing then
    rows, clusters = np.array([1.0] * 90 + [0.0] * 10), np.array([0] * 90 + list(range(1, 11)))
    found = intervals.proportion(rows, clusters)
    assert found.value == 0.9
    assert found.low < 0.2 and found.high == 1


def test_successes_in_one_cluster_leave_the_others_as_evidence() -> None:
    rows, clusters = np.zeros(800), np.repeat(np.arange(20), 40)
    rows[:20] = 1
    found = intervals.proportion(rows, clusters)
    assert found.high <= stats.binomtest(1, 20).proportion_ci(method="exact").high + 1e-12


# --- Means and differences ------------------------------------------------------------------------------


def test_mean_without_bootstrap_is_the_t_interval_of_cluster_means() -> None:
    rows = rng().normal(size=(8, 5)) + rng(1).normal(size=(8, 1))
    found = intervals.mean_interval(rows.ravel(), np.repeat(np.arange(8), 5), draws=0)
    low, high = stats.ttest_1samp(rows.mean(axis=1), 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.n_clusters) == (40, 8)


def test_bootstrap_limits_agree_with_all_resamples_enumerated() -> None:
    values = np.array([0.1, 0.4, 0.5, 1.7, 4.0])
    t = []
    for picked in product(range(5), repeat=5):
        drawn = values[list(picked)]
        if len(set(picked)) > 1:
            t.append((drawn.mean() - values.mean()) / stats.sem(drawn))
    right, left = np.quantile(t, [0.975, 0.025])
    found = intervals.mean_interval(values, draws=200_000)
    student = stats.ttest_1samp(values, 0).confidence_interval()
    se = stats.sem(values)
    assert found.low == pytest.approx(min(student.low, values.mean() - right * se), rel=0.03, abs=0.02)
    assert found.high == pytest.approx(max(student.high, values.mean() - left * se), rel=0.03)
    assert found.high > student.high  # the values are skewed: the test would notice a missing bootstrap


def test_bootstrap_only_widens_and_repeats_itself() -> None:
    values = rng().gamma(0.7, size=60)
    clusters = np.repeat(np.arange(12), 5)
    plain = intervals.mean_interval(values, clusters, draws=0)
    booted = intervals.mean_interval(values, clusters)
    assert booted.low <= plain.low and booted.high >= plain.high
    assert booted == intervals.mean_interval(values, clusters)
    assert booted != intervals.mean_interval(values, clusters, seed=1)


def test_many_clusters_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rng().gamma(1, size=50)
    at_once = intervals.mean_interval(values, draws=999)
    monkeypatch.setattr(intervals, "KEPT_COUNTS", 4000)
    in_blocks = intervals.mean_interval(values, draws=999)
    assert (in_blocks.low, in_blocks.high) == pytest.approx((at_once.low, at_once.high))


def test_mean_moves_and_scales_with_its_values() -> None:
    values, clusters = rng().gamma(2, size=40), np.repeat(np.arange(10), 4)
    base, moved = intervals.mean_interval(values, clusters), intervals.mean_interval(3 * values - 7, clusters)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (3 * base.value - 7, 3 * base.low - 7, 3 * base.high - 7)
    )


def test_paired_difference_turns_around_with_its_arms() -> None:
    (a, clusters), (b, _) = outcome_rows(15, 4, 0.6), outcome_rows(15, 4, 0.3, seed=1)
    for left, right in ((a, b), (a + 0.1 * rng().normal(size=60), b)):
        there = intervals.paired_difference(left, right, clusters)
        back = intervals.paired_difference(right, left, clusters)
        assert there.value == pytest.approx(left.mean() - right.mean())
        assert (back.low, back.high) == pytest.approx((-there.high, -there.low))


def test_paired_difference_uses_the_pairing() -> None:
    base = rng().normal(size=50) * 10
    found = intervals.paired_difference(base + 1, base + 0.01 * rng(1).normal(size=50))
    assert found.high - found.low < 0.02


@pytest.mark.parametrize("value", [0.3, -1.7, 0.1 + 0.2])
def test_equal_numbers_differ_by_exactly_nothing(value: float) -> None:
    rows = np.full(30, value)
    found = intervals.paired_difference(rows, rows, np.repeat(np.arange(6), 5))
    assert (found.low, found.value, found.high) == (0, 0, 0)
    constant = intervals.paired_difference(rows + 1, rows, np.repeat(np.arange(6), 5))
    assert (constant.low, constant.high) == pytest.approx((1, 1))


@pytest.mark.parametrize("k", [1, 4, 100])
def test_equal_outcomes_leave_room_for_what_k_clusters_cannot_show(k: int) -> None:
    rows, clusters = outcome_rows(k, 6, 0.4)
    found = intervals.paired_difference(rows, rows, clusters)
    bound = 1 - 0.025 ** (1 / k)  # of k clusters none differed
    assert (found.low, found.high) == pytest.approx((-bound, bound))


def test_square_and_add_is_newcombe_with_independent_parts() -> None:
    a, b = np.zeros(60), np.zeros(60)
    a[:3], b[3:5] = 1, 1
    found = intervals.paired_difference(a, b, draws=0)
    up, down = (intervals.proportion([1] * n + [0] * (60 - n)) for n in (3, 2))
    assert found.low == pytest.approx(1 / 60 - np.hypot(up.value - up.low, down.high - down.value))
    assert found.high == pytest.approx(1 / 60 + np.hypot(up.high - up.value, down.value - down.low))


@pytest.mark.parametrize("values", [[0.2, 0.9, 1.4], [0.5, 0.5], [0.1, 0.2, 0.2, 0.3, 0.9, 0.4]])
def test_t_interval_is_students(values: list[float]) -> None:
    found = intervals.t_interval(values, level=0.9)
    mean, sem = float(np.mean(values)), float(stats.sem(values))
    low, high = stats.t.interval(0.9, len(values) - 1, mean, sem) if sem else (mean, mean)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_seeds_that_agree_get_the_width_of_one_step() -> None:
    assert intervals.t_interval([0.2, 0.2, 0.2]).high == pytest.approx(0.2)
    found = intervals.t_interval([0.2, 0.2, 0.2], resolution=0.01)
    assert found.high - 0.2 == pytest.approx(stats.t.ppf(0.975, 2) * 0.01 / np.sqrt(3))
    spread = [0.1, 0.5, 0.9]
    assert intervals.t_interval(spread, resolution=0.01) == intervals.t_interval(spread)


@pytest.mark.parametrize(
    "found",
    [
        intervals.mean_interval([0.3, 0.5, 0.9], ["a", "a", "a"]),
        intervals.t_interval([0.4]),
        intervals.fieller([0.3, 0.5], [1.2, 0.9], ["a", "a"]),
    ],
)
def test_one_unit_gives_no_interval(found: intervals.Interval) -> None:
    assert not found.bounded and (found.low, found.high) == (-np.inf, np.inf)
    assert found.n_clusters == 1 and "no interval" in found.method


# --- Ratios and survival --------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1, -1])
def test_fieller_is_the_set_of_ratios_a_t_test_does_not_reject(sign: int) -> None:
    random = rng(3)
    bottom = sign * (2 + random.normal(size=12))
    top = 0.4 * bottom + random.normal(size=12)
    found = intervals.fieller(top, bottom, draws=0)
    grid = np.linspace(-2, 3, 20001)
    kept = grid[t_test(top - grid[:, None] * bottom) >= 0.05]
    assert (found.low, found.high) == pytest.approx((min(kept), max(kept)), abs=1e-3)


def test_fieller_from_means_agrees_with_fieller_from_rows() -> None:
    random = rng(4)
    bottom = 3 + random.normal(size=15)
    top = bottom * 0.7 + random.normal(size=15)
    (top_se, bottom_se), shared = stats.sem([top, bottom], axis=1), float(np.cov(top, bottom)[0, 1] / 15)
    found = intervals.fieller_from_means(
        float(top.mean()), float(bottom.mean()), float(top_se), float(bottom_se), shared, df=14.0
    )
    rows = intervals.fieller(top, bottom, draws=0)
    assert (found.low, found.high) == pytest.approx((rows.low, rows.high))


def test_a_ratio_of_outcomes_is_mirrored_with_its_numerator() -> None:
    top, bottom = np.zeros(60), np.ones(60)
    top[:4], bottom[50:] = 1, 0
    found, mirrored = intervals.fieller(top, bottom), intervals.fieller(-top, bottom)
    assert found.low < 0 < found.high and found.high + found.low > 0.01  # not symmetric about 0
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_fieller_says_so_when_the_denominator_may_be_zero() -> None:
    found = intervals.fieller([1.0, 2.0, 1.5, 0.4], [1.0, -0.9, 0.5, -0.3])
    assert not found.bounded and "covers 0" in found.method
    assert found.value == pytest.approx(4.9 / 0.3)
    assert intervals.fieller_from_means(1.0, 1.0, 0.1, 0.6).bounded is False
    assert intervals.fieller_from_means(1.0, 1.0, 0.1, 0.4).bounded is True


def test_survival_is_0_at_anchor_0_and_1_at_the_original() -> None:
    random = rng(5)
    zero, one = random.normal(size=30), 5 + random.normal(size=30)
    at_zero, at_one = intervals.survival(zero, zero, one), intervals.survival(one, zero, one)
    assert (at_zero.low, at_zero.value, at_zero.high) == pytest.approx((0, 0, 0))
    assert (at_one.low, at_one.value, at_one.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(("scale", "shift"), [(2.5, -4.0), (-1.0, 0.0)])
def test_survival_does_not_depend_on_the_measures_unit(scale: float, shift: float) -> None:
    random = rng(6)
    arms = np.array([[6.5], [1.0], [5.0]]) + random.normal(size=(3, 40))
    clusters = np.repeat(np.arange(10), 4)
    base, moved = (
        intervals.survival(stage, zero, one, clusters) for stage, zero, one in (arms, scale * arms + shift)
    )
    assert base.value is not None and base.value > 1.1  # unclipped
    assert (moved.value, moved.low, moved.high) == pytest.approx((base.value, base.low, base.high))
    assert moved.gap_in_se == pytest.approx(base.gap_in_se)


@pytest.mark.parametrize(
    ("gap", "gate"), [(6.0, "ok"), (5.99, "weak range"), (3.0, "weak range"), (2.99, "no range")]
)
def test_gate_opens_at_six_standard_errors(gap: float, gate: str) -> None:
    found = intervals.survival_from_means(0.5 * gap, 0.0, gap, (0.1, 0.6, 0.8))  # the gap's error is 1
    assert found.gate == gate and found.gap_in_se == pytest.approx(gap)
    assert (found.value is None) == (found.low is None) == (gate != "ok")
    assert (found.stage, found.anchor0, found.original) == (0.5 * gap, 0.0, gap)


def test_gate_does_not_open_on_a_few_lucky_clusters() -> None:
    def perfect(k: int) -> intervals.Survival:
        ones = np.ones(5 * k)
        return intervals.survival(ones, 0 * ones, ones, np.repeat(np.arange(k), 5))

    assert [perfect(k).gate for k in (1, 3, 7, 8, 30)] == ["no range", "weak range", "weak range", "ok", "ok"]
    narrow = perfect(30)
    assert narrow.low is not None and 0.7 < narrow.low < 1 < (narrow.high or 0) < 1.3


def test_survival_from_means_agrees_with_independent_rows() -> None:
    random = rng(7)
    stage, zero, one = np.array([[2.0], [0.0], [4.0]]) + random.normal(size=(3, 4000))
    rows = intervals.survival(stage, zero, one, draws=0)
    errors = (float(stats.sem(stage)), float(stats.sem(zero)), float(stats.sem(one)))
    means = intervals.survival_from_means(rows.stage, rows.anchor0, rows.original, errors, df=3999.0)
    assert means.value == pytest.approx(rows.value)
    assert (means.low, means.high) == pytest.approx((rows.low, rows.high), abs=2e-3)


# --- Equivalence, tests, many claims --------------------------------------------------------------------


def test_tost_is_the_larger_of_two_one_sided_t_tests() -> None:
    values = 0.01 + 0.05 * rng(8).normal(size=12)
    found = intervals.tost(values, margin=0.04, draws=0)
    p = max(
        float(t_test(values, -0.04, "greater")),
        float(t_test(values, 0.04, "less")),
    )
    summary = intervals.tost_from_summary(float(values.mean()), float(stats.sem(values)), 11.0, 0.04)
    assert found.p_value == pytest.approx(p, abs=1e-8) and summary.p_value == pytest.approx(p)
    assert (found.low, found.high) == pytest.approx((summary.low, summary.high))


@pytest.mark.parametrize("center", [0.0, 0.03, 0.2])
def test_smallest_margin_is_where_equivalence_begins(center: float) -> None:
    values, clusters = center + 0.1 * rng(9).gamma(1, size=60), np.repeat(np.arange(15), 4)
    found = intervals.tost(values, clusters=clusters)
    wider, narrower = (
        intervals.tost(values, clusters=clusters, margin=found.smallest_margin * f) for f in (1.001, 0.999)
    )
    assert wider.equivalent and wider.p_value < 0.05
    assert not narrower.equivalent and narrower.p_value > 0.05
    assert found.equivalent == (found.smallest_margin < 0.05) == (found.p_value < 0.05)


def test_equal_outcomes_are_equivalent_only_with_enough_clusters() -> None:
    few, many = (
        intervals.tost(rows, rows, clusters)
        for rows, clusters in (outcome_rows(k, 5, 0.5) for k in (20, 100))
    )
    assert not few.equivalent and few.p_value > 0.05
    assert many.equivalent and many.p_value < 0.05


def test_a_difference_beyond_the_margin_is_never_equivalent() -> None:
    found = intervals.tost([0.2, 0.21, 0.19, 0.2], margin=0.05)
    assert found.p_value == 1 and not found.equivalent
    assert found.smallest_margin > 0.2


def test_sign_flips_agree_with_scipy_and_with_enumeration() -> None:
    values = rng(10).normal(0.5, 1, size=9)
    found = intervals.sign_flip_test(values)
    reference = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=10_000)
    assert found.p_value == pytest.approx(reference.pvalue)
    assert "exact" in found.method


@pytest.mark.parametrize(("seeds", "p"), [(3, 0.25), (6, 1 / 32)])
def test_few_seeds_cannot_give_a_small_p(seeds: int, p: float) -> None:
    assert intervals.sign_flip_test([0.7] * seeds).p_value == p
    assert intervals.sign_flip_test(np.repeat(0.1, 4 * seeds), np.repeat(np.arange(seeds), 4)).p_value == p
    assert intervals.sign_flip_test([0.0] * seeds).p_value == 1


def test_drawn_sign_flips_come_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rng(11).normal(0.4, 1, size=14)
    exact = intervals.sign_flip_test(values)
    monkeypatch.setattr(intervals, "EXACT_SIGN_FLIPS", 3)
    drawn = intervals.sign_flip_test(values, draws=20_000)
    assert "draws" in drawn.method
    assert drawn.p_value == pytest.approx(exact.p_value, abs=0.015)


def test_page_counts_the_orders_that_rise_as_much() -> None:
    table = np.array([[0.1, 0.4, 0.3], [0.2, 0.5, 0.9], [0.0, 0.1, 0.7]])
    found = intervals.page_trend(table)
    weights = np.array([1, 2, 3])
    observed = sum(float(weights @ stats.rankdata(row)) for row in table)
    sums = [
        sum(float(weights @ np.array(r)) for r in ranks)
        for ranks in product(permutations((1, 2, 3)), repeat=3)
    ]
    assert found.statistic == observed
    assert found.p_value == pytest.approx(np.mean(np.array(sums) >= observed))
    assert intervals.page_trend(table[:, ::-1]).p_value > 0.9


def test_holm_is_the_closed_test_with_bonferroni() -> None:
    p = np.array([0.011, 0.02, 0.4, 0.004, 0.04])
    closed = [
        max(
            min(1, size * p[list(subset)].min())
            for size in range(1, 6)
            for subset in combinations(range(5), size)
            if i in subset
        )
        for i in range(5)
    ]
    assert intervals.holm(p) == pytest.approx(closed)
    assert intervals.holm([0.03]) == pytest.approx([0.03])


def test_max_t_of_one_measure_is_its_own_upper_limit() -> None:
    values = rng(12).normal(size=25)
    found = intervals.max_t_upper(values[:, None], draws=0)
    assert found.highest == found.uppers[0]
    assert found.highest == pytest.approx(values.mean() + stats.t.ppf(0.95, 24) * stats.sem(values))


def test_max_t_charges_for_measures_only_as_far_as_they_differ() -> None:
    random = rng(13)
    values, clusters = random.normal(size=(120, 8)), np.repeat(np.arange(40), 3)
    one = intervals.max_t_upper(values[:, :1], clusters=clusters)
    copies = intervals.max_t_upper(np.repeat(values[:, :1], 8, axis=1), clusters=clusters)
    apart = intervals.max_t_upper(values, clusters=clusters)
    bonferroni = stats.t.ppf(1 - 0.05 / 8, 39)
    assert copies.uppers == pytest.approx(one.uppers * 8)
    assert one.critical < apart.critical < 1.25 * bonferroni
    assert apart.highest == max(apart.uppers)


def test_max_t_of_ratios_scales_with_neither_side() -> None:
    random = rng(14)
    bottom = 2 + 0.3 * random.normal(size=(50, 3))
    top = bottom * [0.1, 0.5, 0.2] + 0.2 * random.normal(size=(50, 3))
    base = intervals.max_t_upper(top, bottom)
    scaled = intervals.max_t_upper(top * [7, -1, 2], bottom * [7, -1, 2])
    assert scaled.uppers == pytest.approx(base.uppers)
    assert base.values == pytest.approx(tuple(top.sum(0) / bottom.sum(0)))


def test_max_t_of_outcomes_never_stops_at_zero_errors() -> None:
    found = intervals.max_t_upper(np.zeros((40, 2)), clusters=np.repeat(np.arange(10), 4))
    assert found.highest == pytest.approx(1 - 0.025 ** (1 / 10))  # Clopper-Pearson at .05 / 2 measures
    assert intervals.max_t_upper(np.zeros((4, 2)), np.ones((4, 2)) / 3, clusters=[0] * 4).highest == np.inf


# --- Curves ---------------------------------------------------------------------------------------------


def test_time_to_theta_by_hand() -> None:
    found = intervals.restricted_mean([0, 1, 3, 7], [0.0, 0.2, 0.1, 0.6], theta=0.4, horizon=7)
    assert found.value == pytest.approx(2.5)  # from .2 (the running maximum) at u = 2 to .6 at u = 3
    assert found.censored == (False,)
    assert intervals.restricted_mean([0, 1, 3], [0.5, 0.0, 0.0], 0.5, 3).value == 0


def test_a_curve_that_arrives_after_the_horizon_is_censored() -> None:
    late = intervals.restricted_mean([0, 1, 3, 7], [[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]], 0.9, 3)
    assert late.per_curve == pytest.approx((2, 0.9)) and late.censored == (True, False)


def test_restricted_mean_is_the_area_under_the_share_not_there_yet() -> None:
    steps = np.array([0, 1, 2, 5, 10, 25, 50, 100])
    curves = np.maximum.accumulate(rng(15).random((30, len(steps))) * np.linspace(0.2, 1, len(steps)), axis=1)
    found = intervals.restricted_mean(steps, curves, theta=0.6, horizon=80)
    u = np.linspace(0, np.log2(81), 40001)
    waiting = [(np.interp(u, np.log2(1 + steps), curve) < 0.6) for curve in curves]
    assert found.value == pytest.approx(np.trapezoid(np.mean(waiting, axis=0), u), abs=1e-3)
    assert 0 < sum(found.censored) < 30
    assert [t == pytest.approx(np.log2(81)) for t in found.per_curve] == list(found.censored)


def test_a_stage_that_relearns_more_slowly_has_a_larger_mean_and_a_smaller_area() -> None:
    steps = [0, 5, 25, 100, 200]
    quick, slow = [0.0, 0.6, 0.9, 1.0, 1.0], [0.0, 0.1, 0.3, 0.6, 0.7]
    means = [intervals.restricted_mean(steps, curve, 0.5, 200).value for curve in (quick, slow)]
    areas = [intervals.area_under_log_steps(steps, curve) for curve in (quick, slow)]
    assert means[0] < means[1] and areas[0] > areas[1]


def test_area_is_a_mean_height() -> None:
    steps = np.array([1, 3, 7, 31])
    assert intervals.area_under_log_steps(steps, [0.3] * 4) == pytest.approx(0.3)
    u = np.log2(1 + steps)
    assert intervals.area_under_log_steps(steps, u) == pytest.approx((u[0] + u[-1]) / 2)
    assert intervals.area_under_log_steps(steps, u, horizon=15) == pytest.approx((u[0] + 4) / 2)
    both = intervals.area_under_log_steps(steps, np.stack([u, np.zeros(4)]))
    assert both == pytest.approx((u[0] + u[-1]) / 4)


# --- Refusals -------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: intervals.proportion([0.0, NAN, 1.0]), "successes: 1 of 3 values are NaN"),
        (lambda: intervals.proportion([0.0, 1.5]), "in 0..1, got values from 0 to 1.5; .*mean_interval"),
        (lambda: intervals.proportion([]), "at least one, got an array of shape"),
        (lambda: intervals.proportion([0, 1], ["a"]), "clusters: expected 2 labels, one per row"),
        (lambda: intervals.proportion([0, 1], [1.0, NAN]), "labels are NaN"),
        (lambda: intervals.proportion([0, 1], level=95.0), "level: expected a .* between 0 and 1, got 95"),
        (lambda: intervals.mean_interval(["a", "b"]), "values: expected numbers, got list"),
        (lambda: intervals.mean_interval([1.0, 2.0], draws=20), "at least 199, got 20"),
        (lambda: intervals.paired_difference([1.0, 2.0], [1.0]), "same rows .* {'a': 2, 'b': 1}"),
        (lambda: intervals.t_interval([1.0, NAN]), "values: 1 of 2"),
        (lambda: intervals.t_interval([1.0], resolution=-1.0), "resolution: expected a step >= 0"),
        (lambda: intervals.fieller([1.0, 2.0], [1.0, -1.0]), "its mean is 0"),
        (lambda: intervals.fieller_from_means(1.0, 2.0, -0.1, 0.1), "standard errors >= 0"),
        (lambda: intervals.fieller_from_means(1.0, 2.0, 0.1, 0.1, 0.02), "covariance: expected at most 0.01"),
        (lambda: intervals.survival([1.0], [1.0, 2.0], [3.0]), "'stage': 1, 'anchor0': 2"),
        (lambda: intervals.survival_from_means(1.0, 0.0, NAN, (0.1, 0.1, 0.1)), "NaN"),
        (lambda: intervals.tost([0.1, 0.2], margin=-0.05), "margin > 0"),
        (lambda: intervals.tost_from_summary(0.0, 0.0), "pass the sample to tost"),
        (lambda: intervals.sign_flip_test([0.1] * 20, draws=0), "too many to enumerate"),
        (lambda: intervals.page_trend([[1.0, 2.0], [2.0, 3.0]]), "3 columns .*paired difference"),
        (lambda: intervals.holm([0.1, 1.2]), "p_values: expected values in 0..1"),
        (lambda: intervals.max_t_upper([[1.0], [2.0]], [[1.0]]), "expected the shape of values"),
        (lambda: intervals.max_t_upper([[1.0], [2.0]], level=0.3), "above 0.5"),
        (lambda: intervals.restricted_mean([0, 5, 2], [0.1, 0.2, 0.3], 0.5, 5), "steps: .* that rise"),
        (lambda: intervals.restricted_mean([0, 5], [0.1, 0.2], 0.5, 50), "ends at step 5 .* the horizon 50"),
        (lambda: intervals.restricted_mean([0, 5], [0.1], 0.5, 5), "expected 2 per curve"),
        (lambda: intervals.restricted_mean([0, 5], [0.1, 0.2], 0.5, 0), "horizon: expected"),
        (lambda: intervals.area_under_log_steps([0, 5], [0.1, 0.2], 9), "not beyond the last"),
    ],
)  # fmt: skip
def test_refusals_say_what_was_given_and_what_to_do(call: Callable[[], object], text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        call()


# --- Coverage -------------------------------------------------------------------------------------------
# Clusters have their own success rates, Beta distributed with intracluster correlation `alike`; `joint` arms
# share their luck row by row, as models scored on the same rows do. The bootstrap only widens (tested above),
# so it is left out where intervals of outcomes cover without it.


def seed_of(*setting: object) -> int:
    return zlib.crc32(repr(setting).encode())


def latent(p: float, alike: float, ranks: Array) -> Array:
    if alike == 0:
        return np.full(ranks.shape, p)
    if alike == 1:
        return (ranks < p).astype(float)
    scale = 1 / alike - 1
    return stats.beta.ppf(ranks, p * scale, (1 - p) * scale)


def outcome_arms(
    k: int, size: int, rates: tuple[float, ...], alike: float, joint: bool, simulations: int
) -> NDArray[np.bool_]:
    """Arms x simulations x k x size."""
    random = rng(seed_of(k, size, rates, alike, joint))
    ranks, luck = random.random((simulations, k)), random.random((simulations, k, size))
    arms = []
    for p in rates:
        if not joint:
            ranks, luck = random.random(ranks.shape), random.random(luck.shape)
        arms.append(luck < latent(p, alike, ranks)[..., None])
    return np.stack(arms)


def covering(
    arms: NDArray[np.bool_], interval: Callable[..., tuple[float, float] | None], truth: float
) -> tuple[float, float]:
    """Share of simulations with an interval, and coverage among those; samples that recur are computed once.

    Rows and clusters are exchangeable, so a sample is known by how many rows of each cluster show which
    pattern of outcomes.
    """
    n_arms, simulations, k, size = arms.shape
    patterns = np.tensordot(2 ** np.arange(n_arms), arms, axes=1)
    cells = np.stack([(patterns == c).sum(axis=-1) for c in range(2**n_arms)], axis=-1)
    clusters = np.repeat(np.arange(k), size)
    seen: dict[bytes, tuple[bool, bool]] = {}
    shown = covered = 0
    for sample in cells:
        sample = sample[np.lexsort(sample.T)]
        key = sample.tobytes()
        if key not in seen:
            rows = np.concatenate([np.repeat(np.arange(2**n_arms), cluster) for cluster in sample])
            found = interval(*((rows >> i & 1).astype(float) for i in range(n_arms)), clusters)
            inside = found is not None and found[0] - 1e-9 <= truth <= found[1] + 1e-9
            seen[key] = (found is not None, inside)
        shown, covered = shown + seen[key][0], covered + seen[key][1]
    return shown / simulations, covered / max(shown, 1)


def check_proportion(k: int, size: int, p: float, alike: float, simulations: int) -> None:
    def interval(rows: Array, clusters: Array) -> tuple[float, float]:
        found = intervals.proportion(rows, clusters)
        return found.low, found.high

    arms = outcome_arms(k, size, (p,), alike, False, simulations)
    assert covering(arms, interval, p)[1] >= PROMISED


def check_difference(
    k: int, size: int, rates: tuple[float, float], alike: float, joint: bool, simulations: int
) -> None:
    def interval(a: Array, b: Array, clusters: Array) -> tuple[float, float]:
        found = intervals.paired_difference(a, b, clusters, draws=0)
        return found.low, found.high

    arms = outcome_arms(k, size, rates, alike, joint, simulations)
    assert covering(arms, interval, rates[0] - rates[1])[1] >= PROMISED


def check_survival(
    k: int, size: int, rates: tuple[float, float, float], alike: float, joint: bool, simulations: int
) -> None:
    """Coverage of what is printed; unless the gate opens so rarely that only lucky gaps pass."""

    def interval(stage: Array, zero: Array, one: Array, clusters: Array) -> tuple[float, float] | None:
        found = intervals.survival(stage, zero, one, clusters, draws=0)
        return None if found.low is None or found.high is None else (found.low, found.high)

    stage, zero, one = rates
    arms = outcome_arms(k, size, rates, alike, joint, simulations)
    printed, coverage = covering(arms, interval, (stage - zero) / (one - zero))
    assert printed < 0.1 or coverage >= PROMISED


def check_mean(k: int, draw: str, simulations: int, draws: int) -> None:
    random = rng(seed_of(k, draw))
    samples = getattr(random, f"standard_{draw}")(size=(simulations, k))
    found = [intervals.mean_interval(sample, draws=draws) for sample in samples]
    truth = 1.0 if draw == "exponential" else 0.0
    assert np.mean([x.low <= truth <= x.high for x in found]) >= PROMISED


def check_seeds(n: int, items: int, p: float, spread: float, simulations: int) -> None:
    """Differences per seed of two accuracies, whose logits vary from seed to seed."""
    random = rng(seed_of(n, items, p, spread))

    def accuracies(rate: float) -> tuple[Array, float]:
        def chance(shift: Array) -> Array:
            return 1 / (1 + np.exp(-np.log(rate / (1 - rate)) - spread * shift))

        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        drawn = random.binomial(items, chance(random.normal(size=(simulations, n)))) / items
        return drawn, float(weights @ chance(nodes) / weights.sum())

    (a, mean_a), (b, mean_b) = accuracies(p), accuracies(min(2 * p, (1 + p) / 2))
    found = [intervals.t_interval(d, resolution=1 / items) for d in a - b]
    truth = mean_a - mean_b
    assert np.mean([x.low - 1e-9 <= truth <= x.high + 1e-9 for x in found]) >= PROMISED


def check_max_t(k: int, measures: int, shared: float, simulations: int) -> None:
    """In how many simulations is no true survival (a ratio of means) above its limit?"""
    random = rng(seed_of(k, measures, shared))
    truth = np.linspace(0, 0.4, measures)
    held = 0
    for _ in range(simulations):
        bottom = 2 + 0.5 * random.normal(size=(k, measures))
        common = shared**0.5 * random.normal(size=(k, 1))
        noise = 0.5 * (common + (1 - shared) ** 0.5 * random.normal(size=(k, measures)))
        found = intervals.max_t_upper(truth * bottom + noise, bottom, draws=499)
        held += bool((np.array(found.uppers) >= truth).all())
    assert held / simulations >= PROMISED


FEW = 1000  # simulations in the fast set, seeded


@pytest.mark.parametrize(("k", "size"), [(5, 1), (3, 12), (10, 4), (3, 200), (6, 200)])
@pytest.mark.parametrize("alike", [0.0, 0.3, 1.0])
def test_proportions_near_0_and_1_are_covered(k: int, size: int, alike: float) -> None:
    for p in (0.018, 0.05, 0.97):
        check_proportion(k, size, p, alike, FEW)


@pytest.mark.parametrize(("k", "size"), [(3, 4), (10, 4), (12, 1)])
@pytest.mark.parametrize("joint", [False, True])
def test_differences_of_proportions_near_0_and_1_are_covered(k: int, size: int, joint: bool) -> None:
    for rates in ((0.01, 0.02), (0.97, 0.99), (0.9, 0.1)):
        check_difference(k, size, rates, 0.3, joint, FEW // 2)


@pytest.mark.parametrize(("k", "size"), [(10, 4), (20, 1)])
def test_survival_between_anchors_near_0_and_1_is_covered(k: int, size: int) -> None:
    for rates in ((0.01, 0.02, 0.99), (0.98, 0.01, 0.99), (0.05, 0.05, 0.99)):
        check_survival(k, size, rates, 0.3, False, FEW // 2)


@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_means_of_few_skewed_clusters_are_covered(draw: str) -> None:
    check_mean(6, draw, FEW, 299)


@pytest.mark.parametrize("n", [3, 6])
def test_differences_over_seeds_are_covered(n: int) -> None:
    for p in (0.003, 0.02, 0.97):
        check_seeds(n, 200, p, 0.5, FEW)


def test_upper_limits_hold_together() -> None:
    check_max_t(12, 5, 0.3, FEW // 2)


def test_the_simulation_notices_intervals_that_are_too_narrow() -> None:
    def naive(rows: Array, clusters: Array) -> tuple[float, float]:
        wilson = stats.binomtest(int(rows.sum()), len(rows)).proportion_ci(method="wilson")
        return wilson.low, wilson.high

    assert covering(outcome_arms(10, 1, (0.017,), 0.0, False, FEW), naive, 0.017)[1] < 0.9
    assert covering(outcome_arms(10, 12, (0.3,), 0.6, False, FEW), naive, 0.3)[1] < 0.8


CLUSTERS = [(3, 1), (3, 12), (5, 1), (5, 40), (10, 1), (10, 12), (20, 4), (50, 12), (3, 200), (6, 200)]
OPEN = [(10, 1), (10, 12), (20, 4), (50, 4)]  # with fewer clusters the gate stays shut
ALIKE = [0.0, 0.1, 0.3, 0.6, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(("k", "size"), CLUSTERS)
@pytest.mark.parametrize("alike", ALIKE)
def test_proportions_are_covered_everywhere(k: int, size: int, alike: float) -> None:
    for p in (0.003, 0.018, 0.1, 0.9, 0.99):
        check_proportion(k, size, p, alike, SIMULATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "size"), CLUSTERS)
@pytest.mark.parametrize("alike", ALIKE[::2])
@pytest.mark.parametrize("joint", [False, True])
def test_differences_of_proportions_are_covered_everywhere(
    k: int, size: int, alike: float, joint: bool
) -> None:
    for rates in ((0.01, 0.02), (0.97, 0.99), (0.9, 0.1)):
        check_difference(k, size, rates, alike, joint, PAIRED)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "size"), OPEN)
@pytest.mark.parametrize("alike", ALIKE[::2])
@pytest.mark.parametrize("joint", [False, True])
def test_survival_is_covered_everywhere(k: int, size: int, alike: float, joint: bool) -> None:
    for rates in (
        (0.01, 0.02, 0.99),
        (0.98, 0.01, 0.99),
        (0.3, 0.05, 0.9),
    ):
        check_survival(k, size, rates, alike, joint, PAIRED)


@pytest.mark.slow
@pytest.mark.parametrize("k", [4, 5, 6, 10, 20, 50])
@pytest.mark.parametrize("draw", ["normal", "exponential"])
def test_means_are_covered_from_four_clusters_on(k: int, draw: str) -> None:
    check_mean(k, draw, SIMULATIONS, 999)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("items", [20, 100, 400])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_differences_over_seeds_are_covered_everywhere(n: int, items: int, spread: float) -> None:
    for p in (0.001, 0.02, 0.5, 0.99):
        check_seeds(n, items, p, spread, SIMULATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("k", [5, 10, 40])
@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_upper_limits_hold_together_everywhere(k: int, shared: float) -> None:
    check_max_t(k, 8, shared, SIMULATIONS)


def test_numbers_that_are_all_zero_are_known_and_failures_are_not() -> None:
    zeros, families = np.zeros(20), np.arange(20)
    distances = intervals.mean_interval(zeros, families, outcomes=False)
    assert (distances.low, distances.value, distances.high) == (0.0, 0.0, 0.0)
    failures = intervals.mean_interval(zeros, families)
    assert failures.high > 0.05
