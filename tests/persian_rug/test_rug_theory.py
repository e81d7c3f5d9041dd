"""The closed form against integrals, brute force and samples, and what follows from it."""

import numpy as np
import pytest

from tests.references import persian_rug as reference
from undo_probe import persian_rug
from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import limits, rivals, theory

DRAW = np.random.default_rng(5)
RATIOS = np.exp(DRAW.uniform(np.log(2e-3), np.log(0.95), 20))
RATES = np.exp(DRAW.uniform(np.log(2e-3), np.log(0.9), 20))
HARD = ((0.25, 1e-6), (0.97, 1e-6), (0.003, 0.6), (0.02, 0.01), (0.16, 0.045))


@pytest.mark.parametrize(("r", "p"), HARD)
def test_the_loss_is_the_integral_of_squared_errors(r: float, p: float) -> None:
    best = theory.optimum(r, p)
    for a, m in ((best.a, best.m), (0.7 * best.a, best.m + best.tau), (1.0, 0.0)):
        assert theory.loss(a, m, best.tau, p) == pytest.approx(
            reference.loss(float(a), float(m), float(best.tau), p), rel=1e-9
        )


@pytest.mark.parametrize(("r", "p"), HARD[::2])
def test_the_solve_finds_the_least_loss(r: float, p: float) -> None:
    best = theory.optimum(r, p)
    assert best.loss == pytest.approx(reference.brute_force(float(best.tau), p), rel=1e-6)
    assert best.loss == pytest.approx(theory.loss(best.a, best.m, best.tau, p), rel=1e-9)


@pytest.mark.slow
def test_the_solve_finds_the_least_loss_anywhere() -> None:
    for r, p in zip(RATIOS, RATES, strict=True):
        tau = float(theory.noise(r, p))
        assert theory.optimal_loss(r, p) == pytest.approx(reference.brute_force(tau, p), rel=1e-6), (r, p)


def assert_samples_agree(r: float, p: float, samples: int, seed: int) -> None:
    best = theory.optimum(r, p)
    mean, error = reference.sampled(float(best.a), float(best.m), float(best.tau), p, samples, seed)
    assert abs(mean - best.loss) <= max(3 * error, 0.005 * best.loss), (r, p, mean, error, best.loss)


def test_samples_agree_with_the_loss() -> None:
    for seed, (r, p) in enumerate(((0.25, 0.045), (0.5, 0.4))):
        assert_samples_agree(r, p, 200_000, seed)


@pytest.mark.slow
def test_four_million_samples_agree_with_the_loss_at_twenty_points() -> None:
    for seed, (r, p) in enumerate(zip(RATIOS, RATES, strict=True)):
        assert_samples_agree(r, p, 4_000_000, seed)


def test_a_grid_of_ten_thousand_points_is_solved_at_once() -> None:
    r, p = np.meshgrid(np.geomspace(1e-3, 0.95, 100), np.geomspace(1e-6, 0.8, 100))
    found = persian_rug.optimal_loss(r, p)
    assert found.shape == r.shape
    assert np.all(np.diff(found, axis=1) < 0)  # more dimensions always help
    assert np.all((found > 0) & (found < persian_rug.variance(p)))
    assert found[40, 50] == persian_rug.optimal_loss(r[40, 50], p[40, 50])  # broadcasting changes nothing


def test_no_symmetric_code_has_less_noise() -> None:
    best = theory.optimum(0.25, 0.045)
    worse = theory.optimum_at(rivals.random_columns_noise(0.25, 0.045), 0.045)
    assert worse.loss > 1.2 * best.loss
    assert theory.optimal_loss(0.25, 0.045) < rivals.linear_loss(0.25, 0.045)


def test_the_sparse_limit_is_reached() -> None:
    p = np.array([1e-2, 1e-4, 1e-6])
    found, exact = limits.sparse(0.25, p), theory.optimum(0.25, p)
    off = np.abs(found.loss / exact.loss - 1)
    assert off[0] > 0.05  # so that the bounds below say something
    assert np.all(off[1:] < 0.01)
    assert np.allclose(found.k[1:], -exact.m[1:] / exact.tau[1:], rtol=0.01)
    assert np.allclose(found.a[1:], exact.a[1:], rtol=0.002)


def test_half_the_variance_is_explained_from_the_capacity_law_on() -> None:
    p = np.array([1e-4, 1e-3, 1e-2])
    half = limits.ratio_for(p)
    assert np.allclose(theory.optimal_loss(half, p), theory.variance(p) / 2)
    assert np.allclose(limits.capacity_law(p), half, rtol=0.02)
    assert limits.features_held(64, 0.01) == pytest.approx(64 / limits.capacity_law(0.01))
    assert limits.capacity_law(0.2) > 1.1 * limits.ratio_for(0.2)  # where it ends to hold


def test_the_fourth_derivative_is_that_of_the_loss() -> None:
    best, h = theory.optimum(0.25, 0.045), 0.02
    around = theory.loss(best.a, best.m + h * np.arange(-2, 3), best.tau, 0.045)
    by_differences = around @ np.array([1, -4, 6, -4, 1]) / h**4
    exact = limits.fourth_derivative(best.a, best.m, best.tau, 0.045)
    assert exact == pytest.approx(by_differences, rel=2e-3)


def test_the_moments_of_a_feature_are_those_of_samples() -> None:
    source = np.random.default_rng(0)
    x = source.random(400_000) * (source.random(400_000) < 0.3)
    centred = x - x.mean()
    skew, kurtosis = limits.excess_moments(0.3)
    assert theory.variance(0.3) == pytest.approx(x.var(), rel=0.01)
    assert skew == pytest.approx((centred**3).mean() / x.std() ** 3, rel=0.02)
    assert kurtosis == pytest.approx((centred**4).mean() / x.var() ** 2 - 3, rel=0.05)


def test_better_decoders_and_worse_ones_stand_in_order() -> None:
    r, p = np.meshgrid([0.02, 0.25, 0.9], [1e-6, 1e-3, 0.045, 0.5])
    found, rug = rivals.channel(r, p), theory.optimal_loss(r, p)
    assert np.all(found.oracle < found.bayes) and np.all(found.bayes < rug)
    assert np.all(rug < rivals.linear_loss(r, p))


def test_the_best_decoder_is_the_posterior_mean() -> None:
    """By samples: the posterior mean over a fine grid of u has the loss that the integral gives."""
    p, tau, count = 0.1, float(theory.noise(0.25, 0.1)), 20_000
    source = np.random.default_rng(1)
    x = source.random(count) * (source.random(count) < p)
    y = x + tau * source.standard_normal(count)
    u = (np.arange(200) + 0.5) / 200
    on = p / 200 * np.exp(-(((y[:, None] - u) / tau) ** 2) / 2)
    off = (1 - p) * np.exp(-((y / tau) ** 2) / 2)
    error = (x - (on @ u) / (on.sum(1) + off)) ** 2
    assert abs(error.mean() - rivals.channel(0.25, p).bayes) < 3 * error.std() / count**0.5


def test_relu_loses_a_growing_factor_to_the_oracle() -> None:
    """No universal constant: 3/2 + k^2/4 as p goes to zero."""
    p = np.array([0.1, 1e-3, 1e-6])
    factor = theory.optimal_loss(0.25, p) / rivals.channel(0.25, p).oracle
    assert factor[1] < factor[2] == pytest.approx(1.5 + limits.sparse(0.25, p).k[2] ** 2 / 4, rel=0.01)
    assert np.all((factor > 3) & (factor < 7))


@pytest.mark.parametrize("t", [1.0, 0.4])
def test_a_pair_loses_what_samples_say(t: float) -> None:
    p, count = 0.2, 300_000
    source = np.random.default_rng(2)
    x, other = (source.random(count) * (source.random(count) < p) for _ in range(2))
    best = 0.0
    for feature, output in ((x, np.maximum(x - t * other, 0)), (other, np.maximum(other - x / t, 0))):
        a = (feature * output).mean() / (output**2).mean()
        best += ((a * output - feature) ** 2).mean() / 2
    assert rivals.pair_loss(t, p) == pytest.approx(best, rel=0.02)


def test_pairs_of_unequal_length_lose_less() -> None:
    """What training finds; the equal pair is the worst of its neighbours."""
    t, found = rivals.best_pair(1e-4)
    assert t == pytest.approx(1 / 3, abs=0.01)
    assert found / 1e-8 == pytest.approx(25 / 162, rel=1e-3)
    assert rivals.pair_loss(1.0, 1e-4) / 1e-8 == pytest.approx(1 / 6, rel=1e-3)
    assert rivals.pair_loss(0.95, 0.2) < rivals.pair_loss(1.0, 0.2)
    assert rivals.best_pair(0.2)[1] < 0.95 * rivals.pair_loss(1.0, 0.2)


def test_digons_find_a_place_or_are_dropped() -> None:
    ends = rivals.digon_loss(np.array([1e-9, 0.5, 1 - 1e-9]), 0.2)
    assert ends == pytest.approx([theory.variance(0.2), rivals.pair_loss(1.0, 0.2), 0], abs=1e-8)
    assert rivals.digon_loss(0.3, 0.2, equal=False) < rivals.digon_loss(0.3, 0.2)


def test_dropping_features_pays_below_the_critical_ratio_only() -> None:
    found = rivals.dropping(np.array([0.02, 0.1, 0.3]), 0.045)
    rug = theory.optimal_loss(np.array([0.02, 0.1, 0.3]), 0.045)
    assert np.all(found.loss[:2] < rug[:2]) and found.loss[2] == rug[2]
    assert np.all(found.kept[:2] < 1) and found.kept[2] == 1
    f, r = np.linspace(0.021, 1, 400), 0.02
    every = f * theory.optimal_loss(r / f, 0.045) + (1 - f) * theory.variance(0.045)
    assert found.loss[0] == pytest.approx(every.min(), rel=1e-4)
    critical = theory.optimum(found.critical[0], 0.045).loss
    assert 0.1 < found.critical[0] < 0.3 and critical < theory.variance(0.045)


def test_the_hull_is_convex_and_below_every_code() -> None:
    r = np.linspace(0.02, 0.95, 60)
    hull = rivals.lower_hull(r, 0.045)
    codes = [theory.optimal_loss(r, 0.045), rivals.digon_loss(r, 0.045), rivals.dropping(r, 0.045).loss]
    assert all(np.all(hull <= code + 1e-4 * theory.variance(0.045)) for code in codes)
    assert np.all(np.diff(hull, 2) > -1e-9)
    assert np.any(hull < 0.97 * np.minimum.reduce(codes))  # a mixture is better than each


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: theory.optimum(1.2, 0.1), "r is 1.2: expected a number above 0 and below 1"),
        (lambda: theory.optimum(0.5, [0.1, 0.0]), "p is 0: expected a number above 0 and at most 1"),
        (lambda: theory.optimum_at(0.0, 0.1), "expected finite numbers, and a noise tau above 0"),
        (lambda: limits.finite_loss(1, 0.5, 0.1), "n_s is 1: expected at least 2 features"),
    ],
)
def test_what_is_no_rug_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
