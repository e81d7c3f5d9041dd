"""From a run or a checkpoint to a folder that transformers loads."""

from pathlib import Path

import huggingface
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from undo_probe.errors import UndoProbeError
from undo_probe.export import export
from undo_probe.models import content_hash, load_model, save_model
from undo_probe.store import Run


def test_an_arm_by_its_name_or_its_label(attacked: Run, tmp_path: Path) -> None:
    arm = attacked.arm("random")
    said = export(attacked.folder, tmp_path / "name", arm=arm.name)
    assert said == f"{arm.label}, without a tokenizer: {tmp_path / 'name'}"
    export(attacked.folder, tmp_path / "label", arm=arm.label.lower())
    assert content_hash(load_model(tmp_path / "name")) == content_hash(load_model(tmp_path / "label"))
    rows = attacked.task.rows("forget_V").tokens[:4]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "name")(rows).logits
    torch.testing.assert_close(theirs, tiny.logits(attacked.load(arm), rows), atol=1e-4, rtol=1e-5)


def test_a_model_that_no_family_holds_is_refused(attacked: Run, tmp_path: Path) -> None:
    """17 tokens, and states of 16 numbers: GPT-2 has nowhere to put the trained bias of the unembedding."""
    with pytest.raises(UndoProbeError, match="no Hugging Face family holds this model exactly"):
        export(attacked.folder, tmp_path / "out", arm="Original")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "said"), [("", "no arm is given"), ("nobody", "the run has no arm 'nobody'")]
)
def test_an_arm_that_is_not_there_names_those_that_are(
    asked: str, said: str, attacked: Run, tmp_path: Path
) -> None:
    with pytest.raises(UndoProbeError, match=rf"{said}: expected one of original \(Original\), "):
        export(attacked.folder, tmp_path / "out", arm=asked)


def test_a_checkpoint_and_the_tokenizer_of_its_source(tmp_path: Path) -> None:
    source = huggingface.write(huggingface.build("llama"), tmp_path / "source")
    (source / "tokenizer.json").write_text("{}")
    save_model(load_model(source), tmp_path / "own")
    assert export(tmp_path / "own", tmp_path / "bare") == f"own, without a tokenizer: {tmp_path / 'bare'}"
    said = export(tmp_path / "own", tmp_path / "out", source=str(source))
    assert said == f"own, with a tokenizer: {tmp_path / 'out'}"
    assert (tmp_path / "out/tokenizer.json").read_text() == "{}"
    with pytest.raises(UndoProbeError, match=r"is no run folder, so it has no arm 'original'"):
        export(tmp_path / "own", tmp_path / "more", arm="original")
    with pytest.raises(UndoProbeError, match="already there"):
        export(tmp_path / "own", tmp_path / "out")
