"""How far the suite's measures are to be trusted, where what is left of a feature is known in closed form.

Doses: the encoder columns of the features to forget, scaled from 1, the original, to 0, ablated: how much of them is
left is known from the dose alone (:func:`truth`), not from any estimate. Twins: the same with the hidden state turned
at random, which loses nothing. Hidden: the original with these outputs ablated, which loses nothing either. Each
measure is put on the suite's own scale, survival: 0 at dose 0, 1 at the original.

Measures are the suite's numerical cores: least squares and logistic probes, row distances, CKA, Procrustes, stitches
and the depth score. Its callers harvest tokens through a HookedTransformer; here states come from the encoder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special
from torch import Tensor

from undo_probe import intervals
from undo_probe.errors import UndoProbeError
from undo_probe.linalg import procrustes_distance
from undo_probe.measures.depth import depth_of
from undo_probe.measures.drift import cka_interval, row_distances
from undo_probe.measures.linear_probe import LinearProbe
from undo_probe.persian_rug import erasure
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.effects import divide
from undo_probe.persian_rug.engineered import features
from undo_probe.persian_rug.theory import Array, Numbers
from undo_probe.randomness import derive_seed, generator
from undo_probe.stitch import Stitch, fit_stitch

if TYPE_CHECKING:
    import pandas as pd

DOSES = tuple(round(0.1 * step, 1) for step in range(11))
FIT = 16
"""Samples a dimension from which probes and stitches are fitted."""
LOGISTIC = 4
"""Features that the logistic probe is fitted to: it is the slow one."""
BLOCKS = 50
"""Blocks of rows that CKA's jackknife leaves out: rows are independent here, and one at a time takes long."""
FLOOR = 0.01
"""Rows on which ablation costs less than this share of its mean cost have no depth."""
MARGIN = 0.1
"""A measure that a rotation moves further on the scale of survival depends on the basis."""


@dataclass(frozen=True, eq=False)
class Truth:
    """What is left of a feature at a dose, per feature: R^2, bits of the Gaussian channel, the attack's loss."""

    r2: Array
    bits: Array
    relearned: Array


def truth(r: Numbers, p: Numbers, phi: Numbers, dose: Numbers, n_d: Numbers, samples: Numbers) -> Truth:
    """Closed forms: R^2 (:func:`undo_probe.persian_rug.erasure.scaled_r2`), bits, and the loss after relearning.

    Relearning is least squares on so many samples; no measure sees these numbers.
    """
    r2, _ = erasure.scaled_r2(r, phi, dose)
    return Truth(r2, erasure.channel_bits(r2), erasure.after_relearning(r2, p, n_d, samples))


@dataclass(frozen=True, eq=False)
class Reading:
    """A measure of one model: a value a row, or one number with its standard error (None where it has none)."""

    rows: Float[np.ndarray, " row"] | None = None
    value: float = 0.0
    error: float | None = None


@dataclass(frozen=True, eq=False)
class World:
    """An original, what it is to forget, and the rows that every model is measured on.

    ``retain`` are the fitting rows without the features to forget: stitches are fitted on those.
    """

    model: Autoencoder
    p: float
    seed: int
    forget: Int[Tensor, " forget"]
    fitting: Float[Tensor, "sample n_s"]
    held: Float[Tensor, "row n_s"]

    @property
    def retain(self) -> Float[Tensor, "sample n_s"]:
        """Fitting rows on which nothing that is to be forgotten is on."""
        return self.fitting.index_fill(1, self.forget, 0.0)

    @property
    def asked(self) -> Float[Tensor, "asked n_s"]:
        """Held-out rows on which something that is to be forgotten is on: the forget prompts of this world."""
        return self.held[self.held[:, self.forget].amax(1) > 0]


def world(n_s: int, r: float, p: float, phi: float, seed: int, rows: int) -> World:
    """A rug of this seed, with :data:`FIT` fitting rows a dimension and ``rows`` held-out ones."""
    model = start(Autoencoder(n_s, round(r * n_s)), "rug", p, seed)
    forget, _ = divide(n_s, phi, seed)
    x = features(rows + FIT * len(model.W_in), n_s, p, generator(seed, "calibration rows", n_s, p))
    return World(model, p, seed, forget, x[rows:], x[:rows])


def readings(model: Autoencoder, at: World, ablated: Autoencoder) -> dict[str, Reading]:
    """Every measure of one model.

    ``behaviour`` is what its own outputs get right of forget features; ``probe`` a linear probe of its states, and
    ``on/off probe`` the logistic one, in bits; ``transferred probe`` the original's read on its states; drift is
    taken on forget rows, as the suite takes it on forget prompts; ``depth`` is what the original's decoder loses on its
    states, over what it loses on those of ``ablated``, the model that never knew. ``mapped`` and ``stitched`` first map
    states to the original's by what retain rows show.
    """
    states, theirs = _states(model, at.held), _states(at.model, at.held)
    fitted, original = _states(model, at.fitting), _states(at.model, at.fitting)
    mapped = _map(model, at)

    def asks(h: Tensor) -> Callable[[Tensor], Tensor]:
        return erasure.regress(h, at.fitting[:, at.forget])

    asked, reference = _states(model, at.asked), _states(at.model, at.asked)
    found = {
        "behaviour": _explained(at, model.decode(states).detach()[:, at.forget]),
        "probe": _explained(at, asks(fitted)(states)),
        "on/off probe": _on_off(at, fitted, states),
        "transferred probe": _explained(at, asks(original)(states)),
        "transferred probe, mapped": _explained(at, asks(original)(mapped(states))),
        "CKA": _cka(asked, reference),
        "Procrustes": Reading(value=procrustes_distance(asked, reference)),
        "depth": _depth(at, states, theirs, _states(ablated, at.held)),
        "depth, stitched": _depth(at, mapped(states), theirs, _map(ablated, at)(_states(ablated, at.held))),
    }
    return found | {name: Reading(rows) for name, _, rows in row_distances(asked, reference)}


def _states(model: Autoencoder, x: Tensor) -> Tensor:
    return model.encode(x).detach()


def _map(model: Autoencoder, at: World) -> Stitch:
    choose = torch.arange(len(at.retain)) % 5 == 0
    return fit_stitch(_states(model, at.retain), _states(at.model, at.retain), choose)


def _explained(at: World, guess: Float[Tensor, "row forget"]) -> Reading:
    """What a guess of the forget features gets right: the squared error of their mean, less its own."""
    wrong = (at.held[:, at.forget].double() - guess.double()).square().mean(1)
    return Reading(_varying(at) - wrong.numpy())


def _varying(at: World) -> Float[np.ndarray, " row"]:
    """The squared error of the forget features' mean; its mean is their variance."""
    x = at.held[:, at.forget].double()
    return (x - x.mean(0)).square().mean(1).numpy()


def _on_off(at: World, fitted: Tensor, states: Tensor) -> Reading:
    """Bits that a logistic probe saves on whether a feature is on, a mean over :data:`LOGISTIC` of them."""
    saved = []
    for feature in at.forget[:LOGISTIC].tolist():
        known, on = (x[:, feature].numpy() > 0 for x in (at.fitting, at.held))
        odds = LinearProbe(tolerance=1e-6).fit(fitted, known).predict_proba(states)[:, 1]
        saved.append(np.log2(np.where(on, odds / known.mean(), (1 - odds) / (1 - known.mean()))))
    return Reading(np.mean(saved, axis=0))


def _cka(states: Tensor, reference: Tensor) -> Reading:
    value, _, high = cka_interval(states, reference, np.arange(len(states)) % BLOCKS)
    return Reading(value=value, error=(high - value) / float(special.stdtrit(BLOCKS - 1, 0.975)))


def _depth(at: World, states: Tensor, theirs: Tensor, never_knew: Tensor) -> Reading:
    """One less the depth score of each row, of the original's forget outputs."""

    def wrong(read: Tensor) -> Float[np.ndarray, " row"]:
        outputs = at.model.decode(read).detach()[:, at.forget]
        return (outputs - at.held[:, at.forget]).double().square().mean(1).numpy()

    drop, floor = wrong(states) - wrong(theirs), wrong(never_knew) - wrong(theirs)
    scores, _ = depth_of(drop[None], floor[None], tau=FLOOR * floor.mean())
    return Reading(1 - scores)


def calibrate(
    n_s: int = 256,
    r: float = 0.25,
    p: float = 0.045,
    *,
    phi: float = 0.1,
    doses: Sequence[float] = DOSES,
    seeds: Sequence[int] = tuple(range(10)),
    rows: int = 2000,
    progress: Callable[[str], None] | None = None,
) -> "pd.DataFrame":
    """Every measure on every model of every seed, beside the truth: what :func:`scores` is made of.

    Args:
        n_s: features.
        r: dimensions over features.
        p: how often a feature is on.
        phi: share of the features whose dose is varied.
        doses: with 0 and 1 among them, the anchors.
        seeds: each has its own rug, forget set, features and rotations.
        rows: held-out rows.
        progress: told about every seed.

    Returns:
        ``seed, model, dose, measure, scale, value, low, high, true, true_bits, relearned``. ``model`` is ``dose``,
        ``twin`` (turned) or ``hidden``; ``scale`` is ``survival``, or ``R2`` and ``bits`` for the probe itself, as
        found and freed of the error of its fit; limits are at 95 %, NaN where a measure has none; ``value`` is NaN
        where the suite's gate cannot tell the anchors apart. Closed forms: ``relearned``, the loss after relearning; of
        survival, ``true``, the share of what that loss has to gain (of R^2), and ``true_bits``, the share of the bits;
        else ``true`` is R^2 or bits itself.

    Raises:
        UndoProbeError: a dose outside 0..1, or 0 and 1 are not among them.
    """
    import pandas as pd

    if not {0.0, 1.0} <= set(doses):
        raise UndoProbeError(
            f"the doses are {list(doses)}: expected 0 and 1 among them, the anchors of survival"
        )
    lines: list[dict[str, Any]] = []
    for seed in seeds:
        at = world(n_s, r, p, phi, seed, rows)
        lines += _seed(at, doses)
        if progress is not None:
            progress(f"seed {seed}")
    return pd.DataFrame(lines)


def _seed(at: World, doses: Sequence[float]) -> Iterator[dict[str, Any]]:
    ablated = erasure.ablate_encoder(at.model, at.forget)
    n_d, n_s = at.model.W_in.shape
    setting = n_d / n_s, at.p, len(at.forget) / n_s
    whole, gone = readings(at.model, at, ablated), readings(ablated, at, ablated)
    original = truth(*setting, 1.0, n_d, len(at.fitting))
    for kind, dose, model in _models(at, doses):
        known = truth(*setting, dose, n_d, len(at.fitting))
        named = {"seed": at.seed, "model": kind, "dose": dose, "relearned": float(known.relearned)}
        found = readings(model, at, ablated)
        for name, reading in found.items():
            left = {"true": float(known.r2 / original.r2), "true_bits": float(known.bits / original.bits)}
            limits = _survival(reading, gone[name], whole[name])
            yield named | {"measure": name, "scale": "survival"} | left | limits
        yield from (named | line for line in _of_probe(at, found["probe"], known))


def _models(at: World, doses: Sequence[float]) -> Iterator[tuple[str, float, Autoencoder]]:
    for dose in doses:
        model = erasure.scale_encoder(at.model, at.forget, dose)
        yield "dose", dose, model
        yield "twin", dose, erasure.rotate(model, derive_seed(at.seed, "twin", dose))
    yield "hidden", 1.0, erasure.ablate_outputs(at.model, at.forget)


def _survival(stage: Reading, zero: Reading, one: Reading) -> dict[str, float]:
    """The suite's survival with its 95 % limits; the plain ratio, without limits, for a number that has none."""
    if stage.rows is not None and zero.rows is not None and one.rows is not None:
        found = intervals.survival(stage.rows, zero.rows, one.rows, draws=0)
    elif stage.error is not None and zero.error is not None and one.error is not None:
        found = intervals.survival_from_means(
            stage.value, zero.value, one.value, (stage.error, zero.error, one.error)
        )
    else:
        return {"value": (stage.value - zero.value) / (one.value - zero.value), "low": np.nan, "high": np.nan}
    limits = {"value": found.value, "low": found.low, "high": found.high}
    return {name: np.nan if limit is None else limit for name, limit in limits.items()}


def _of_probe(at: World, probe: Reading, known: Truth) -> Iterator[dict[str, Any]]:
    """R^2 and bits of the probe, as found and with the error of its fit taken off."""
    assert probe.rows is not None
    found = intervals.fieller(probe.rows, _varying(at), draws=0)
    error = float(erasure.fitting_error(len(at.model.W_in), len(at.fitting)))
    for name, factor in (("probe", 1.0), ("probe, corrected", error)):
        r2 = [1 - (1 - each) / factor for each in (found.value, found.low, found.high)]
        bits = [float(erasure.channel_bits(max(0.0, each))) for each in r2]
        for scale, values, true in (("R2", r2, known.r2), ("bits", bits, known.bits)):
            limits = dict(zip(("value", "low", "high"), values, strict=True))
            yield {"measure": name, "scale": scale, "true": float(true), "true_bits": np.nan} | limits


def scores(cells: "pd.DataFrame") -> "pd.DataFrame":
    """How far each measure is to be trusted, a line a measure and scale.

    Returns:
        ``bias``, the mean of value less truth over seeds and doses (0 and 1 left out on the scale of survival, where
        they are the anchors), with its standard ``error`` over seeds; ``worst``, the largest mean over seeds at one
        dose, in size; ``bias_bits``, the same bias against the share of the bits; ``coverage``, the share of 95 %
        intervals that hold the truth (NaN: there are none); ``cells``, those with a value;
        ``rank``, Spearman's with the closed-form loss after relearning, over doses, and ``rank_twins`` over doses
        and twins together (1: the measure orders as relearning does); ``twin`` and ``hidden``, the value of the turned
        and of the suppressed original, that know all; ``basis_dependent``, the turned one is off by more than
        :data:`MARGIN`.
    """
    import pandas as pd

    groups: Any = cells.groupby(["measure", "scale"], sort=False)
    return pd.DataFrame([{"measure": name, "scale": scale, **_score(own)} for (name, scale), own in groups])


def _score(cells: Any) -> dict[str, Any]:
    on_scale = bool((cells["scale"] == "survival").all())
    cells = cells.dropna(subset=["value"])
    doses, twins = (cells[cells["model"] == kind] for kind in ("dose", "twin"))
    inner = doses[(doses["dose"] > 0) & (doses["dose"] < 1)] if on_scale else doses
    off = (inner["value"] - inner["true"]).rename("off")
    by_seed = off.groupby(inner["seed"]).mean()
    limited = inner.dropna(subset=["low", "high"])
    held = (limited["low"] <= limited["true"]) & (limited["true"] <= limited["high"])
    whole, turned = (float(each.loc[each["dose"] == 1, "value"].mean()) for each in (doses, twins))
    return {
        "bias": float(by_seed.mean()),
        "error": float(by_seed.sem()),
        "bias_bits": float((inner["value"] - inner["true_bits"]).mean()),
        "worst": float(off.groupby(inner["dose"]).mean().abs().max()),
        "coverage": float(held.mean()) if len(held) else np.nan,
        "cells": len(inner),
        "rank": _agreement(doses),
        "rank_twins": _agreement(cells[cells["model"] != "hidden"]),
        "twin": turned,
        "hidden": float(cells.loc[cells["model"] == "hidden", "value"].mean()),
        "basis_dependent": abs(turned - whole) > MARGIN * abs(whole),
    }


def _agreement(cells: Any) -> float:
    import pandas as pd

    # a twin that differs from its dose by rounding alone is level with it
    found = [
        intervals.rank_correlation(own["value"].round(6).to_numpy(), -own["relearned"].to_numpy())
        for _, own in cells.groupby("seed")
    ]
    return float(pd.Series(found, dtype=float).mean())
