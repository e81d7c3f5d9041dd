"""Direct logit attribution against the library's own decomposition, on every kind of norm and block."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.families import Shape
from undo_probe.measures.attribution import Attribution, attribute, attribution_measures
from undo_probe.measures.stitches import asked_rows
from undo_probe.models import HookedTransformer, build, clone, from_shape
from undo_probe.tasks.protocol import TokenSet

ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8, "gated_mlp": True, "act_fn": "silu"}


def rows() -> TokenSet:
    return asked_rows(tiny.small_task(), "forget")


def shaped(**more: object) -> HookedTransformer:
    fields = {
        "n_layers": 2, "d_model": 16, "n_ctx": tiny.small_task().n_ctx, "d_head": 8, "n_heads": 2, "d_mlp": 24,
        "d_vocab": tiny.small_task().d_vocab, "act_fn": "gelu", "normalization_type": "LN", **more,
    }  # fmt: skip
    return shaken(from_shape(Shape(fields, converter=""), seed=3))


def shaken(model: HookedTransformer) -> HookedTransformer:
    """Every parameter moved, so that no bias is zero and no gain is one."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return model


MODELS = {
    "LN": lambda: shaken(build(tiny.SHAPE, tiny.small_task().d_vocab, tiny.small_task().n_ctx, seed=5)),
    "RMS": lambda: shaken(
        build(
            ModelConfig(n_layers=3, d_model=24, n_heads=3, d_mlp=32, normalization="RMS"),
            tiny.small_task().d_vocab,
            tiny.small_task().n_ctx,
            seed=6,
        )
    ),
    "rotary, gated": lambda: shaped(normalization_type="RMS", final_rms=True, **ROTARY),
    "parallel": lambda: shaped(parallel_attn_mlp=True),
    "norms on both sides": lambda: shaped(
        normalization_type="RMS", final_rms=True, use_normalization_before_and_after=True, **ROTARY
    ),
}


def lead(model: HookedTransformer, asked: TokenSet, rivals: Tensor | None = None) -> Tensor:
    """The answer's logit less the mean of the others' or of all, from the model's own logits."""
    logits = tiny.logits(model, asked.tokens)[:, asked.read_position].double()
    right = logits.gather(1, asked.tokens[:, asked.read_position + 1 :][:, :1])[:, 0]
    return right - (logits.mean(1) if rivals is None else logits.gather(1, rivals).mean(1))


@pytest.mark.parametrize("kind", MODELS)
def test_contributions_add_up_to_the_answers_lead(kind: str) -> None:
    model = MODELS[kind]()
    expected = lead(model, rows())
    torch.testing.assert_close(attribute(model, rows()).lead, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("kind", ["LN", "RMS"])
def test_each_contribution_is_the_librarys(kind: str) -> None:
    """TransformerLens takes the stream apart from a full cache; both norms, the gain of the norm applied after it."""
    model, asked = MODELS[kind](), rows()
    found = attribute(model, asked)
    model.set_use_attn_result(True)
    with torch.no_grad():
        _, cache = model.run_with_cache(asked.tokens[:, :-1])
        right = asked.tokens[:, asked.read_position + 1]
        direction = (model.W_U[:, right] - model.W_U.mean(1, keepdim=True)) * model.get_parameter(
            "ln_final.w"
        )[:, None]
        heads = cache.stack_head_results(pos_slice=asked.read_position, apply_ln=True)
        theirs = torch.einsum("crd,dr->cr", heads, direction).double()
        parts, names = cache.decompose_resid(
            mode="mlp", pos_slice=asked.read_position, apply_ln=True, return_labels=True
        )
        others = dict(zip(names, torch.einsum("crd,dr->cr", parts, direction).double(), strict=True))
    torch.testing.assert_close(picked(found, "head"), theirs, atol=1e-5, rtol=1e-5)
    mlps = torch.stack([others[f"{block}_mlp_out"] for block in range(model.cfg.n_layers)])
    torch.testing.assert_close(picked(found, "MLP"), mlps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        picked(found, "embedding")[0], others["embed"] + others["pos_embed"], atol=1e-5, rtol=1e-5
    )


def picked(found: Attribution, name: str) -> Tensor:
    return torch.stack(
        [v for c, v in zip(found.components, found.values, strict=True) if c.name.startswith(name)]
    )


def test_options_are_the_rivals_where_there_are_some() -> None:
    model, asked = MODELS["LN"](), rows()
    right = asked.tokens[:, asked.read_position + 1]
    rivals = torch.stack([(right + 1) % 10, (right + 2) % 10], dim=1)
    options = torch.cat([right[:, None], rivals, torch.full((len(asked), 1), -1)], dim=1)
    found = attribute(model, replace(asked, options=options)).lead
    torch.testing.assert_close(found, lead(model, asked, rivals), atol=1e-5, rtol=1e-5)
    longer = torch.stack([options, options.roll(1, 0)], dim=2)  # of several tokens the first are compared
    torch.testing.assert_close(attribute(model, replace(asked, options=longer)).lead, found)
    assert not torch.allclose(found, attribute(model, asked).lead, atol=1e-2)


def test_a_model_does_not_differ_from_itself_and_a_cut_head_contributes_nothing() -> None:
    original = MODELS["LN"]()
    found = {(i.measure, i.task_split, i.subset, i.layer): i for i in
             attribution_measures(original, original, tiny.small_task())}  # fmt: skip
    for (measure, *_), item in found.items():
        if measure == "attribution_change":
            assert np.abs(item.values).max() == 0
    np.testing.assert_allclose(found["attribution_cosine", "forget", "components", None].values, 1, atol=1e-6)
    cut = clone(original)
    with torch.no_grad():
        cut.blocks[1].attn.W_O[0] = 0
    again = {(i.measure, i.task_split, i.subset, i.layer): i for i in
             attribution_measures(cut, original, tiny.small_task())}  # fmt: skip
    head = ("attribution", "forget", "head 0", "blocks.1.attn.hook_z")
    assert np.abs(found[head].values).mean() > 0.1
    assert np.abs(again[head].values).max() == 0
    change = again["attribution_change", "forget", "head 0", "blocks.1.attn.hook_z"].values
    np.testing.assert_allclose(change, -found[head].values)
    assert again["attribution_cosine", "forget", "components", None].values.mean() < 1


def test_models_of_different_shapes_and_other_norms_are_refused() -> None:
    small = tiny.model()
    with pytest.raises(UndoProbeError, match=r"have 10 and 14 components: compare models of one shape"):
        attribution_measures(small, tiny.model(n_layers=3), tiny.task())
    odd = tiny.model()
    odd.cfg.normalization_type = "Batch"
    with pytest.raises(UndoProbeError, match=r"behind the norm 'Batch': expected one of LN, LNPre, RMS"):
        attribute(odd, rows())
