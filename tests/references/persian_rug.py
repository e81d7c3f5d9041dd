"""The loss of the Persian Rug's scalar problem written a second time: by quadrature, brute force and sampling.

Source: the model of arXiv 2410.12101 (Cowsik, Dolev, Infanger): a feature is uniform on [0, 1] with probability p, else
0; its output is ``a relu(x + g)`` with ``g ~ N(m, tau^2)``.
"""

import math

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def panels(edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gauss points and weights of the pieces between the edges, side by side."""
    low, high = edges[:-1, None], edges[1:, None]
    return ((low + high) / 2 + (high - low) / 2 * NODES).ravel(), ((high - low) / 2 * WEIGHTS).ravel()


def moments(m: float, tau: float) -> tuple[float, float, float]:
    """E u relu(u + g), E relu(u + g)^2 and E relu(g)^2."""
    edges = np.unique(np.clip([0, *(-m + tau * np.arange(-8, 9, 4)), 1], 0, 1))
    u, weight = panels(edges)
    first, second = gaussian(u, m, tau)
    return float(weight @ (u * first)), float(weight @ second), float(gaussian(np.zeros(1), m, tau)[1][0])


def gaussian(u: np.ndarray, m: float, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """E relu(u + g) and its square over g, for each u."""
    z, weight = (each.reshape(1, -1) for each in panels(np.linspace(0, 1, 3)))
    low = np.clip(-(u + m) / tau, -10, 10)[:, None]
    z, weight = low + (10 - low) * z, weight * (10 - low)
    y = u[:, None] + m + tau * z
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * weight
    return (density * y).sum(1), (density * y * y).sum(1)


def loss(a: float, m: float, tau: float, p: float) -> float:
    """The loss as an integral of squared errors, nothing expanded: what is cut off by the relu costs u^2."""
    edges = np.unique(np.clip([0, *(-m + tau * np.arange(-8, 9, 4)), 1], 0, 1))
    u, weight = panels(edges)
    z, inner = (each.reshape(1, -1) for each in panels(np.linspace(0, 1, 3)))
    low = np.clip(-(u + m) / tau, -10, 10)[:, None]
    z, inner = low + (10 - low) * z, inner * (10 - low)
    error = u[:, None] - a * (u[:, None] + m + tau * z)
    on = (np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * inner * error**2).sum(1) + u**2 * ndtr(low[:, 0])
    off = a * a * gaussian(np.zeros(1), m, tau)[1][0]
    return float(p * (weight @ on) + (1 - p) * off)


def brute_force(tau: float, p: float) -> float:
    """The least loss over a and m: every valley of a fine grid in m, refined."""

    def best(m: float) -> float:
        product, square, silent = moments(m, tau)
        a = p * product / (p * square + (1 - p) * silent)
        return loss(a, m, tau, p)

    grid = tau * np.concatenate([np.linspace(max(-7, -3.5 - 1 / tau), 4, 90), np.geomspace(4.1, 300, 30)])
    values = [best(m) for m in grid]
    inner = range(1, len(grid) - 1)
    valleys = [at for at in inner if values[at] <= min(values[at - 1], values[at + 1])]
    refined = [
        minimize_scalar(best, bounds=(grid[at - 1], grid[at + 1]), method="bounded", options={"xatol": 1e-9})
        for at in valleys
    ]
    return min(float(found.fun) for found in refined)


def sampled(a: float, m: float, tau: float, p: float, samples: int, seed: int) -> tuple[float, float]:
    """Mean and standard error over samples, half with the feature on and half with it off, weighed by p and 1 - p."""
    source, parts, mean, variance = np.random.default_rng(seed), 20, 0.0, 0.0
    count = samples // (2 * parts)
    for on, weight in ((1.0, p), (0.0, 1 - p)):
        sums = np.zeros(2)
        for _ in range(parts):
            x = on * source.random(count)
            error = (x - a * np.maximum(x + m + tau * source.standard_normal(count), 0)) ** 2
            sums += error.sum(), (error**2).sum()
        first, second = sums / (count * parts)
        mean, variance = mean + weight * first, variance + weight**2 * (second - first**2) / (count * parts)
    return mean, math.sqrt(variance)
