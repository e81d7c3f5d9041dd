"""Models from elsewhere: computed exactly, with what their family has and nothing else; or one clear line."""

import json
from pathlib import Path
from typing import Any

import huggingface
import pytest
import tiny
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.families import KNOWN
from undo_probe.models import (
    HookedTransformer,
    clone,
    content_hash,
    flops_per_token,
    fresh_like,
    load_model,
    save_model,
    ties,
)
from undo_probe.sources import described, find_source, identity
from undo_probe.stages.calls import noise

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
ROWS = torch.randint(211, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, HookedTransformer]]:
    found = {}
    for style in huggingface.STYLES:
        theirs = huggingface.build(style)
        folder = huggingface.write(theirs, tmp_path_factory.mktemp("models") / "model")
        found[style] = theirs, load_model(folder)
    return found


def their_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ROWS).logits


@pytest.mark.parametrize("style", huggingface.STYLES)
def test_the_logits_are_those_of_transformers(style: str, loaded: Any) -> None:
    theirs, ours = loaded[style]
    wanted = their_logits(theirs)
    assert float(wanted.std()) > 0.1
    torch.testing.assert_close(tiny.logits(ours, ROWS), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", huggingface.STYLES)
def test_it_trains_the_numbers_of_its_family_and_no_others(style: str, loaded: Any) -> None:
    theirs, ours = loaded[style]
    trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in theirs.parameters())
    frozen = [(name, p) for name, p in ours.named_parameters() if not p.requires_grad]
    assert all(not p.any() for _, p in frozen)
    assert all(name.rpartition(".")[2].lstrip("_").startswith("b_") for name, _ in frozen)
    assert ties(ours) == ([("embed.W_E", "unembed.W_U")] if theirs.config.tie_word_embeddings else [])


@pytest.mark.parametrize("style", huggingface.STYLES)
def test_copies_and_files_keep_the_function_the_ties_and_what_is_frozen(
    style: str, loaded: Any, tmp_path: Path
) -> None:
    _, ours = loaded[style]
    save_model(ours, tmp_path / "own")
    for copy in (clone(ours), load_model(tmp_path / "own")):
        assert torch.equal(tiny.logits(copy, ROWS), tiny.logits(ours, ROWS))
        assert content_hash(copy) == content_hash(ours)
        assert ties(copy) == ties(ours)
        assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in ours.parameters()]


@pytest.mark.parametrize("style", ["llama tied", "gemma2", "gpt2"])
def test_a_gradient_step_on_both_leaves_them_equal(style: str, tmp_path: Path) -> None:
    """What is tied moves as one, and what the family lacks does not move."""
    theirs = huggingface.build(style)
    ours = load_model(huggingface.write(theirs, tmp_path / "model"))
    theirs(ROWS).logits.logsumexp(dim=-1).mean().backward()
    ours(ROWS, return_type="logits").logsumexp(dim=-1).mean().backward()
    with torch.no_grad():
        for parameter in [*theirs.parameters(), *ours.parameters()]:
            if parameter.requires_grad:
                parameter -= 0.5 * parameter.grad
    moved = their_logits(theirs)
    assert float((moved - their_logits(huggingface.build(style))).abs().max()) > 0.01
    torch.testing.assert_close(tiny.logits(ours, ROWS), moved, atol=1e-4, rtol=1e-4)


def test_gemma_is_shrunk_as_the_published_rule_shrinks_its_tensors(loaded: Any) -> None:
    """Of theirs every tensor is multiplied by 1 - alpha: gains are stored as what is added to one."""
    theirs, ours = huggingface.build("gemma2"), loaded["gemma2"][1]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(0.75)
    shrunk = noise(ours, 0.25, beta=0.0)
    torch.testing.assert_close(tiny.logits(shrunk, ROWS), their_logits(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", ["llama tied", "gemma2", "qwen3", "gpt2"])
def test_a_fresh_model_has_the_shape_and_nothing_of_the_weights(style: str, loaded: Any) -> None:
    _, ours = loaded[style]
    fresh, again, other = (fresh_like(ours, seed) for seed in (0, 0, 1))
    assert content_hash(fresh) == content_hash(again) != content_hash(other)
    assert ties(fresh) == ties(ours)
    shapes = {name: (p.shape, p.requires_grad) for name, p in fresh.named_parameters()}
    assert shapes == {name: (p.shape, p.requires_grad) for name, p in ours.named_parameters()}
    assert float((tiny.logits(fresh, ROWS) - tiny.logits(ours, ROWS)).abs().max()) > 0.1


def test_what_a_pretrained_model_says_of_its_start_does_not_reach_a_copy_or_a_fresh_model(
    loaded: Any,
) -> None:
    """The library's own loader leaves matrices undrawn; a seed of its own would make every fresh model the same."""
    ours = clone(loaded["llama tied"][1])
    ours.cfg.init_weights, ours.cfg.seed = False, 7
    drawn = [content_hash(fresh_like(ours, seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == content_hash(fresh_like(loaded["llama tied"][1], 0))
    copy = clone(ours)
    assert (copy.cfg.init_weights, copy.cfg.seed) == (False, 7)
    assert content_hash(copy) == content_hash(ours)


def test_flops_count_shared_keys_and_the_tied_unembedding(loaded: Any) -> None:
    """Two for each weight of the blocks and the unembedding, four for each number of a query and a token seen."""
    theirs, ours = loaded["gemma2"]
    weights = sum(p.numel() for name, p in theirs.named_parameters() if p.ndim == 2)
    assert flops_per_token(ours, 10) == 2 * weights + 4 * 3 * 10 * 4 * 16


def test_a_context_that_is_not_needed_is_left_out_where_positions_have_no_weights(tmp_path: Path) -> None:
    for style, kept in (("llama", 40), ("gpt2", 64)):
        folder = huggingface.write(huggingface.build(style), tmp_path / style)
        whole, short = load_model(folder), load_model(folder, n_ctx=40)
        assert (whole.cfg.n_ctx, short.cfg.n_ctx) == (64, kept)
        assert torch.equal(tiny.logits(short, ROWS), tiny.logits(whole, ROWS))


def test_a_source_is_named_by_its_content(tmp_path: Path) -> None:
    one, same, other = (
        huggingface.write(huggingface.build("llama", seed), tmp_path / name)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    keys = [identity(find_source(str(folder))) for folder in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert str(tmp_path) not in json.dumps(keys)
    (same / "README.md").write_text("nothing that a model is made of")
    assert identity(find_source(str(same))) == keys[0]
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    assert identity(find_source(str(same))) != keys[0]
    save_model(load_model(one), tmp_path / "own")
    assert identity(find_source(str(tmp_path / "own"))) == {"checkpoint": content_hash(load_model(one))}
    assert identity(find_source("owner/name", "abc")) == {"hub": "owner/name", "revision": "abc"}


@pytest.mark.parametrize("place", ["no/such/folder", "./nowhere", "two words"])
def test_a_place_that_holds_no_model_is_named(place: str) -> None:
    with pytest.raises(
        UndoProbeError, match=r"is no folder and no GGUF file: expected what .* an id on the Hugging Face hub"
    ):
        load_model(place)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=r"a folder without model\.json and config\.json"):
        load_model(tmp_path)


def test_a_hub_id_that_cannot_be_reached_is_one_line() -> None:
    with pytest.raises(UndoProbeError, match=r"owner/name at revision main cannot be read .*; check the id"):
        load_model("owner/name")


@pytest.mark.parametrize(
    ("style", "changes", "said"),
    [
        ("llama", {"attention_bias": True}, "attention_bias=True, which is not converted"),
        ("llama", {"rope_parameters": YARN}, "rotary positions by 'yarn'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_a_setting_that_would_not_be_exact_is_refused(
    style: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = huggingface.write(huggingface.build(style, **changes), tmp_path / "model")
    with pytest.raises(UndoProbeError, match=said):
        load_model(folder)


def test_a_family_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = huggingface.write(huggingface.build("llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "olmo"}))
    with pytest.raises(UndoProbeError, match="is a 'olmo' model: expected one of llama, mistral"):
        described(find_source(str(folder)))


def test_a_model_that_is_not_converted_exactly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a setting had been overlooked: the check on a few tokens sees it."""
    from undo_probe import families

    folder = huggingface.write(huggingface.build("gemma2"), tmp_path / "model")
    wrong = lambda config: families._gemma2(config).resized(attn_scores_soft_cap=-1.0)  # noqa: E731
    monkeypatch.setitem(families.FAMILIES, "gemma2", wrong)
    with pytest.raises(UndoProbeError, match="is not converted exactly"):
        load_model(folder)


def test_the_shape_that_is_known_offline_is_that_of_the_released_model() -> None:
    """2.6B numbers, of which 590M are the embedding: the released model's count."""
    shape = described(find_source("google/gemma-2-2b"), offline=True)
    fields = shape.fields
    attention = fields["d_model"] * fields["d_head"] * 2 * (fields["n_heads"] + fields["n_key_value_heads"])
    block = attention + 3 * fields["d_model"] * fields["d_mlp"] + 4 * fields["d_model"]
    total = fields["n_layers"] * block + fields["d_vocab"] * fields["d_model"] + fields["d_model"]
    assert total == 2_614_341_888
    assert shape.tied
    assert shape.embed_scale == fields["d_model"] ** 0.5

    llama = described(find_source("meta-llama/Llama-3.1-8B"), offline=True)
    fields = llama.fields
    attention = fields["d_model"] * fields["d_head"] * 2 * (fields["n_heads"] + fields["n_key_value_heads"])
    block = attention + 3 * fields["d_model"] * fields["d_mlp"] + 2 * fields["d_model"]
    total = fields["n_layers"] * block + 2 * fields["d_vocab"] * fields["d_model"] + fields["d_model"]
    assert total == 8_030_261_248
    assert not llama.tied
    with pytest.raises(UndoProbeError, match=f"owner/name is not known here .known: {next(iter(KNOWN))}"):
        described(find_source("owner/name"), offline=True)
