"""The Persian Rug in closed form: what one feature loses where all others are Gaussian noise, and the best loss.

The model is ``f(x) = relu(W_out W_in x + b)``, ``W_in`` n_d by n_s, trained on the mean square error; the features
are ``x_i = on_i u_i`` with ``on_i`` Bernoulli(p) and ``u_i`` uniform on [0, 1], all independent (Cowsik, Dolev and
Infanger, arXiv 2410.12101). Where all rows of ``W = W_out W_in`` have the same diagonal ``a``, bias and
interference, and n_s is large, every output is ``a relu(x + g)`` with ``g ~ N(m, tau^2)``: the mean of the
interference only adds to the bias. All losses here are per output and not divided by p.

Shapes: every function broadcasts ``r`` and ``p`` as arrays and returns float64 of that shape, a scalar for scalars.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from undo_probe.errors import UndoProbeError

Numbers = Any
"""A number, a list of numbers or an array."""
Array = Any
"""A float64 array, or a scalar where scalars went in."""

LOWEST, DEAD, HIGHEST, NEAR_POINTS, FAR_POINTS = -9.0, -4.0, 4.0, 52, 24
"""Where m / tau is searched: it is about -sqrt(2 ln 1/p), -4.4 for p = 1e-6. Below ``DEAD`` even u = 1 stays silent."""
GOLDEN_STEPS = 28
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best symmetric code: its loss, the diagonal ``a``, ``m`` (the bias over a) and the noise ``tau``."""

    loss: Array
    a: Array
    m: Array
    tau: Array


def shares(name: str, values: Numbers, closed: bool = False) -> Array:
    """The values as float64.

    Raises:
        UndoProbeError: one is not between 0 and 1; 1 itself counts where ``closed``.
    """
    found = np.asarray(values, dtype=np.float64)
    good = (found > 0) & ((found <= 1) if closed else (found < 1))
    if not bool(good.all()):
        wrong = float(found[~good].flat[0])
        raise UndoProbeError(
            f"{name} is {wrong:g}: expected a number above 0 and {'at most' if closed else 'below'} 1"
        )
    return found


def variance(p: Numbers) -> Array:
    """Variance v of a feature: E x = p/2 and E x^2 = p/3, so v = p/3 - p^2/4; the loss of the best constant."""
    p = shares("p", p, closed=True)
    return (p / 3 - p * p / 4)[()]


def noise(r: Numbers, p: Numbers) -> Array:
    """The least noise tau of a symmetric code, ``tau^2 = (1/r - 1) v``.

    ``tau^2 = s v`` with s the squared off-diagonal row sum over a^2. For W of rank n_d, (tr W)^2 <= n_d |W|_F^2, and
    tr W = a n_s: so s >= 1/r - 1, with equality where W is a/r times an orthogonal projector of constant diagonal r.
    The loss only grows with tau.
    """
    r = shares("r", r)
    return np.sqrt((1 / r - 1) * variance(p))[()]


def loss(a: Numbers, m: Numbers, tau: Numbers, p: Numbers) -> Array:
    """The loss of ``a relu(x + g)``, g ~ N(m, tau^2), as an estimate of x.

    ``(1 - p) a^2 E relu(g)^2 + p E (u - a relu(u + g))^2``. With the error ``q = relu(u + g) - u`` the second mean is
    ``(1 - a)^2 / 3 - 2 a (1 - a) E uq + a^2 E q^2``: a form that keeps its digits where the loss is far below p.

    Raises:
        UndoProbeError: p outside 0..1, or tau not positive.
    """
    p, a = shares("p", p, closed=True), np.asarray(a, dtype=np.float64)
    m, tau = _spread(m, tau)
    uq, qq, silent = _moments(m, tau)
    return ((1 - p) * a * a * silent + p * ((1 - a) ** 2 / 3 - 2 * a * (1 - a) * uq + a * a * qq))[()]


def optimum_at(tau: Numbers, p: Numbers) -> Optimum:
    """The best a and m at a given noise.

    The loss is a parabola in a; with E uq and E q^2 as in :func:`loss` and R = (1 - p) / p E relu(g)^2,

        a*(m) = (1/3 + E uq) / (1/3 + 2 E uq + E q^2 + R)
        L*(m) = p (E q^2 / 3 + R / 3 - (E uq)^2) / (1/3 + 2 E uq + E q^2 + R).

    What is left is one dimension, which may have two basins where r is small: a grid in m / tau, then golden sections
    in the two best of its valleys.

    Raises:
        UndoProbeError: p outside 0..1, or tau not positive.
    """
    p, tau = np.broadcast_arrays(shares("p", p, closed=True), _spread(0.0, tau)[1])
    flat_p, flat_tau = p.ravel(), tau.ravel()
    grid = _grid(flat_p, flat_tau)
    rows = np.arange(len(flat_p))
    values = _best_in_a(grid, flat_tau[:, None], flat_p[:, None])[0]
    inner = values[:, 1:-1]
    valley = np.where((inner <= values[:, :-2]) & (inner <= values[:, 2:]), inner, np.inf)
    best_t, best = np.zeros_like(flat_p), np.full_like(flat_p, np.inf)
    for place in np.argsort(valley, axis=1)[:, :2].T + 1:
        own = rows[np.isfinite(valley[rows, place - 1])]
        at = place[own]
        t, found = _golden(grid[own, at - 1], grid[own, at + 1], flat_tau[own], flat_p[own])
        lower = found < best[own]
        best_t[own[lower]], best[own[lower]] = t[lower], found[lower]
    a = _best_in_a(best_t, flat_tau, flat_p)[1]
    shaped = [values.reshape(p.shape)[()] for values in (best, a, best_t * flat_tau, flat_tau)]
    return Optimum(*shaped)


def optimum(r: Numbers, p: Numbers) -> Optimum:
    """The best symmetric code of ratio ``r = n_d / n_s``: :func:`optimum_at` the least noise, :func:`noise`.

    Raises:
        UndoProbeError: r not between 0 and 1, or p outside 0..1.
    """
    return optimum_at(noise(r, p), np.broadcast_arrays(r, p)[1])


def optimal_loss(r: Numbers, p: Numbers) -> Array:
    """L*(r, p): the loss of the best symmetric code, per output; see :func:`optimum`."""
    return optimum(r, p).loss


def density(t: Array) -> Array:
    """The standard normal density."""
    return np.exp(-t * t / 2) / np.sqrt(2 * np.pi)


def iterated(t: Array) -> tuple[Array, Array, Array]:
    """I1, I2, I3: the normal distribution function integrated from below once, twice, three times.

    By parts, ``n I_n(t) = t I_{n-1}(t) + I_{n-2}(t)``, from I_{-1} the density on.
    """
    below = ndtr(t)
    i1 = t * below + density(t)
    i2 = (below + t * i1) / 2
    return i1, i2, (i1 + t * i2) / 3


def _moments(m: Array, tau: Array) -> tuple[Array, Array, Array]:
    """E uq, E q^2 and E relu(g)^2, by parts.

    With c = relu(-(u + g)), what is cut off: q = g + c, E c^2 = 2 tau^3 [I3(-t0) - I3(-t1)] and E uc = tau^3
    [I3(-t0) - I3(-t1)] - tau^2 I2(-t1), where t0 = m / tau and t1 = (1 + m) / tau. Then E uq = m/2 + E uc and E q^2
    = tau^2 + m^2 - E c^2 - 2 E uc.
    """
    t0, t1 = m / tau, (1 + m) / tau
    _, i2, i3 = iterated(-t1)
    half = tau**3 * (iterated(-t0)[2] - i3)
    cut = half - tau**2 * i2
    return m / 2 + cut, tau**2 + m**2 - 2 * half - 2 * cut, 2 * tau**2 * iterated(t0)[1]


def _best_in_a(t: Array, tau: Array, p: Array) -> tuple[Array, Array]:
    """L*(m) and a*(m) at m = t tau."""
    uq, qq, silent = _moments(t * tau, tau)
    rest = (1 - p) / p * silent
    whole = 1 / 3 + 2 * uq + qq + rest
    return p * (qq / 3 + rest / 3 - uq * uq) / whole, (1 / 3 + uq) / whole


def _grid(p: Array, tau: Array) -> Array:
    """Values of m / tau, one row a problem: evenly near zero, then in growing steps beyond the linear optimum.

    A relu that is never off makes the linear map, whose best m is tau^2 p / (2 v): far out where tau is large.
    """
    low = np.maximum(LOWEST, DEAD - 1 / tau)[:, None]
    near = low + (HIGHEST - low) * np.linspace(0, 1, NEAR_POINTS, endpoint=False)
    far = HIGHEST + tau[:, None] * p[:, None] / variance(p)[:, None]
    return np.concatenate([near, HIGHEST + far * np.linspace(0, 1, FAR_POINTS) ** 2], axis=1)


def _golden(low: Array, high: Array, tau: Array, p: Array) -> tuple[Array, Array]:
    """Golden section search between two places of m / tau, for all problems at once."""
    span = high - low
    left, right = high - GOLDEN * span, low + GOLDEN * span
    at_left, at_right = (_best_in_a(t, tau, p)[0] for t in (left, right))
    for _ in range(GOLDEN_STEPS):
        lower = at_left < at_right
        low, high = np.where(lower, low, left), np.where(lower, right, high)
        new = np.where(lower, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        at_new = _best_in_a(new, tau, p)[0]
        left, right = np.where(lower, new, right), np.where(lower, left, new)
        at_left, at_right = np.where(lower, at_new, at_right), np.where(lower, at_left, at_new)
    middle = (low + high) / 2
    return middle, _best_in_a(middle, tau, p)[0]


def _spread(m: Numbers, tau: Numbers) -> tuple[Array, Array]:
    m, tau = np.asarray(m, dtype=np.float64), np.asarray(tau, dtype=np.float64)
    if not bool((tau > 0).all()) or not bool(np.isfinite(m).all() & np.isfinite(tau).all()):
        raise UndoProbeError(
            f"m is {m} and tau {tau}: expected finite numbers, and a noise tau above 0 (r below 1)"
        )
    return m, tau
