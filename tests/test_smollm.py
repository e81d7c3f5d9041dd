"""SmolLM2: found without importing its package, converted once, and loaded exactly."""

import json
from pathlib import Path

import gguf_file
import huggingface
import pytest
import tiny
import torch
from safetensors.torch import load_file

from undo_probe import smollm
from undo_probe.errors import UndoProbeError
from undo_probe.models import clone, content_hash, load_model, save_model, ties
from undo_probe.sources import find_source, huggingface_model, huggingface_tokenizer, smollm_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where SmolLM2 is looked for in a test: not there yet."""
    monkeypatch.setenv("UNDO_PROBE_SMOLLM", str(tmp_path / "cache" / "smollm"))
    return tmp_path / "cache" / "smollm"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name with a small model in it, which cannot be imported."""
    place = tmp_path / "site" / "small_smollm2"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise ImportError('it needs a compiled library')")
    gguf_file.write(huggingface.build("llama tied"), place / "small.gguf", tokenizer=True)
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setattr(smollm, "PACKAGE", place.name)
    return place


def test_it_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDO_PROBE_SMOLLM", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert smollm_folder() == Path("/caches/undo_probe/smollm2-135m")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert smollm_folder() == Path.home() / ".cache/undo_probe/smollm2-135m"


def test_before_it_is_made_whoever_asks_is_told_how(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndoProbeError, match=r"SmolLM2 is not in .*smollm: run `make smollm`"):
        load_model("smollm")
    monkeypatch.setattr(smollm, "PACKAGE", "no_such_package")
    with pytest.raises(UndoProbeError, match="no_such_package is not installed: run `make smollm`"):
        smollm.convert()


def test_it_is_converted_once_and_again_when_damaged(
    folder: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    smollm.main()
    assert capsys.readouterr().out == f"{folder}\n"
    model = load_model("smollm")
    assert content_hash(model) == content_hash(load_model(package / "small.gguf"))
    assert huggingface_tokenizer(find_source("smollm")).convert_ids_to_tokens([95]) == ["ab"]
    weights = folder / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert smollm.convert() == folder
    assert weights.stat().st_mtime_ns == made

    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    smollm.convert()
    assert weights.read_bytes() == whole
    record = json.loads((folder / "made_from.json").read_text())
    assert set(record["files"]) == {path.name for path in folder.iterdir()} - {"made_from.json"}


def test_something_else_in_its_place_is_left_there(folder: Path, package: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(UndoProbeError, match="holds something else: remove it"):
        smollm.convert()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.slow
def test_smollm2_itself_goes_in_and_out_exactly(tmp_path: Path) -> None:
    try:
        source = find_source("smollm")
    except UndoProbeError:
        pytest.skip("SmolLM2 is not converted")
    rows = torch.tensor(
        [huggingface_tokenizer(source)("The capital of France is Paris. " * 4).input_ids[:32]]
    )
    model = load_model("smollm", n_ctx=64)
    assert ties(model) == [("embed.W_E", "unembed.W_U")]
    with torch.no_grad():
        wanted = huggingface_model(source)(rows).logits
    torch.testing.assert_close(tiny.logits(model, rows), wanted, atol=1e-3, rtol=0)

    changed = clone(model)
    with torch.no_grad():
        changed.get_parameter("blocks.7.mlp.W_in").mul_(0.9)
    save_model(changed, tmp_path / "own")
    save_model(load_model(tmp_path / "own"), tmp_path / "out", format="huggingface", source="smollm")
    before = load_file(Path(source.place) / "model.safetensors")
    after = load_file(tmp_path / "out/model.safetensors")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["model.layers.7.mlp.up_proj.weight"]
    assert content_hash(load_model(tmp_path / "out", n_ctx=64)) == content_hash(changed)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (
        Path(source.place) / "tokenizer.json"
    ).read_bytes()
