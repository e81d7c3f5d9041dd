"""Two languages as rows of tokens: read, cleaned, tokenised, dealt into splits by document, and kept on disk."""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Shaped

from undo_probe.errors import UndoProbeError
from undo_probe.files import atomic_folder, digest, file_digest, read_json, write_json
from undo_probe.randomness import derive_seed
from undo_probe.task_config import LanguageConfig, TextSource
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS
from undo_probe.tasks.text import Shingles, documents, state

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Of what is kept: raise it when the same text gives other rows."""
BOS = "<|begin|>"
SIDES = ("retain", "forget")
_BATCH = 512


@dataclass(frozen=True)
class Split:
    """Rows of one split: tokens (a beginning mark, then text), and the number of each row's family."""

    tokens: Shaped[np.ndarray, "row pos"]
    family: Int[np.ndarray, " row"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Everything the task needs of the text: splits, tokenizer, hashes, and what was left out.

    ``facts`` has for each side the documents and characters that were read, those left out as short, as copies or as
    near copies, and the tokens that filled no row.
    """

    splits: dict[str, Split]
    tokenizer: "Tokenizer"
    text_hash: str
    tokenizer_hash: str
    facts: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Document:
    """A kept document: the beginning of its hash, and its tokens."""

    name: str
    tokens: Shaped[np.ndarray, " token"]


def load_corpus(config: LanguageConfig, seed: int) -> Corpus:
    """The corpus of a configuration, prepared once and then read from the cache.

    Raises:
        UndoProbeError: the text is missing or not readable, or too little for the splits asked for.
    """
    cache = _cache(config)
    what = config.model_dump(mode="json", exclude={"text", "cache", "eval_rows", "retain", "forget"})
    sources = {side: state(getattr(config, side), config.text) for side in SIDES}
    place = (
        cache / f"rows-{digest({'version': VERSION, 'task': what, 'sources': sources, 'seed': seed})[:32]}"
    )
    if not (place / "corpus.json").is_file():
        tokenizer = _tokenizer(config, cache, sources)
        _prepare(config, seed, tokenizer, place)
    return _open(place)


def train_tokenizer(texts: Sequence[Sequence[str]], vocab: int) -> "Tokenizer":
    """A byte-level BPE on as many characters of each list of documents as of every other.

    Args:
        texts: the documents of each language; the longer lists are cut.
        vocab: tokens in all: the beginning mark, 256 bytes and merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    fewest = min(sum(map(len, listed)) for listed in texts)
    mix = [part for listed in texts for part in _first_characters(listed, fewest)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(mix, trainer)
    return tokenizer


def characters_begun(tokenizer: "Tokenizer") -> Int[np.ndarray, " vocab"]:
    """How many characters begin in each token: a character may be divided between tokens."""
    # the alphabet of byte-level BPE: printable bytes stand for themselves, the others for 256, 257, ...
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    byte_of = {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}
    names = [tokenizer.id_to_token(token) or "" for token in range(tokenizer.get_vocab_size())]
    # in UTF-8 the bytes 0x80 to 0xBF go on with a character, all others begin one
    starts = [sum(byte_of[c] & 0xC0 != 0x80 for c in name) if name != BOS else 0 for name in names]
    return np.array(starts, dtype=np.int64)


def _first_characters(texts: Sequence[str], count: int) -> Iterator[str]:
    for text in texts:
        yield text[:count]
        count -= len(text)
        if count <= 0:
            return


def _cache(config: LanguageConfig) -> Path:
    if config.cache:
        return Path(config.cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "undo_probe" / "language"


def _tokenizer(config: LanguageConfig, cache: Path, sources: dict[str, Any]) -> "Tokenizer":
    """The tokenizer of these texts, which does not depend on the split, from the cache where it is."""
    from tokenizers import Tokenizer

    names = ("vocab", "tokenizer_characters", "min_characters", "near_duplicates")
    what = {name: getattr(config, name) for name in names} | {"version": VERSION, "sources": sources}
    place = cache / f"tokenizer-{digest(what)[:32]}"
    if not (place / "tokenizer.json").is_file():
        texts = [_sample(config, side) for side in SIDES]
        with atomic_folder(place, keep_existing=True) as target:
            train_tokenizer(texts, config.vocab).save(str(target / "tokenizer.json"))
            write_json(target / "hash.json", {"sha256": file_digest(target / "tokenizer.json")})
    if file_digest(place / "tokenizer.json") != read_json(place / "hash.json").get("sha256"):
        raise UndoProbeError(f"{place} is damaged: delete it, and it is made again")
    return Tokenizer.from_file(str(place / "tokenizer.json"))


def _sample(config: LanguageConfig, side: str) -> list[str]:
    texts, count = [], 0
    for _, text in _cleaned(config, side, set(), {}):
        texts.append(text)
        count += len(text)
        if count >= config.tokenizer_characters:
            break
    return texts


def _cleaned(
    config: LanguageConfig, side: str, seen: set[str], facts: dict[str, int]
) -> Iterator[tuple[str, str]]:
    """Hash and text of the documents of a side worth keeping."""
    source, shares = getattr(config, side), (config.min_characters, config.near_duplicates)
    return cleaned(source, config.text, *shares, seen, facts)


def cleaned(
    source: TextSource,
    folder: str,
    min_characters: int,
    near_duplicates: float | None,
    seen: set[str],
    facts: dict[str, int],
) -> Iterator[tuple[str, str]]:
    """Hash and text of the documents worth keeping; ``seen`` is what other sources had, ``facts`` counts."""
    shingles = None if near_duplicates is None else Shingles(near_duplicates)

    def count(name: str, by: int = 1) -> None:
        facts[name] = facts.get(name, 0) + by

    kept = 0
    for text in documents(source, folder):
        name = hashlib.sha256(text.encode()).hexdigest()
        count("read")
        if len(text) < min_characters:
            count("short")
            continue
        if name in seen:
            count("copies")
            continue
        seen.add(name)
        if shingles is not None and shingles.is_copy(text):
            count("near_copies")
            continue
        count("documents")
        count("characters", len(text))
        kept += 1
        yield name, text
    if not kept:
        raise UndoProbeError(
            f"no {source.language} document of at least {min_characters} characters was found "
            f"({facts.get('read', 0)} were read): give more text, or lower task.min_characters"
        )


def _encoded(
    config: LanguageConfig, side: str, tokenizer: "Tokenizer", seen: set[str], facts: dict[str, int]
) -> Iterator[Document]:
    """The documents of a side as tokens, up to the number of tokens that was asked for."""
    kind = np.uint16 if config.vocab <= 2**16 else np.uint32
    left = math.inf if config.max_tokens is None else config.max_tokens
    cleaned = _cleaned(config, side, seen, facts)
    while left > 0 and (batch := list(islice(cleaned, _BATCH))):
        for (name, _), found in zip(batch, tokenizer.encode_batch([text for _, text in batch]), strict=True):
            if left > 0:
                left -= len(found.ids)
                yield Document(name[:16], np.array(found.ids, dtype=kind))


def _prepare(config: LanguageConfig, seed: int, tokenizer: "Tokenizer", place: Path) -> None:
    from safetensors.numpy import save_file

    seen: set[str] = set()
    bos = int(tokenizer.token_to_id(BOS) or 0)
    facts: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    text = hashlib.sha256()
    splits: dict[str, Split] = {}
    held = config.retain_held_out
    plans = {
        "retain": (RETAIN_SPLITS, (1 - 2 * held, held, held)),
        "forget": (FORGET_SPLITS, config.forget_shares),
    }
    for side in SIDES:
        found = list(_encoded(config, side, tokenizer, seen, facts[side]))
        text.update("".join([side, *(document.name for document in found)]).encode())
        names, shares = plans[side]
        for name, dealt in zip(names, deal(found, shares, derive_seed(seed, "split", side)), strict=True):
            splits[name] = cut_rows(dealt, config.n_ctx, bos, side)
            if not len(splits[name].tokens):
                raise UndoProbeError(
                    f"the split {name} is empty: {len(found)} {getattr(config, side).language} documents of "
                    f"{sum(len(d.tokens) for d in found)} tokens are too few; give more text, raise its share "
                    f"(task.forget_shares={list(config.forget_shares)}, task.retain_held_out={held}), or lower "
                    "task.n_ctx"
                )
        rows = sum(len(splits[name].tokens) for name in names)
        facts[side]["tokens"] = sum(len(document.tokens) for document in found)
        facts[side]["left_over_tokens"] = facts[side]["tokens"] - rows * (config.n_ctx - 1)
    with atomic_folder(place, keep_existing=True) as target:
        tokenizer.save(str(target / "tokenizer.json"))
        arrays = {f"tokens.{name}": split.tokens for name, split in splits.items()}
        save_file(arrays | {f"family.{n}": s.family for n, s in splits.items()}, target / "rows.safetensors")
        hashes = {name: file_digest(target / name) for name in ("tokenizer.json", "rows.safetensors")}
        families = {name: list(split.names) for name, split in splits.items()}
        body = {"text": text.hexdigest(), "files": hashes, "families": families, "facts": facts}
        write_json(target / "corpus.json", {**body, "digest": digest(body)})


def deal(found: Sequence[Document], shares: Sequence[float], seed: int) -> list[list[Document]]:
    """Whole documents in a drawn order, divided so that each part has its share of the tokens."""
    order = np.random.default_rng(seed).permutation(len(found))
    lengths = np.array([len(found[index].tokens) for index in order])
    middle = (np.cumsum(lengths) - lengths / 2) / max(1, lengths.sum())
    edges = np.cumsum(shares) / np.sum(shares)
    place = np.minimum(np.searchsorted(edges, middle, side="right"), len(shares) - 1)
    return [[found[index] for index in order[place == part]] for part in range(len(shares))]


def cut_rows(dealt: Sequence[Document], n_ctx: int, bos: int, side: str) -> Split:
    """Rows of a beginning mark and ``n_ctx - 1`` tokens, each from one family; what fills no row is left out.

    A document that fills a row is a family of its own; shorter ones are joined, with a mark between them, until
    they do, and are one family together.
    """
    content, rows, members, names = n_ctx - 1, [], [], []
    waiting: list[Document] = []
    for document in dealt:
        alone = len(document.tokens) >= content
        group = [document] if alone else [*waiting, document]
        mark = np.array([bos], dtype=document.tokens.dtype)
        joined = np.concatenate([part for each in group for part in (mark, each.tokens)][1:])
        if len(joined) < content:
            waiting = group
            continue
        for start in range(0, len(joined) - content + 1, content):
            rows.append(np.concatenate([mark, joined[start : start + content]]))
            members.append(len(names))
        names.append(f"{side}:{group[0].name}" + (f"+{len(group) - 1}" if len(group) > 1 else ""))
        waiting = waiting if alone else []
    tokens = np.stack(rows) if rows else np.zeros((0, n_ctx), dtype=np.uint16)
    return Split(tokens, np.array(members, dtype=np.int64), tuple(names))


def _open(place: Path) -> Corpus:
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    damaged = f"{place} is damaged: delete it, and it is made again from your text"
    body = read_json(place / "corpus.json")
    if not isinstance(body, dict) or body.pop("digest", None) != digest(body):
        raise UndoProbeError(damaged)
    for name, known in body["files"].items():
        if not (place / name).is_file() or file_digest(place / name) != known:
            raise UndoProbeError(damaged)
    arrays = load_file(place / "rows.safetensors")
    splits = {
        name: Split(arrays[f"tokens.{name}"], arrays[f"family.{name}"], tuple(families))
        for name, families in body["families"].items()
    }
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    return Corpus(splits, tokenizer, body["text"], body["files"]["tokenizer.json"], body["facts"])
