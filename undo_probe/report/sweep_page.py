"""The page of a sweep: what was swept, what became of each cell, and the headline measures over the swept keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from undo_probe import figures, files
from undo_probe.figures.swept import HEADLINES, swept_table
from undo_probe.parquet import read_table
from undo_probe.report.folder import cleaned
from undo_probe.report.html import fill, save_page, shown
from undo_probe.report.sections import flat
from undo_probe.report.words import listed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweptKey:
    """A swept key and its values, as text."""

    name: str
    values: str


def write_sweep_page(folder: Path) -> Path:
    """Write ``sweep.html`` from ``sweep.json`` and ``sweep.parquet``; nothing is computed anew."""
    said = cleaned(files.read_json(folder / "sweep.json"))
    page = render(said, read_table(folder / "sweep.parquet"))
    return save_page(folder / "sweep.html", page, f"it has {len(said['cells'])} cells; sweep fewer at a time")


def render(said: Mapping[str, Any], table: "pd.DataFrame") -> str:
    """The page as text."""
    keys, headlines = said["swept"], HEADLINES[said["until"]]
    return fill(
        "sweep.html",
        sweep=said,
        title=_title(said),
        swept=_swept(said),
        failed=[cell for cell in said["cells"] if cell["state"] == "failed"],
        pending=[cell for cell in said["cells"] if cell["state"] == "pending"],
        shown=[
            shown(lambda headline=headline: figures.swept(table, keys, headline)) for headline in headlines
        ],
        table=swept_table(table, keys, headlines),
        settings=flat(said["base"]),
    )


def _title(said: Mapping[str, Any]) -> str:
    cells = said["cells"]
    done = sum(cell["state"] == "done" for cell in cells)
    over = listed(said["swept"]) or "nothing"
    return f"{done} of {len(cells)} cells done, over {over}"


def _swept(said: Mapping[str, Any]) -> list[SweptKey]:
    found = []
    for key in said["swept"]:
        values = [str(cell["settings"][key]) for cell in said["cells"]]
        found.append(SweptKey(key, ", ".join(dict.fromkeys(values))))
    return found
