"""Each stage by itself: a model in, a new model out, the argument untouched."""

from typing import Any

from undo_probe.config import DistillConfig, NoiseRule, UnlearnConfig
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer
from undo_probe.stages import distill as distilling
from undo_probe.stages import noise as noising
from undo_probe.stages.unlearn import METHODS
from undo_probe.tasks import Task
from undo_probe.training import Context


def unlearn(
    model: HookedTransformer, task: Task, method: str = "maxent", *, seed: int = 0, **settings: Any
) -> HookedTransformer:
    """A copy of ``model`` that was made to suppress the task's forget set.

    Args:
        model: what knows the forget set.
        task: what is forgotten and what is kept.
        method: one of :data:`undo_probe.stages.unlearn.METHODS`.
        seed: of the batches and of what the method draws.
        **settings: the method's own, for example ``c=6.5`` for rmu; see the presets for their names.

    Raises:
        UndoProbeError: unknown method or setting.
    """
    if method not in METHODS:
        raise UndoProbeError(f"there is no unlearning method {method!r}: there are {', '.join(METHODS)}")
    section = type(getattr(UnlearnConfig(), method))
    return METHODS[method](model, task, _section(section, settings), Context(seed)).model


def noise(
    model: HookedTransformer,
    alpha: float,
    beta: float = 0.1,
    *,
    seed: int = 0,
    before: HookedTransformer | None = None,
    **settings: Any,
) -> HookedTransformer:
    """A copy with its weights shrunk and perturbed, or damaged by another rule.

    Args:
        model: untouched.
        alpha: how much, 0 to 1.
        beta: scale of the noise, 0 to 1.
        seed: of the noise.
        before: the model before unlearning, for ``top_delta``.
        **settings: any field of :class:`undo_probe.config.NoiseRule`, for example ``layers=(0,)``.

    Raises:
        UndoProbeError: a value that does not fit, or a place that the model does not have.
    """
    rule = _section(NoiseRule, {"beta": beta, **settings})
    return noising.noise(model, rule, alpha, seed, before).model


def distill(
    student: HookedTransformer, teacher: HookedTransformer, task: Task, *, seed: int = 0, **settings: Any
) -> HookedTransformer:
    """A copy of ``student`` trained on the teacher's outputs until its retain accuracy is back.

    Args:
        student: where training starts, for example a noised model.
        teacher: what is imitated.
        task: whose prompts are shown.
        seed: of the batches.
        **settings: any field of :class:`undo_probe.config.DistillConfig`.
    """
    return distilling.distill(student, teacher, task, _section(DistillConfig, settings), Context(seed)).model


def _section(section: Any, settings: dict[str, Any]) -> Any:
    from pydantic import ValidationError

    try:
        return section(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(section.model_fields)
        raise UndoProbeError(f"setting {name!r}: {first['msg']} (settings are {known})") from None
