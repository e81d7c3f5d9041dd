"""How text becomes tokens: with the tokenizer of a Hugging Face model, or with one trained on the text itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest
from undo_probe.sources import find_source, huggingface_tokenizer
from undo_probe.tasks.corpus import BOS, train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Reader:
    """A tokenizer, what it puts before a text, and what fills a row up after one."""

    tokenizer: "Tokenizer"
    start: tuple[int, ...]
    pad: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.tokenizer.get_vocab_size()

    @cached_property
    def content(self) -> str:
        """Hash of everything that decides the tokens of a text."""
        return digest({"tokenizer": self.tokenizer.to_str(), "start": self.start, "pad": self.pad})

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, without anything before or after."""
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [each.ids for each in found]

    def letters(self, ending: str, letters: str) -> list[int]:
        """The one token with which each letter, after a space, goes on after ``ending``.

        Raises:
            UndoProbeError: it takes several tokens, or changes those before it.
        """
        before, *after = self.encode([ending, *(f"{ending} {letter}" for letter in letters)])
        for letter, tokens in zip(letters, after, strict=True):
            if tokens[:-1] != before:
                raise UndoProbeError(
                    f"the tokenizer does not write {' ' + letter!r} as one token after {ending[-12:]!r}: take another, "
                    "or raise task.vocab where it is trained here"
                )
        return [tokens[-1] for tokens in after]


def source_reader(place: str, revision: str) -> Reader:
    """The tokenizer of a Hugging Face folder or hub id.

    Raises:
        UndoProbeError: there is none, or none of the library that makes fast ones.
    """
    source = find_source(place, revision)
    if source.kind == "checkpoint":
        raise UndoProbeError(
            f"{place} is a checkpoint of undo_probe, which has no tokenizer: give task.tokenizer, a Hugging Face folder"
        )
    found = huggingface_tokenizer(source)
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise UndoProbeError(
            f"the tokenizer of {place} has no tokenizer.json form: save it as a fast tokenizer first"
        )
    backend.no_padding()
    backend.no_truncation()
    first = found.bos_token_id
    start = (first,) if first is not None and found("a").input_ids[:1] == [first] else ()
    ends = [token for token in (found.pad_token_id, found.eos_token_id, first, 0) if token is not None]
    return Reader(backend, start, ends[0])


def trained_reader(texts: Sequence[Sequence[str]], vocab: int, letters: str = "") -> Reader:
    """A byte-level BPE trained on the texts, in which each letter after a space is one token."""
    if letters:
        # more often than anything else, so that they are among the first merges
        often = " ".join(["", *letters])
        count = max(sum(len(text) for text in listed) for listed in texts)
        texts = [[*listed, often * max(1, count // len(often))] for listed in texts]
    tokenizer = train_tokenizer(texts, vocab)
    mark = int(tokenizer.token_to_id(BOS) or 0)
    return Reader(tokenizer, (mark,), mark)
