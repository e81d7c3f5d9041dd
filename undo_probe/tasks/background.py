"""Plain text from the user's folder, mixed in between the questions."""

import re
from collections import Counter
from pathlib import Path

from undo_probe.errors import UndoProbeError

OTHER = "<other>"
"""What a rare word is read as."""
_TOKEN = re.compile(r"[A-Za-z']+|[0-9]|[.,;:!?]")


def read_words(folder: str) -> list[str]:
    """The words, digits and stops of all ``.txt`` files of a folder, in the order of their names.

    Raises:
        UndoProbeError: there is no such folder, no text in it, or a file is not UTF-8.
    """
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise UndoProbeError(
            f"task.background is {folder!r}, where there is no .txt file: give a folder of plain text files"
        )
    words: list[str] = []
    for file in files:
        try:
            words += _TOKEN.findall(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UndoProbeError(
                f"{file} cannot be read as background ({error}): expected UTF-8 text"
            ) from error
    return words


def common(words: list[str], count: int) -> tuple[str, ...]:
    """The ``count`` most frequent words, ties in alphabetical order."""
    found = sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(word for word, _ in found[:count])
