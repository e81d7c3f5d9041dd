"""One function a figure: the tables of a run in, a :class:`Figure` out."""

from undo_probe.figures.drift import drift_layers, drift_positions
from undo_probe.figures.figure import CONFIG, Figure
from undo_probe.figures.junk import junk
from undo_probe.figures.layers import depth_by_block, lenses
from undo_probe.figures.lengths import lengths
from undo_probe.figures.probes import probes
from undo_probe.figures.recoveries import recoveries
from undo_probe.figures.relearning import attacks, relearning
from undo_probe.figures.rug import carpet, rug_loss
from undo_probe.figures.rug_trained import corner, descent, dimensionality, plateau, rug_slices, symmetry
from undo_probe.figures.stream import stream
from undo_probe.figures.subspaces import selectivity, subspaces, update_energy
from undo_probe.figures.swept import swept
from undo_probe.figures.tradeoff import tradeoff
from undo_probe.figures.training import training
from undo_probe.figures.variations import variations
from undo_probe.figures.writers import attribution

__all__ = [
    "CONFIG",
    "Figure",
    "attacks",
    "attribution",
    "carpet",
    "corner",
    "depth_by_block",
    "descent",
    "dimensionality",
    "drift_layers",
    "drift_positions",
    "junk",
    "lengths",
    "lenses",
    "plateau",
    "probes",
    "recoveries",
    "relearning",
    "rug_loss",
    "rug_slices",
    "selectivity",
    "stream",
    "subspaces",
    "swept",
    "symmetry",
    "tradeoff",
    "training",
    "update_energy",
    "variations",
]
