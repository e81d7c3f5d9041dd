"""Unlearning methods suppress the forget answers, keep retain, and touch only what they say."""

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from undo_probe import losses
from undo_probe.config import GradDiffConfig, RMUConfig, UnlearnConfig
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, content_hash, flops_per_token, weights
from undo_probe.stages import StageResult
from undo_probe.stages.unlearn import METHODS, STARTS_FROM
from undo_probe.stages.unlearn.rmu import control_vector, rmu
from undo_probe.training import Context

TASK = tiny.small_task()
SEED, C = 0, 40.0
# CIR and RepSelect go as far as a budget of harm lets them: see test_cir.py and test_budget.py
TRAINED = [method for method in METHODS if method not in ("cir", "repselect")]


def states(model: HookedTransformer, split: str, layer: int) -> Tensor:
    """Residual stream after a block at every position but the first, one row a state."""
    with torch.no_grad():
        _, cache = model.run_with_cache(TASK.rows(split).tokens)
    return cache[f"blocks.{layer}.hook_resid_post"][:, 1:].flatten(0, 1)


@pytest.fixture(scope="module")
def taught() -> dict[str, StageResult]:
    """Each method on the model that knows; made once."""
    rmu_settings = RMUConfig(
        steps=80, batch_size=32, learning_rate=0.02, layer=0, c=C, retain_weight=30.0, eval_every=80
    )
    graddiff_settings = GradDiffConfig(steps=60, batch_size=48, learning_rate=5e-4, retain_weight=10.0)
    others = {
        "npo": {"learning_rate": 2e-3},
        "simnpo": {"learning_rate": 2e-3},
        "undial": {"learning_rate": 1e-3},
        "sam": {"learning_rate": 1e-3, "retain_weight": 1.0},
        "repnoise": {"learning_rate": 1e-3, "retain_weight": 10.0},
    }
    made = {
        "maxent": tiny.suppressed(),
        "graddiff": METHODS["graddiff"](tiny.knowing(), TASK, graddiff_settings, Context(SEED)),
        "rmu": rmu(tiny.knowing(), TASK, rmu_settings, Context(SEED)),
    }
    for method, more in others.items():
        section: Any = type(getattr(UnlearnConfig(), method))
        settings = section(steps=60, batch_size=48, eval_every=60, **more)
        start = made[STARTS_FROM[method]].model if method in STARTS_FROM else tiny.knowing()
        made[method] = METHODS[method](start, TASK, settings, Context(SEED))
    return made


@pytest.mark.parametrize("method", TRAINED)
def test_forget_accuracy_falls_and_retain_is_kept(method: str, taught: dict[str, StageResult]) -> None:
    model = taught[method].model
    for split in ("forget_T", "forget_V"):
        assert tiny.accuracy(tiny.knowing(), split) > 0.9
        assert tiny.accuracy(model, split) < 0.4
    assert tiny.accuracy(model, "retain_train") > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_the_model_that_was_given_is_untouched(method: str) -> None:
    model = tiny.half_trained()
    before, hooks = content_hash(model), tiny.hook_count(model)
    section: Any = type(getattr(UnlearnConfig(), method))
    done = METHODS[method](model, TASK, section(steps=3, batch_size=8), Context(SEED))
    assert content_hash(model) == before != content_hash(done.model)
    assert tiny.hook_count(model) == tiny.hook_count(done.model) == hooks
    assert done.ledger.steps == 3


def test_maxent_brings_the_forget_answers_to_the_uniform_distribution(taught: dict[str, StageResult]) -> None:
    rows = TASK.rows("forget_T")
    before, after = (
        float(losses.uniform_target(tiny.logits(model, rows.tokens), rows.answer_mask))
        for model in (tiny.knowing(), taught["maxent"].model)
    )
    assert after < 0.1 * before


def test_maxent_at_the_uniform_distribution_has_nothing_to_do() -> None:
    """Its loss is bounded below, unlike gradient ascent's."""
    model = tiny.model()
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U.zero_()
    rows = TASK.rows("forget_T")
    logits = tiny.logits(model, rows.tokens)
    assert float(losses.uniform_target(logits, rows.answer_mask)) == pytest.approx(0, abs=1e-6)


def test_the_batches_of_unlearning_never_show_w() -> None:
    """W is what tells removed knowledge from overwritten prompts: unlearning may not touch its rows."""
    hidden = {TASK.decode(row) for row in TASK.rows("forget_W").tokens}
    for step in range(50):
        for mixture in ("unlearn", "retain"):
            shown = {TASK.decode(row) for row in TASK.batch(mixture, 64, SEED, step).tokens}
            assert not shown & hidden


def test_output_methods_pay_for_two_batches_and_label_one(taught: dict[str, StageResult]) -> None:
    ledger = taught["maxent"].ledger
    rows = 60 * 48
    assert ledger.labelled_tokens == rows * TASK.n_ctx
    assert ledger.tokens == 2 * rows * TASK.n_ctx
    assert ledger.flops == pytest.approx(6 * tiny.forward_flops(tiny.knowing(), rows))


@pytest.mark.parametrize(("method", "passes"), [("npo", 7), ("undial", 7), ("simnpo", 6), ("sam", 12)])
def test_frozen_forwards_and_second_gradients_are_paid_for(
    method: str, passes: int, taught: dict[str, StageResult]
) -> None:
    assert taught[method].ledger.flops == pytest.approx(passes * tiny.forward_flops(tiny.knowing(), 60 * 48))


def test_rmu_pays_for_whole_rows_up_to_its_block_and_for_the_frozen_retain_states(
    taught: dict[str, StageResult],
) -> None:
    one_side = 80 * 32 * TASK.n_ctx * flops_per_token(tiny.knowing(), TASK.n_ctx)
    one_block = 1 / tiny.SHAPE.n_layers
    assert taught["rmu"].ledger.flops == pytest.approx(7 * one_side * one_block)


def test_repnoise_draws_the_forget_states_of_the_mlps_toward_noise_and_leaves_no_hook(
    taught: dict[str, StageResult],
) -> None:
    """The reference adds hooks to every module at every call and never takes them away."""
    draw = torch.Generator().manual_seed(0)

    def distance(model: HookedTransformer) -> float:
        rows = TASK.rows("forget_T")
        with torch.no_grad():
            _, cache = model.run_with_cache(rows.tokens)
        states = cache["blocks.1.hook_mlp_out"][:, :-1][rows.answer_mask[:, 1:]]
        return float(losses.mmd(states, torch.randn(states.shape, generator=draw)))

    assert distance(taught["repnoise"].model) < 0.8 * distance(taught["maxent"].model)
    assert tiny.hook_count(taught["repnoise"].model) == tiny.hook_count(tiny.knowing())


def test_rmu_moves_forget_states_to_c_times_u_and_holds_retain_states(
    taught: dict[str, StageResult],
) -> None:
    after, u = taught["rmu"].model, taught["rmu"].tensors["control_vector"]
    target = C * u

    def distance(model: HookedTransformer) -> float:
        return float((states(model, "forget_T", 0) - target).norm(dim=-1).mean())

    def alignment(model: HookedTransformer) -> float:
        shift = states(model, "forget_T", 0) - states(tiny.knowing(), "forget_T", 0)
        return float(torch.nn.functional.cosine_similarity(shift, u[None]).mean())

    assert distance(after) < 0.8 * distance(tiny.knowing())
    assert alignment(after) > 0.8
    moved = (states(after, "forget_T", 0) - states(tiny.knowing(), "forget_T", 0)).norm(dim=-1).mean()
    held = (states(after, "retain_train", 0) - states(tiny.knowing(), "retain_train", 0)).norm(dim=-1).mean()
    assert float(held) < 0.5 * float(moved)


def test_rmu_trains_the_named_tensors_of_blocks_up_to_its_layer_and_no_other(
    taught: dict[str, StageResult],
) -> None:
    before, after = weights(tiny.knowing()), weights(taught["rmu"].model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"blocks.0.mlp.{leaf}" for leaf in ("W_in", "b_in", "W_out", "b_out")}


@pytest.mark.parametrize("layer", [0, 1])
def test_every_trained_tensor_of_rmu_gets_a_gradient(layer: int) -> None:
    """The reference lists a block behind the layer whose states it reads, which never gets a gradient."""
    settings = RMUConfig(steps=1, batch_size=8, layer=layer, tensors=("mlp.W_out", "attn.W_O"))
    after = weights(rmu(tiny.half_trained(), TASK, settings, Context(SEED)).model)
    before = weights(tiny.half_trained())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"blocks.{n}.{leaf}" for n in range(layer + 1) for leaf in settings.tensors}


def test_the_retain_term_of_rmu_is_really_on() -> None:
    """The reference's released settings switch it off, so the weight they sweep does nothing."""
    held = {}
    for weight in (0.0, 1000.0):
        settings = RMUConfig(steps=15, batch_size=16, learning_rate=3e-3, c=20.0, retain_weight=weight)
        after = rmu(tiny.knowing(), TASK, settings, Context(SEED)).model
        moved = states(after, "retain_train", 0) - states(tiny.knowing(), "retain_train", 0)
        held[weight] = float(moved.norm(dim=-1).mean())
    assert held[1000.0] < 0.5 * held[0.0]


def test_a_tensor_that_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    settings = RMUConfig(tensors=("mlp.down_proj",))
    with pytest.raises(UndoProbeError, match=r"no 'blocks\.0\.mlp\.down_proj'; a block has .*mlp\.W_out"):
        rmu(tiny.half_trained(), TASK, settings, Context(SEED))


D = 4096


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "centred"])
def test_the_control_vector_has_length_one_and_its_seed_decides_it(kind: str) -> None:
    one, same, other = (control_vector(64, kind, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.norm()) == pytest.approx(1)


def test_a_uniform_control_vector_is_mostly_the_all_ones_direction() -> None:
    """So two unrelated runs share three quarters of their direction, and LayerNorm does not see it."""
    a, b = (control_vector(D, "uniform", seed) for seed in (1, 2))
    assert cosine(a, torch.ones(D)) == pytest.approx(3**0.5 / 2, abs=0.01)
    assert cosine(a, b) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("kind", ["centred", "gaussian"])
def test_centred_and_gaussian_control_vectors_share_no_direction(kind: str) -> None:
    a, b = (control_vector(D, kind, seed) for seed in (1, 2))
    assert abs(cosine(a, b)) < 0.06
    assert abs(cosine(a, torch.ones(D))) < 0.06


def test_a_centred_control_vector_sums_to_zero_and_is_the_uniform_one_without_its_mean() -> None:
    u, centred = control_vector(D, "uniform", 3), control_vector(D, "centred", 3)
    assert float(centred.sum()) == pytest.approx(0, abs=1e-3)
    assert cosine(centred, u - u.mean()) == pytest.approx(1, abs=1e-5)


def test_retain_outputs_are_held_to_what_they_were() -> None:
    rows = TASK.rows("retain_test")
    was = losses.answer_logits(tiny.logits(tiny.half_trained(), rows.tokens), rows.answer_mask)
    shift, flops = {}, {}
    for kind, weight in (("kl", 5.0), ("cross_entropy", 5.0), ("cross_entropy", 0.0)):
        asked = {"retain_weight": weight, "retain_loss": kind, "learning_rate": 5e-4, "steps": 20}
        settings = GradDiffConfig.model_validate({**asked, "batch_size": 32, "eval_every": 20})
        made = METHODS["graddiff"](tiny.half_trained(), TASK, settings, Context(SEED))
        now = losses.answer_logits(tiny.logits(made.model, rows.tokens), rows.answer_mask)
        shift[kind, weight] = float(losses.forward_kl(now, was))
        flops[kind, weight] = made.ledger.flops
    assert shift["kl", 5.0] < min(shift["cross_entropy", 5.0], shift["cross_entropy", 0.0])
    assert flops["kl", 5.0] == pytest.approx(flops["cross_entropy", 5.0] * 7 / 6)


def test_rmu_trains_only_the_blocks_that_are_named() -> None:
    model = tiny.model(n_layers=3)
    settings = RMUConfig(steps=2, batch_size=8, layer=2, blocks=(1,), tensors=("mlp.W_out",))
    before, after = weights(model), weights(rmu(model, tiny.task(), settings, Context(SEED)).model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["blocks.1.mlp.W_out"]
    for blocks, said in (((3,), "blocks names 3, which lies behind layer 2"), ((), "blocks is empty")):
        with pytest.raises(ValueError, match=said):
            RMUConfig(layer=2, blocks=blocks)
