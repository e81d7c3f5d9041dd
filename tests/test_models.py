"""Models: the same seed gives the same bits, a copy shares nothing, a file is whole or refused."""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.models import (
    HookedTransformer,
    build,
    clone,
    content_hash,
    flops_per_token,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
    tensors_hash,
    ties,
    weights,
)
from undo_probe.ties import tie

TIE = [("embed.W_E", "unembed.W_U")]


def tied_model() -> HookedTransformer:
    """The unembedding is the embedding, transposed."""
    model = build(ModelConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=8), d_vocab=18, n_ctx=11, seed=0)
    tie(model, TIE)
    return model


def storages(model: HookedTransformer) -> set[int]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {tensor.untyped_storage().data_ptr() for _, tensor in named if tensor.numel()}


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    torch.manual_seed(1)
    one = content_hash(tiny.model(seed=4))
    torch.manual_seed(2)
    assert content_hash(tiny.model(seed=4)) == one != content_hash(tiny.model(seed=5))


def test_building_copying_and_loading_leave_the_global_random_state(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    model = tiny.model()
    clone(model)
    save_model(model, tmp_path / "m")
    load_model(tmp_path / "m")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_matrix_products_on_cuda_may_be_deterministic() -> None:
    """Without it every training step on CUDA fails under the loop's deterministic algorithms."""
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_no_weight_is_processed() -> None:
    """No norm is folded and nothing is centred: a norm keeps its own gain, and writing weights their mean."""
    model = tiny.model()
    found = weights(model)
    assert torch.equal(found["blocks.0.ln1.w"], torch.ones(16))
    assert float(found["embed.W_E"].mean(dim=-1).abs().max()) > 1e-3
    assert model.cfg.normalization_type == "LN"


def test_a_copy_computes_the_same_and_shares_no_storage() -> None:
    model = tiny.model()
    copy = clone(model)
    assert content_hash(copy) == content_hash(model)
    assert torch.equal(tiny.logits(copy, tiny.tokens()), tiny.logits(model, tiny.tokens()))
    assert not storages(copy) & storages(model)
    assert copy.cfg is not model.cfg


def test_changing_a_copy_leaves_the_model() -> None:
    model = tiny.model()
    before, device = content_hash(model), model.cfg.device
    copy = clone(model)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(1.0)
    copy.cfg.device = "meta"
    assert content_hash(model) == before
    assert model.cfg.device == device


def test_a_copy_keeps_what_is_frozen_and_the_mode_and_the_dtype() -> None:
    model = tiny.model().eval()
    model.get_parameter("blocks.0.mlp.W_in").requires_grad_(False)
    copy = clone(model.to(torch.float64))
    frozen = [name for name, p in copy.named_parameters() if not p.requires_grad]
    assert frozen == ["blocks.0.mlp.W_in"]
    assert not copy.training
    assert {p.dtype for p in copy.parameters()} == {torch.float64}


def test_a_copy_keeps_ties_and_an_untied_model_has_none() -> None:
    model = tied_model()
    copy = clone(model)
    assert ties(model) == ties(copy) == TIE
    assert torch.equal(copy.unembed.W_U, copy.embed.W_E.T)
    assert "unembed.W_U" not in dict(copy.named_parameters())
    assert copy.embed.W_E is not model.embed.W_E
    assert ties(tiny.model()) == []


def test_any_two_parameters_may_be_one_tensor() -> None:
    model = tiny.model()
    pair = ("blocks.0.mlp.W_in", "blocks.1.mlp.W_in")
    tie(model, [pair])
    assert ties(clone(model)) == [pair]


def test_two_equal_parameters_that_are_not_one_tensor_are_not_tied() -> None:
    model = tiny.model()
    found = weights(model)
    assert torch.equal(found["blocks.0.ln1.w"], found["blocks.1.ln1.w"])
    assert ties(clone(model)) == []


def test_hooks_are_not_copied() -> None:
    model = tiny.model()
    bare = tiny.hook_count(model)
    model.add_hook("blocks.0.hook_resid_post", lambda tensor, hook: tensor * 0)
    model.unembed.register_forward_hook(lambda *_: None)
    assert tiny.hook_count(model) > bare
    copy = clone(model)
    assert tiny.hook_count(copy) == bare
    assert not torch.equal(tiny.logits(copy, tiny.tokens()), tiny.logits(model, tiny.tokens()))


@pytest.mark.parametrize("kind", ["plain", "tied", "frozen", "double", "rms"])
def test_a_saved_model_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = tied_model() if kind == "tied" else tiny.model()
    if kind == "frozen":
        model.embed.W_E.requires_grad_(False)
    if kind == "double":
        model.to(torch.float64)
    if kind == "rms":
        model = build(ModelConfig(d_model=16, n_heads=4, d_mlp=8, normalization="RMS"), 17, 11, seed=0)
    content = save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m", expected=content)
    assert content == content_hash(model) == content_hash(loaded)
    assert ties(loaded) == ties(model)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    rows = tiny.tokens()
    assert torch.equal(tiny.logits(loaded, rows), tiny.logits(model, rows))


def test_a_trained_model_comes_back_bit_for_bit_and_still_knows(tmp_path: Path) -> None:
    save_model(tiny.knowing(), tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert content_hash(loaded) == content_hash(tiny.knowing())
    assert tiny.accuracy(loaded, "forget_V") == tiny.accuracy(tiny.knowing(), "forget_V") > 0.9


def test_saving_over_a_model_is_refused_and_leaves_it(tmp_path: Path) -> None:
    content = save_model(tiny.model(seed=0), tmp_path / "m")
    with pytest.raises(UndoProbeError, match="already there"):
        save_model(tiny.model(seed=1), tmp_path / "m")
    assert content_hash(load_model(tmp_path / "m")) == content


def test_the_model_of_another_record_is_refused(tmp_path: Path) -> None:
    save_model(tiny.model(), tmp_path / "m")
    with pytest.raises(UndoProbeError, match="holds another model .* than its record says"):
        load_model(tmp_path / "m", expected="0" * 64)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "saved"
    save_model(tiny.model(d_model=4, n_layers=1), folder)
    return folder


def damaged(saved: Path, folder: Path, name: str, content: bytes) -> Path:
    copy = folder / "copy"
    shutil.copytree(saved, copy)
    (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_every_flipped_bit_is_noticed_and_the_file_named(name: str, saved: Path, tmp_path: Path) -> None:
    original = (saved / name).read_bytes()
    whole = content_hash(load_model(saved))
    copy = damaged(saved, tmp_path, name, original)
    draw = np.random.default_rng(0)
    header = 8 + int.from_bytes(original[:8], "little") if name.endswith("safetensors") else len(original)
    bits = draw.choice(8 * len(original), size=100, replace=False).tolist()
    bits += draw.choice(8 * header, size=100, replace=False).tolist()  # where a parser could stumble
    for bit in bits:
        flipped = bytearray(original)
        flipped[bit // 8] ^= 1 << bit % 8
        (copy / name).write_bytes(flipped)
        try:
            found = load_model(copy)
        except UndoProbeError as error:
            assert name in str(error), f"bit {bit}: {error}"
        else:
            # 1e-05 and 1E-05 differ in one bit and are one number: nothing was lost
            assert name == "model.json", f"bit {bit}"
            assert json.loads(flipped) == json.loads(original), f"bit {bit}"
            assert content_hash(found) == whole


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 0.5, -1])
def test_a_truncated_file_is_noticed_and_named(name: str, kept: float, saved: Path, tmp_path: Path) -> None:
    original = (saved / name).read_bytes()
    end = int(kept * len(original)) if 0 < kept < 1 else int(kept)
    if name == "model.json" and kept == -1:
        end = -2  # the last byte is a line end
    copy = damaged(saved, tmp_path, name, original[:end])
    with pytest.raises(UndoProbeError, match=name.replace(".", r"\.")):
        load_model(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_missing_file_is_named(name: str, saved: Path, tmp_path: Path) -> None:
    copy = damaged(saved, tmp_path, name, b"")
    (copy / name).unlink()
    with pytest.raises(UndoProbeError, match=name.replace(".", r"\.")):
        load_model(copy)


def test_files_of_two_models_in_one_folder_are_refused(saved: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_model(tiny.model(seed=1, d_model=4, n_layers=1), other)
    copy = damaged(saved, tmp_path, "model.safetensors", (other / "model.safetensors").read_bytes())
    with pytest.raises(UndoProbeError, match=r"model\.safetensors is damaged: its content hash is"):
        load_model(copy)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]
)
def test_tensors_of_any_kind_and_shape_come_back_equal(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {
        "scalar": torch.tensor(3).to(dtype),
        "empty": torch.zeros(0, 2).to(dtype),
        "strided": torch.arange(12).reshape(3, 4).T.to(dtype),
    }
    content = save_tensors(tensors, tmp_path / "t.safetensors")
    found = load_tensors(tmp_path / "t.safetensors", content)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_the_content_hash_sees_names_shapes_dtypes_and_bits() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    changed = [
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"].reshape(2, 1), "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": torch.tensor([1.0, -2.0]), "b": base["b"]},
        {"a": torch.nextafter(base["a"], torch.tensor(9.0)), "b": base["b"]},
        {"a": base["a"]},
        {"a": torch.tensor([1.0, 2.0, 3.0])},
    ]
    hashes = [tensors_hash(base), *(tensors_hash(tensors) for tensors in changed)]
    assert len(set(hashes)) == len(hashes)
    assert tensors_hash(dict(reversed(base.items()))) == hashes[0]


def test_weights_names_a_tied_tensor_once() -> None:
    names = list(weights(tied_model()))
    assert "embed.W_E" in names
    assert "unembed.W_U" not in names


def test_flops_of_a_token_equal_a_count_by_hand() -> None:
    model = build(ModelConfig(n_layers=3, d_model=8, n_heads=2, d_mlp=20), d_vocab=17, n_ctx=11, seed=0)
    projections = 4 * 8 * 8  # W_Q, W_K, W_V, W_O over all heads
    perceptron = 2 * 8 * 20
    unembedding = 8 * 17
    attention = 2 * 11 * 8  # scores with 11 tokens, and their weighted sum
    by_hand = 2 * (3 * (projections + perceptron + attention) + unembedding)
    assert flops_per_token(model, context=11) == by_hand
    assert flops_per_token(model, context=22) - by_hand == 2 * 3 * attention


def test_a_tied_unembedding_costs_its_flops_too() -> None:
    tied = tied_model()
    untied = build(ModelConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=8), d_vocab=18, n_ctx=11, seed=0)
    assert flops_per_token(tied, 11) == flops_per_token(untied, 11)


STYLES: dict[str, dict[str, Any]] = {
    "standard": {},
    "grouped": {"n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 8},
    "capped": {"attn_scores_soft_cap": 5.0},
    "alibi": {"positional_embedding_type": "alibi"},
    "bidirectional": {"attention_dir": "bidirectional"},
    "gated": {"gated_mlp": True, "act_fn": "silu"},
    "local": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]},
}


def pair(style: str) -> tuple[HookedTransformer, HookedTransformer]:
    """The library's own model, and our copy of it."""
    shape = HookedTransformerConfig(
        n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=32, n_ctx=12, d_vocab=20, normalization_type="LN",
        device="cpu", seed=None, **{"act_fn": "gelu", **STYLES[style]},
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = HookedTransformer(shape, move_to_device=False)
    with torch.no_grad():
        for index, parameter in enumerate(plain.parameters()):
            draw = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
            parameter.copy_(0.3 * draw)
    return plain, clone(plain)


@pytest.mark.parametrize("style", STYLES)
def test_the_fused_kernel_gives_the_logits_and_gradients_of_the_library(style: str) -> None:
    plain, ours = pair(style)
    rows = torch.randint(20, (5, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (plain, ours):
        logits = model(rows, return_type="logits")
        logits.logsumexp(dim=-1).mean().backward()
        found.append((logits.detach(), [p.grad for p in model.parameters()]))
    (logits, gradients), (our_logits, our_gradients) = found
    torch.testing.assert_close(our_logits, logits, atol=2e-5, rtol=1e-5)
    for ours_, theirs in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(ours_, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("style", STYLES)
def test_whoever_looks_at_the_pattern_sees_the_librarys(style: str) -> None:
    plain, ours = pair(style)
    rows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(1))
    _, theirs = plain.run_with_cache(rows)
    _, cache = ours.run_with_cache(rows)
    assert list(cache) == list(theirs)
    for name, value in theirs.items():
        torch.testing.assert_close(cache[name], value, atol=2e-5, rtol=1e-5)
    cut = ("blocks.1.attn.hook_pattern", lambda pattern, hook: torch.zeros_like(pattern))
    off, ours_off = (m.run_with_hooks(rows, fwd_hooks=[cut]) for m in (plain, ours))
    torch.testing.assert_close(ours_off, off, atol=2e-5, rtol=1e-5)
    assert (ours(rows) - ours_off).abs().max() > 0.01


def test_padding_and_a_key_value_cache_are_as_in_the_library() -> None:
    plain, ours = pair("standard")
    rows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(rows)
    mask[0, :4] = 0
    padded, ours_padded = (m(rows, attention_mask=mask) for m in (plain, ours))
    torch.testing.assert_close(ours_padded, padded, atol=2e-5, rtol=1e-5)
    caches = [TransformerLensKeyValueCache.init_cache(m.cfg, "cpu", 3) for m in (plain, ours)]
    for part in (rows[:, :5], rows[:, 5:6], rows[:, 6:]):
        seen = torch.ones_like(part)
        one, two = (
            m(part, past_kv_cache=c, attention_mask=seen) for m, c in zip((plain, ours), caches, strict=True)
        )
        torch.testing.assert_close(two, one, atol=2e-5, rtol=1e-5)


def test_the_kernel_is_used_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = pair("grouped")
    rows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(3))
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *a, **k: calls.append(1) or kernel(*a, **k),
    )
    plain(rows)
    assert not calls
    ours(rows)
    assert len(calls) == 2
    ours.run_with_cache(rows, names_filter="blocks.0.attn.hook_pattern")
    assert len(calls) == 3


@pytest.mark.parametrize("point", ["hook_pre", "hook_pre_linear", "hook_post"])
def test_whoever_changes_what_lies_in_a_gated_mlp_changes_what_the_library_would(point: str) -> None:
    plain, ours = pair("gated")
    assert type(ours.blocks[0].mlp).__name__ == "FusedGatedMLP"
    rows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(6))
    double = (f"blocks.0.mlp.{point}", lambda value, hook: 2 * value)
    one, two = (m.run_with_hooks(rows, fwd_hooks=[double]) for m in (plain, ours))
    torch.testing.assert_close(two, one, atol=2e-5, rtol=1e-5)
    assert (ours(rows) - two).abs().max() > 0.01


def test_a_gated_mlp_in_bfloat16_rounds_as_in_the_library() -> None:
    plain, ours = (model.to(torch.bfloat16) for model in pair("gated"))
    x = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(7)).bfloat16()
    assert torch.equal(plain.blocks[1].mlp(x), ours.blocks[1].mlp(x))


def test_whoever_changes_the_norms_scale_changes_what_the_library_would() -> None:
    plain, ours = pair("standard")
    rows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(4))
    for point in ("blocks.0.ln1.hook_scale", "blocks.1.ln2.hook_normalized", "ln_final.hook_scale"):
        double = (point, lambda value, hook: 2 * value)
        one, two = (m.run_with_hooks(rows, fwd_hooks=[double]) for m in (plain, ours))
        torch.testing.assert_close(two, one, atol=2e-5, rtol=1e-5)
        assert (ours(rows) - two).abs().max() > 0.01


def test_the_norm_is_one_kernel_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ours = pair("standard")
    rows = torch.randint(20, (3, 12), generator=torch.Generator().manual_seed(5))
    calls = []
    kernel = torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    plain(rows)
    assert not calls
    ours(rows)
    # the library norms for query, key and value by themselves
    assert len(calls) == (3 + 1) * 2 + 1
