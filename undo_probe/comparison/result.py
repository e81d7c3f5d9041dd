"""What comparing two models gives: one table, figures, words, a page; stored as JSON and Parquet."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undo_probe import files
from undo_probe.errors import UndoProbeError
from undo_probe.figures import compared
from undo_probe.figures.figure import Figure, table_html
from undo_probe.parquet import read_table, write_table
from undo_probe.report.compare_words import Words, words_of

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
TABLE, RECORD, POINTS = "comparison.parquet", "comparison.json", "points.parquet"


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two models side by side on the same rows; ``compare`` makes it, :meth:`load` reads it back.

    ``facts`` says what was compared and how; ``points`` are states on shared principal components; ``tokens`` holds a
    few rows token by token.
    """

    lines: "pd.DataFrame" = field(repr=False)
    points: "pd.DataFrame" = field(repr=False)
    tokens: list[dict[str, Any]] = field(repr=False)
    facts: Mapping[str, Any]

    def table(self, measure: str = "", split: str = "", layer: str = "") -> "pd.DataFrame":
        """One line a measure, layer, position, split and reading, or those that are asked for.

        Columns: ``value`` with its 95 % interval ``low`` to ``high``; ``a`` and ``b``, the models' own levels where the
        value is a change from the one to the other; ``floor``, what noise alone would give (``facts["floor"]`` says
        which); ``twin``, the same of the twin, and ``over_twin`` what lies beyond it, row by row, with its interval.
        """
        found = self.lines
        for column, wanted in (("measure", measure), ("split", split), ("layer", layer)):
            if wanted:
                known = sorted(set(self.lines[column]) - {""})
                if wanted not in known:
                    raise UndoProbeError(
                        f"there is no {column} {wanted!r} here: expected one of {', '.join(known)}"
                    )
                found = found.loc[found[column] == wanted]
        return found.reset_index(drop=True)

    @property
    def words(self) -> Words:
        """Where the two part and by how much over the noise floor, in plain words."""
        return words_of(self.lines, self.facts)

    def figure(self, name: str) -> Figure:
        """A figure by its name; ``figures`` lists them.

        Raises:
            UndoProbeError: no figure has this name, or nothing was measured that it could show.
        """
        if name not in compared.FIGURES:
            raise UndoProbeError(
                f"no figure is called {name!r}: expected one of {', '.join(compared.FIGURES)}"
            )
        return compared.FIGURES[name](self.lines, self.points, self.facts)

    @property
    def figures(self) -> list[str]:
        """Names for :meth:`figure`."""
        return list(compared.FIGURES)

    def write(self, path: str | os.PathLike[str] = "compare.html") -> Path:
        """The page: one file that opens offline."""
        from undo_probe.report.compare_page import write_compare_page

        return write_compare_page(self, Path(path))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """The table and points as Parquet, everything else as JSON beside them."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for name, table in ((TABLE, self.lines), (POINTS, self.points)):
            write_table(table, place / name)
        files.write_json(place / RECORD, {"format": FORMAT, "facts": dict(self.facts), "tokens": self.tokens})
        return place

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Comparison":
        """What :meth:`save` wrote.

        Raises:
            UndoProbeError: the folder holds no comparison, or one of a later version.
        """
        place = Path(folder)
        if not (place / RECORD).is_file():
            raise UndoProbeError(
                f"{place} holds no comparison (there is no {RECORD}): give what Comparison.save wrote"
            )
        said = files.read_json(place / RECORD)
        if said.get("format") != FORMAT:
            raise UndoProbeError(
                f"{place / RECORD} has format {said.get('format')}: this version reads format {FORMAT}"
            )
        lines, points = (read_table(place / name) for name in (TABLE, POINTS))
        return cls(lines, points, said["tokens"], said["facts"])

    def _repr_html_(self) -> str:
        import html

        words = self.words
        text = "".join(
            f"<p><b>{html.escape(name)}.</b> {html.escape(said)}</p>" for name, said in words.paragraphs
        )
        return f"<h3>{html.escape(words.headline)}</h3>{text}{table_html(compared.summary(self.lines))}"
