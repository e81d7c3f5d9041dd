"""undo_probe: does unlearning remove knowledge, or hide it?

Every public name is imported when it is first used, so `import undo_probe` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module of this package that defines it. Give each name a line below as well: type
# checkers and editors cannot see through __getattr__.
_LAZY = {
    "UndoProbeError": "errors",
    "preset": "presets",
    "load_config": "presets",
    "run_undo": "pipeline",
    "load_run": "pipeline",
    "attack": "attacks.arms",
    "relearn": "attacks.one_model",
    "score": "scorecard",
    # not "sweep": the module of that name would take its place on import
    "run_sweep": "sweep",
    "audit": "auditing",
    "write_report": "report",
    "unlearn": "stages.calls",
    "noise": "stages.calls",
    "distill": "stages.calls",
    "build_task": "tasks",
    "load_model": "models",
    "save_model": "models",
    "harvest": "harvesting",
    "ActivationStore": "activation_store",
    "probe": "measures.stored_probes",
    "known": "measures.known",
    "ablate": "interventions",
    "junk_direction": "measures.junk_direction",
    "patch_map": "measures.patching",
    "collapse_bases": "collapse",
    "collapse_gradients": "collapse",
    "compare": "comparison",
    "Comparison": "comparison",
    "persian_rug": "persian_rug",  # the package itself
}

if TYPE_CHECKING:
    from undo_probe import persian_rug as persian_rug
    from undo_probe.activation_store import ActivationStore as ActivationStore
    from undo_probe.attacks.arms import attack as attack
    from undo_probe.attacks.one_model import relearn as relearn
    from undo_probe.auditing import audit as audit
    from undo_probe.collapse import collapse_bases as collapse_bases
    from undo_probe.collapse import collapse_gradients as collapse_gradients
    from undo_probe.comparison import Comparison as Comparison
    from undo_probe.comparison import compare as compare
    from undo_probe.errors import UndoProbeError as UndoProbeError
    from undo_probe.harvesting import harvest as harvest
    from undo_probe.interventions import ablate as ablate
    from undo_probe.measures.junk_direction import junk_direction as junk_direction
    from undo_probe.measures.known import known as known
    from undo_probe.measures.patching import patch_map as patch_map
    from undo_probe.measures.stored_probes import probe as probe
    from undo_probe.models import load_model as load_model
    from undo_probe.models import save_model as save_model
    from undo_probe.pipeline import load_run as load_run
    from undo_probe.pipeline import run_undo as run_undo
    from undo_probe.presets import load_config as load_config
    from undo_probe.presets import preset as preset
    from undo_probe.report import write_report as write_report
    from undo_probe.scorecard import score as score
    from undo_probe.stages.calls import distill as distill
    from undo_probe.stages.calls import noise as noise
    from undo_probe.stages.calls import unlearn as unlearn
    from undo_probe.sweep import run_sweep as run_sweep
    from undo_probe.tasks import build_task as build_task

__all__ = ["__version__", *_LAZY]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'undo_probe' has no attribute {name!r}")
    home = importlib.import_module(f"undo_probe.{_LAZY[name]}")
    value = home if _LAZY[name] == name else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
