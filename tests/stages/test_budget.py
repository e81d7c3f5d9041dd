"""A budget ends unlearning where its first limit is met, whatever the method, and never past it."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch
from references import losses as reference

from undo_probe.collapse_config import BudgetConfig, CIRConfig
from undo_probe.config import FitConfig, MaxEntConfig, UnlearnConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answer_log_probability
from undo_probe.losses import answer_logits
from undo_probe.models import HookedTransformer, clone, content_hash
from undo_probe.plan import plan
from undo_probe.stages.unlearn import METHODS
from undo_probe.stages.unlearn.budget import NEAR_ENOUGH, Budget, Gauge
from undo_probe.tasks.bystanders import bystanders
from undo_probe.training import Context

TASK = tiny.small_task()
LIMIT = 0.02
WITHIN = BudgetConfig(retain=LIMIT)


def harm(model: HookedTransformer) -> float:
    """KL on the development rows of retain, another way than in the package."""
    rows = TASK.rows("retain_dev")
    now, was = (
        answer_logits(tiny.logits(each, rows.tokens), rows.answer_mask) for each in (model, tiny.knowing())
    )
    return float(reference.forward_kl(now, was))


def moved(model: HookedTransformer, size: float) -> HookedTransformer:
    other = clone(model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return other


def test_the_gauge_reads_kl_from_the_model_as_it_came() -> None:
    gauge = Gauge(tiny.knowing(), TASK, BudgetConfig(retain=1.0, rows=10**6), "cpu")
    assert gauge(tiny.knowing()) == {"retain": pytest.approx(0, abs=1e-7)}
    other = moved(tiny.knowing(), 0.05)
    assert gauge(other)["retain"] == pytest.approx(harm(other), rel=1e-4)
    rows = len(TASK.rows("retain_dev"))
    asked = len(TASK.rows("forget_D"))  # once, before; retain twice more
    assert gauge.spent == pytest.approx(tiny.forward_flops(other, 3 * rows + asked))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("maxent", {"learning_rate": 1e-3}),
        ("maxent", {"learning_rate": 0.5}),  # past it with the first step
        ("npo", {"learning_rate": 1e-3, "retain_weight": 0.0}),
        ("rmu", {"learning_rate": 0.05, "layer": 0, "c": 40.0, "retain_weight": 0.0}),
        ("cir", {"step_norm": 0.3, "k_act": 0, "k_grad": 0}),
        ("cir", {"step_norm": 50.0, "loss": "maxent", "k_act": 4, "k_grad": 4}),
        ("repselect", {"adversary_steps": 2, "k": 4, "accumulate": 2}),
    ],
)
def test_every_method_ends_at_its_limit_and_never_past_it(method: str, settings: dict[str, Any]) -> None:
    section: Any = type(getattr(UnlearnConfig(), method))
    asked = {"steps": 40 if method != "repselect" else 1, "batch_size": 32, "eval_every": 50, **settings}
    done = METHODS[method](tiny.knowing(), TASK, section(**asked, budget=WITHIN), Context(0))
    assert 0.9 * LIMIT < harm(done.model) <= LIMIT * (1 + 1e-5)
    record = done.extra["budget"]
    assert record["bound"] == "retain"
    assert record["kl"]["retain"] == pytest.approx(harm(done.model), rel=1e-4)
    assert record["moved"] > 0
    assert "budget of retain met (KL in nats: retain 0.0" in done.stopped
    assert "siblings none, neutral none" in done.stopped
    assert done.rows[-1]["step"] == done.ledger.steps  # the last look is at the model that is kept


def test_a_limit_that_is_not_met_is_said_and_changes_nothing() -> None:
    settings = MaxEntConfig(steps=2, batch_size=16, learning_rate=1e-6, eval_every=5)
    plain = METHODS["maxent"](tiny.knowing(), TASK, settings, Context(0))
    held = settings.model_copy(update={"budget": WITHIN})
    done = METHODS["maxent"](tiny.knowing(), TASK, held, Context(0))
    assert content_hash(done.model) == content_hash(plain.model)
    assert done.stopped.startswith("all 2 steps done: budget not met (KL in nats: retain 0.0000 of 0.02")
    assert done.extra["budget"]["bound"] == ""
    assert plain.extra == {}
    assert done.ledger.flops > plain.ledger.flops


def test_a_step_that_breaks_the_model_is_taken_back() -> None:
    model = clone(tiny.knowing())
    budget = Budget(tiny.knowing(), TASK, WITHIN, "cpu")
    with torch.no_grad():
        model.get_parameter("blocks.0.mlp.W_in").fill_(float("nan"))
    assert budget.look(model)
    assert content_hash(model) == content_hash(tiny.knowing())
    assert budget.found == {"retain": 0.0}


def test_a_direction_is_followed_until_its_share_is_used() -> None:
    model = clone(tiny.knowing())
    budget = Budget(tiny.knowing(), TASK, WITHIN, "cpu")
    name = "blocks.1.mlp.W_out"
    step = {name: 1e-4 * torch.randn(model.get_parameter(name).shape)}
    used = []
    for share in (0.5, 1.0):
        budget.along(model, step, share)
        used.append(harm(model) / LIMIT)
    assert 0.5 * NEAR_ENOUGH <= used[0] <= 0.5 + 1e-5
    assert NEAR_ENOUGH <= used[1] <= 1 + 1e-5
    assert budget.bound == "retain"


@pytest.mark.parametrize(("limit", "value"), [("moved", 0.5), ("forgotten", 0.3)])
def test_a_control_ends_where_the_weights_moved_or_the_answers_were_lost_as_far(
    limit: str, value: float
) -> None:
    settings = CIRConfig(
        steps=30,
        step_norm=0.2,
        k_act=0,
        k_grad=0,
        batch_size=16,
        budget=BudgetConfig.model_validate({limit: value}),
    )
    result = METHODS["cir"](tiny.knowing(), TASK, settings, Context(0))
    rows, pairs = (
        TASK.rows("forget_D"),
        zip(result.model.parameters(), tiny.knowing().parameters(), strict=True),
    )
    lost = {
        "moved": float(torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm()),
        "forgotten": float(
            np.mean(
                [answer_log_probability(tiny.knowing(), rows) - answer_log_probability(result.model, rows)]
            )
        ),
    }
    record = result.extra["budget"]
    assert record["bound"] == limit
    assert NEAR_ENOUGH * value <= lost[limit] <= value * (1 + 1e-4)
    assert {name: record[name] for name in lost} == pytest.approx(lost, rel=1e-3)
    assert f"; {limit} " in result.stopped and set(record["kl"]) == {"retain"}


def test_a_set_that_the_task_does_not_have_cannot_be_limited() -> None:
    settings = CIRConfig(steps=1, budget=BudgetConfig(neutral=0.1))
    with pytest.raises(
        UndoProbeError, match="budget limits neutral, but the task arithmetic has retain only: leave that"
    ):
        METHODS["cir"](tiny.knowing(), TASK, settings, Context(0))


def test_one_budget_holds_all_methods_and_none_leaves_every_key_as_it_was() -> None:
    def fits(*words: str) -> dict[str, dict[str, Any]]:
        steps = [step for step in plan(tiny.quick(*words)) if step.kind == "unlearn"]
        return {step.arm.name: step.settings["fit"] for step in steps}

    assert all("budget" not in fit for fit in fits().values())
    held = fits('unlearn.budget={"retain":0.1}', 'unlearn.rmu.budget={"retain":0.2,"rows":8}')
    limits = {name: (fit["budget"]["retain"], fit["budget"]["rows"]) for name, fit in held.items()}
    assert limits.pop("unlearned-rmu") == limits.pop("unlearned-rmu-placebo") == (0.2, 8)
    assert set(limits.values()) == {(0.1, BudgetConfig(retain=1).rows)}
    assert FitConfig().identity() == FitConfig().model_dump(mode="json")
    with pytest.raises(UndoProbeError, match="a budget without a limit: give retain, siblings or neutral"):
        tiny.quick("unlearn.budget={}")


def test_bystanders_of_arithmetic_are_its_retain_rows() -> None:
    assert {name: len(rows) for name, rows in bystanders(TASK).items()} == {
        "retain": len(TASK.rows("retain_dev"))
    }
