"""Which regime a dictionary of directions is in: a rug's, pairs', private ones', or none of these.

The bridge to language models: atoms of a sparse dictionary of a hook point (learned here, a sparse autoencoder's
decoder, ``W_out`` of an MLP) take the place of the rug's encoder columns, and are asked what :mod:`.diagnostics` asks
of an autoencoder whose encoder and decoder they both are. What the analogy does not carry: the rug's features are
independent, of one rate and one importance, uniform where they are on, and read by a decoder that was trained
for them; a language model's are none of this, and a learned dictionary is not what the model uses, but what one
method finds with the number of atoms it was given. So atoms are compared with nulls of the same shape, and the phase
is a name for their geometry alone.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from undo_probe.activations import find_points, harvest_points
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer
from undo_probe.persian_rug.autoencoder import Autoencoder
from undo_probe.persian_rug.diagnostics import CHUNK, CLASSES, Rows, classes, phase_of, rows_of
from undo_probe.persian_rug.engineered import frame
from undo_probe.persian_rug.limits import features_held
from undo_probe.randomness import derive_seed, generator

if TYPE_CHECKING:
    import pandas as pd

GIVEN, RANDOM, TIGHT, SHUFFLED = "these atoms", "random unit atoms", "a tight frame", "codes shuffled"
FAINTEST = 1e-6
"""An atom shorter than this share of the longest has no direction worth the name."""
RARE = 8
"""Atoms that are on in fewer rows are left out of the medians of measured moments."""


@dataclass(frozen=True)
class Geometry:
    """Unit atoms beside the Welch floor: how much each hears of all others, and of how many.

    ``noise`` is the mean over atoms of ``s_i = sum (d_i . d_j)^2`` over j != i, at least n/d - 1 on average (Welch),
    and ``excess`` the one over the other: 1 for a tight frame. ``dimensions`` says the same differently, ``n / (1 +
    noise)``: the number of dimensions that a tight frame with that noise would fill (the participation ratio of the
    atoms' covariance). ``spread`` is the deviation of the s_i over their mean, ``overlap`` the largest |d_i . d_j|,
    ``partners`` the median number of atoms that make up an atom's noise, ``shares`` and ``phase`` as in
    :class:`undo_probe.persian_rug.diagnostics.Diagnosis`. ``kurtosis`` and ``skew`` are medians over atoms of the
    measured interference ``sum c_j (d_j . d_i)``, None without codes.
    """

    name: str
    noise: float
    excess: float
    dimensions: float
    spread: float
    overlap: float
    partners: float
    phase: str
    shares: dict[str, float]
    kurtosis: float | None = None
    skew: float | None = None


@dataclass(frozen=True, eq=False)
class Regime:
    """A dictionary's geometry first, then its nulls; ``dimensionality`` is ``1 / (1 + s_i)`` of each of its atoms.

    ``rate`` is the mean share of rows in which an atom is on, and ``held`` how many features of that rate a stream of
    this width holds in a rug with half their variance explained (``n_d / (1.35 p ln 1/p)``): None without codes.
    """

    atoms: int
    width: int
    geometries: tuple[Geometry, ...]
    dimensionality: Float[Tensor, " atom"]
    rate: float | None = None
    held: float | None = None

    @property
    def own(self) -> Geometry:
        """The dictionary itself."""
        return self.geometries[0]

    def table(self) -> "pd.DataFrame":
        """A line for the dictionary and for each null."""
        import pandas as pd

        lines = []
        for each in self.geometries:
            shown = {key: value for key, value in vars(each).items() if key != "shares"}
            lines.append(shown | {name: each.shares[name] for name in CLASSES})
        return pd.DataFrame(lines)


def regime(
    atoms: Float[Tensor, "atom width"], codes: Float[Tensor, "row coded"] | None = None, seed: int = 0
) -> Regime:
    """Which regime atoms are in, beside random unit atoms and a tight frame of the same shape.

    With ``codes`` (how much of each atom each row holds) the interference is measured as well: its kurtosis and
    skewness beside those through the two nulls, and with each atom's codes shuffled over rows, which are independent.

    Raises:
        UndoProbeError: no more atoms than dimensions, an atom without a direction, or codes that do not fit.
    """
    n, width = atoms.shape
    lengths = atoms.double().norm(dim=1)
    if n <= width or not bool((lengths > FAINTEST * lengths.max()).all()):
        faint = int((lengths <= FAINTEST * lengths.max()).sum())
        raise UndoProbeError(
            f"{n} atoms in {width} dimensions, {faint} of them without length: expected more atoms than dimensions, "
            "each a direction; take more, and leave dead ones out"
        )
    if codes is not None and codes.shape[1] != n:
        raise UndoProbeError(f"codes for {codes.shape[1]} atoms, but there are {n}: give (row, atom)")
    unit = atoms.double() / lengths[:, None]
    scaled = None if codes is None else codes.double() * lengths
    nulls = {RANDOM: _random(n, width, seed), TIGHT: _tight(n, width, seed)}
    found = [_geometry(name, each, scaled) for name, each in {GIVEN: unit, **nulls}.items()]
    rate = held = None
    if scaled is not None:
        found.append(_geometry(SHUFFLED, unit, _shuffled(scaled, seed)))
        rate = float((scaled != 0).double().mean())
        held = float(features_held(width, rate)) if 0 < rate < 1 else None
    return Regime(n, width, tuple(found), _rows(unit).dimensionality, rate, held)


def _random(n: int, width: int, seed: int) -> Tensor:
    drawn = torch.randn(n, width, generator=generator(seed, "random atoms", n, width), dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def _tight(n: int, width: int, seed: int) -> Tensor:
    columns = frame(n, width, seed=seed).down(torch.eye(n, dtype=torch.float64))
    return columns / columns.norm(dim=1, keepdim=True)


def _rows(unit: Tensor) -> Rows:
    """The atoms as encoder and decoder of one autoencoder; the rate matters for none of what is used here."""
    model = Autoencoder(len(unit), unit.shape[1])
    model.W_in, model.W_out = (torch.nn.Parameter(each) for each in (unit.T.contiguous(), unit))
    return rows_of(model, 0.5)


def _geometry(name: str, unit: Tensor, codes: Tensor | None) -> Geometry:
    n, width = unit.shape
    rows = _rows(unit)
    named = classes(rows, width / n)
    counts = {each: named.count(each) / n for each in CLASSES}
    noise = float(rows.noise.mean())
    moments = (None, None) if codes is None else _moments(codes, unit)
    return Geometry(
        name,
        noise,
        noise / (n / width - 1),
        n / (1 + noise),
        float(rows.noise.std() / noise),
        _overlap(unit),
        float(rows.partners.median()),
        phase_of(counts),
        counts,
        *moments,
    )


def _overlap(unit: Tensor) -> float:
    most = 0.0
    for at in torch.arange(len(unit)).split(CHUNK):
        inner = unit[at] @ unit.T
        inner[torch.arange(len(at)), at] = 0.0
        most = max(most, float(inner.abs().max()))
    return most


def _moments(codes: Tensor, unit: Tensor) -> tuple[float, float]:
    """Medians over atoms of excess kurtosis and skewness of the interference."""
    heard = (codes @ unit) @ unit.T - codes
    heard = heard[:, (codes != 0).sum(0) >= RARE]
    heard = heard - heard.mean(0)
    square = heard.square().mean(0).clamp_min(torch.finfo(heard.dtype).tiny)
    kurtosis = heard.pow(4).mean(0) / square.square() - 3
    return float(kurtosis.median()), float((heard.pow(3).mean(0) / square.pow(1.5)).median())


def _shuffled(codes: Tensor, seed: int) -> Tensor:
    drawn = torch.rand(codes.shape, generator=generator(seed, "shuffled codes", *codes.shape))
    return codes.gather(0, drawn.argsort(0))


@dataclass(frozen=True, eq=False)
class Dictionary:
    """Atoms that explain states, with codes of rows that they were not fitted on.

    ``explained`` is the share of those rows' variance around the fitted rows' mean. Atoms that no fitted row used
    are left out; ``dead`` counts them.
    """

    atoms: Float[Tensor, "atom width"]
    codes: Float[Tensor, "row atom"]
    explained: float
    dead: int
    rows: int


def learn_dictionary(
    states: Float[Tensor, "row width"], n_atoms: int, penalty: float = 0.2, seed: int = 0, passes: int = 15
) -> Dictionary:
    """A sparse dictionary with codes that are not negative, fitted on half of the rows (scikit-learn's, mini-batches).

    States are centred and brought to a mean squared length of 1, so that ``penalty``, the weight of the codes' sum,
    has the same meaning everywhere: at 0.2 atoms of a rug are found within a cosine of .98 where a row holds about
    two, and the codes of those shrink by as much.

    Raises:
        UndoProbeError: fewer rows than twice the atoms.
    """
    from sklearn.decomposition import MiniBatchDictionaryLearning
    from sklearn.exceptions import ConvergenceWarning

    rows = states.detach().double()
    if len(rows) < 2 * n_atoms:
        raise UndoProbeError(
            f"{len(rows)} states for {n_atoms} atoms: half of them are held out, so give at least {2 * n_atoms}"
        )
    order = torch.randperm(len(rows), generator=generator(seed, "dictionary rows", len(rows)))
    fitted, other = (rows[half] for half in order.split([len(rows) // 2, len(rows) - len(rows) // 2]))
    centre = fitted.mean(0)
    unit = (fitted - centre).square().sum(1).mean().sqrt()
    fitted, other = ((half - centre) / unit for half in (fitted, other))
    weight: Any = penalty  # scikit-learn's stub takes the default, 1, for an int
    learner = MiniBatchDictionaryLearning(
        n_components=n_atoms, alpha=weight, max_iter=passes, batch_size=256, fit_algorithm="cd",
        transform_algorithm="lasso_cd", transform_alpha=weight, positive_code=True,
        random_state=derive_seed(seed, "dictionary") % 2**32,
    )  # fmt: skip
    with warnings.catch_warnings():
        # a lasso of one row that stops early is good enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        used = learner.fit(fitted.numpy()).transform(fitted.numpy())
        codes = torch.from_numpy(np.ascontiguousarray(learner.transform(other.numpy())))
    atoms, alive = torch.from_numpy(learner.components_), torch.from_numpy((used != 0).any(0))
    left = (other - codes @ atoms).square().sum() / other.square().sum()
    return Dictionary(atoms[alive], codes[:, alive], 1 - float(left), int((~alive).sum()), len(other))


def stream_regime(
    model: HookedTransformer,
    tokens: Int[Tensor, "row pos"],
    point: str,
    *,
    over: float = 2.0,
    positions: Sequence[int] | None = None,
    most: int = 8192,
    seed: int = 0,
    **settings: Any,
) -> tuple[Regime, Dictionary]:
    """Harvests one hook point, learns ``over`` times as many atoms as it has dimensions, and says their regime.

    Args:
        model: left as it is.
        tokens: what it reads.
        point: one hook point.
        over: atoms over dimensions.
        positions: which positions of each row; all by default. Leave the first one out where it is a sink.
        most: states that are used, drawn without repetition.
        seed: of the draw, the dictionary and the nulls.
        settings: of :func:`learn_dictionary`.

    Raises:
        UndoProbeError: no or several hook points of that name, or too few states.
    """
    names = find_points(model, point)
    if len(names) != 1:
        raise UndoProbeError(
            f"{point!r} means {len(names)} hook points: name one, such as {names[-1]!r}; each has its own dictionary"
        )
    states = harvest_points(model, tokens, names, positions)[names[0]].flatten(0, -2)
    drawn = torch.randperm(len(states), generator=generator(seed, "states", len(states)))[:most]
    made = learn_dictionary(states[drawn], round(over * states.shape[1]), seed=seed, **settings)
    return regime(made.atoms, made.codes, seed), made
