"""Intervals, tests and bounds: how sure a reading is. Plain statistics on arrays, no torch.

The unit of a claim about one model is the *cluster* (a fact family with all its rows and paraphrases), of a
claim about a method the *seed*. A value is the mean over rows; its error comes from how clusters differ.

Two habits run through the file, because the textbook forms fall short of their level near 0 and 1 or with
few clusters:

* each limit is the widest of several methods that fail in different places;
* 0/1 outcomes (and their differences in -1, 0, 1) never get an interval of width zero: five families without
  a single error do not show that errors are impossible.

Longer than 400 lines because each method carries its formula, unit and source; the functions are short.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import inf, isfinite, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from undo_probe.errors import UndoProbeError

Array = NDArray[np.float64]
Gate = Literal["ok", "weak range", "no range"]

GATE_OK = 6.0  # anchor gap in standard errors from which survival is printed
GATE_WEAK = 3.0  # below this the anchors are not told apart
EXACT_SIGN_FLIPS = 16  # 2**16 sign patterns are enumerated; beyond, they are drawn
MOST_DEGENERATE = 0.025  # share of resamples without variance beyond which the bootstrap is left out
KEPT_COUNTS = 10_000_000  # resampling counts held in memory, 80 MB: 9,999 draws of 1,000 clusters
_TINY = 1e-12


@dataclass(frozen=True)
class Interval:
    """A value with its confidence limits; a limit that cannot be had is -inf or inf."""

    value: float
    low: float
    high: float
    n: int
    """Rows behind the value."""
    n_clusters: int
    """Independent units behind the value: families, or seeds."""
    method: str
    level: float = 0.95

    @property
    def bounded(self) -> bool:
        """Whether both limits are finite."""
        return isfinite(self.low) and isfinite(self.high)


@dataclass(frozen=True)
class Survival:
    """Where a stage stands between the anchors: 0 = anchor 0, 1 = the original; unclipped."""

    value: float | None
    """None unless the gate is "ok"; the raw means below are always there."""
    low: float | None
    high: float | None
    gate: Gate
    gap: float
    """original - anchor 0, in the measure's unit."""
    gap_in_se: float
    stage: float
    anchor0: float
    original: float
    n: int | None
    n_clusters: int | None
    method: str
    level: float = 0.95


@dataclass(frozen=True)
class Significance:
    """A test statistic and its p-value."""

    statistic: float
    p_value: float
    n: int
    method: str


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests: is the difference smaller than the margin?"""

    difference: float
    low: float
    high: float
    """Limits at level 1 - 2 alpha (90 % for alpha .05)."""
    p_value: float
    margin: float
    equivalent: bool
    smallest_margin: float
    """The smallest margin at which this sample would have been called equivalent."""
    n: int | None
    n_clusters: int | None
    method: str


@dataclass(frozen=True)
class SimultaneousUpper:
    """Upper limits that all hold together with the stated confidence."""

    values: tuple[float, ...]
    uppers: tuple[float, ...]
    highest: float
    """The largest of the uppers: no measure's true value is above it."""
    critical: float
    """Standard errors between value and upper limit, for every measure alike."""
    n: int
    n_clusters: int
    level: float
    method: str


@dataclass(frozen=True)
class TimeToReach:
    """Restricted mean of log2(1 + steps) until a curve reaches a threshold."""

    value: float
    """Mean over curves, each cut at the horizon; in doublings of the step count."""
    per_curve: tuple[float, ...]
    censored: tuple[bool, ...]
    """Per curve: had it not reached the threshold by the horizon?"""
    theta: float
    horizon: float


# --- Proportions and means ------------------------------------------------------------------------------


def proportion(successes: ArrayLike, clusters: ArrayLike | None = None, level: float = 0.95) -> Interval:
    """Interval of a proportion whose rows come in clusters.

    Clopper-Pearson's interval with n_eff rows, n_eff = p (1 - p) / v (z / t)^2, where v is the cluster-robust
    variance of p and t has k_eff - 1 degrees of freedom; k_eff = min over successes and failures of
    (sum s_c)^2 / sum s_c^2 is the number of clusters that carry them. Never wider than what the clusters
    alone say: p is at most the share of clusters with a success (times largest / mean cluster size), which
    Clopper-Pearson on clusters bounds; with no success at all (or no failure) that bound is the interval.

    Wilson's interval is narrower but does not keep its level: at 95 %, 10 rows and p = .018 it covers 84 %.
    For a proportion averaged over seeds near 0 or 1, pass the rows with the seed as cluster.

    Args:
        successes: One 0/1 outcome (or a share in 0..1) per row.
        clusters: One label per row; None makes every row its own cluster.
        level: Confidence level.

    Returns:
        Mean of `successes`, in 0..1, with limits in 0..1.

    Raises:
        UndoProbeError: Values outside 0..1, NaN, no rows, or labels of another length.

    Sources: Clopper and Pearson (1934); Korn and Graubard (1998) for n_eff; Brown, Cai and DasGupta (2001).
    """
    rows = _numbers("successes", successes)
    _check_level(level)
    if rows.min() < 0 or rows.max() > 1:
        raise UndoProbeError(
            f"successes: expected 0/1 outcomes or shares in 0..1, got values from {rows.min():g} to "
            f"{rows.max():g}; for other quantities use mean_interval"
        )
    groups = _groups(clusters, len(rows))
    low, high = _proportion_limits(groups.sums(rows), groups.sizes, level)
    one_sided = not 0 < rows.sum() < len(rows)
    method = "Clopper-Pearson on clusters" if one_sided else "Clopper-Pearson, design effect"
    return Interval(float(rows.mean()), low, high, len(rows), groups.k, method, level)


def mean_interval(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 9999,
    seed: int = 0,
    outcomes: bool | None = None,
) -> Interval:
    """Interval of a mean whose rows come in clusters, for instance bits per item.

    m +- t_{k-1} se, se^2 = k / (k - 1) sum_c (s_c - m n_c)^2 / n^2, each limit widened to the cluster
    bootstrap-t's: m - q se, q a quantile of (m* - m) / se* over resampled clusters. The bootstrap follows
    skewness; it is left out where more than 2.5 % of the resamples have no variance (up to 3 clusters).
    What remains below its level: skewed values in 3 clusters (exponential ones: 88 % at 95 %), and heavy
    tails, for what one cluster in twenty carries cannot be seen in ten. Values that are all in -1, 0, 1 count
    as differences of outcomes (see `paired_difference`) unless `outcomes` says that they are not: distances that are
    all 0 are known, 20 failures out of 20 are not.

    Args:
        values: One number per row, any unit. For 0/1 outcomes `proportion` is narrower.
        clusters: One label per row; None makes every row its own cluster.
        level: Confidence level.
        draws: Bootstrap resamples; 0 gives the plain t interval. The same seed gives the same resamples.
        seed: Seed of the resamples.
        outcomes: Whether values are differences of 0/1 outcomes; by what they look like if None.

    Returns:
        The mean over rows, in the values' unit; one cluster gives -inf and inf.

    Raises:
        UndoProbeError: NaN, no rows, labels of another length, or too few draws.

    Sources: Efron and Tibshirani (1993), chapter 12; Cameron, Gelbach and Miller (2008) for clusters.
    """
    rows = _numbers("values", values)
    groups = _groups(clusters, len(rows))
    seen = _are_outcomes(rows) if outcomes is None else outcomes
    return _mean_intervals(rows, groups, seen, draws, seed)(level)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 9999,
    seed: int = 0,
) -> Interval:
    """Interval of mean(a - b) over the same rows.

    `mean_interval` of the differences. Where both are 0/1 outcomes, each limit is also at least as wide as
    Newcombe's: with P = share of rows (1, 0) and Q = share of rows (0, 1), each with its `proportion`
    interval, low = P - Q - sqrt((P - P_low)^2 + (Q_high - Q)^2), and likewise high. So outcomes that agree on
    every row give a small interval around 0, not (0, 0); other values that agree on every row give (0, 0).

    Args:
        a: One number per row.
        b: One number per row, the same rows.
        clusters: One label per row; None makes every row its own cluster.
        level: Confidence level.
        draws: Bootstrap resamples; 0 leaves the bootstrap out.
        seed: Seed of the resamples.

    Returns:
        mean(a) - mean(b) in their unit.

    Raises:
        UndoProbeError: a and b of different lengths, NaN, no rows, labels of another length, too few draws.

    Sources: as `mean_interval`; Newcombe (1998) and Zou and Donner (2008) for square-and-add.
    """
    rows_a, rows_b = _paired(a=a, b=b)
    outcomes = _are_outcomes(rows_a, rows_b, allowed=(0, 1))
    groups = _groups(clusters, len(rows_a))
    return _mean_intervals(rows_a - rows_b, groups, outcomes, draws, seed)(level)


def t_interval(values: ArrayLike, level: float = 0.95, resolution: float = 0.0) -> Interval:
    """Student's interval over seeds: m +- t_{n-1} s / sqrt(n).

    Args:
        values: One number per seed; for a claim about a method, paired differences per seed.
        level: Confidence level.
        resolution: The smallest step a value can take, for instance 1 / items for an accuracy or a difference
            of accuracies. s is not believed below it, so seeds that happen to agree still get a width.

    Returns:
        The mean in the values' unit; one value gives -inf and inf.

    Raises:
        UndoProbeError: NaN, no values, or a negative resolution.

    Source: Student (1908).
    """
    rows = _numbers("values", values)
    _check_level(level)
    if not 0 <= resolution < inf:
        raise UndoProbeError(
            f"resolution: expected a step >= 0, got {resolution}; pass 1 / items or leave it out"
        )
    n, mean = len(rows), float(rows.mean())
    if n == 1:
        return Interval(mean, -inf, inf, 1, 1, "one value: no interval", level)
    spread = max(float(rows.std(ddof=1)), resolution)
    half = _t_quantile(n - 1, level) * spread / sqrt(n)
    return Interval(mean, mean - half, mean + half, n, n, "t over seeds", level)


# --- Ratios and survival --------------------------------------------------------------------------------


def fieller(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 9999,
    seed: int = 0,
) -> Interval:
    """Interval of mean(numerator) / mean(denominator) over the same rows.

    The ratios r for which 0 lies within the limits of N - r D: (N - r D)^2 <= e_N^2 + r^2 e_D^2
    - 2 rho r e_N e_D, where e_N and e_D are the distances from the means to their limits (`mean_interval`
    without bootstrap, on the side that matters) and rho is the correlation over clusters. With e = t se this
    is Fieller's interval. Widened to the bootstrap-t of the ratio, numerator and denominator resampled
    together.

    Args:
        numerator: One number per row.
        denominator: One number per row, the same rows; any sign.
        clusters: One label per row; None makes every row its own cluster.
        level: Confidence level.
        draws: Bootstrap resamples; 0 leaves the bootstrap out.
        seed: Seed of the resamples.

    Returns:
        The ratio, without unit. -inf and inf, and a method that says so, where the denominator's interval
        covers 0: no bounded interval has the level then.

    Raises:
        UndoProbeError: Different lengths, a denominator with mean 0, NaN, no rows, too few draws.

    Sources: Fieller (1954); Donner and Zou (2012) for limits that are not symmetric.
    """
    top, bottom = _paired(numerator=numerator, denominator=denominator)
    groups = _groups(clusters, len(top))
    return _ratio_interval(top, bottom, groups, _are_outcomes(top, bottom), level, draws, seed)


def fieller_from_means(
    numerator: float,
    denominator: float,
    numerator_se: float,
    denominator_se: float,
    covariance: float = 0.0,
    df: float = inf,
    level: float = 0.95,
) -> Interval:
    """Fieller's interval from two means and their standard errors.

    Args:
        numerator: Mean above the line.
        denominator: Mean below the line.
        numerator_se: Its standard error.
        denominator_se: Its standard error.
        covariance: Covariance of the two means; 0 for independent ones.
        df: Degrees of freedom of the standard errors; inf for known ones.
        level: Confidence level.

    Returns:
        The ratio, without unit, as in `fieller`; n and n_clusters are 0, for they are not known here.

    Raises:
        UndoProbeError: Denominator 0, a negative standard error, or a covariance larger than they allow.

    Source: Fieller (1954).
    """
    _check_level(level)
    _numbers("means and standard errors", [numerator, denominator, numerator_se, denominator_se, covariance])
    if min(numerator_se, denominator_se) < 0 or df <= 0:
        raise UndoProbeError(
            f"expected standard errors >= 0 and df > 0, got {numerator_se}, {denominator_se} and df {df}"
        )
    scale = numerator_se * denominator_se
    if abs(covariance) > scale * (1 + 1e-9):
        raise UndoProbeError(f"covariance: expected at most {scale:g} in size, got {covariance:g}")
    _check_denominator(denominator)
    t = _t_quantile(df, level)
    rho = covariance / scale if scale else 0.0
    top = _Limits(numerator, numerator_se, t * numerator_se, t * numerator_se)
    bottom = _Limits(denominator, denominator_se, t * denominator_se, t * denominator_se)
    low, high = _fieller_set(top, bottom, rho)
    return Interval(numerator / denominator, low, high, 0, 0, _ratio_method(low, high), level)


def survival(
    stage: ArrayLike,
    anchor0: ArrayLike,
    original: ArrayLike,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 9999,
    seed: int = 0,
) -> Survival:
    """S = (stage - anchor 0) / (original - anchor 0) of three models scored on the same rows.

    The interval is `fieller`'s. It is given only where the anchors are far apart: a gap of 6 standard errors
    or more passes the gate; from 3 to 6 the range is "weak", below 3 there is "no range", and S is None. For
    0/1 outcomes the gap's standard error is not believed below the one with half a cluster added to each of
    the four paired cells, so that a few lucky clusters do not open the gate. S may lie outside 0..1; a
    measure that falls with knowledge is as good as one that rises.

    Args:
        stage: One number per row, of the model under test.
        anchor0: The same rows, of the model that should read 0.
        original: The same rows, of the model that should read 1.
        clusters: One label per row; None makes every row (or seed) its own cluster.
        level: Confidence level.
        draws: Bootstrap resamples; 0 leaves the bootstrap out.
        seed: Seed of the resamples.

    Returns:
        Survival, without unit; an open gate with very few clusters can still give -inf and inf.

    Raises:
        UndoProbeError: Different lengths, NaN, no rows, labels of another length, too few draws.

    Sources: Fieller (1954); Agresti and Min (2005) for the half counts.
    """
    rows, zero, one = _paired(stage=stage, anchor0=anchor0, original=original)
    _check_level(level)
    groups = _groups(clusters, len(rows))
    outcomes = _are_outcomes(rows, zero, one, allowed=(0, 1))
    gap, se = float((one - zero).mean()), _standard_error(one - zero, groups)
    if outcomes:
        se = max(se, _smoothed_error(one - zero, groups.k))
    ratio = None
    if _gate(gap, se) == "ok":
        ratio = _ratio_interval(rows - zero, one - zero, groups, outcomes, level, draws, seed)
    means = (float(rows.mean()), float(zero.mean()), float(one.mean()))
    return _survival(means, gap, se, ratio, (len(rows), groups.k), level)


def survival_from_means(
    stage: float,
    anchor0: float,
    original: float,
    standard_errors: tuple[float, float, float],
    df: float = inf,
    level: float = 0.95,
) -> Survival:
    """Survival of three independent means, where rows cannot be paired.

    As `survival`, with cov(stage - anchor 0, original - anchor 0) = se(anchor 0)^2.

    Args:
        stage: Mean of the model under test.
        anchor0: Mean of the model that should read 0.
        original: Mean of the model that should read 1.
        standard_errors: Of stage, anchor 0 and original.
        df: Degrees of freedom of the standard errors; inf for known ones.
        level: Confidence level.

    Returns:
        Survival, without unit; n and n_clusters are None.

    Raises:
        UndoProbeError: NaN, or a negative standard error.

    Source: Fieller (1954).
    """
    _numbers("means and standard errors", [stage, anchor0, original, *standard_errors])
    _check_level(level)
    if min(standard_errors) < 0 or df <= 0:
        raise UndoProbeError(f"expected standard errors >= 0 and df > 0, got {standard_errors} and df {df}")
    se_stage, se_zero, se_one = standard_errors
    gap, se = original - anchor0, sqrt(se_one**2 + se_zero**2)
    ratio = None
    if _gate(gap, se) == "ok":
        top_se = sqrt(se_stage**2 + se_zero**2)
        ratio = fieller_from_means(stage - anchor0, gap, top_se, se, se_zero**2, df, level)
    return _survival((stage, anchor0, original), gap, se, ratio, (None, None), level)


# --- Equivalence, tests, many claims --------------------------------------------------------------------


def tost(
    a: ArrayLike,
    b: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    margin: float = 0.05,
    alpha: float = 0.05,
    draws: int = 9999,
    seed: int = 0,
) -> Equivalence:
    """Two one-sided tests that mean(a - b), or mean(a), lies within +- margin.

    Equivalent at alpha if and only if the interval at level 1 - 2 alpha lies inside (-margin, margin). The
    interval is `paired_difference`'s (`mean_interval`'s without b), so its care near 0 and 1 holds here too;
    p is the smallest alpha at which it fits, 1 if none below .5 does.

    Args:
        a: One number per row; differences if b is left out (for a method: one per seed, with draws=0).
        b: One number per row, the same rows.
        clusters: One label per row; None makes every row its own cluster.
        margin: Largest difference that counts as none, in the values' unit.
        alpha: Level of each of the two tests.
        draws: Bootstrap resamples; 0 leaves the bootstrap out.
        seed: Seed of the resamples.

    Returns:
        Equivalence; `smallest_margin` says how far off a failed claim is.

    Raises:
        UndoProbeError: A margin that is not above 0, alpha outside 0...5, and as `paired_difference`.

    Source: Schuirmann (1987).
    """
    _check_margin(margin, alpha)
    if b is None:
        rows = _numbers("a", a)
        outcomes = _are_outcomes(rows)
    else:
        rows_a, rows_b = _paired(a=a, b=b)
        rows, outcomes = rows_a - rows_b, _are_outcomes(rows_a, rows_b, allowed=(0, 1))

    at = _mean_intervals(rows, _groups(clusters, len(rows)), outcomes, draws, seed)
    found = at(1 - 2 * alpha)
    widest = _widest(found)
    p = _smallest_tail(lambda tail: _widest(at(1 - 2 * tail)) < margin)
    counts, method = (found.n, found.n_clusters), f"TOST, {found.method}"
    return Equivalence(
        found.value, found.low, found.high, p, margin, widest < margin, widest, *counts, method
    )


def tost_from_summary(
    difference: float, standard_error: float, df: float = inf, margin: float = 0.05, alpha: float = 0.05
) -> Equivalence:
    """Two one-sided t tests from a difference and its standard error.

    p = P(T_df > (margin - |difference|) / standard_error).

    Args:
        difference: The estimate.
        standard_error: Its standard error, above 0.
        df: Degrees of freedom of the standard error; inf for a known one.
        margin: Largest difference that counts as none, in the same unit.
        alpha: Level of each of the two tests.

    Returns:
        Equivalence; n and n_clusters are None.

    Raises:
        UndoProbeError: A margin or standard error that is not above 0, or NaN.

    Source: Schuirmann (1987).
    """
    _check_margin(margin, alpha)
    _numbers("difference and standard_error", [difference, standard_error])
    if standard_error <= 0 or df <= 0:
        raise UndoProbeError(
            f"expected standard_error > 0 and df > 0, got {standard_error} and {df}; a standard error of 0 "
            "comes from a degenerate sample: pass the sample to tost"
        )
    p = float(special.stdtr(df, -(margin - abs(difference)) / standard_error))
    half = _t_quantile(df, 1 - 2 * alpha) * standard_error
    low, high = difference - half, difference + half
    widest = max(abs(low), abs(high))
    return Equivalence(difference, low, high, p, margin, widest < margin, widest, None, None, "TOST, t")


def sign_flip_test(
    values: ArrayLike, clusters: ArrayLike | None = None, draws: int = 99999, seed: int = 0
) -> Significance:
    """Two-sided randomisation test that differences are symmetric about 0.

    p = share of the sign patterns for which |sum of +-d_c| reaches the observed one, d_c the sum of a
    cluster. All 2^k patterns up to k = 16, else (1 + hits) / (1 + draws). The smallest p is 2^(1 - k): .25
    with 3 seeds, .031 with 6.

    Args:
        values: Paired differences, one per seed or row.
        clusters: Labels whose rows flip together; None flips each value alone.
        draws: Patterns drawn where they are not enumerated.
        seed: Seed of the draws.

    Returns:
        The mean difference as the statistic, with its p-value; n is the number of clusters.

    Raises:
        UndoProbeError: NaN, no values, labels of another length, or too few draws.

    Source: Fisher (1935).
    """
    rows = _numbers("values", values)
    _check_draws(draws)
    groups = _groups(clusters, len(rows))
    k, sums = groups.k, groups.sums(rows)
    observed = abs(sums.sum()) * (1 - 1e-9) - _TINY * np.abs(sums).sum()  # ties must count despite rounding
    if k <= EXACT_SIGN_FLIPS:
        signs = np.array(list(product((-1.0, 1.0), repeat=k)))
        p, method = float((np.abs(signs @ sums) >= observed).mean()), "sign-flip, exact"
    else:
        if draws == 0:
            raise UndoProbeError(f"draws: {k} values are too many to enumerate; pass draws >= 199")
        random = np.random.default_rng(seed)
        signs = random.integers(0, 2, size=(draws, k), dtype=np.int8) * 2.0 - 1.0
        p = (1 + int((np.abs(signs @ sums) >= observed).sum())) / (1 + draws)
        method = f"sign-flip, {draws} draws"
    return Significance(float(rows.mean()), p, k, method)


def page_trend(matrix: ArrayLike) -> Significance:
    """Page's L test that columns rise from left to right, one-sided.

    L = sum_j j R_j, R_j the sum over rows of the rank of column j. For a fall, reverse the columns.

    Args:
        matrix: One row per seed (or family), one column per level in the order foretold, for instance alphas.

    Returns:
        L and its p-value; n is the number of rows.

    Raises:
        UndoProbeError: Fewer than 2 rows or 3 columns, or NaN.

    Source: Page (1963).
    """
    from scipy.stats import page_trend_test  # scipy.stats is slow to import, and only this needs it

    table = _numbers("matrix", matrix, dimensions=2)
    if table.shape[0] < 2 or table.shape[1] < 3:
        raise UndoProbeError(
            f"matrix: expected at least 2 rows (seeds) and 3 columns (levels), got {table.shape[0]} x "
            f"{table.shape[1]}; a trend over two levels is a paired difference"
        )
    result: Any = page_trend_test(table)
    return Significance(
        float(result.statistic), float(result.pvalue), len(table), f"Page's L, {result.method}"
    )


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's: in [-1, 1]; NaN where one of them does not vary or there are fewer than three values."""
    from scipy.stats import rankdata  # scipy.stats is slow to import

    if np.size(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p-values, in the order given.

    p_(i) -> max over j <= i of min(1, (m - j + 1) p_(j)). Rejecting those at or below alpha keeps the chance
    of any false claim at or below alpha, however the tests depend on each other.

    Args:
        p_values: The p-values of one sheet of claims.

    Returns:
        Adjusted p-values in 0..1.

    Raises:
        UndoProbeError: Values outside 0..1, NaN, or none.

    Source: Holm (1979).
    """
    p = _numbers("p_values", p_values)
    if p.min() < 0 or p.max() > 1:
        raise UndoProbeError(f"p_values: expected values in 0..1, got {p.min():g} to {p.max():g}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def max_t_upper(
    values: ArrayLike,
    denominators: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
    level: float = 0.95,
    draws: int = 9999,
    seed: int = 0,
) -> SimultaneousUpper:
    """Upper limits for several measures on shared clusters that hold together.

    upper_j = v_j + c se_j, c the larger of Student's one-sided t_{k-1} and the `level` quantile of
    max_j (v_j - v*_j) / se*_j over resampled clusters; v_j is a mean, or with `denominators` a ratio of
    means. All measures see the same resamples, so measures that move together cost little. A column that
    the bootstrap cannot carry (outcomes in -1, 0, 1, or too few clusters) gets at least its own one-sided
    limit at 1 - (1 - level) / columns.

    For the headline over survivals: values = stage - anchor 0, denominators = original - anchor 0, and the
    headline is 1 - `highest`.

    Args:
        values: Rows x measures.
        denominators: Rows x measures, or None for means.
        clusters: One label per row; None makes every row its own cluster.
        level: Confidence that no true value exceeds its limit.
        draws: Bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        SimultaneousUpper in the values' unit (none for ratios); inf where a limit cannot be had.

    Raises:
        UndoProbeError: Shapes that differ, a denominator with mean 0, NaN, no rows, too few draws.

    Sources: Westfall and Young (1993); Romano and Wolf (2005).
    """
    tops = _numbers("values", values, dimensions=2)
    bottoms = (
        np.ones_like(tops) if denominators is None else _numbers("denominators", denominators, dimensions=2)
    )
    if bottoms.shape != tops.shape:
        raise UndoProbeError(f"denominators: expected the shape of values, {tops.shape}, got {bottoms.shape}")
    _check_level(level)
    if level <= 0.5:
        raise UndoProbeError(
            f"level: an upper limit needs a confidence above 0.5, got {level}; 0.95 is usual"
        )
    _check_draws(draws)
    groups = _groups(clusters, len(tops))
    top_sums = np.stack([groups.sums(column) for column in tops.T], axis=1)
    bottom_sums = np.stack([groups.sums(column) for column in bottoms.T], axis=1)
    for total in bottom_sums.sum(0):
        _check_denominator(float(total))
    found = top_sums.sum(0) / bottom_sums.sum(0)
    critical, trusted = _max_t_critical(top_sums, bottom_sums, level, draws, seed)
    uppers = np.full(len(found), -inf)
    if groups.k > 1:
        uppers = found + critical * _ratio_errors(top_sums, bottom_sums)
    for j, (top, bottom) in enumerate(zip(tops.T, bottoms.T, strict=True)):
        if not trusted[j] or _are_outcomes(top, bottom):
            below = None if denominators is None else bottom
            uppers[j] = max(uppers[j], _upper_alone(top, below, groups, 1 - (1 - level) / len(found)))
    return SimultaneousUpper(
        tuple(map(float, found)), tuple(map(float, uppers)), float(uppers.max()), critical,
        len(tops), groups.k, level, "max-T bootstrap",
    )  # fmt: skip


# --- Curves over attack steps ---------------------------------------------------------------------------


def restricted_mean(
    steps: ArrayLike, accuracies: ArrayLike, theta: float, horizon: int | float
) -> TimeToReach:
    """Restricted mean of u = log2(1 + steps) until the running maximum reaches theta.

    mean over curves of min(u at which the curve crosses theta, log2(1 + horizon)); between two steps the
    running maximum is taken as straight in u. A curve at theta from its first step on gives that step's u.

    Args:
        steps: Steps at which the curves were read, rising, from 0 or later.
        accuracies: One curve, or curves x steps (for instance one per attack seed).
        theta: Accuracy to reach.
        horizon: Last step that counts, the same for all stages compared.

    Returns:
        TimeToReach, in doublings; larger is more robust. A censored curve counts with the horizon.

    Raises:
        UndoProbeError: Steps that do not rise, shapes that differ, NaN, or a curve that neither reaches
            theta nor lasts to the horizon.

    Source: Irwin (1949); Royston and Parmar (2013) for its use.
    """
    u, curves = _curves(steps, accuracies)
    end = _log_steps(horizon)
    _numbers("theta", [theta])
    times, censored = [], []
    for curve in np.maximum.accumulate(curves, axis=1):
        reached = int(np.argmax(curve >= theta)) if curve[-1] >= theta else len(u)
        if reached == len(u) and u[-1] < end - _TINY:
            raise UndoProbeError(
                f"a curve ends at step {2 ** u[-1] - 1:.0f} below theta = {theta:g}, before the horizon "
                f"{horizon}: what comes after is not known; attack on to the horizon, or choose a nearer one"
            )
        time = inf if reached == len(u) else _crossing(u, curve, reached, theta)
        times.append(float(min(time, end)))
        censored.append(bool(time > end))
    mean = float(np.mean(times))
    return TimeToReach(mean, tuple(times), tuple(censored), float(theta), float(horizon))


def area_under_log_steps(
    steps: ArrayLike, accuracies: ArrayLike, horizon: int | float | None = None
) -> float:
    """Mean height of the curve over u = log2(1 + steps), by the trapezoid rule.

    (1 / (u_end - u_0)) times the integral of accuracy over u from the first step to the horizon.

    Args:
        steps: Steps at which the curves were read, rising, from 0 or later.
        accuracies: One curve, or curves x steps; several are averaged.
        horizon: Last step that counts; None for the last one read.

    Returns:
        A mean accuracy, in the accuracies' unit; smaller is more robust.

    Raises:
        UndoProbeError: Steps that do not rise, fewer than two, shapes that differ, NaN, or a horizon outside.
    """
    u, curves = _curves(steps, accuracies)
    end = u[-1] if horizon is None else _log_steps(horizon)
    if len(u) < 2 or not u[0] < end <= u[-1] + _TINY:
        raise UndoProbeError(
            f"expected at least two steps and a horizon after the first and not beyond the last, got "
            f"{len(u)} steps from {2 ** u[0] - 1:.0f} to {2 ** u[-1] - 1:.0f} and horizon {horizon}"
        )
    mean = curves.mean(axis=0)
    inside = u < end
    grid = np.append(u[inside], end)
    heights = np.append(mean[inside], np.interp(end, u, mean))
    return float(np.trapezoid(heights, grid) / (end - u[0]))


# --- What the functions above are made of ---------------------------------------------------------------


class _Groups(NamedTuple):
    """Which cluster each row belongs to, 0..k-1."""

    codes: NDArray[np.intp]
    k: int
    sizes: Array

    def sums(self, values: Array) -> Array:
        return np.asarray(np.bincount(self.codes, weights=values, minlength=self.k), dtype=np.float64)


class _Limits(NamedTuple):
    """A mean, its standard error, and the distances down and up to its limits."""

    mean: float
    se: float
    down: float
    up: float


def _mean_limits(rows: Array, groups: _Groups, outcomes: bool, level: float) -> _Limits:
    mean, se = float(rows.mean()), _standard_error(rows, groups)
    if not outcomes:
        reach = _t_quantile(groups.k - 1, level) * se if groups.k > 1 else inf
        return _Limits(mean, se, reach, reach)
    reach = _t_quantile(groups.k - 1, level) * se if groups.k > 1 else 0.0
    ups, downs = groups.sums(rows * (rows > 0)), groups.sums(-rows * (rows < 0))
    p, q = ups.sum() / len(rows), downs.sum() / len(rows)
    (p_low, p_high), (q_low, q_high) = (
        _proportion_limits(part, groups.sizes, level) for part in (ups, downs)
    )
    down, up = max(reach, np.hypot(p - p_low, q_high - q)), max(reach, np.hypot(p_high - p, q - q_low))
    return _Limits(mean, se, float(min(down, 1 + mean)), float(min(up, 1 - mean)))  # outcomes differ by -1..1


def _mean_intervals(
    rows: Array, groups: _Groups, outcomes: bool, draws: int, seed: int
) -> Callable[[float], Interval]:
    """The interval as a function of the level, nested as the level grows; resampling is done once."""
    _check_draws(draws)
    sums, n, k = groups.sums(rows), len(rows), groups.k
    drawn = _usable_draws(sums, groups.sizes, draws, seed)
    method = "cluster t" if drawn is None else "cluster bootstrap-t"

    def at(level: float) -> Interval:
        _check_level(level)
        mean, _, down, up = _mean_limits(rows, groups, outcomes, level)
        if not isfinite(down):
            return Interval(mean, -inf, inf, n, k, "one cluster: no interval", level)
        low, high = _widened((mean - down, mean + up), sums, groups.sizes, drawn, level)
        if outcomes:
            low, high = max(low, -1.0), min(high, 1.0)
        return Interval(mean, low, high, n, k, method + ", square-and-add" * outcomes, level)

    return at


def _ratio_interval(
    top: Array, bottom: Array, groups: _Groups, outcomes: bool, level: float, draws: int, seed: int
) -> Interval:
    _check_level(level)
    _check_draws(draws)
    _check_denominator(float(bottom.mean()))
    over, under = (_mean_limits(rows, groups, outcomes, level) for rows in (top, bottom))
    rho = 0.0
    if over.se * under.se > 0 and groups.k > 1:
        left, right = (groups.sums(rows - rows.mean()) for rows in (top, bottom))
        rho = float(np.clip(left @ right / sqrt((left @ left) * (right @ right)), -1, 1))
    low, high = _fieller_set(over, under, rho)
    if isfinite(low):
        tops, bottoms = groups.sums(top), groups.sums(bottom)
        low, high = _widened((low, high), tops, bottoms, _usable_draws(tops, bottoms, draws, seed), level)
    ratio = over.mean / under.mean
    return Interval(ratio, low, high, len(top), groups.k, _ratio_method(low, high), level)


def _proportion_limits(hits: Array, sizes: Array, level: float) -> tuple[float, float]:
    k, n = len(sizes), float(sizes.sum())
    misses, p, tail = sizes - hits, float(hits.sum() / n), (1 - level) / 2
    lean = float(sizes.max()) * k / n  # rows succeed at most so many times as often as clusters
    widest_high = min(1.0, lean * _clopper_pearson(float((hits > 0).sum()), k, tail)[1])
    widest_low = max(0.0, 1 - lean * _clopper_pearson(float((misses > 0).sum()), k, tail)[1])
    if k == 1 or hits.sum() <= 0 or misses.sum() <= 0:
        return widest_low, widest_high
    rows = n
    if sizes.max() > 1:
        variance = float(((hits - p * sizes) ** 2).sum()) * k / (k - 1) / n**2
        carriers = min(x.sum() ** 2 / (x**2).sum() for x in (hits, misses))
        shrink = _t_quantile(inf, level) / _t_quantile(float(np.clip(carriers - 1, 1, k - 1)), level)
        rows = (n if variance * n <= p * (1 - p) else p * (1 - p) / variance) * shrink**2
    low, high = _clopper_pearson(p * rows, rows, tail)
    return max(low, widest_low), min(high, widest_high)


def _clopper_pearson(hits: float, n: float, tail: float) -> tuple[float, float]:
    low = float(special.betaincinv(hits, n - hits + 1, tail)) if hits > 0 else 0.0
    high = float(special.betaincinv(hits + 1, n - hits, 1 - tail)) if n - hits > _TINY else 1.0
    return low, high


def _standard_error(rows: Array, groups: _Groups) -> float:
    """Cluster-robust standard error of the mean over rows; inf with one cluster."""
    if groups.k == 1:
        return inf
    residuals = groups.sums(rows - rows.mean())
    se = sqrt(groups.k / (groups.k - 1) * float(residuals @ residuals)) / len(rows)
    return se if se > _TINY * float(np.abs(rows).mean()) else 0.0  # rounding of a constant is no spread


def _smoothed_error(differences: Array, k: int) -> float:
    """Standard error of a paired difference of outcomes, k clusters as rows and half a count per cell."""
    p, q = float((differences > 0).mean()), float((differences < 0).mean())
    p, q = (k * p + 0.5) / (k + 2), (k * q + 0.5) / (k + 2)
    return sqrt((p + q - (p - q) ** 2) / (k + 2))


def _ratio_errors(tops: Array, bottoms: Array) -> Array:
    k = len(tops)
    residuals = tops - tops.sum(0) / bottoms.sum(0) * bottoms
    return np.sqrt(k / (k - 1) * (residuals**2).sum(0)) / np.abs(bottoms.sum(0))


def _resampled(parts: Array, draws: int, seed: int) -> Array:
    """Sums of the clusters' parts over resampled clusters, draws x columns."""
    k = len(parts)
    if k * draws <= KEPT_COUNTS:
        return _kept_counts(k, draws, seed) @ parts
    random, block = np.random.default_rng(seed), max(1, KEPT_COUNTS // k)
    sizes = [min(block, draws - start) for start in range(0, draws, block)]
    return np.concatenate([_counts(random, k, size) @ parts for size in sizes])


def _counts(random: np.random.Generator, k: int, draws: int) -> Array:
    """How often each cluster is drawn, draws x k."""
    drawn = random.integers(k, size=(draws, k)) + k * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * k).reshape(draws, k).astype(np.float64)


@lru_cache(maxsize=2)  # a scorecard asks for the same resamples again and again
def _kept_counts(k: int, draws: int, seed: int) -> Array:
    counts = _counts(np.random.default_rng(seed), k, draws)
    counts.setflags(write=False)
    return counts


def _studentised(tops: Array, bottoms: Array, draws: int, seed: int) -> Array:
    """(r* - r) / se* of r = sum(tops) / sum(bottoms), draws x measures; NaN where se* is 0."""
    k, measures = tops.shape
    residuals = tops - tops.sum(0) / bottoms.sum(0) * bottoms
    parts = [residuals, bottoms, residuals**2, residuals * bottoms, bottoms**2]
    drawn = _resampled(np.concatenate(parts, axis=1), draws, seed)
    e, b, ee, eb, bb = (drawn[:, i * measures : (i + 1) * measures] for i in range(5))
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = e / b
        error = np.sqrt(k / (k - 1) * np.maximum(ee - 2 * shift * eb + shift**2 * bb, 0)) / np.abs(b)
        usable = error > 1e-6 * _ratio_errors(tops, bottoms)
        return np.where(usable & np.isfinite(shift), shift / error, np.nan)


def _usable_draws(top: Array, bottom: Array, draws: int, seed: int) -> Array | None:
    """Studentised draws of one ratio, or None where they cannot be trusted."""
    se = _ratio_errors(top[:, None], bottom[:, None])[0] if len(top) > 1 else 0.0
    if draws == 0 or se <= _TINY * abs(top.sum() / bottom.sum()):
        return None
    t = _studentised(top[:, None], bottom[:, None], draws, seed)[:, 0]
    kept = t[~np.isnan(t)]
    return kept if len(kept) >= draws * (1 - MOST_DEGENERATE) else None


def _widened(
    limits: tuple[float, float], top: Array, bottom: Array, drawn: Array | None, level: float
) -> tuple[float, float]:
    """Each limit, or the bootstrap-t one where that is further out."""
    if drawn is None:
        return limits
    ratio, se = top.sum() / bottom.sum(), _ratio_errors(top[:, None], bottom[:, None])[0]
    left, right = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return min(limits[0], float(ratio - right * se)), max(limits[1], float(ratio - left * se))


def _max_t_critical(
    tops: Array, bottoms: Array, level: float, draws: int, seed: int
) -> tuple[float, NDArray[np.bool_]]:
    """The critical value, and for each measure whether its resamples could be used."""
    k, measures = tops.shape
    if k == 1:
        return inf, np.zeros(measures, dtype=np.bool_)
    student = float(special.stdtrit(k - 1, level))
    errors = _ratio_errors(tops, bottoms)
    trusted = errors > _TINY * np.abs(tops.sum(0) / bottoms.sum(0))
    if draws == 0 or not trusted.any():
        return student, np.zeros(measures, dtype=np.bool_)
    t = _studentised(tops, bottoms, draws, seed)
    trusted &= np.isnan(t).mean(0) <= MOST_DEGENERATE
    if not trusted.any():
        return student, trusted
    worst = np.nanmax(np.where(np.isnan(t), -np.inf, -t)[:, trusted], axis=1)
    return max(student, float(np.quantile(worst, level))), trusted


def _upper_alone(top: Array, bottom: Array | None, groups: _Groups, level: float) -> float:
    """One-sided limit of one measure, without bootstrap."""
    two_sided = 2 * level - 1
    if bottom is None:
        return _mean_intervals(top, groups, _are_outcomes(top), 0, 0)(two_sided).high
    return _ratio_interval(top, bottom, groups, _are_outcomes(top, bottom), two_sided, 0, 0).high


def _fieller_set(top: _Limits, bottom: _Limits, rho: float) -> tuple[float, float]:
    if bottom.mean < 0:  # turn both around: the ratio stays
        top, bottom = (_Limits(-x.mean, x.se, x.up, x.down) for x in (top, bottom))
    low = _fieller_limit(top.mean, bottom.mean, top.down, (bottom.up, bottom.down), rho, -1)
    high = _fieller_limit(top.mean, bottom.mean, top.up, (bottom.down, bottom.up), rho, 1)
    return (low, high) if isfinite(low) and isfinite(high) else (-inf, inf)


def _fieller_limit(
    top: float, bottom: float, error: float, errors_below: tuple[float, float], rho: float, sign: int
) -> float:
    """One root of (top - r bottom)^2 = error of (top - r bottom); the side of bottom follows r's sign."""
    roots = []
    for below in errors_below:
        a = bottom**2 - below**2
        if a <= 0 or not isfinite(error):
            return sign * inf
        b = top * bottom - rho * error * below
        c = top**2 - error**2
        roots.append((b + sign * sqrt(max(b * b - a * c, 0.0))) / a)
    return roots[0] if roots[0] >= 0 else min(roots[1], 0.0)


def _ratio_method(low: float, high: float) -> str:
    if isfinite(low) and isfinite(high):
        return "Fieller"
    return "Fieller: no interval, the denominator's covers 0"


def _gate(gap: float, se: float) -> Gate:
    size = _gap_in_se(gap, se)
    return "ok" if size >= GATE_OK else "weak range" if size >= GATE_WEAK else "no range"


def _gap_in_se(gap: float, se: float) -> float:
    if se == 0:
        return inf if gap != 0 else 0.0
    return abs(gap) / se


def _survival(
    means: tuple[float, float, float],
    gap: float,
    se: float,
    ratio: Interval | None,
    counts: tuple[int | None, int | None],
    level: float,
) -> Survival:
    value, low, high = (None, None, None) if ratio is None else (ratio.value, ratio.low, ratio.high)
    method = "suppressed: the anchors are too close" if ratio is None else ratio.method
    return Survival(
        value, low, high, _gate(gap, se), gap, _gap_in_se(gap, se), *means, *counts, method, level
    )


def _smallest_tail(fits: Callable[[float], bool]) -> float:
    """Smallest tail in (0, .5) at which `fits` holds; it must hold at all larger ones. 1 if none."""
    low, high = 1e-9, 0.5 - 1e-9
    if not fits(high):
        return 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _widest(interval: Interval) -> float:
    return max(abs(interval.low), abs(interval.high))


def _curves(steps: ArrayLike, accuracies: ArrayLike) -> tuple[Array, Array]:
    x = _numbers("steps", steps)
    if x[0] < 0 or (np.diff(x) <= 0).any():
        raise UndoProbeError(
            f"steps: expected numbers from 0 on that rise, got {x[:6].tolist()}...; sort them"
        )
    raw = np.asarray(accuracies)
    y = np.atleast_2d(_numbers("accuracies", accuracies, dimensions=2 if raw.ndim == 2 else 1))
    if y.shape[1] != len(x):
        raise UndoProbeError(f"accuracies: expected {len(x)} per curve, one per step, got {y.shape[1]}")
    return np.log2(1 + x), y


def _log_steps(horizon: int | float) -> float:
    if not 0 < horizon < inf:
        raise UndoProbeError(f"horizon: expected a number of steps above 0, got {horizon}")
    return float(np.log2(1 + horizon))


def _crossing(u: Array, curve: Array, reached: int, theta: float) -> float:
    if reached == 0:
        return float(u[0])
    share = (theta - curve[reached - 1]) / (curve[reached] - curve[reached - 1])
    return float(u[reached - 1] + share * (u[reached] - u[reached - 1]))


def _t_quantile(df: float, level: float) -> float:
    if df == inf:
        return float(special.ndtri((1 + level) / 2))
    return float(special.stdtrit(df, (1 + level) / 2))


def _are_outcomes(*arms: Array, allowed: tuple[int, ...] = (-1, 0, 1)) -> bool:
    return all(bool(np.isin(arm, allowed).all()) for arm in arms)


def _groups(clusters: ArrayLike | None, n: int) -> _Groups:
    if clusters is None:
        return _Groups(np.arange(n), n, np.ones(n))
    labels = np.asarray(clusters)
    if labels.ndim not in (1, 2) or len(labels) != n:
        raise UndoProbeError(
            f"clusters: expected {n} labels, one per row, got an array of shape {labels.shape}"
        )
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise UndoProbeError("clusters: some labels are NaN; give every row a family")
    names, codes = np.unique(labels, axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    return _Groups(codes, len(names), np.bincount(codes).astype(np.float64))


def _numbers(name: str, values: ArrayLike, dimensions: int = 1) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UndoProbeError(f"{name}: expected numbers, got {type(values).__name__} ({error})") from error
    if array.ndim != dimensions or array.size == 0:
        shape = "one number per row" if dimensions == 1 else "a table, rows x columns"
        raise UndoProbeError(f"{name}: expected {shape}, at least one, got an array of shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        raise UndoProbeError(
            f"{name}: {int(bad.sum())} of {array.size} values are NaN or infinite; find out why, or leave "
            "those rows out of every arm so that they stay paired"
        )
    return array


def _paired(**arms: ArrayLike) -> list[Array]:
    rows = [_numbers(name, values) for name, values in arms.items()]
    lengths = {name: len(row) for name, row in zip(arms, rows, strict=True)}
    if len(set(lengths.values())) > 1:
        raise UndoProbeError(
            f"expected the same rows in every arm, got lengths {lengths}; score them on one set"
        )
    return rows


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UndoProbeError(f"level: expected a confidence between 0 and 1, got {level}; 0.95 is usual")


def _check_draws(draws: int) -> None:
    if draws != 0 and draws < 199:
        raise UndoProbeError(f"draws: expected 0 (no bootstrap) or at least 199, got {draws}")


def _check_margin(margin: float, alpha: float) -> None:
    if not 0 < margin < inf or not 0 < alpha < 0.5:
        raise UndoProbeError(
            f"expected margin > 0 and alpha in 0 to 0.5, got margin {margin} and alpha {alpha}"
        )


def _check_denominator(mean: float) -> None:
    if mean == 0:
        raise UndoProbeError(
            "denominator: its mean is 0, so the ratio is undefined; report the numerator alone"
        )
