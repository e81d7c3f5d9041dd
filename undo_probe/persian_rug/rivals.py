"""What the Persian Rug is measured against: linear maps, better decoders, and codes that break its symmetry."""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from undo_probe.persian_rug.theory import Array, Numbers, density, noise, optimal_loss, shares, variance

NODES = 24
"""Gauss points of each of the pieces between :data:`EDGES`."""
EDGES = (-12.0, -4.0, 0.0, 4.0, 12.0)
"""In units of tau, around both ends of [0, 1]: the density of what is read bends there."""
HULL_POINTS, PEAK_POINTS, PAIR_POINTS = 1200, 300, 400


def linear_loss(r: Numbers, p: Numbers) -> Array:
    """``v (1 - r)``: the best linear map of rank n_d with a bias, a projector, keeps the share r of the variance."""
    return (variance(p) * (1 - shares("r", r)))[()]


def random_columns_noise(r: Numbers, p: Numbers) -> Array:
    """Tau of unit columns drawn at random, ``tau^2 = v / r``: no tight frame, so s = 1/r and not 1/r - 1."""
    return np.sqrt(variance(p) / shares("r", r))[()]


@dataclass(frozen=True, eq=False)
class Channel:
    """Losses of the best estimates of x from ``y = x + tau z``: of y alone, and of y and whether x is on."""

    bayes: Array
    oracle: Array


def channel(r: Numbers, p: Numbers) -> Channel:
    """What any decoder that works on each output alone can reach on a rug's interference.

    ``y = x + tau z`` with z normal and tau the least noise of a symmetric code. If x is on, it is, given y, normal
    with mean y and deviation tau cut off to [0, 1], with mean mu and variance s^2; it is on with probability w. The
    posterior variance ``w s^2 + w (1 - w) mu^2`` is integrated over y by Gauss points; for the oracle, s^2 over y
    given on. Every term is positive, so the digits hold where the loss is far below p. This bounds elementwise
    decoders of Gaussian interference, not other codes.

    The factor between ReLU and oracle is 3 to 6 over practical p but no constant: it is ``3/2 + k^2/4`` of
    :func:`undo_probe.persian_rug.limits.sparse` for p -> 0, about ln(1/p) / 2.
    """
    p, tau = np.broadcast_arrays(shares("p", p), noise(r, p))
    p, tau = p[..., None, None], tau[..., None, None]
    edges = np.sort(np.concatenate([tau * np.array(EDGES), 1 + tau * np.array(EDGES)], axis=-1), axis=-1)
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    low, high = edges[..., 0, :-1, None], edges[..., 0, 1:, None]
    y = (low + high) / 2 + (high - low) / 2 * nodes
    area = (high - low) / 2 * weights
    seen, mean, spread = _cut_normal(y, tau)
    off = (1 - p) * density(y / tau) / tau
    on = p * seen / (p * seen + off)
    whole = p * seen + off
    bayes = (area * whole * (on * spread + on * (1 - on) * mean**2)).sum((-2, -1))
    return Channel(bayes[()], (area * p * seen * spread).sum((-2, -1))[()])


def _cut_normal(y: Array, tau: Array) -> tuple[Array, Array, Array]:
    """Mass, mean and variance of a normal of mean y and deviation tau cut off to [0, 1].

    Below the middle the mass is taken as a difference of upper tails: the other way round it has no digits left.
    """
    flip = y < 0.5
    # distances to the ends, seen from the side on which the tails are small
    near = np.where(flip, -y, y - 1) / tau
    far = near + 1 / tau
    log_mass = log_ndtr(-near) + np.log1p(-np.exp(log_ndtr(-far) - log_ndtr(-near)))
    at_near = np.exp(-near * near / 2 - log_mass) / np.sqrt(2 * np.pi)
    at_far = np.exp(-far * far / 2 - log_mass) / np.sqrt(2 * np.pi)
    shift = at_near - at_far
    variance_left = 1 + near * at_near - far * at_far - shift**2
    mean = np.where(flip, y + tau * shift, y - tau * shift)
    return np.exp(log_mass), mean.clip(0, 1), tau**2 * variance_left.clip(0, 1)


def pair_loss(t: Numbers, p: Numbers) -> Array:
    """Loss a feature of two that share a direction with opposite signs and lengths 1 and t <= 1, decoded by ReLU.

    One alone comes back whole but for the scale a. Of two that are on, u and w, ``relu(u - t w)`` and ``relu(w - u
    / t)`` come back, so one of them is lost: with M = min(u, t w), E M^2 = t^2/3 - t^3/6, E u M = t/4 - t^3/24 and
    E w M = t/3 - t^2/8. Each output has its own best scale, and no bias.
    """
    t, p = np.asarray(shares("t", t, closed=True)), shares("p", p, closed=True)
    with_u, square = t / 4 - t**3 / 24, t**2 / 3 - t**3 / 6
    longer = _pair_side(1 / 3 - with_u, 1 / 3 - 2 * with_u + square, p)
    shorter = _pair_side(t / 8, t / 12, p)
    return ((longer + shorter) / 2)[()]


def _pair_side(product: Array, square: Array, p: Array) -> Array:
    """Least loss over a of one feature, from E u y and E y^2 of its output y while both are on."""
    alone = (1 - p) / 3
    a = (alone + p * product) / (alone + p * square)
    return p * (alone * (1 - a) ** 2 + p * (1 / 3 - 2 * a * product + a * a * square))


def best_pair(p: Numbers) -> tuple[Array, Array]:
    """Length of the shorter feature of the best pair, and its loss.

    With a = 1 the loss is ``p^2 (1 + t^2) (1/3 - t/6) / 2``: its derivative vanishes at t = 1, which is a maximum,
    and at t = 1/3, the minimum. So for small p unequal pairs lose 25/162 p^2 a feature, 7.4 % less than the equal
    pairs' p^2 / 6.
    """
    p = np.asarray(shares("p", p, closed=True))
    lengths = np.linspace(1 / PAIR_POINTS, 1, PAIR_POINTS)
    losses = pair_loss(lengths, p[..., None])
    return lengths[losses.argmin(-1)][()], losses.min(-1)[()]


def digon_loss(r: Numbers, p: Numbers, equal: bool = True) -> Array:
    """The digon code: pairs on a direction each; what finds no place is dropped, what is left over gets one alone.

    ``v - 2 r (v - c)`` for r <= 1/2 and ``2 (1 - r) c`` above, c the loss of an ``equal`` pair or of
    :func:`best_pair`.
    """
    r, p = np.broadcast_arrays(shares("r", r), shares("p", p, closed=True))
    pair, v = pair_loss(1.0, p) if equal else best_pair(p)[1], variance(p)
    return np.where(r <= 0.5, v - 2 * r * (v - pair), 2 * (1 - r) * pair)[()]


@dataclass(frozen=True, eq=False)
class Dropping:
    """The best loss when features may be given up, the share that is kept, and the ratio from which on all are."""

    loss: Array
    kept: Array
    critical: Array


def dropping(r: Numbers, p: Numbers) -> Dropping:
    """A rug on the share f of the features, constants for the rest: ``f L*(r / f) + (1 - f) v``.

    L* is not convex where r is small: the best line from (0, v) touches it at r_c, where (v - L*) / r is largest.
    For r < r_c the share r / r_c is kept; above, all.
    """
    r, p = np.broadcast_arrays(shares("r", r), shares("p", p))
    grid = np.geomspace(1e-7, 0.999, PEAK_POINTS)
    gain = (variance(p)[..., None] - optimal_loss(grid, p[..., None])) / grid
    critical = _peak(np.log(grid), gain)
    v, touched = variance(p), optimal_loss(critical, p)
    below = r < critical
    kept = np.where(below, r / critical, 1.0)
    found = np.where(below, v - kept * (v - touched), optimal_loss(r, p))
    return Dropping(found[()], kept[()], critical[()])


def _peak(places: Array, values: Array) -> Array:
    """Exp of the place of the maximum along the last axis, by a parabola through the three highest points."""
    at = values.argmax(-1).clip(1, len(places) - 2)[..., None]
    low, top, high = (np.take_along_axis(values, at + d, -1)[..., 0] for d in (-1, 0, 1))
    bend = low - 2 * top + high
    shift = np.where(bend < 0, 0.5 * (low - high) / np.where(bend < 0, bend, 1.0), 0.0).clip(-1, 1)
    return np.exp(places[at[..., 0]] + shift * (places[1] - places[0]))


def lower_hull(r: Numbers, p: float) -> Array:
    """The best loss of a mixture of these codes: the lower convex hull of rug, digons, dropped and private features.

    A share of the features with its own dimensions for each code: ratio and loss both average, so every mixture
    lies on a line between codes. Interpolated on a grid of rugs, so it is up to 1e-4 v above the true hull.
    """
    r, p = shares("r", r), float(shares("p", p))
    grid = np.geomspace(1e-5, 0.9999, HULL_POINTS)
    corners = [(0.0, float(variance(p))), (0.5, float(best_pair(p)[1])), (1.0, 0.0)]
    points = sorted([*corners, *zip(grid.tolist(), optimal_loss(grid, p).tolist(), strict=True)])
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _not_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    places, losses = np.array(hull).T
    return np.interp(r, places, losses)[()]


def _not_below(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    left = (middle[0] - first[0]) * (last[1] - first[1])
    return left <= (middle[1] - first[1]) * (last[0] - first[0])
