"""The stages as public calls: a model in, a new model out."""

from typing import Any

import pytest
import tiny

import undo_probe as up
from undo_probe.config import AttackConfig, FitConfig, MaxEntConfig, RMUConfig
from undo_probe.models import content_hash
from undo_probe.stages.pretrain import pretrain
from undo_probe.stages.unlearn import METHODS
from undo_probe.training import Context

ATTACK = AttackConfig(learning_rates=(1e-3,), steps=1, eval_steps=(0, 1))
ONE_STEP = FitConfig(steps=1)


def test_unlearn_is_the_methods_stage_with_its_settings() -> None:
    found = up.unlearn(tiny.model(), tiny.task(), method="rmu", seed=3, steps=2, batch_size=8, c=6.5)
    settings = RMUConfig(steps=2, batch_size=8, c=6.5)
    expected = METHODS["rmu"](tiny.model(), tiny.task(), settings, Context(3)).model
    assert content_hash(found) == content_hash(expected)
    default = up.unlearn(tiny.model(), tiny.task(), steps=1, batch_size=8)
    expected = METHODS["maxent"](tiny.model(), tiny.task(), MaxEntConfig(steps=1, batch_size=8), Context(0))
    assert content_hash(default) == content_hash(expected.model)


def test_the_whole_chain_leaves_every_argument_as_it_was() -> None:
    original = tiny.model()
    before = content_hash(original)
    taught = up.unlearn(original, tiny.task(), method="maxent", steps=2, batch_size=8)
    noised = up.noise(taught, alpha=0.6, beta=0.1, seed=0)
    student = up.distill(noised, teacher=taught, task=tiny.task(), steps=2, batch_size=8, tolerance=0.0)
    hashes = [content_hash(model) for model in (original, taught, noised, student)]
    assert len(set(hashes)) == 4
    assert hashes[0] == before
    assert content_hash(up.noise(taught, alpha=0.6, beta=0.1, seed=0)) == hashes[2]


@pytest.mark.parametrize(
    ("stage", "mixtures"),
    [
        (lambda model, task: up.unlearn(model, task, method="maxent", steps=1), {"unlearn", "retain"}),
        (lambda model, task: up.unlearn(model, task, method="graddiff", steps=1), {"unlearn", "retain"}),
        (lambda model, task: up.unlearn(model, task, method="rmu", steps=1), {"unlearn", "retain"}),
        (lambda model, task: up.distill(model, model, task, steps=1, tolerance=0.0), {"distill"}),
        (lambda model, task: up.relearn(model, task, ATTACK), {"attack"}),
        (lambda model, task: pretrain(task, tiny.SHAPE, ONE_STEP, "matched", Context()), {"matched"}),
    ],
    ids=["maxent", "graddiff", "rmu", "distill", "relearn", "pretrain"],
)
def test_each_stage_is_shown_its_own_mixture_and_no_other(stage: Any, mixtures: set[str]) -> None:
    task = tiny.Watched()
    stage(tiny.model(), task)
    assert task.asked == mixtures


def test_an_unknown_method_and_an_unknown_setting_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        up.UndoProbeError,
        match="no unlearning method 'npoo': there are maxent, graddiff, rmu, npo, simnpo, undial, sam, repnoise",
    ):
        up.unlearn(tiny.model(), tiny.task(), method="npoo")
    with pytest.raises(up.UndoProbeError, match=r"setting 'lr': .* \(settings are steps, .*learning_rate"):
        up.unlearn(tiny.model(), tiny.task(), lr=0.1)
    with pytest.raises(up.UndoProbeError, match=r"setting 'steps': "):
        up.distill(tiny.model(), tiny.model(), tiny.task(), steps=-1)
