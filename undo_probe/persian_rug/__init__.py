"""The Persian Rug: a sparse autoencoder whose best symmetric code, and its loss, are known in closed form.

Read ``theory.py`` first. ``limits.py`` has where the theory ends, ``rivals.py`` what it is measured against,
``engineered.py`` the weights that theory gives, ``training.py`` and ``grid.py`` what training finds instead,
``diagnostics.py`` how to tell, ``blocks.py`` and ``saddle.py`` why it leaves the rug, ``bridge.py`` where a language
model's directions stand beside it, ``erasure.py`` what erasing features leaves behind. Names are imported when they
are used: theory needs no torch.
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
    "diagnose": "diagnostics",
    "normality": "diagnostics",
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
    from undo_probe.persian_rug.diagnostics import diagnose as diagnose
    from undo_probe.persian_rug.diagnostics import normality as normality
    from undo_probe.persian_rug.diagnostics import rows_of as rows_of
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
    from undo_probe.persian_rug.erasure import linear_r2 as linear_r2
    from undo_probe.persian_rug.erasure import perturb as perturb
    from undo_probe.persian_rug.erasure import project_out as project_out
    from undo_probe.persian_rug.erasure import relearn as relearn
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
