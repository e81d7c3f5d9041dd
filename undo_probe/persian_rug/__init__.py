"""The Persian Rug: a sparse autoencoder whose best symmetric code, and its loss, are known in closed form.

Read ``theory.py`` first. ``limits.py`` has where the theory ends, ``rivals.py`` what it is measured against,
``engineered.py`` the weights that theory gives, ``training.py`` and ``grid.py`` what training finds instead,
``diagnostics.py`` how to tell, ``blocks.py`` and ``saddle.py`` why it leaves the rug, ``erasure.py`` what erasing
features leaves behind, ``effects.py`` the same measured. ``distillation.py`` has students of a teacher that hides
features, ``calibration.py`` how far the suite's measures are to be trusted, ``bridge.py`` where a language model's
directions stand beside a rug. Names are imported when they are used: theory needs no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "loss": "theory",
    "noise": "theory",
    "optimal_loss": "theory",
    "optimum": "theory",
    "optimum_at": "theory",
    "variance": "theory",
    "capacity_law": "limits",
    "features_held": "limits",
    "finite_loss": "limits",
    "ratio_for": "limits",
    "sparse": "limits",
    "best_pair": "rivals",
    "channel": "rivals",
    "digon_loss": "rivals",
    "dropping": "rivals",
    "linear_loss": "rivals",
    "lower_hull": "rivals",
    "features": "engineered",
    "frame": "engineered",
    "measured_loss": "engineered",
    "weights": "engineered",
    "ablate_encoder": "erasure",
    "ablate_outputs": "erasure",
    "after_encoder_ablation": "erasure",
    "after_noise": "erasure",
    "after_output_ablation": "erasure",
    "after_projection": "erasure",
    "after_relearning": "erasure",
    "linear_r2": "erasure",
    "perturb": "erasure",
    "project_out": "erasure",
    "relearn": "erasure",
    "channel_bits": "erasure",
    "readable": "erasure",
    "retune": "erasure",
    "rotate": "erasure",
    "scale_encoder": "erasure",
    "scaled_r2": "erasure",
    "erasure_table": "effects",
    "distillation_table": "distillation",
    "exact_imitation": "distillation",
    "over_seeds": "distillation",
    "calibrate": "calibration",
    "scores": "calibration",
    "truth": "calibration",
    "diagnose": "diagnostics",
    "normality": "diagnostics",
    "not_normal": "diagnostics",
    "rows_of": "diagnostics",
    "rug_curvature": "blocks",
    "curvature": "hessian",
    "escape": "saddle",
    "learn_dictionary": "bridge",
    "regime": "bridge",
    "stream_regime": "bridge",
    "train": "training",
    "figure_cells": "grid",
    "open_grid": "grid",
    "train_cells": "grid",
    "train_grid": "grid",
}

if TYPE_CHECKING:
    from undo_probe.persian_rug.blocks import rug_curvature as rug_curvature
    from undo_probe.persian_rug.bridge import learn_dictionary as learn_dictionary
    from undo_probe.persian_rug.bridge import regime as regime
    from undo_probe.persian_rug.bridge import stream_regime as stream_regime
    from undo_probe.persian_rug.calibration import calibrate as calibrate
    from undo_probe.persian_rug.calibration import scores as scores
    from undo_probe.persian_rug.calibration import truth as truth
    from undo_probe.persian_rug.diagnostics import diagnose as diagnose
    from undo_probe.persian_rug.diagnostics import normality as normality
    from undo_probe.persian_rug.diagnostics import not_normal as not_normal
    from undo_probe.persian_rug.diagnostics import rows_of as rows_of
    from undo_probe.persian_rug.distillation import distillation_table as distillation_table
    from undo_probe.persian_rug.distillation import exact_imitation as exact_imitation
    from undo_probe.persian_rug.distillation import over_seeds as over_seeds
    from undo_probe.persian_rug.effects import erasure_table as erasure_table
    from undo_probe.persian_rug.engineered import features as features
    from undo_probe.persian_rug.engineered import frame as frame
    from undo_probe.persian_rug.engineered import measured_loss as measured_loss
    from undo_probe.persian_rug.engineered import weights as weights
    from undo_probe.persian_rug.erasure import ablate_encoder as ablate_encoder
    from undo_probe.persian_rug.erasure import ablate_outputs as ablate_outputs
    from undo_probe.persian_rug.erasure import after_encoder_ablation as after_encoder_ablation
    from undo_probe.persian_rug.erasure import after_noise as after_noise
    from undo_probe.persian_rug.erasure import after_output_ablation as after_output_ablation
    from undo_probe.persian_rug.erasure import after_projection as after_projection
    from undo_probe.persian_rug.erasure import after_relearning as after_relearning
    from undo_probe.persian_rug.erasure import channel_bits as channel_bits
    from undo_probe.persian_rug.erasure import linear_r2 as linear_r2
    from undo_probe.persian_rug.erasure import perturb as perturb
    from undo_probe.persian_rug.erasure import project_out as project_out
    from undo_probe.persian_rug.erasure import readable as readable
    from undo_probe.persian_rug.erasure import relearn as relearn
    from undo_probe.persian_rug.erasure import retune as retune
    from undo_probe.persian_rug.erasure import rotate as rotate
    from undo_probe.persian_rug.erasure import scale_encoder as scale_encoder
    from undo_probe.persian_rug.erasure import scaled_r2 as scaled_r2
    from undo_probe.persian_rug.grid import figure_cells as figure_cells
    from undo_probe.persian_rug.grid import open_grid as open_grid
    from undo_probe.persian_rug.grid import train_cells as train_cells
    from undo_probe.persian_rug.grid import train_grid as train_grid
    from undo_probe.persian_rug.hessian import curvature as curvature
    from undo_probe.persian_rug.limits import capacity_law as capacity_law
    from undo_probe.persian_rug.limits import features_held as features_held
    from undo_probe.persian_rug.limits import finite_loss as finite_loss
    from undo_probe.persian_rug.limits import ratio_for as ratio_for
    from undo_probe.persian_rug.limits import sparse as sparse
    from undo_probe.persian_rug.rivals import best_pair as best_pair
    from undo_probe.persian_rug.rivals import channel as channel
    from undo_probe.persian_rug.rivals import digon_loss as digon_loss
    from undo_probe.persian_rug.rivals import dropping as dropping
    from undo_probe.persian_rug.rivals import linear_loss as linear_loss
    from undo_probe.persian_rug.rivals import lower_hull as lower_hull
    from undo_probe.persian_rug.saddle import escape as escape
    from undo_probe.persian_rug.theory import loss as loss
    from undo_probe.persian_rug.theory import noise as noise
    from undo_probe.persian_rug.theory import optimal_loss as optimal_loss
    from undo_probe.persian_rug.theory import optimum as optimum
    from undo_probe.persian_rug.theory import optimum_at as optimum_at
    from undo_probe.persian_rug.theory import variance as variance
    from undo_probe.persian_rug.training import train as train

__all__ = [*_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
