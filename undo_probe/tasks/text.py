"""A user's text, one document at a time: from files of several kinds, or streamed by ``datasets``.

Every document is checked, put into Unicode's composed form (decomposed Hangul costs ten times the tokens) and given
line ends of one kind. Documents of files come in the order of their hashes, which says nothing of names and folders.
"""

import gzip
import hashlib
import json
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from undo_probe.errors import UndoProbeError
from undo_probe.files import file_digest
from undo_probe.task_config import FactSource, QuestionSource, TextSource

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")
_WORDS, _SAMPLED, _FEWEST = 8, 4, 4


def documents(source: TextSource, folder: str) -> Iterator[str]:
    """The documents of one language, empty ones left out.

    Args:
        source: where they are.
        folder: the user's folder, below which ``source.path`` lies.

    Raises:
        UndoProbeError: nothing is there, or something that is no text; one line says what and where.
    """
    if source.dataset:
        rows = streamed(source, source.split)
        yield from filter(None, (normal(_column(row, source.column, at), at) for row, at in rows))
        return
    found = [
        normal(text, where) for path in text_files(source, folder) for text, where in _read(path, source)
    ]
    yield from sorted(filter(None, found), key=lambda text: hashlib.sha256(text.encode()).digest())


def state(source: TextSource, folder: str) -> dict[str, Any]:
    """What decides the documents of a source, without reading a text that has to be fetched."""
    if source.dataset and not Path(source.dataset).is_dir():
        return source.model_dump(mode="json", exclude={"path", "language"})
    paths = [path for path in Path(source.dataset).rglob("*") if path.is_file()] if source.dataset else None
    paths = text_files(source, folder) if paths is None else paths
    named = {"subset": source.subset, "split": source.split, "column": source.column}
    return {**named, "files": sorted(file_digest(path) for path in paths)}


def text_files(source: TextSource, folder: str) -> list[Path]:
    """The files that a path below the user's folder names: one file, all of a folder, or those of a glob."""
    how = "run `undo-probe text FOLDER` to gather some, and give task.text=FOLDER"
    if not folder:
        raise UndoProbeError(f"task.text is empty: the task needs text of your own; {how}")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UndoProbeError(f"task.text is {folder!r}, and there is no such folder: {how}")
    whole = root / source.path
    if whole.is_file():
        return [whole]
    listed = whole.rglob("*") if whole.is_dir() else root.glob(source.path)
    found = sorted(path for path in listed if path.is_file() and path.name.lower().endswith(SUFFIXES))
    if not found:
        raise UndoProbeError(
            f"there is no {source.language} text at {source.path!r} below task.text ({folder}): expected "
            f"{', '.join(SUFFIXES)} files there; {how}"
        )
    return found


def _read(path: Path, source: TextSource) -> Iterator[tuple[Any, str]]:
    """The texts of a file, each with where it stands."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from ((row[source.column], where) for row, where in parquet_rows(path, [source.column]))
    elif name.endswith((".jsonl", ".jsonl.gz")):
        yield from ((_column(row, source.column, where), where) for row, where in json_rows(path))
    else:
        yield read_text(path), str(path)


def read_text(path: Path) -> str:
    """The text of a file, of a packed one too.

    Raises:
        UndoProbeError: it is damaged, or no UTF-8.
    """
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.name.lower().endswith(".gz") else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UndoProbeError(f"{path} is not UTF-8 (byte {error.start}): convert it or remove it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UndoProbeError(f"{path} cannot be read ({error}): it is damaged or no gzip file") from None


def json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """What stands on each line of a .jsonl file, and where."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"line {number} of {path}"
            try:
                row = json.loads(line)
            except ValueError:
                raise UndoProbeError(f"{where} is not valid JSON: it was cut, or is no .jsonl file") from None
            yield row, where


def parquet_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of a Parquet file, with these columns or all."""
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            for column in columns or ():
                if column not in file.schema_arrow.names:
                    raise UndoProbeError(
                        f"{path} has no column {column!r}: it has {', '.join(file.schema_arrow.names)}"
                    )
            for batch in file.iter_batches(columns=list(columns) if columns else None):
                for row in batch.to_pylist():
                    yield row, str(path)
    except (OSError, ValueError) as error:
        if isinstance(error, UndoProbeError):
            raise
        raise UndoProbeError(f"{path} cannot be read as Parquet ({error}): it was cut or damaged") from None


def streamed(source: TextSource | QuestionSource | FactSource, split: str) -> Iterator[tuple[Any, str]]:
    """The rows of a data set, fetched as they are asked for and never as a whole."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    where = f"the data set {source.dataset!r}"
    try:
        rows = load_dataset(
            source.dataset,
            source.subset or None,
            split=split,
            revision=source.revision or None,
            streaming=True,
        )
        for row in rows:
            yield row, where
    except UndoProbeError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        first = str(error).strip().split("\n")[0]
        raise UndoProbeError(
            f"{where} (subset {source.subset!r}, split {split!r}) cannot be read: {first}; check the name and "
            "the network, or give a local folder"
        ) from error


def _column(row: Any, column: str, where: str) -> Any:
    if not isinstance(row, dict) or column not in row:
        has = ", ".join(map(str, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise UndoProbeError(f"{where} has no column {column!r} (it has {has}): set the source's `column`")
    return row[column]


def normal(text: Any, where: str) -> str:
    """A text in Unicode's composed form with line ends of one kind; ``where`` says where it stands."""
    if not isinstance(text, str):
        raise UndoProbeError(
            f"{where} holds a {type(text).__name__} where text was expected: remove that row"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UndoProbeError(
            f"{where} holds half of a character (a lone surrogate): remove that row"
        ) from None
    plain = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return unicodedata.normalize("NFC", plain).strip()


class Shingles:
    """Finds documents that are mostly a copy of an earlier one, by runs of eight words.

    A quarter of the runs is kept, the same ones in every document; documents with too few of them are never copies.

    Args:
        share: of a document's runs that one earlier document must have.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._first: dict[int, int] = {}
        self._known = 0

    def is_copy(self, text: str) -> bool:
        """Whether an earlier document has that share of this one's runs; if not, it is remembered."""
        words = text.split()
        runs = (" ".join(words[at : at + _WORDS]) for at in range(len(words) - _WORDS + 1))
        # crc32, for Python's own hash of a text differs from process to process
        sampled = {code for run in runs if (code := zlib.crc32(run.encode())) % _SAMPLED == 0}
        met = Counter(self._first[code] for code in sampled if code in self._first)
        if len(sampled) >= _FEWEST and met and max(met.values()) >= self.share * len(sampled):
            return True
        for code in sampled:
            self._first.setdefault(code, self._known)
        self._known += 1
        return False
