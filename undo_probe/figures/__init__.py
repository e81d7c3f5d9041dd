"""One function a figure: the tables of a run in, a :class:`Figure` out."""

from undo_probe.figures.drift import drift_layers, drift_positions
from undo_probe.figures.figure import CONFIG, Figure
from undo_probe.figures.junk import junk
from undo_probe.figures.lengths import lengths
from undo_probe.figures.probes import probes
from undo_probe.figures.recoveries import recoveries
from undo_probe.figures.relearning import attacks, relearning
from undo_probe.figures.swept import swept
from undo_probe.figures.tradeoff import tradeoff
from undo_probe.figures.training import training
from undo_probe.figures.variations import variations

__all__ = [
    "CONFIG",
    "Figure",
    "attacks",
    "drift_layers",
    "drift_positions",
    "junk",
    "lengths",
    "probes",
    "recoveries",
    "relearning",
    "swept",
    "tradeoff",
    "training",
    "variations",
]
