"""What was read from Hugging Face goes back there: exactly where nothing changed, and with its ties and zeros."""

import json
from pathlib import Path
from typing import Any

import gguf_file
import huggingface
import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from undo_probe import sources
from undo_probe.config import FitConfig, ModelConfig
from undo_probe.conversion import origin_of, remember
from undo_probe.errors import UndoProbeError
from undo_probe.models import HookedTransformer, build, clone, content_hash, load_model, save_model, ties
from undo_probe.sources import find_source, identity
from undo_probe.stages.calls import noise
from undo_probe.training import Context, fit

ROWS = torch.randint(211, (3, 40), generator=torch.Generator().manual_seed(0))
# one of each kind of table; the others only repeat its parts
QUICK = ("llama tied", "gemma2")
STYLES = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in huggingface.STYLES
]


def reloaded(folder: Path) -> Any:
    """What transformers makes of a folder."""
    return sources.huggingface_model(sources.Source("folder", str(folder)))


def their_logits(model: Any, rows: Tensor) -> Tensor:
    with torch.no_grad():
        return model(rows).logits


def trained(model: HookedTransformer, *untouched: str) -> HookedTransformer:
    """Two steps of the training loop on whatever does not begin with one of the names."""

    def loss(student: Any, step: int) -> Tensor:
        return student(ROWS, return_type="logits").logsumexp(dim=-1).mean()

    settings = FitConfig(steps=2, batch_size=3, warmup=0, learning_rate=1e-2)
    return fit(model, settings, loss, Context(), trainable=lambda name: not name.startswith(untouched)).model


@pytest.mark.parametrize("style", STYLES)
def test_a_model_goes_through_every_step_and_back(style: str, tmp_path: Path) -> None:
    source = huggingface.write(huggingface.build(style), tmp_path / "source")
    model = trained(load_model(source), "blocks.1.")
    damaged = noise(clone(model), 0.2, layers=(0,))
    save_model(damaged, tmp_path / "own")
    back = load_model(tmp_path / "own")
    save_model(back, tmp_path / "out", format="huggingface")

    theirs = reloaded(tmp_path / "out")
    torch.testing.assert_close(their_logits(theirs, ROWS), tiny.logits(damaged, ROWS), atol=1e-5, rtol=1e-5)
    assert content_hash(load_model(tmp_path / "out")) == content_hash(damaged)
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()  # a tied matrix lies there once
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if ".1." in name}
    tied = theirs.get_input_embeddings().weight is theirs.get_output_embeddings().weight
    assert tied == bool(ties(back)) == bool(ties(load_model(source)))


def test_unchanged_gains_are_written_as_they_were_stored(tmp_path: Path) -> None:
    """Gemma stores them less one, and one plus a number is rounded: subtracting one again would not do."""
    source = huggingface.write(huggingface.build("gemma"), tmp_path / "source")
    model = load_model(source)
    with torch.no_grad():
        model.get_parameter("ln_final.w")[0] += 0.5
    save_model(model, tmp_path / "own")
    save_model(load_model(tmp_path / "own"), tmp_path / "out", format="huggingface")
    before, after = (
        load_file(folder / "model.safetensors")["model.norm.weight"] for folder in (source, tmp_path / "out")
    )
    assert torch.equal(before[1:], after[1:])
    assert float(after[0]) == pytest.approx(float(before[0]) + 0.5, abs=1e-6)
    assert not torch.equal((before + 1) - 1, before)


def test_a_bias_that_the_family_lacks_is_refused_once_it_is_not_zero(tmp_path: Path) -> None:
    model = load_model(huggingface.write(huggingface.build("llama"), tmp_path / "source"))
    with torch.no_grad():
        model.get_parameter("blocks.2.mlp.b_out")[3] = 1e-6
    with pytest.raises(
        UndoProbeError, match=r"blocks\.2\.mlp\.b_out is not zero, and llama has no such bias"
    ):
        save_model(model, tmp_path / "out", format="huggingface")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("style", "said"), [("llama tied", "are not"), ("llama", "are")])
def test_ties_that_are_not_the_familys_are_refused(style: str, said: str, tmp_path: Path) -> None:
    other = {"llama": "llama tied", "llama tied": "llama"}[style]
    ours, theirs = (
        load_model(huggingface.write(huggingface.build(name, num_key_value_heads=4), tmp_path / name))
        for name in (other, style)
    )
    remember(ours, origin_of(theirs))
    with pytest.raises(
        UndoProbeError, match=rf"embed\.W_E and unembed\.W_U {said} one tensor, unlike .* llama"
    ):
        save_model(ours, tmp_path / "out", format="huggingface")


def test_a_model_built_here_is_a_gpt2(tmp_path: Path) -> None:
    """All of it, the unembedding's bias too, which GPT-2 has not."""
    model, rows = tiny.model(d_model=32), tiny.tokens()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    assert float(model.unembed.b_U.detach().abs().max()) > 0.1
    save_model(model, tmp_path / "out", format="huggingface")
    wanted = tiny.logits(model, rows)
    torch.testing.assert_close(their_logits(reloaded(tmp_path / "out"), rows), wanted, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(tiny.logits(load_model(tmp_path / "out"), rows), wanted, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"normalization": "RMS"}, r"its normalization_type is 'RMS', that of GPT-2, the nearest, 'LN'"),
        (
            {"d_model": 12},
            r"its unembed\.b_U is not zero, .* fewer tokens \(17\) than a state has numbers \(12\)",
        ),
    ],
)
def test_a_model_built_here_that_no_family_holds_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = build(ModelConfig(**{"d_model": 16, **changes}), d_vocab=17, n_ctx=11, seed=0)
    with torch.no_grad():
        model.unembed.b_U.copy_(torch.arange(17.0))
    with pytest.raises(UndoProbeError, match=said):
        save_model(model, tmp_path / "out", format="huggingface")


def test_a_checkpoint_from_before_is_written_with_the_configuration_of_its_source(tmp_path: Path) -> None:
    source = huggingface.write(huggingface.build("qwen2"), tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    model = load_model(source)
    remember(model, None)
    with pytest.raises(UndoProbeError, match="name the Hugging Face model it came from as the source"):
        save_model(model, tmp_path / "out", format="huggingface")
    save_model(model, tmp_path / "out", format="huggingface", source=str(source))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name


def test_a_format_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="format is 'onnx': expected undo_probe or huggingface"):
        save_model(tiny.model(), tmp_path / "out", format="onnx")


def test_what_is_saved_of_a_model_built_here_says_nothing_of_hugging_face(tmp_path: Path) -> None:
    save_model(tiny.model(), tmp_path / "own")
    assert set(json.loads((tmp_path / "own/model.json").read_text())) == {
        "format", "config", "ties", "embed_scale", "frozen", "content", "digest",
    }  # fmt: skip


# ---- GGUF


@pytest.mark.parametrize("style", [pytest.param("llama", marks=pytest.mark.slow), "llama tied"])
def test_a_gguf_file_is_the_model_it_was_written_from(style: str, tmp_path: Path) -> None:
    theirs = huggingface.build(style)
    model = load_model(gguf_file.write(theirs, tmp_path / "small.gguf"))
    folder = load_model(huggingface.write(theirs, tmp_path / "folder"))
    assert content_hash(model) == content_hash(folder)
    assert ties(model) == ties(folder)
    save_model(model, tmp_path / "out", format="huggingface")
    assert content_hash(load_model(tmp_path / "out")) == content_hash(model)


def test_a_gguf_file_is_named_by_its_content(tmp_path: Path) -> None:
    one, other = (
        gguf_file.write(huggingface.build("llama", seed), tmp_path / f"{seed}.gguf") for seed in (0, 1)
    )
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(one.read_bytes())
    keys = [identity(find_source(str(path))) for path in (one, moved, other)]
    assert keys[0] == keys[1] != keys[2]
    assert str(tmp_path) not in json.dumps(keys)


@pytest.mark.parametrize("kept", [0, 3, 100, 100_000])
def test_a_gguf_file_that_is_cut_is_named(kept: int, tmp_path: Path) -> None:
    path = gguf_file.write(huggingface.build("llama"), tmp_path / "small.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UndoProbeError, match=r"small\.gguf cannot be read .*is the file whole\?"):
        load_model(path)


def test_scaled_positions_in_a_gguf_file_are_refused(tmp_path: Path) -> None:
    theirs = huggingface.build("llama")
    path = gguf_file.write(theirs, tmp_path / "long.gguf", scaled=4.0)
    with pytest.raises(UndoProbeError, match=r"scales its rotary positions \(rope\.scaling\)"):
        load_model(path)


def test_without_the_package_a_gguf_file_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gguf_file.write(huggingface.build("llama"), tmp_path / "small.gguf")
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UndoProbeError, match="needs the package gguf: pip install gguf"):
        load_model(path)
