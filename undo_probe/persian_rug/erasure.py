"""Erasing features from a Persian Rug: what each way leaves behind, foretold in closed form.

The rug has ratio r; a share ``phi`` of its features, drawn at random, is to be forgotten, the rest kept. Losses are
those of the kept features, per output. The functions that change an autoencoder return a new one; a probe or a
relearning attack then measures it with the suite's own tools. ``effects.py`` puts both into one table.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.linalg import orthonormal_basis
from undo_probe.measures.linear_probe import fit_ridge
from undo_probe.persian_rug.autoencoder import Autoencoder
from undo_probe.persian_rug.theory import Array, Numbers, loss, noise, optimal_loss, optimum, shares, variance
from undo_probe.perturb import shrink_and_perturb
from undo_probe.randomness import generator
from undo_probe.subspace import Subspace

RIDGE = 1e-9
"""Penalty of the probe's regression, only there so that it is defined: least squares."""
RANK = 1e-5
"""Singular values of an encoder below this share of the largest are rounding: 1e-7 of what float32 removes is left."""


@dataclass(frozen=True, eq=False)
class Kept:
    """Loss of the kept features with the decoder left as it was, and with the best one of their new ``ratio``."""

    untouched: Array
    retuned: Array
    ratio: Array


def linear_r2(r: Numbers) -> Array:
    """Share of a feature's variance that a linear probe reads from the hidden state: r, for independent features.

    h is W_in x with orthogonal rows, so the best linear estimate of x is the projection P x, and of x_f it explains
    P_ff. It is the same for a feature whose output was ablated: nothing was removed.
    """
    return shares("r", r)[()]


def after_output_ablation(r: Numbers, p: Numbers) -> tuple[Array, Array]:
    """Loss of a forgotten feature, p/3, and of a kept one, unchanged: its decoder rows are zero, and that is all."""
    return (shares("p", p) / 3)[()], optimal_loss(r, p)


def after_encoder_ablation(r: Numbers, p: Numbers, phi: Numbers) -> Kept:
    """The forgotten features' encoder columns are zero: they leave the hidden state, and the others hear less noise.

    ``s' = (1 - phi) (1/r - 1)``; off-diagonal entries have the mean -a / n_s, so the mean of the interference rises by
    phi a p / 2. Retuned, the kept features are a rug of ratio r / (1 - phi), whose s is somewhat below s': the decoder
    alone can do that (:func:`retune`).
    """
    r, p, phi = shares("r", r), shares("p", p), shares("phi", phi)
    _room(r / (1 - phi), "of what is kept")
    best = optimum(r, p)
    tau = best.tau * np.sqrt(1 - phi)
    left = loss(best.a, best.m + phi * p / 2, tau, p)
    return Kept(left, optimal_loss(r / (1 - phi), p), (r / (1 - phi))[()])


def after_projection(r: Numbers, p: Numbers, phi: Numbers) -> Kept:
    """The span of the forgotten directions is removed from the hidden state, as concept erasure does.

    That costs rank: the kept features are a projector of ratio ``r' = (r - phi) / (1 - phi)``, with diagonal a r' / r,
    and nothing is left at phi = r. Rows of the projector still sum to zero, so with the old bias
    ``m' = (r / r') (m + p/2) - p/2``.
    """
    r, p, phi = shares("r", r), shares("p", p), shares("phi", phi)
    if not bool((phi < r).all()):
        raise UndoProbeError(
            f"phi is {phi} at r = {r}: expected phi < r, for at phi = r the removed span is all there is"
        )
    ratio = (r - phi) / (1 - phi)
    best = optimum(r, p)
    m = (r / ratio) * (best.m + p / 2) - p / 2
    return Kept(loss(best.a * ratio / r, m, noise(ratio, p), p), optimal_loss(ratio, p), ratio[()])


def after_noise(r: Numbers, p: Numbers, n_s: int, alpha: Numbers, beta: float = 1.0) -> Array:
    """Loss after the suite's shrink-and-perturb of all weights, ``(1 - alpha) W + alpha beta N`` and biases shrunk.

    With balanced factors a decoder row has squared norm a, an encoder column too, and Xavier's N the variance ``c =
    2 beta^2 / (n_s + n_d)``: the diagonal becomes ``(1 - alpha)^2 a``, and to the shrunk off-diagonal power ``2 (1
    - alpha)^2 alpha^2 c a n_s + alpha^4 c^2 n_d n_s`` is added. That part does not sum to zero in a row, so it
    counts with E x^2 = p/3 and not with v.

    Raises:
        UndoProbeError: alpha is not between 0 and 1.
    """
    r, p, alpha = shares("r", r), shares("p", p), shares("alpha", alpha)
    best, n_d = optimum(r, p), r * n_s
    kept, c = 1 - alpha, 2 * beta**2 / (n_s + n_d)
    drawn = 2 * kept**2 * alpha**2 * c * best.a * n_s + alpha**4 * c**2 * n_d * n_s
    a = kept**2 * best.a
    tau = np.sqrt(kept**4 * best.a**2 * best.tau**2 + p / 3 * drawn) / a
    return loss(a, (best.m + p / 2) / kept - p / 2, tau, p)


def after_relearning(r2: Numbers, p: Numbers, n_d: Numbers, samples: Numbers) -> Array:
    """Loss of a linear probe for one feature, fitted on so many samples: the attack's curve, sharp at n_d.

    The residual variance ``v (1 - R^2)`` times :func:`fitting_error`. Of a rug's features R^2 is r, also after their
    outputs were ablated; of one that left the hidden state it is 0.
    """
    return (variance(p) * (1 - _explained(r2)) * fitting_error(n_d, samples))[()]


def fitting_error(n_d: Numbers, samples: Numbers) -> Array:
    """``1 + (n_d + 1) / (M - n_d - 2)``: what least squares of n_d inputs and an intercept loses to having M samples.

    Exact for Gaussian inputs.

    Raises:
        UndoProbeError: not more than n_d + 2 samples.
    """
    n_d, samples = np.asarray(n_d, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if not bool((samples > n_d + 2).all()):
        raise UndoProbeError(f"{samples} samples for {n_d} dimensions: least squares needs more than n_d + 2")
    return (1 + (n_d + 1) / (samples - n_d - 2))[()]


def scaled_r2(r: Numbers, phi: Numbers, dose: Numbers) -> tuple[Array, Array]:
    """R^2 of a share ``phi`` of the features, whose encoder columns were scaled by ``dose``, and of the others.

    The row space of a rug's encoder is a uniformly random one, and so is that of independent Gaussian columns; scaled
    by d_i, ``P_ii = d_i^2 g / (1 + d_i^2 g)`` for many features (Silverstein and Bai 1995), where g is such that the
    P_ii sum to n_d: ``phi c g / (1 + c g) + (1 - phi) g / (1 + g) = r`` with c = dose^2, a quadratic equation. For one
    feature it is ``c r / (1 - r + c r)``, exactly.

    Raises:
        UndoProbeError: a dose outside 0..1, or fewer other features than dimensions.
    """
    r, phi, dose = shares("r", r), shares("phi", phi), np.asarray(dose, dtype=np.float64)
    if not bool(((dose >= 0) & (dose <= 1)).all()):
        raise UndoProbeError(f"the dose is {dose}: expected numbers from 0, ablated, to 1, left as it is")
    _room(r / (1 - phi), "of what is kept")
    c = dose**2
    linear = phi * c + 1 - phi - r - r * c
    g = 2 * r / (linear + np.sqrt(linear**2 + 4 * c * (1 - r) * r))
    return (c * g / (1 + c * g))[()], (g / (1 + g))[()]


def channel_bits(r2: Numbers) -> Array:
    """``-1/2 log2(1 - R^2)``: bits a sample of the Gaussian channel with that share of the variance explained."""
    return (np.log2(1 / (1 - _explained(r2))) / 2)[()]


def _explained(r2: Numbers) -> Array:
    found = np.asarray(r2, dtype=np.float64)
    if not bool(((found >= 0) & (found < 1)).all()):
        raise UndoProbeError(f"R^2 is {r2}: expected numbers from 0 to below 1")
    return found


def _room(ratio: Array, whose: str) -> None:
    if not bool((ratio < 1).all()):
        raise UndoProbeError(
            f"the ratio {whose} is {ratio}: with one dimension a feature there is nothing to foretell"
        )


def ablate_outputs(model: Autoencoder, forget: Int[Tensor, " feature"]) -> Autoencoder:
    """A new autoencoder that never outputs these features; its hidden state is the same."""
    changed = deepcopy(model)
    with torch.no_grad():
        changed.W_out[forget] = 0.0
        changed.b[forget] = 0.0
    return changed


def ablate_encoder(model: Autoencoder, forget: Int[Tensor, " feature"]) -> Autoencoder:
    """A new autoencoder into whose hidden state these features do not come."""
    return scale_encoder(model, forget, 0.0)


def scale_encoder(model: Autoencoder, forget: Int[Tensor, " feature"], dose: float) -> Autoencoder:
    """A new autoencoder into whose hidden state these features come ``dose`` times as strong."""
    changed = deepcopy(model)
    with torch.no_grad():
        changed.W_in[:, forget] *= dose
    return changed


def rotate(model: Autoencoder, seed: int = 0) -> Autoencoder:
    """A new autoencoder with its hidden state turned at random, and turned back by the decoder: it knows the same."""
    n_d = len(model.W_in)
    draw = torch.randn(n_d, n_d, generator=generator(seed, "rotation", n_d), dtype=torch.float64)
    turn = orthonormal_basis(draw)
    changed = deepcopy(model)
    with torch.no_grad():
        changed.W_in.copy_(turn @ model.W_in.double())
        changed.W_out.copy_(model.W_out.double() @ turn.T)
    return changed


def project_out(model: Autoencoder, forget: Int[Tensor, " feature"]) -> Autoencoder:
    """A new autoencoder without the span of these features' directions in its hidden state."""
    changed = deepcopy(model)
    span = Subspace.from_vectors(model.W_in.detach()[:, forget])
    with torch.no_grad():
        changed.W_in.copy_(span.remove(model.W_in.detach().T).T)
    return changed


def perturb(model: Autoencoder, alpha: float, beta: float = 1.0, seed: int = 0) -> Autoencoder:
    """A new autoencoder after the suite's noise rule."""
    changed = deepcopy(model)
    noised = shrink_and_perturb({n: each.detach() for n, each in model.named_parameters()}, alpha, beta, seed)
    changed.load_state_dict(noised)
    return changed


def retune(model: Autoencoder, outputs: Int[Tensor, " feature"], p: float) -> Autoencoder:
    """A new autoencoder with the best decoder that theory has for this encoder; other outputs are silent.

    The rows of the encoder's pseudo-inverse hear the least noise: with them W is the projector P onto what the encoder
    reads, and ``s_i = 1 / P_ii - 1``. Each is scaled and biased as a rug of ratio P_ii would be.

    Raises:
        UndoProbeError: the encoder reads nothing of one of these features, or all of it.
    """
    encoder = model.W_in.detach().double()
    decoder = torch.linalg.pinv(encoder, rtol=RANK)[outputs]
    read = (decoder @ encoder)[:, outputs].diagonal()
    if not bool(((read > RANK) & (read < 1 - RANK)).all()):
        raise UndoProbeError(
            f"the hidden state holds R^2 from {float(read.min()):.2g} to {float(read.max()):.2g} of these outputs: "
            "expected more than nothing and less than all of each; leave out features that were ablated"
        )
    best = optimum(read.numpy(), p)
    decoder = decoder * (torch.from_numpy(best.a) / read)[:, None]
    a, m = (torch.from_numpy(each) for each in (best.a, best.m))
    changed = ablate_outputs(model, torch.arange(len(model.b)))
    with torch.no_grad():
        changed.W_out[outputs] = decoder.to(model.W_out)
        changed.b[outputs] = (a * m - p / 2 * (decoder @ encoder.sum(1) - a)).to(model.b)
    return changed


def readable(model: Autoencoder) -> Float[Tensor, " n_s"]:
    """R^2 of the best linear probe of the hidden state for each feature, exactly: the diagonal of a projector.

    It projects onto the row space of the encoder, so the sum is n_d (or what is left of that rank): what some features
    lose others gain, and on average a trained, a noised and a random encoder show the same.
    """
    encoder = model.W_in.detach().double()
    return (torch.linalg.pinv(encoder, rtol=RANK) * encoder.T).sum(1)


def probed(
    model: Autoencoder, x: Float[Tensor, "row n_s"], which: Int[Tensor, " feature"], samples: int
) -> Float[Tensor, " feature"]:
    """R^2 of features as :func:`relearn` finds it on the first ``samples`` rows, held out, freed of the fit's error."""
    h = model.encode(x).detach()
    asked = x[:, which]
    left = relearn((h[:samples], asked[:samples]), (h[samples:], asked[samples:]))
    return 1 - left / asked[samples:].double().var(0) / float(fitting_error(h.shape[1], samples))


def relearn(
    train: tuple[Float[Tensor, "sample n_d"], Float[Tensor, "sample feature"]],
    test: tuple[Float[Tensor, "other n_d"], Float[Tensor, "other feature"]],
) -> Float[Tensor, " feature"]:
    """Held-out mean square error of a linear probe for each feature, least squares on the training samples.

    Hidden states that have lost directions are fine: what no sample shows is not used.
    """
    h, x = test
    return (regress(*train)(h) - x.double()).square().mean(0)


def regress(
    h: Float[Tensor, "sample n_d"], x: Float[Tensor, "sample feature"]
) -> Callable[[Float[Tensor, "row n_d"]], Float[Tensor, "row feature"]]:
    """The linear probe of :func:`relearn`: hidden states to features, in float64."""
    centre = h.double().mean(0)
    fitted = fit_ridge(h.double() - centre, x.double(), torch.tensor([RIDGE], dtype=torch.float64))[0]
    return lambda states: (states.double() - centre) @ fitted[:-1] + fitted[-1]
