"""Every way of erasing features, carried out on rugs and measured, beside what theory foretells: one table."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import erasure
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.engineered import features
from undo_probe.randomness import generator

if TYPE_CHECKING:
    import pandas as pd

BAR, LOOSE_BAR, FEW = 0.05, 0.07, 2
"""How far measured may lie from foretold, relatively; the loose bar is for relearning below FEW n_d samples."""
PROBE = 32
"""Samples a dimension from which probes of what is left are fitted."""


class Effect(NamedTuple):
    """One number of one rug: what theory says and what was found."""

    operation: str
    dose: float
    quantity: str
    predicted: float
    measured: float
    bar: float = BAR


def erasure_table(
    n_s: int = 512,
    r: float = 0.25,
    p: float = 0.045,
    *,
    phi: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    alpha: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    samples: Sequence[float] = (1.25, 2, 4, 8, 32),
    seeds: Sequence[int] = (0, 1, 2, 3),
    rows: int = 4096,
) -> "pd.DataFrame":
    """Output and encoder ablation, projection, noise and relearning: predicted, measured and their ratio.

    Every seed has its own rug, forget set, features and noise; ``error`` is the standard error over them (NaN for
    one). Losses are mean square errors an output on held-out rows; a decoder is re-fitted by
    :func:`undo_probe.persian_rug.erasure.retune`; probes are least squares from M samples, held out.

    Args:
        n_s: features.
        r: dimensions over features.
        p: how often a feature is on.
        phi: doses of the three erasures, shares of the features.
        alpha: doses of shrink-and-perturb.
        samples: doses of relearning, in samples a dimension.
        seeds: at least one.
        rows: held-out rows a seed.

    Returns:
        ``operation, dose, quantity, predicted, measured, error, ratio, bar, met, seeds``, one line each.

    Raises:
        UndoProbeError: no seed, a share that leaves nothing to forget, or what theory refuses.
    """
    import pandas as pd

    if not len(seeds):
        raise UndoProbeError("no seed was given: expected at least one, and two for a standard error")
    doses = [(_hiding, phi), (_removal, phi), (_noise, alpha), (_relearning, samples)]
    most = math.ceil(max((PROBE, *samples)) * round(r * n_s))
    worlds = (_world(n_s, r, p, seed, rows, most) for seed in seeds)
    made = [each for at in worlds for effects, given in doses for dose in given for each in effects(at, dose)]
    by = ["operation", "dose", "quantity"]
    table = pd.DataFrame(made).groupby(by, sort=False)
    found = table.agg(predicted=("predicted", "first"), measured=("measured", "mean"), bar=("bar", "first"))
    found["error"] = table["measured"].sem()
    found["ratio"] = found["measured"] / found["predicted"]
    found["met"] = (found["ratio"] - 1).abs() <= found["bar"]
    found["seeds"] = len(seeds)
    order = ["predicted", "measured", "error", "ratio", "bar", "met", "seeds"]
    return found[order].reset_index()


def divide(n_s: int, phi: float, seed: int) -> tuple[Int[Tensor, " forget"], Int[Tensor, " keep"]]:
    """Features to forget, ``round(phi n_s)`` drawn at random, and the others.

    Raises:
        UndoProbeError: no feature is left on one side.
    """
    count = round(phi * n_s)
    if not 0 < count < n_s:
        raise UndoProbeError(
            f"phi = {phi:g} of {n_s} features is {count} to forget: expected some to forget and some to keep"
        )
    order = torch.randperm(n_s, generator=generator(seed, "forget set", n_s))
    return order[:count].sort().values, order[count:].sort().values


def errors(model: Autoencoder, x: Float[Tensor, "row n_s"]) -> Float[Tensor, " n_s"]:
    """Mean square error of each output."""
    with torch.no_grad():
        return torch.cat([(model(part) - part).square() for part in x.split(1024)]).double().mean(0)


@dataclass(frozen=True, eq=False)
class _World:
    """One rug, with rows to fit probes on and rows to measure on."""

    model: Autoencoder
    p: float
    seed: int
    fitting: Float[Tensor, "sample n_s"]
    held: Float[Tensor, "row n_s"]

    @property
    def n_d(self) -> int:
        return len(self.model.W_in)

    @property
    def r(self) -> float:
        return self.n_d / len(self.model.b)

    @property
    def every(self) -> Tensor:
        return torch.arange(len(self.model.b))

    def loss(self, model: Autoencoder, which: Tensor) -> float:
        return float(errors(model, self.held)[which].mean())

    def probe(self, model: Autoencoder, which: Tensor, samples: int) -> float:
        train, test = ((model.encode(x).detach(), x[:, which]) for x in (self.fitting[:samples], self.held))
        return float(erasure.relearn(train, test).mean())

    def probe_loss(self, r2: float, samples: int, rank: int | None = None) -> float:
        return float(erasure.after_relearning(r2, self.p, self.n_d if rank is None else rank, samples))


def _world(n_s: int, r: float, p: float, seed: int, rows: int, samples: int) -> _World:
    model = start(Autoencoder(n_s, round(r * n_s)), "rug", p, seed)
    x = features(rows + samples, n_s, p, generator(seed, "erasure rows", n_s, p))
    return _World(model, p, seed, x[rows:], x[:rows])


def _hiding(at: _World, phi: float) -> Iterator[Effect]:
    """Output ablation: behaviour is gone, nothing else is."""
    forget, keep = divide(len(at.model.b), phi, at.seed)
    hidden = erasure.ablate_outputs(at.model, forget)
    lost, kept = (float(each) for each in erasure.after_output_ablation(at.r, at.p))
    again, samples = erasure.retune(hidden, at.every, at.p), PROBE * at.n_d
    found = at.probe(hidden, forget, samples)
    yield Effect("output ablation", phi, "loss, forgotten", lost, at.loss(hidden, forget))
    yield Effect("output ablation", phi, "loss, kept", kept, at.loss(hidden, keep))
    yield Effect("output ablation", phi, "loss, forgotten, re-fitted", kept, at.loss(again, forget))
    yield Effect("output ablation", phi, "probe loss, forgotten", at.probe_loss(at.r, samples), found)


def _removal(at: _World, phi: float) -> Iterator[Effect]:
    """Encoder ablation and projection: both remove, the one to the others' good, the other at their cost."""
    forget, keep = divide(len(at.model.b), phi, at.seed)
    exact, samples = len(forget) / len(at.model.b), PROBE * at.n_d
    for name, model, foretold, rank in (
        (
            "encoder ablation",
            erasure.ablate_encoder(at.model, forget),
            erasure.after_encoder_ablation,
            at.n_d,
        ),
        ("projection", erasure.project_out(at.model, forget), erasure.after_projection, at.n_d - len(forget)),
    ):
        after, tuned = foretold(at.r, at.p, exact), erasure.retune(model, keep, at.p)
        expected = at.probe_loss(0.0, samples, rank)
        yield Effect(name, phi, "loss, kept", float(after.untouched), at.loss(model, keep))
        yield Effect(name, phi, "loss, kept, re-fitted", float(after.retuned), at.loss(tuned, keep))
        yield Effect(name, phi, "probe loss, forgotten", expected, at.probe(model, forget, samples))


def _noise(at: _World, alpha: float) -> Iterator[Effect]:
    """Noise costs every output, and a probe nothing: R^2 of all features adds up to n_d in any encoder."""
    noised, samples = erasure.perturb(at.model, alpha, seed=at.seed), PROBE * at.n_d
    expected = float(erasure.after_noise(at.r, at.p, len(at.model.b), alpha))
    found = at.probe(noised, at.every, samples)
    yield Effect("shrink and perturb", alpha, "loss", expected, at.loss(noised, at.every))
    yield Effect("shrink and perturb", alpha, "probe loss", at.probe_loss(at.r, samples), found)


def _relearning(at: _World, dose: float) -> Iterator[Effect]:
    samples = round(dose * at.n_d)
    bar = BAR if dose >= FEW else LOOSE_BAR
    found = at.probe(at.model, at.every, samples)
    yield Effect("relearning", dose, "probe loss", at.probe_loss(at.r, samples), found, bar)
