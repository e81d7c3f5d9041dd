"""The known set: which facts a model answers, measured once and kept in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from undo_probe.errors import UndoProbeError
from undo_probe.files import digest, read_json, write_json


@dataclass(frozen=True)
class Known:
    """Which facts the model with a hash answers; a line a fact, and the hash of all of it."""

    model: str
    lines: Sequence[Mapping[str, Any]]
    content: str

    @cached_property
    def right(self) -> dict[str, list[bool]]:
        """Fact by name to whether each of its wordings is answered."""
        return {line["fact"]: line["right"] for line in self.lines}

    def knows(self, fact: str) -> bool:
        """Whether the model answers most wordings of the fact with this name."""
        right = self.right[fact]
        return 2 * sum(right) > len(right)


def read_known(place: str) -> Known:
    """The known set that :func:`undo_probe.measures.known.known` wrote.

    Raises:
        UndoProbeError: there is none, or it is damaged.
    """
    path = Path(place).expanduser()
    if not path.is_file():
        raise UndoProbeError(
            f"task.known is {place!r}, and there is no such file: make it with `undo-probe known`"
        )
    body = read_json(path)
    content = body.pop("content", None) if isinstance(body, dict) else None
    if content is None or content != digest(body):
        raise UndoProbeError(
            f"{place} is no known set, or was changed: make it again with `undo-probe known`"
        )
    return Known(body["model"], body["facts"], content)


def write_known(place: Path, model: str, facts: Sequence[Mapping[str, Any]]) -> None:
    """Writes the known set of the model with this hash; each fact has ``fact`` (its name) and ``right`` by wording."""
    body = {"format": 1, "model": model, "facts": [dict(line) for line in facts]}
    write_json(place, {**body, "content": digest(body)})
