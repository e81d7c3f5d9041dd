"""CIR and RepSelect: the losses that are collapsed, the step that is taken, and what no step touches."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny
import torch
from pydantic import ValidationError
from references import losses as reference
from torch import Tensor

from undo_probe import losses
from undo_probe.attacks import attack
from undo_probe.collapse_config import BudgetConfig, CIRConfig, RepSelectConfig
from undo_probe.errors import UndoProbeError
from undo_probe.linear_maps import kept_places
from undo_probe.models import HookedTransformer, as_matrix, clone, content_hash, weights
from undo_probe.pipeline import run_undo
from undo_probe.report import write_report
from undo_probe.scorecard import score
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn.cir import cir, default_k
from undo_probe.stages.unlearn.collapsible import LOSSES
from undo_probe.stages.unlearn.common import two_batches
from undo_probe.stages.unlearn.repselect import repselect
from undo_probe.tasks import Batch
from undo_probe.training import Context

TASK = tiny.small_task()
ONE: dict[str, Any] = {"steps": 1, "batch_size": 16, "eval_every": 1, "basis_batches": 2}
PLAIN: dict[str, Any] = {**ONE, "k_act": 0, "k_grad": 0}


def change(done: StageResult, model: HookedTransformer) -> dict[str, Tensor]:
    """What moved, and how far."""
    after, before = weights(done.model), weights(model)
    return {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}


def together(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def states(
    model: HookedTransformer, batch: Batch, point: str, tokens: Literal["all", "answers"]
) -> list[np.ndarray]:
    """Kept vectors one by one, from the whole cache."""
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens)
    here = kept_places(batch.answer_mask, tokens)
    return [vector.numpy() for vector in cache[point][:, :-1][here]]


def pair() -> tuple[Batch, HookedTransformer]:
    other = clone(tiny.knowing())
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return two_batches(TASK, CIRConfig(**PLAIN), Context(0), 0)[0], other


@pytest.mark.parametrize("tokens", ["all", "answers"])
def test_losses_on_states_are_the_published_ones_token_by_token(tokens: Literal["all", "answers"]) -> None:
    batch, other = pair()
    settings = CIRConfig(layers=(0, 1), tokens=tokens)
    of_state = {"mlp_breaking": "hook_mlp_out", "dot": "hook_resid_post"}
    of_state |= {"norm": "hook_resid_post", "cosine": "hook_resid_post"}
    formula = {"norm": reference.shrinking, "cosine": reference.turning}
    for name, point in of_state.items():
        found = LOSSES[name].make(tiny.knowing(), settings)(other, batch, None).detach()
        terms = []
        for layer in (0, 1):
            now, was = (
                states(model, batch, f"blocks.{layer}.{point}", tokens) for model in (other, tiny.knowing())
            )
            terms.append(formula.get(name, reference.mlp_breaking)(now, was))
        assert float(found) == pytest.approx(np.mean(terms), rel=1e-4)


def test_losses_on_outputs_are_those_of_the_other_methods() -> None:
    batch, other = pair()
    retain = two_batches(TASK, CIRConfig(**PLAIN), Context(0), 0)[1]
    settings = CIRConfig(beta=0.7, retain_weight=3.0)
    found = {
        name: float(LOSSES[name].make(tiny.knowing(), settings)(other, batch, retain).detach())
        for name in ("answer", "maxent", "graddiff", "npo")
    }
    now, was = tiny.logits(other, batch.tokens), tiny.logits(tiny.knowing(), batch.tokens)
    forget = reference.cross_entropy(now, batch.tokens, batch.answer_mask)
    kept = reference.cross_entropy(tiny.logits(other, retain.tokens), retain.tokens, retain.answer_mask)
    policy, before = (
        reference.row_log_probabilities(each, batch.tokens, batch.answer_mask) for each in (now, was)
    )
    assert found == {
        "answer": pytest.approx(-forget, rel=1e-4),
        "maxent": pytest.approx(float(reference.maxent(now, batch.tokens, batch.answer_mask)), rel=1e-4),
        "graddiff": pytest.approx(3 * kept - forget, rel=1e-4),
        "npo": pytest.approx(reference.npo(policy, before, 0.7), rel=1e-4),
    }
    assert set(LOSSES) == {*found, "mlp_breaking", "dot", "norm", "cosine"}


def test_no_first_token_and_no_filling_counts() -> None:
    mask = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    batch = Batch(torch.zeros(2, 6, dtype=torch.int64), mask)
    assert kept_places(batch.answer_mask, "all").int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert kept_places(batch.answer_mask, "answers").int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]


def test_without_directions_a_step_goes_down_the_plain_gradient() -> None:
    model = tiny.knowing()
    done = cir(model, TASK, CIRConfig(**PLAIN, step_norm=0.3, weights="all", accumulate=2), Context(5))
    moved = change(done, model)
    own = clone(model)
    for step in (0, 1):
        forget = TASK.batch("unlearn", 16, 5, step)
        (-losses.next_token(own(forget.tokens), forget.tokens, forget.answer_mask)).backward()
    gradient = {name: own.get_parameter(name).grad for name in moved}
    assert {name.rpartition(".")[2] for name in moved} == {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"}
    expected = together({name: each for name, each in gradient.items() if each is not None})
    torch.testing.assert_close(together(moved), -0.3 * expected / expected.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("basis", ["forget", "retain", "both", "random"])
def test_only_the_chosen_weights_move_by_the_norm_that_was_asked(
    basis: Literal["forget", "retain", "both", "random"],
) -> None:
    model = tiny.knowing()
    before = content_hash(model)
    settings = CIRConfig(**ONE, k_act=4, k_grad=4, basis=basis, step_norm=0.2, weights=("mlp.W_out",))
    done = cir(model, TASK, settings, Context(0))
    moved = change(done, model)
    assert set(moved) == {f"blocks.{block}.mlp.W_out" for block in range(2)}
    assert float(together(moved).norm()) == pytest.approx(0.2, rel=1e-4)
    for name, each in moved.items():
        values = torch.linalg.svdvals(as_matrix(name, each))
        assert int((values > 1e-5 * values[0]).sum()) <= min(each.shape) - 4
    assert content_hash(model) == before
    assert tiny.hook_count(done.model) == tiny.hook_count(model)


def test_summed_by_tokens_a_step_is_the_projected_one_but_for_tokens_left_out() -> None:
    model = tiny.knowing()
    moved = {}
    for form in ("projected", "tokens"):
        settings = CIRConfig(**ONE, k_act=6, k_grad=6, form=form)
        moved[form] = together(change(cir(model, TASK, settings, Context(0)), model))
    alike = torch.nn.functional.cosine_similarity(moved["projected"], moved["tokens"], dim=0)
    assert 0.5 < float(alike) < 0.9999


def test_where_all_is_shared_nothing_is_left_to_change() -> None:
    done = cir(tiny.knowing(), TASK, CIRConfig(**ONE, k_act=10**6), Context(0))
    assert done.stopped == "nothing left to change at step 0"
    assert content_hash(done.model) == content_hash(tiny.knowing())
    assert done.ledger.steps == 0


def test_a_band_holds_the_step_to_its_components() -> None:
    def moved(**changed: Any) -> dict[str, Tensor]:
        settings = CIRConfig(steps=1, batch_size=32, basis_batches=1, step_norm=0.5, **changed)
        result = cir(tiny.knowing(), TASK, settings, Context(0))
        return {
            name: as_matrix(name, p - tiny.knowing().get_parameter(name)).detach()
            for name, p in result.model.named_parameters()
            if name.endswith("W_in")
        }

    few, rest = moved(band=(0, 3)), moved(band=(3, 16))
    for name, step in few.items():
        assert torch.linalg.matrix_rank(step, rtol=1e-3) <= 3
        assert float((step.T @ rest[name]).norm()) < 1e-3 * float(step.norm() * rest[name].norm())
    with pytest.raises(ValidationError, match="the band 4 to 4 is empty, or stands beside k_act"):
        CIRConfig(band=(4, 4))


def test_a_refresh_finds_new_directions_and_is_paid_for() -> None:
    rows: dict[str, Any] = {**ONE, "steps": 4, "k_act": 3, "k_grad": 3}
    often, once = (cir(tiny.knowing(), TASK, CIRConfig(**rows, refresh=n), Context(0)) for n in (2, 9))
    assert content_hash(often.model) != content_hash(once.model)
    passes = tiny.forward_flops(tiny.knowing(), 16)
    assert once.ledger.flops == pytest.approx((4 * 3 + 2 * 3) * passes)
    assert often.ledger.flops == pytest.approx((4 * 3 + 2 * 2 * 3) * passes)
    assert often.ledger.labelled_tokens == 4 * 16 * TASK.n_ctx


def test_the_retain_step_holds_the_retain_answers() -> None:
    def harm(rate: float) -> float:
        settings = CIRConfig(**{**PLAIN, "steps": 6}, step_norm=0.3, retain_rate=rate)
        model = cir(tiny.knowing(), TASK, settings, Context(0)).model
        rows = TASK.rows("retain_train")
        pair = [
            losses.answer_logits(tiny.logits(each, rows.tokens), rows.answer_mask)
            for each in (model, tiny.knowing())
        ]
        return float(reference.forward_kl(*pair))

    assert harm(0.05) < 0.9 * harm(0.0)


def test_losses_on_early_states_train_nothing_behind_them() -> None:
    settings = CIRConfig(**ONE, loss="mlp_breaking", layers=(0,), k_act=2, k_grad=2, weights="all")
    moved = change(cir(tiny.knowing(), TASK, settings, Context(0)), tiny.knowing())
    assert {name.split(".")[1] for name in moved} == {"0"}


def test_repselect_weakens_the_leading_singular_directions_of_the_whole_gradient() -> None:
    model, k = tiny.knowing(), 3
    settings = RepSelectConfig(
        batch_size=16, accumulate=2, k=k, adversary_steps=0, step_norm=0.1, eval_every=1, weights=("W_out",)
    )
    moved = change(repselect(model, TASK, settings, Context(2)), model)
    own = clone(model)
    for step in (0, 1):
        forget = TASK.batch("unlearn", 16, 2, step)
        (-losses.next_token(own(forget.tokens), forget.tokens, forget.answer_mask)).backward()
    expected = {}
    for name in moved:
        gradient = own.get_parameter(name).grad
        assert gradient is not None
        left, values, right = np.linalg.svd(gradient.double().numpy(), full_matrices=False)
        weakened = values.copy()
        weakened[:k] = values[k - 1] ** 2 / values[:k]  # on each side by s_k / s_i
        expected[name] = torch.from_numpy((left * weakened) @ right)
    whole = together(expected)
    torch.testing.assert_close(together(moved).double(), -0.1 * whole / whole.norm(), atol=1e-5, rtol=0)


def test_the_adversary_learns_first_and_is_gone_afterwards() -> None:
    model = tiny.half_trained()
    base = RepSelectConfig(batch_size=16, accumulate=1, k=3, adversary_steps=0, step_norm=0.1, eval_every=1)
    made = [
        repselect(model, TASK, base.model_copy(update={"adversary_steps": steps}), Context(0))
        for steps in (0, 4)
    ]
    moved = [together(change(each, model)) for each in made]
    assert float((moved[0] - moved[1]).norm()) > 0.01
    # what is left of it would be far more than the step
    assert [float(each.norm()) for each in moved] == [pytest.approx(0.1, rel=1e-3)] * 2
    assert made[1].ledger.flops - made[0].ledger.flops == pytest.approx(12 * tiny.forward_flops(model, 16))


def test_several_steps_of_repselect_share_the_budget() -> None:
    settings = RepSelectConfig(
        steps=2,
        batch_size=16,
        accumulate=1,
        k=3,
        adversary_steps=0,
        eval_every=1,
        budget=BudgetConfig(retain=0.02),
    )
    done = repselect(tiny.knowing(), TASK, settings, Context(0))
    assert done.ledger.steps == 2
    assert 0.95 * 0.02 < done.extra["budget"]["kl"]["retain"] <= 0.02


def test_directions_by_default_grow_with_the_root_of_the_width() -> None:
    assert [default_k(width) for width in (4, 64, 576, 4096)] == [4, 24, 72, 192]


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(UndoProbeError, match=r"unlearn.cir.layers names 7, but the model has layers 0\.\.1"):
        tiny.quick("unlearn.cir.layers=[7]")
    with pytest.raises(UndoProbeError, match="weights or layers is empty: name some"):
        tiny.quick("unlearn.cir.weights=[]")
    with pytest.raises(UndoProbeError, match="no linear map ends in 'mlp.W_up'"):
        cir(tiny.knowing(), TASK, CIRConfig(**PLAIN, weights=("mlp.W_up",)), Context(0))


@pytest.mark.slow
def test_a_collapsed_update_goes_further_at_the_same_harm() -> None:
    """Claim C7 of the method: what all inputs share is what harm comes from."""
    common: dict[str, Any] = {
        "steps": 60,
        "batch_size": 48,
        "eval_every": 60,
        "loss": "maxent",
        "step_norm": 0.3,
    }
    moved = []
    for k in (0, 6):
        settings = CIRConfig(**common, k_act=k, k_grad=k, budget=BudgetConfig(retain=0.1))
        record = cir(tiny.knowing(), TASK, settings, Context(0)).extra["budget"]
        assert record["bound"] == "retain"
        moved.append(record["moved"])
    assert moved[1] > 1.5 * moved[0]


@pytest.mark.slow
def test_a_run_whose_teacher_is_cir_is_noised_distilled_attacked_and_named_on_its_page(
    tmp_path: Path,
) -> None:
    words = (
        "unlearn.method=cir", 'unlearn.also=["repselect","maxent"]', 'unlearn.budget={"retain":0.05}',
        "unlearn.cir.steps=3", "unlearn.cir.batch_size=16", "unlearn.repselect.batch_size=8",
        "unlearn.repselect.adversary_steps=2",
    )  # fmt: skip
    run = attack(run_undo(tiny.quick(*words), tmp_path / "run", workers=1), workers=1)
    assert {"unlearned-cir", "unlearned-repselect", "distilled-cir-0.8"} <= set(run.keys)
    for name in ("unlearned-cir", "unlearned-repselect", "unlearned-maxent"):
        record = run.store.entry(run.keys[name]).extra["budget"]
        assert set(record["kl"]) == {"retain"}
        assert record["kl"]["retain"] <= record["limits"]["retain"] == 0.05
    score(run)
    page = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "CIR" in page
    assert "RepSelect" in page
