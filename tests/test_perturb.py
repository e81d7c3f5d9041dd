"""Noise follows the published rule on every kind of tensor that a HookedTransformer has."""

import math

import pytest
import references.noise as published
import tiny
import torch
from torch import Tensor

from undo_probe.config import NoiseRule
from undo_probe.errors import UndoProbeError
from undo_probe.perturb import damage, flat_shape, is_gain, prune, quantise, shrink_and_perturb
from undo_probe.randomness import generator

D_MODEL, HEADS, D_HEAD, D_MLP = 16, 2, 8, 32


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    # biases start at zero, gains at one: move them, or shrinking them could not be seen
    draw = torch.Generator().manual_seed(5)
    found = {name: p.detach().clone() for name, p in tiny.model(d_model=D_MODEL).named_parameters()}
    return {name: p + 0.3 * torch.randn(p.shape, generator=draw) for name, p in found.items()}


def kinds(weights: dict[str, Tensor]) -> dict[str, set[str]]:
    gains = {name for name in weights if is_gain(name)}
    matrices = {name for name, tensor in weights.items() if flat_shape(name, tensor)}
    return {"matrix": matrices, "gain": gains, "bias": set(weights) - matrices - gains}


def test_every_parameter_is_a_matrix_a_gain_or_a_bias(weights: dict[str, Tensor]) -> None:
    found = kinds(weights)
    leaves = {kind: {name.rpartition(".")[2] for name in names} for kind, names in found.items()}
    assert leaves == {
        "matrix": {"W_E", "W_pos", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_U"},
        "gain": {"w"},
        "bias": {"b_Q", "b_K", "b_V", "b_O", "b_in", "b_out", "b_U", "b"},
    }
    assert len(found["gain"]) == 5


def test_fans_are_those_of_the_flattened_matrix(weights: dict[str, Tensor]) -> None:
    shapes = {name.rpartition(".")[2]: flat_shape(name, tensor) for name, tensor in weights.items()}
    assert shapes["W_Q"] == shapes["W_K"] == shapes["W_V"] == (D_MODEL, HEADS * D_HEAD)
    assert shapes["W_O"] == (HEADS * D_HEAD, D_MODEL)
    assert (shapes["W_in"], shapes["W_out"]) == ((D_MODEL, D_MLP), (D_MLP, D_MODEL))
    assert shapes["W_E"] == (tiny.task().d_vocab, D_MODEL)


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.1), (0.8, 1.0), (1.0, 1.0), (0.3, 0.0)])
def test_matrices_equal_the_published_rule_however_they_are_stored(
    weights: dict[str, Tensor], alpha: float, beta: float
) -> None:
    noised = shrink_and_perturb(weights, alpha, beta, seed=7)
    for name in kinds(weights)["matrix"]:
        fans = flat_shape(name, weights[name])
        assert fans is not None
        expected = published.shrink_perturb_matrix(
            weights[name], alpha, beta, generator(7, "noise", name), fans
        )
        torch.testing.assert_close(noised[name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("gains", ["one", "zero"])
def test_biases_are_only_shrunk_even_where_they_are_stored_as_matrices(
    weights: dict[str, Tensor], gains: str
) -> None:
    noised = shrink_and_perturb(weights, 0.6, 1.0, seed=0, gains=gains)
    assert weights["blocks.0.attn.b_Q"].ndim == 2
    for name in kinds(weights)["bias"]:
        torch.testing.assert_close(noised[name], published.shrink_vector(weights[name], 0.6))


def test_gains_shrink_toward_one_as_in_the_reference_or_toward_zero(weights: dict[str, Tensor]) -> None:
    # the reference's model stores gain - 1, so its vectors shrink the gain toward one
    one = shrink_and_perturb(weights, 0.6, 0.1, seed=0)
    zero = shrink_and_perturb(weights, 0.6, 0.1, seed=0, gains="zero")
    for name in kinds(weights)["gain"]:
        torch.testing.assert_close(one[name] - 1, published.shrink_vector(weights[name] - 1, 0.6))
        torch.testing.assert_close(zero[name], published.shrink_vector(weights[name], 0.6))


@pytest.mark.parametrize("gains", ["one", "zero"])
def test_alpha_zero_is_the_identity(weights: dict[str, Tensor], gains: str) -> None:
    noised = shrink_and_perturb(weights, 0.0, 1.0, seed=0, gains=gains)
    assert all(torch.equal(noised[name], weights[name]) for name in weights)


def test_alpha_and_beta_one_leave_a_xavier_draw_and_nothing_of_the_weight() -> None:
    wide = {"blocks.0.attn.W_Q": torch.randn(4, 64, 16), "blocks.0.mlp.W_in": torch.randn(64, 256)}
    noised = shrink_and_perturb(wide, 1.0, 1.0, seed=1)
    for name, fans in (("blocks.0.attn.W_Q", (64, 64)), ("blocks.0.mlp.W_in", (64, 256))):
        bound = math.sqrt(6 / sum(fans))
        assert float(noised[name].std()) == pytest.approx(math.sqrt(2 / sum(fans)), rel=0.05)
        assert float(noised[name].abs().max()) <= bound
        assert float(noised[name].abs().max()) > 0.99 * bound
        pair = torch.stack([noised[name].flatten(), wide[name].flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.05


def test_every_tensor_has_a_stream_of_its_own(weights: dict[str, Tensor]) -> None:
    whole = shrink_and_perturb(weights, 0.5, 0.5, seed=3)
    part = {name: weights[name] for name in ("blocks.1.mlp.W_in", "embed.W_E")}
    alone = shrink_and_perturb(part, 0.5, 0.5, seed=3)
    assert all(torch.equal(alone[name], whole[name]) for name in part)
    same_shape = whole["blocks.0.mlp.W_in"] - weights["blocks.0.mlp.W_in"] / 2
    assert not torch.allclose(same_shape, whole["blocks.1.mlp.W_in"] - weights["blocks.1.mlp.W_in"] / 2)


def test_the_seed_decides_the_noise_and_global_random_state_stays(weights: dict[str, Tensor]) -> None:
    # the reference has a seed argument that it never uses
    before = torch.random.get_rng_state()
    a, b, c = (shrink_and_perturb(weights, 0.5, 0.5, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in weights)
    assert not torch.equal(a["embed.W_E"], c["embed.W_E"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_same_draw_is_scaled_by_alpha_along_a_sweep(weights: dict[str, Tensor]) -> None:
    name = "blocks.0.attn.W_V"
    draws = []
    for alpha in (0.2, 0.8):
        noised = shrink_and_perturb(weights, alpha, 0.1, seed=0)
        draws.append((noised[name] - (1 - alpha) * weights[name]) / (alpha * 0.1))
    torch.testing.assert_close(draws[0], draws[1], rtol=1e-3, atol=1e-4)


def test_the_arguments_are_untouched(weights: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in weights.items()}
    shrink_and_perturb(weights, 0.5, 0.5, seed=0)
    assert all(torch.equal(before[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("alpha", "beta", "gains", "text"),
    [
        (1.1, 0.1, "one", r"alpha is 1\.1: expected a number from 0 to 1"),
        (-0.1, 0.1, "one", r"alpha is -0\.1"),
        (math.nan, 0.1, "one", "alpha is nan"),
        (0.5, 2.0, "one", "beta is 2"),
        (0.5, 0.1, "two", "gains is 'two': expected 'one'"),
    ],
)
def test_values_out_of_range_are_refused(alpha: float, beta: float, gains: str, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        shrink_and_perturb({"embed.W_E": torch.zeros(2, 2)}, alpha, beta, seed=0, gains=gains)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: after[name] != tensor for name, tensor in before.items()}


def test_a_head_is_noised_alone(weights: dict[str, Tensor]) -> None:
    hit = changed(weights, damage(weights, NoiseRule(heads=("1.0",)), 0.5, seed=0))
    for name, mask in hit.items():
        if name.startswith("blocks.1.attn.") and not name.endswith("b_O"):
            assert mask[0].all()
            assert not mask[1:].any()
        else:
            assert not mask.any(), name


def test_blocks_are_noised_alone_with_the_noise_they_have_in_the_whole(weights: dict[str, Tensor]) -> None:
    part = damage(weights, NoiseRule(layers=(0,)), 0.5, seed=4)
    whole = damage(weights, NoiseRule(), 0.5, seed=4)
    for name, tensor in weights.items():
        expected = whole[name] if name.startswith("blocks.0.") else tensor
        assert torch.equal(part[name], expected)


def test_a_mask_of_moved_weights_and_a_place_hold_both(weights: dict[str, Tensor]) -> None:
    before = {name: tensor.clone() for name, tensor in weights.items()}
    before["blocks.0.mlp.W_in"][0] += 5.0
    before["blocks.1.mlp.W_in"][0] += 5.0
    share = 2 * before["blocks.0.mlp.W_in"][0].numel() / sum(t.numel() for t in weights.values())
    rule = NoiseRule(layers=(1,), top_delta=share)
    hit = changed(weights, damage(weights, rule, 0.5, seed=0, before=before))
    assert hit["blocks.1.mlp.W_in"][0].all()
    assert sum(int(mask.sum()) for mask in hit.values()) == hit["blocks.1.mlp.W_in"][0].numel()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_pruning_takes_exactly_the_smallest_of_every_matrix(weights: dict[str, Tensor], share: float) -> None:
    pruned = damage(weights, NoiseRule(rule="prune"), share, seed=0)
    for name, tensor in weights.items():
        if name in kinds(weights)["matrix"]:
            gone = pruned[name] == 0
            assert int(gone.sum()) == round(share * tensor.numel())
            assert torch.equal(pruned[name][~gone], tensor[~gone])
            if gone.any() and not gone.all():
                assert float(tensor[gone].abs().max()) <= float(tensor[~gone].abs().min())
        else:
            assert torch.equal(pruned[name], tensor)


def test_the_models_own_draw_has_its_deviation_and_leads_to_a_fresh_model() -> None:
    wide = {
        "blocks.0.mlp.W_in": torch.ones(64, 256),
        "ln_final.w": torch.full((64,), 3.0),
        "unembed.b_U": torch.ones(9),
    }
    fresh = damage(wide, NoiseRule(draw="init", beta=1.0), 1.0, seed=0, init_std=0.02)
    assert float(fresh["blocks.0.mlp.W_in"].std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(fresh["ln_final.w"], torch.ones(64))
    assert torch.equal(fresh["unembed.b_U"], torch.zeros(9))


def test_pruning_refuses_a_share_outside_the_range(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UndoProbeError, match="alpha is -0.1: expected a number from 0 to 1"):
        damage(weights, NoiseRule(rule="prune"), -0.1, seed=0)


def test_jitter_moves_as_far_as_the_noise_would_and_shrinks_nothing(weights: dict[str, Tensor]) -> None:
    rule = NoiseRule(rule="jitter")
    moved, shrunk = damage(weights, rule, 0.6, seed=0), damage(weights, NoiseRule(), 0.6, seed=0)
    for name, tensor in weights.items():
        if name in kinds(weights)["matrix"]:
            way = moved[name] - tensor
            assert float(way.norm()) == pytest.approx(float((shrunk[name] - tensor).norm()), rel=1e-5)
            pair = torch.stack([way.flatten(), tensor.flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 5 / math.sqrt(tensor.numel())
        else:
            assert torch.equal(moved[name], tensor)


def matrix(seed: int = 0, rows: int = 30, columns: int = 20) -> Tensor:
    """Columns of very different size, one of them zero."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.logspace(-4, 1, columns) * (torch.arange(columns) != 3)


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_rounded_weight_is_within_half_a_step_of_its_column(bits: int) -> None:
    weight = matrix(bits)
    rounded = quantise(weight, bits)
    most = 2 ** (bits - 1) - 1
    step = weight.abs().amax(dim=0) / most
    # the scale itself is rounded to eight bits
    assert ((rounded - weight).abs() <= 0.5 * step * (1 + 2**-8) + 1e-12).all()
    assert (rounded != weight).any()
    for column in rounded.T:
        assert len(column.unique()) <= 2 * most + 1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_twice_is_rounding_once_and_columns_do_not_meddle(bits: int) -> None:
    weight = matrix(1)
    once = quantise(weight, bits)
    assert torch.equal(quantise(once, bits), once)
    louder = weight.clone()
    louder[:, 5] *= 100
    others = torch.arange(weight.shape[1]) != 5
    assert torch.equal(quantise(louder, bits)[:, others], once[:, others])


def test_fewer_bits_are_a_larger_error() -> None:
    errors = [float((quantise(matrix(2), bits) - matrix(2)).norm()) for bits in (8, 6, 4, 2)]
    assert errors == sorted(errors) and errors[-1] > 10 * errors[0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.333, 0.5, 1.0])
def test_pruning_takes_exactly_the_share_and_the_smallest(share: float) -> None:
    weight = torch.randn(31, 17, generator=torch.Generator().manual_seed(3))
    pruned = prune(weight, share)
    gone = pruned == 0
    assert int(gone.sum()) == round(share * weight.numel())
    assert torch.equal(pruned[~gone], weight[~gone])
    if 0 < share < 1:
        assert weight[gone].abs().max() <= weight[~gone].abs().min()
    # among equals, too, the share is exact
    assert int((prune(torch.ones(10, 10), share) == 0).sum()) == round(share * 100)


def test_rounding_and_pruning_leave_their_argument_alone_and_refuse_the_impossible() -> None:
    weight, before = matrix(), matrix()
    quantise(weight, 4)
    prune(weight, 0.5)
    assert torch.equal(weight, before)
    for bits in (1, 9):
        with pytest.raises(UndoProbeError, match=f"bits is {bits}: expected a whole number from 2 to 8"):
            quantise(weight, bits)
    with pytest.raises(UndoProbeError, match=r"share is 1\.5: expected a number from 0 to 1"):
        prune(weight, 1.5)


@pytest.mark.parametrize("name", ["blocks.0.attn._W_K", "blocks.0.attn._W_V"])
def test_keys_and_values_that_heads_share_are_noised_like_others(name: str) -> None:
    """HookedTransformer keeps them under names of their own."""
    weight = torch.ones(2, D_MODEL, D_HEAD)
    assert flat_shape(name, weight) == (D_MODEL, 2 * D_HEAD)
    noised = shrink_and_perturb({name: weight}, 0.5, 1.0, seed=0)[name]
    assert float(noised.std()) == pytest.approx(0.5 * math.sqrt(2 / (D_MODEL + 2 * D_HEAD)), rel=0.1)


def test_the_gains_of_norms_are_known_by_name() -> None:
    gains = (
        "blocks.0.ln1.w",
        "blocks.1.ln2_post.w",
        "ln_final.w",
        "blocks.0.attn.q_norm.w",
        "blocks.0.attn.k_norm.w",
    )
    assert all(is_gain(name) for name in gains)
    assert not any(is_gain(name) for name in ("blocks.0.ln1.b", "blocks.0.attn.W_Q", "blocks.0.mlp.b_in"))
