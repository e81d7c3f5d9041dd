"""Collapse: vectors met at the right places, and the same update three ways."""

from pathlib import Path

import huggingface
import numpy as np
import pytest
import tiny
import torch
from references import cir
from torch import Tensor

from undo_probe import collapse, linalg
from undo_probe.collapse import Bases, Side
from undo_probe.errors import UndoProbeError
from undo_probe.linear_maps import linear_maps, token_vectors
from undo_probe.models import HookedTransformer, as_matrix, load_model

STYLES = ("own", "folded", "llama", "gemma2", "neox", "qwen2")
"""LayerNorm; its gains folded away; RMS, gated, grouped queries, rotary; norms behind; parallel; biased queries."""


def model_of(style: str, folder: Path) -> HookedTransformer:
    if style == "own":
        model = tiny.model(seed=3)
    elif style == "folded":
        model = tiny.model(seed=3)
        model.process_weights_(center_writing_weights=False, center_unembed=False)
    else:
        model = load_model(huggingface.write(huggingface.build(style), folder))
    model.cfg.dtype = torch.float64
    return model.double()


def rows(model: HookedTransformer, n: int = 5) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, model.cfg.d_vocab, (n, min(9, model.cfg.n_ctx)), generator=draw)


def loss(model: HookedTransformer, tokens: Tensor) -> Tensor:
    logits = model(tokens, return_type="logits")
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gradients_of(model: HookedTransformer, tokens: Tensor) -> dict[str, Tensor]:
    named = {name: each for name, each in model.named_parameters() if each.requires_grad}
    found = torch.autograd.grad(loss(model, tokens), list(named.values()), allow_unused=True)
    return {name: each for name, each in zip(named, found, strict=True) if each is not None}


def apart(one: dict[str, Tensor], other: dict[str, Tensor], scale: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).norm() / scale[name].norm()) for name in one)


@pytest.mark.parametrize(
    "style",
    [each if each in ("own", "folded") else pytest.param(each, marks=pytest.mark.slow) for each in STYLES],
)
def test_tokens_and_finished_gradients_give_one_update_in_every_style(style: str, tmp_path: Path) -> None:
    model = model_of(style, tmp_path)
    tokens = rows(model)
    every, gradients = torch.ones_like(tokens, dtype=torch.bool), gradients_of(model, tokens)
    names = tuple(each.weight for each in linear_maps(model))
    assert set(names) == {
        n for n in gradients if n.startswith("blocks.") and n.rpartition(".")[2].lstrip("_")[:2] == "W_"
    }

    untouched = collapse.token_gradients(model, tokens, every, loss, Bases(names, {}, {}))
    assert apart(untouched, gradients, gradients) < 1e-10

    bases = collapse.collapse_bases(model, [(tokens, every)], loss, k_act=4, k_grad=5, dtype=torch.float64)
    collapsed = collapse.collapse_gradients(gradients, bases)
    assert apart(collapse.token_gradients(model, tokens, every, loss, bases), collapsed, gradients) < 1e-10
    assert all(float(collapsed[name].norm()) < float(gradients[name].norm()) for name in names)

    nothing = collapse.collapse_bases(model, [(tokens, every)], loss, 10**6, 10**6, dtype=torch.float64)
    assert all(not each.any() for each in collapse.collapse_gradients(gradients, nothing).values())
    assert tiny.hook_count(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_update_is_that_of_the_paper_taken_token_by_token() -> None:
    model = model_of("own", Path())
    tokens = rows(model, 8)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    kept[:, 0] = False  # the first token's states are like no other's
    kept[2, 5:] = False
    maps = linear_maps(model)
    bases = collapse.collapse_bases(model, [(tokens, kept)], loss, k_act=3, k_grad=4, dtype=torch.float64)
    found = collapse.token_gradients(model, tokens, kept, loss, bases)
    vectors = token_vectors(model, maps, tokens, kept, loss)
    for each in maps:
        inputs, gradients = vectors.inputs[each.inputs].numpy(), vectors.gradients[each.outputs].numpy()
        wanted = cir.update(inputs, gradients, 3, 4)
        np.testing.assert_allclose(
            as_matrix(each.weight, found[each.weight]), wanted, atol=1e-10 * abs(wanted).max()
        )


def test_batches_are_streamed_into_the_bases_of_all_their_tokens() -> None:
    model = model_of("own", Path())
    tokens = rows(model, 12)
    every = torch.ones_like(tokens, dtype=torch.bool)

    def summed(model: HookedTransformer, tokens: Tensor) -> Tensor:
        return loss(model, tokens) * len(tokens)  # so that a token's gradient does not depend on its batch

    whole = collapse.collapse_bases(model, [(tokens, every)], summed, 3, 3, dtype=torch.float64)
    parts = zip(tokens.split(5), every.split(5), strict=True)
    streamed = collapse.collapse_bases(model, parts, summed, 3, 3, dtype=torch.float64)
    for name in whole.weights:
        for one, other in ((whole.activations, streamed.activations), (whole.gradients, streamed.gradients)):
            same = one[name].basis @ one[name].basis.T - other[name].basis @ other[name].basis.T
            assert float(same.abs().max()) < 1e-9


def test_a_mean_that_is_zero_but_for_rounding_is_no_direction() -> None:
    model = model_of("own", Path())
    tokens = rows(model)
    every = torch.ones_like(tokens, dtype=torch.bool)
    keys, queries = "blocks.0.attn.W_K", "blocks.0.attn.W_Q"
    alone = collapse.collapse_bases(model, [(tokens, every)], loss, 0, 1, dtype=torch.float64)
    # a constant added to all keys changes no pattern, so the gradients there sum to zero
    assert alone.gradients[keys].basis.shape[1] == 0
    assert alone.gradients[queries].basis.shape[1] == 1
    more = collapse.collapse_bases(model, [(tokens, every)], loss, 0, 3, dtype=torch.float64)
    assert more.gradients[keys].basis.shape[1] == 2
    assert more.gradients[queries].basis.shape[1] == 3


def test_one_side_alone_leaves_the_other_as_it_was() -> None:
    model = model_of("own", Path())
    tokens = rows(model)
    every, gradients = torch.ones_like(tokens, dtype=torch.bool), gradients_of(model, tokens)
    only = collapse.collapse_bases(
        model, [(tokens, every)], loss, 0, 3, weights=["mlp.W_out"], dtype=torch.float64
    )
    assert only.weights == ("blocks.0.mlp.W_out", "blocks.1.mlp.W_out")
    assert not only.activations
    found = collapse.collapse_gradients(gradients, only)
    assert set(found) == set(only.weights)
    basis = only.gradients["blocks.0.mlp.W_out"].basis
    assert float((found["blocks.0.mlp.W_out"] @ basis).abs().max()) < 1e-15
    outside = gradients["blocks.0.mlp.W_out"] - gradients["blocks.0.mlp.W_out"] @ basis @ basis.T
    assert torch.allclose(found["blocks.0.mlp.W_out"], outside, atol=1e-14)


def test_softly_each_component_goes_by_its_excess_over_the_weakest() -> None:
    draw = torch.Generator().manual_seed(1)
    vectors = torch.randn(4000, 3, generator=draw, dtype=torch.float64) * torch.tensor([4.0, 2.0, 1.0])
    side = collapse.side_of(collapse.linalg.StreamedPCA(3).update(vectors + 1e-9), 3, "hard")
    assert torch.equal(side.weight, torch.ones(3, dtype=torch.float64))
    wide = torch.cat([vectors, torch.full((4000, 1), 5.0, dtype=torch.float64)], dim=1)
    seen = collapse.linalg.StreamedPCA(4).update(wide)
    side = collapse.side_of(seen, 3, "soft")
    spread = seen.components(2).variances.sqrt()
    assert float(side.weight[0]) == 1.0  # the mean's direction goes as a whole
    assert torch.allclose(side.weight[1:], 1 - spread[-1] / spread)
    unit = torch.eye(4, dtype=torch.float64)
    assert float(side.remove(unit)[0, 0]) == pytest.approx(0.5, abs=0.02)  # 1 - (1 - 2 / 4)


def test_the_gradients_own_singular_vectors_collapse_both_its_sides() -> None:
    model = model_of("own", Path())
    gradients = gradients_of(model, rows(model))
    name = "blocks.1.attn.W_Q"
    hard = collapse.gradient_bases(gradients, 3, [name], "hard")
    left = torch.linalg.svdvals(as_matrix(name, collapse.collapse_gradients(gradients, hard)[name]))
    values = torch.linalg.svdvals(as_matrix(name, gradients[name]))
    assert torch.allclose(left[: len(values) - 3], values[3:], atol=1e-12)
    soft = collapse.gradient_bases(gradients, 3, [name], "soft")
    read, written = soft.activations[name].basis, soft.gradients[name].basis
    left = read.T @ as_matrix(name, collapse.collapse_gradients(gradients, soft)[name]) @ written
    # both sides take their share: s_i (s_k / s_i)^2
    assert torch.allclose(left, torch.diag(values[2] ** 2 / values[:3]), atol=1e-12)


def test_what_cannot_be_collapsed_is_said() -> None:
    model = tiny.model()
    tokens = rows(model)
    every = torch.ones_like(tokens, dtype=torch.bool)
    with pytest.raises(
        UndoProbeError, match=r"no linear map ends in 'mlp.W_up': there are attn.W_K, attn.W_O"
    ):
        linear_maps(model, ["mlp.W_up"])
    with pytest.raises(UndoProbeError, match="k_act is -1 and k_grad 2: give 0 or more directions"):
        collapse.collapse_bases(model, [(tokens, every)], loss, -1, 2)
    with pytest.raises(UndoProbeError, match="there is nothing to collapse: no batch was given"):
        collapse.collapse_bases(model, [], loss, 1, 1)
    with pytest.raises(UndoProbeError, match=r"the loss does not depend on blocks.1.attn"):
        first = lambda model, tokens: model(tokens, stop_at_layer=1).sum()  # noqa: E731
        collapse.collapse_bases(model, [(tokens, every)], first, 1, 1)
    with pytest.raises(UndoProbeError, match="there is no gradient for a: give those of all 1 weights"):
        collapse.collapse_gradients({}, Bases(("a",), {}, {}))
    with pytest.raises(UndoProbeError, match="k is 0: give at least one singular vector"):
        collapse.gradient_bases({}, 0)
    with pytest.raises(UndoProbeError, match="the gradient of a is zero"):
        collapse.gradient_bases({"a": torch.zeros(3, 3)}, 1)
    model.cfg.use_split_qkv_input = True
    with pytest.raises(UndoProbeError, match="collapse needs one input a map"):
        linear_maps(model)


def test_a_side_removes_from_copies() -> None:
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    before = vectors.clone()
    Side(torch.eye(4)[:, :2], torch.ones(2)).remove(vectors)
    assert torch.equal(vectors, before)


def test_bands_part_an_update_and_lie_across_each_other() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = linalg.StreamedPCA(12, dtype=torch.float64).update(
        torch.randn(90, 12, generator=draw).double() + 1
    )
    whole, vectors = collapse.side_of(seen, 11), torch.randn(5, 12, generator=draw).double()
    bands = [whole.only(first, end).remove(vectors) for first, end in ((0, 1), (1, 4), (4, 11))]
    torch.testing.assert_close(sum(bands), vectors - whole.remove(vectors))
    mean = (seen.mean / seen.mean.norm()).double()
    torch.testing.assert_close(bands[0], (vectors @ mean)[:, None] * mean)
    assert float((bands[1] * bands[2]).sum(1).abs().max()) < 1e-12
