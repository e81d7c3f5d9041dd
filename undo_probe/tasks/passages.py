"""Running text as rows of tokens, for tasks whose questions are not what is trained on; prepared once and kept."""

import math
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped

from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, digest, file_digest, read_json, write_json
from undo_probe.task_config import ChoiceConfig, FactsConfig, TextSource
from undo_probe.tasks.corpus import Document, cleaned, cut_rows
from undo_probe.tasks.protocol import TokenSet
from undo_probe.tasks.reader import Reader
from undo_probe.tasks.text import state

VERSION = 1
"""Of what is kept: raise it when the same text gives other rows."""
_BATCH = 512


@dataclass(frozen=True)
class Passages:
    """Rows of one source, a beginning mark and text each, and the hash of all that decides them."""

    tokens: Shaped[np.ndarray, "row pos"]
    content: str


def text_set(name: str, text: Passages, n_ctx: int) -> TokenSet:
    """Neutral text as rows of which all but the first token is asked."""
    tokens = torch.from_numpy(np.asarray(text.tokens, dtype=np.int64))
    mask = torch.ones(tokens.shape, dtype=torch.bool)
    mask[:, 0] = False
    labels = pd.DataFrame({"operation": "text", "family": "text", "subset": "all"}, index=range(len(tokens)))
    return TokenSet(name, tokens, mask, n_ctx - 2, labels)


def load_passages(source: TextSource, config: ChoiceConfig | FactsConfig, reader: Reader) -> Passages:
    """The rows of a source, from the cache where they were prepared before.

    Raises:
        UndoProbeError: the text is missing or not readable, or fills no row.
    """
    settings = {name: getattr(config, name) for name in ("n_ctx", "max_text_tokens", "min_characters")}
    what = {"version": VERSION, "source": state(source, config.text), "reader": reader.content, **settings}
    place = _cache(config) / f"passages-{digest(what)[:32]}"
    if not (place / "hash.json").is_file():
        _prepare(source, config, reader, place)
    content = file_digest(place / "tokens.npy")
    if content != read_json(place / "hash.json").get("sha256"):
        raise UndoProbeError(f"{place} is damaged: delete it, and it is made again from your text")
    return Passages(np.load(place / "tokens.npy", mmap_mode="r"), content)


def _cache(config: ChoiceConfig | FactsConfig) -> Path:
    if config.cache:
        return Path(config.cache).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "undo_probe" / "choice"


def _prepare(source: TextSource, config: ChoiceConfig | FactsConfig, reader: Reader, place: Path) -> None:
    kind = np.uint16 if reader.size <= 2**16 else np.uint32
    left = math.inf if config.max_text_tokens is None else config.max_text_tokens
    texts = cleaned(source, config.text, config.min_characters, None, set(), {})
    found: list[Document] = []
    while left > 0 and (batch := list(islice(texts, _BATCH))):
        for (name, _), tokens in zip(batch, reader.encode([text for _, text in batch]), strict=True):
            if left > 0:
                left -= len(tokens)
                found.append(Document(name[:16], np.array(tokens, dtype=kind)))
    mark = reader.start[0] if reader.start else reader.pad
    rows = cut_rows(found, config.n_ctx, mark, source.language).tokens
    if not len(rows):
        raise UndoProbeError(
            f"the text of {source.language} fills no row of {config.n_ctx} tokens: give more of it, or lower task.n_ctx"
        )
    with atomic_folder(place, keep_existing=True) as target:
        np.save(target / "tokens.npy", rows)
        write_json(target / "hash.json", {"sha256": file_digest(target / "tokens.npy")})
