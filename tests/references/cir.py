"""CIR as its paper describes it, token by token in numpy: no projection of a finished gradient, no streaming."""

import numpy as np


def directions(vectors: np.ndarray, k: int) -> np.ndarray:
    """The mean's direction and k - 1 principal components of the rows, orthonormal, as columns."""
    mean = vectors.mean(axis=0)
    _, _, components = np.linalg.svd(vectors - mean, full_matrices=False)
    found: list[np.ndarray] = []
    for vector in (mean, *components[: k - 1]):
        for earlier in found:
            vector = vector - (vector @ earlier) * earlier
        found.append(vector / np.linalg.norm(vector))
    return np.stack(found, axis=1)


def update(inputs: np.ndarray, gradients: np.ndarray, k_act: int, k_grad: int) -> np.ndarray:
    """The sum over tokens of what is left of each input by what is left of each gradient: (d_in, d_out)."""
    sides = []
    for vectors, k in ((inputs, k_act), (gradients, k_grad)):
        kept = vectors.copy()
        for direction in directions(vectors, k).T if k else ():
            kept = np.stack([row - (row @ direction) * direction for row in kept])
        sides.append(kept)
    return np.sum([np.outer(a, g) for a, g in zip(*sides, strict=True)], axis=0)
