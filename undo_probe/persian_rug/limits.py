"""Where the Persian Rug's theory ends: very sparse features, the number that a stream can hold, finite sizes."""

from dataclasses import dataclass

import numpy as np

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug.theory import (
    Array,
    Numbers,
    density,
    iterated,
    loss,
    noise,
    optimal_loss,
    optimum,
    shares,
    variance,
)

CAPACITY = 1.35
"""``r_half / (p ln 1/p)`` for p <= 0.01, where r_half halves the loss; measured by :func:`ratio_for`."""
HALVINGS, ZOOMS = 50, 6


@dataclass(frozen=True, eq=False)
class Sparse:
    """The sparse limit: loss, slope ``a``, and ``k``, by how many deviations of the noise the bias silences it."""

    loss: Array
    a: Array
    k: Array


def sparse(r: Numbers, p: Numbers) -> Sparse:
    """The best code for p -> 0 with k tau << 1, that is for r >> p ln(1/p).

    To second order in tau (with m = -k tau) the loss is ``p tau^2 (1 + k^2/4 + (2/p) I2(-k))``: noise on a feature
    that is on, the bias of which the slope refunds three quarters, and noise that passes the bias. Its derivative
    in k vanishes where ``p k = 4 I1(-k) = 4 [phi(k) - k Phi(-k)]``, and I2(-k) is then about I1(-k) / k = p / 4: so

        L* ~ (p^2 / 3) (1/r - 1) (3/2 + k^2 / 4),   k ~ sqrt(2 ln 1/p),   a ~ 1 + (3/2) k tau.

    At r = 1/4 it is off by 12 % at p = 0.01, 4 % at 0.001 and less than 1 % from 1e-4 on: the exact solution costs
    as little.
    """
    p, tau = np.broadcast_arrays(shares("p", p), noise(r, p))
    low, high = np.zeros_like(p), np.full_like(p, 40.0)
    for _ in range(HALVINGS):
        k = (low + high) / 2
        above = p * k < 4 * iterated(-k)[0]
        low, high = np.where(above, k, low), np.where(above, high, k)
    k = (low + high) / 2
    return Sparse((p * tau**2 * (1.5 + k * k / 4))[()], (1 + 1.5 * k * tau)[()], k[()])


def ratio_for(p: Numbers, left: float = 0.5) -> Array:
    """The ratio r at which the best loss is the share ``left`` of the variance; r_half by default.

    Above it the loss collapses, below it it stays near that of a constant. By zooming in: L* falls with r.
    """
    p, left = np.asarray(shares("p", p)), float(shares("left", left))
    low, high = np.full_like(p, np.log(1e-12)), np.full_like(p, np.log1p(-1e-9))
    for _ in range(ZOOMS):
        grid = low[..., None] + (high - low)[..., None] * np.linspace(0, 1, 64)
        above = optimal_loss(np.exp(grid), p[..., None]) > left * np.asarray(variance(p))[..., None]
        at = above.sum(-1, keepdims=True).clip(1, 63)
        low, high = (np.take_along_axis(grid, each, -1)[..., 0] for each in (at - 1, at))
    return np.exp((low + high) / 2)[()]


def capacity_law(p: Numbers) -> Array:
    """``1.35 p ln(1/p)``: what :func:`ratio_for` gives within 2 % for p from 1e-4 to 0.01; less above."""
    p = shares("p", p)
    return (CAPACITY * p * np.log(1 / p))[()]


def features_held(n_d: Numbers, p: Numbers) -> Array:
    """How many features of rate p a stream of ``n_d`` dimensions holds with half their variance explained."""
    return (np.asarray(n_d, dtype=np.float64) / capacity_law(p))[()]


def excess_moments(p: Numbers) -> tuple[Array, Array]:
    """Skewness and excess kurtosis of a feature, from E x^n = p / (n + 1).

    A weighted sum of independent features has skewness ``g1 sum w^3 / (sum w^2)^(3/2)`` and excess kurtosis
    ``g2 sum w^4 / (sum w^2)^2``.
    """
    p = shares("p", p, closed=True)
    mean, second, third, fourth = p / 2, p / 3, p / 4, p / 5
    v = variance(p)
    central3 = third - 3 * mean * second + 2 * mean**3
    central4 = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
    return (central3 / v**1.5)[()], (central4 / v**2 - 3)[()]


def kurtosis(n_s: Numbers, p: Numbers) -> Array:
    """Excess kurtosis of the interference of a rug of ``n_s`` features, about ``5.4 / (n_s p)``.

    Off-diagonal entries are near Gaussian, so ``sum w^4 / (sum w^2)^2`` is about 3 / n_s.
    """
    return (3 / np.asarray(n_s, dtype=np.float64) * excess_moments(p)[1])[()]


def fourth_derivative(a: Numbers, m: Numbers, tau: Numbers, p: Numbers) -> Array:
    """d^4 L(a, m, tau) / dm^4 at fixed a.

    ``L = p/3 - 2 a p N + a^2 (p D1 + (1 - p) D2)`` with ``N = tau^2 I2(t1) - tau^3 [I3(t1) - I3(t0)]``, ``D1 = 2
    tau^3 [I3(t1) - I3(t0)]`` and ``D2 = 2 tau^2 I2(t0)``; four derivatives leave the density of I3 and its
    derivative of I2.
    """
    a, m, tau, p = (np.asarray(each, dtype=np.float64) for each in (a, m, tau, p))
    t0, t1 = m / tau, (1 + m) / tau
    step = (density(t1) - density(t0)) / tau
    n = -t1 * density(t1) / tau**2 - step
    return (-2 * a * p * n + a * a * (2 * p * step - 2 * (1 - p) * t0 * density(t0) / tau**2))[()]


def finite_loss(n_s: Numbers, r: Numbers, p: Numbers) -> Array:
    """The loss of a rug of ``n_s`` features with the parameters of an infinite one.

    The first Edgeworth term: interference of excess kurtosis kappa changes a smooth mean ``L(m)`` by
    ``kappa tau^4 / 24 L''''(m)``. To be trusted for n_s p >= 10, where kappa is below 1/2; the skewness is nought on
    average, for off-diagonal entries have both signs.
    """
    best = optimum(r, p)
    if not bool((np.asarray(n_s) >= 2).all()):
        raise UndoProbeError(f"n_s is {n_s}: expected at least 2 features")
    bend = fourth_derivative(best.a, best.m, best.tau, p)
    return (loss(best.a, best.m, best.tau, p) + kurtosis(n_s, p) * best.tau**4 / 24 * bend)[()]
