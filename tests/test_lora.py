"""Adapters: exact at the start, exact when merged, and gone afterwards."""

import pytest
import tiny
import torch
from torch.nn.utils import parametrize

from undo_probe import lora, losses
from undo_probe.config import FitConfig
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, as_matrix, block_matrices, clone, content_hash, from_matrix
from undo_probe.training import Adapt, Context, fit

ADAPTS: dict[str, Adapt] = {
    "low rank": lambda model: lora.low_rank(model, 2, seed=0),
    "subspace": lambda model: lora.subspace(model, 5, seed=0),
}
every_adapter = pytest.mark.parametrize("adapt", ADAPTS.values(), ids=ADAPTS)


def loss_of(model: torch.nn.Module) -> torch.Tensor:
    batch = tiny.task().batch("attack", 16, 0, 0)
    return losses.next_token(model(batch.tokens, return_type="logits"), batch.tokens, batch.answer_mask)


def move(model: HookedTransformer) -> None:
    """Puts every trained number somewhere else."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)


def test_a_weight_becomes_a_matrix_and_a_weight_again() -> None:
    model = tiny.model()
    state = torch.randn(3, model.cfg.d_model)
    for name in block_matrices(model):
        weight = model.get_parameter(name)
        matrix = as_matrix(name, weight)
        assert torch.equal(from_matrix(name, matrix, weight.shape), weight)
    name = "blocks.0.attn.W_Q"
    heads = torch.einsum("nd,hde->nhe", state, model.get_parameter(name)).flatten(1)
    torch.testing.assert_close(state @ as_matrix(name, model.get_parameter(name)), heads)
    name = "blocks.0.attn.W_O"
    z = torch.randn(3, model.cfg.n_heads, model.cfg.d_head)
    out = torch.einsum("nhe,hed->nd", z, model.get_parameter(name))
    torch.testing.assert_close(z.flatten(1) @ as_matrix(name, model.get_parameter(name)), out)


@every_adapter
def test_before_the_first_step_nothing_is_changed(adapt: Adapt) -> None:
    model = tiny.model()
    before = tiny.logits(model, tiny.tokens())
    with adapt(model):
        assert torch.equal(tiny.logits(model, tiny.tokens()), before)


@every_adapter
def test_the_merged_model_is_the_adapted_one_bit_for_bit_and_nothing_is_left(adapt: Adapt) -> None:
    model = tiny.model()
    before, names = tiny.logits(model, tiny.tokens()), {name for name, _ in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    hooks = tiny.hook_count(model)
    model.b_U.requires_grad_(False)
    with adapt(model):
        move(model)
        adapted = tiny.logits(model, tiny.tokens())
    assert torch.equal(tiny.logits(model, tiny.tokens()), adapted)
    assert not torch.allclose(adapted, before)
    assert {name for name, _ in model.named_parameters()} == names
    assert [type(module) for module in model.modules()] == kinds
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert tiny.hook_count(model) == hooks
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"unembed.b_U"}
    assert tiny.logits(clone(model), tiny.tokens()).equal(adapted)


@every_adapter
def test_an_error_inside_leaves_no_adapter_behind(adapt: Adapt) -> None:
    model = tiny.model()
    with pytest.raises(RuntimeError, match="stop"), adapt(model):
        raise RuntimeError("stop")
    assert not any(parametrize.is_parametrized(module) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_low_rank_changes_every_matrix_of_the_blocks_by_that_rank_and_nothing_else() -> None:
    model, rank = tiny.model(), 2
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with lora.low_rank(model, rank, seed=0):
        move(model)
    for name, parameter in model.named_parameters():
        change = parameter.detach() - before[name]
        if name in block_matrices(model):
            assert int(torch.linalg.matrix_rank(as_matrix(name, change).double(), rtol=1e-4)) == rank, name
        else:
            assert not change.any(), name
    assert len(block_matrices(model)) == 6 * model.cfg.n_layers


def test_the_gradient_in_the_subspace_is_the_projected_full_gradient() -> None:
    model, dimension = tiny.model(), 5
    loss_of(model).backward()
    full = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    with lora.subspace(model, dimension, seed=3):
        (place,) = [p for p in model.parameters() if p.requires_grad]
        at = dict(model.named_parameters())
        # the order of the weights is that of the model without the adapter
        blocks = [
            dict(model.named_buffers())[f"{home}.parametrizations.{leaf}.0.directions"]
            for home, _, leaf in (name.rpartition(".") for name, _ in tiny.model().named_parameters())
        ]
        loss_of(model).backward()
        assert place.grad is not None and len(at) > 1
        torch.testing.assert_close(place.grad, torch.cat(blocks).T @ full, rtol=1e-4, atol=1e-6)
        columns = torch.cat(blocks).norm(dim=0)
    expected = (len(full) / dimension) ** 0.5
    torch.testing.assert_close(columns, torch.full((dimension,), expected), rtol=1e-4, atol=0)


def test_the_subspace_is_the_seeds_and_another_seed_gives_another() -> None:
    found = []
    for seed in (0, 0, 1):
        model = tiny.model()
        with lora.subspace(model, 3, seed):
            move(model)
        found.append(content_hash(model))
    assert found[0] == found[1] != found[2]


@every_adapter
def test_a_first_step_is_as_long_as_in_full_fine_tuning(adapt: Adapt) -> None:
    """One Adam step moves a weight by about the rate, however few numbers are trained."""
    settings = FitConfig(steps=1, learning_rate=1e-3, warmup=0, schedule="constant")
    model = tiny.model()
    trained = fit(model, settings, lambda student, step: loss_of(student), Context(), adapt=adapt).model
    after = dict(trained.named_parameters())
    names = block_matrices(model)
    moved = torch.cat([(after[name] - model.get_parameter(name)).flatten() for name in names])
    assert 0.5e-3 < float(moved.detach().square().mean().sqrt()) < 2e-3


@every_adapter
def test_fit_trains_through_the_adapter_and_returns_a_plain_model(adapt: Adapt) -> None:
    model = tiny.model()
    before = content_hash(model)
    settings = FitConfig(steps=20, learning_rate=1e-2, warmup=0, schedule="constant")
    done = fit(model, settings, lambda student, step: loss_of(student), Context(), adapt=adapt)
    assert content_hash(model) == before
    assert float(loss_of(done.model).detach()) < float(loss_of(model).detach()) - 0.05
    assert [name for name, _ in clone(done.model).named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]
    assert all(p.requires_grad and p.grad is None for p in done.model.parameters())


@pytest.mark.parametrize(("kind", "what"), [(lora.low_rank, "rank"), (lora.subspace, "dimension")])
def test_what_cannot_be_adapted_is_refused(kind, what: str) -> None:
    with pytest.raises(UndoProbeError, match=f"{what} is 0: expected at least 1"):
        kind(tiny.model(), 0, seed=0)
    tied = tiny.model()
    tied.blocks[1].mlp._parameters["W_in"] = tied.get_parameter("blocks.0.mlp.W_in")
    with pytest.raises(UndoProbeError, match=r"blocks\.0\.mlp\.W_in and blocks\.1\.mlp\.W_in are one tensor"):
        kind(tied, 2, seed=0)
