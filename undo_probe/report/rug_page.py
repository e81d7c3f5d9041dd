"""The page of the Persian Rug: theory, what a folder of trained autoencoders shows, and the way down from the rug."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from undo_probe import figures
from undo_probe.errors import UndoProbeError
from undo_probe.figures import Figure
from undo_probe.figures.rug_trained import SIZES, TRAIN
from undo_probe.figures.tables import nothing, with_interval
from undo_probe.parquet import read_table
from undo_probe.persian_rug import pictures
from undo_probe.persian_rug.grid import Grid, open_grid
from undo_probe.persian_rug.training import RugConfig
from undo_probe.report.html import Shown, fill, save_page, shown

if TYPE_CHECKING:
    import pandas as pd

POINT = (0.25, 0.045)
"""The paper's own (r, p), at which the loss and a corner are shown."""
PANELS = 6
STUDY = "python analyses/is_the_rug_a_saddle.py --out FOLDER"
COLUMNS = {
    "n_s": "features", "r": "r", "p": "p", "seeds": "rugs", "curvature": "least eigenvalue",
    "lowest on the line": "lowest on the line", "exact": "trained from the rug", "nudged": "from beside it",
    "verdict": "verdict",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trained:
    """What lies in a folder: a grid, or None, its table, and the tables of the curvature study."""

    grid: Grid | None
    table: "pd.DataFrame"
    study: dict[str, "pd.DataFrame"]


def read_rug(folder: Path | None) -> Trained:
    """What a folder of :func:`undo_probe.persian_rug.grid.train_cells` holds; all of it may be missing.

    Raises:
        UndoProbeError: the folder does not exist.
    """
    import pandas as pd

    if folder is not None and not folder.is_dir():
        raise UndoProbeError(f"{folder} is no folder: give that of a grid, or none for theory alone")
    files = {} if folder is None else {n: folder / f"{n}.parquet" for n in ("curvature", "line", "escape")}
    study = {name: read_table(path) for name, path in files.items() if path.is_file()}
    grid = None if folder is None else _relu(folder)
    return Trained(grid, pd.DataFrame() if grid is None else grid.table(), study)


def _relu(folder: Path) -> Grid | None:
    """The models that theory is about; None where there are none."""
    try:
        found = open_grid(folder)
    except UndoProbeError:
        return None
    relu = tuple(config for config in found.configs if config.decoder == "relu")
    return Grid(found.store, relu, {}) if relu else None


def write_rug_page(folder: Path | None, path: Path) -> Path:
    """Writes the page; nothing is trained, and what is missing is said with the command that makes it."""
    return save_page(path, render(read_rug(folder)), "show a grid of fewer autoencoders")


def render(found: Trained) -> str:
    """The page as text."""
    return fill(
        "rug.html",
        shown={name: shown(make) for name, make in _makers(found).items()},
        maps=[shown(lambda n=n: figures.symmetry(_one_length(found.table, n))) for n in _sizes(found.table)]
        or [Shown(None, str(nothing("no trained grid is here", TRAIN)))],
        curvature=_curvature(found.study),
        study=STUDY,
        trained=len(found.table),
        point=POINT,
    )


def _makers(found: Trained) -> dict[str, Callable[[], Figure]]:
    return {
        "loss": lambda: pictures.loss_figure(POINT[1]),
        "carpet": pictures.carpet_figure,
        "along_r": lambda: _slices(found, "r"),
        "along_p": lambda: _slices(found, "p"),
        "corner": lambda: pictures.corner_figure(_grid(found).trained(_nearest(_grid(found)))),
        "dimensionality": lambda: _dimensionality(_grid(found)),
        "plateau": lambda: figures.plateau(_curves(_grid(found))),
        "descent": lambda: figures.descent(_lines(found.study)),
        "escape": lambda: figures.plateau(_descents(found.study)),
    }


def _grid(found: Trained) -> Grid:
    if found.grid is None:
        raise nothing("no trained autoencoder is here", TRAIN)
    return found.grid


def _sizes(table: "pd.DataFrame") -> list[int]:
    return [] if table.empty else sorted(set(table["n_s"]))


def _one_length(table: "pd.DataFrame", n_s: int) -> "pd.DataFrame":
    """The lines of one size, of the length of training that most of them have: a map has one model a place."""
    own = table.loc[table["n_s"] == n_s]
    return own.loc[own["steps"] == own["steps"].mode().iloc[0]]


def _slices(found: Trained, along: str) -> Figure:
    _grid(found)
    table = _one_length(found.table, _sizes(found.table)[-1])
    values = sorted(set(table["p" if along == "r" else "r"]))
    step = max(1, -(-len(values) // PANELS))
    return pictures.slices_figure(along, values[::step], table)


def _nearest(grid: Grid) -> RugConfig:
    r, p = POINT
    return min(
        grid.configs,
        key=lambda config: (abs(config.r - r) + abs(config.p - p), -config.n_s, config.fit.steps),
    )


def _longest(grid: Grid, most: int = len(SIZES)) -> list[RugConfig]:
    """Those of the longest trainings, at least half as long as the very longest; the largest first."""
    steps = max(config.fit.steps for config in grid.configs)
    long = [config for config in grid.configs if 2 * config.fit.steps >= steps]
    ordered = sorted(
        long, key=lambda config: (-config.n_s, abs(config.p - 0.2), abs(config.r - 0.5), config.seed)
    )
    return ordered[:most]


def _said(config: RugConfig) -> str:
    return f"n_s {config.n_s}, r {config.r:.2g}, p {config.p:.2g}, {config.fit.steps} steps"


def _dimensionality(grid: Grid) -> Figure:
    chosen = [_nearest(grid), *_longest(grid, 2)]
    return pictures.dimensionality_figure(
        {_said(config): (grid.trained(config).model, config.p) for config in chosen}
    )


def _curves(grid: Grid) -> "pd.DataFrame":
    import pandas as pd

    parts = []
    for config in _longest(grid):
        made = grid.trained(config)
        lines = [(step, loss / made.theory) for step, loss in made.curve]
        parts.append(pd.DataFrame(lines, columns=["step", "loss"]).assign(name=_said(config)))
    return pd.concat(parts, ignore_index=True)


def _studied(study: dict[str, "pd.DataFrame"], name: str) -> "pd.DataFrame":
    if name not in study:
        raise nothing("no study of the rug's curvature is here", STUDY)
    return study[name]


def _lines(study: dict[str, "pd.DataFrame"]) -> "pd.DataFrame":
    """The loss along the eigenvector for the smallest and the largest rugs, first seed."""
    table = _studied(study, "line")
    some = table.loc[
        (table["seed"] == table["seed"].min()) & table["n_s"].isin([table["n_s"].min(), table["n_s"].max()])
    ]
    return some.assign(
        name=[f"n_s {n}, r {r:g}, p {p:g}" for n, r, p in zip(some["n_s"], some["r"], some["p"], strict=True)]
    )


def _descents(study: dict[str, "pd.DataFrame"]) -> "pd.DataFrame":
    """Training from the largest rugs, and from beside them."""
    table = _studied(study, "escape")
    some = table.loc[(table["seed"] == table["seed"].min()) & (table["n_s"] == table["n_s"].max())]
    starts = {"exact": "from the rug", "nudged": "from beside it"}
    names = [
        f"{starts[start]}, r {r:g}, p {p:g}"
        for start, r, p in zip(some["start"], some["r"], some["p"], strict=True)
    ]
    return some.assign(name=names)


def _curvature(study: dict[str, "pd.DataFrame"]) -> "pd.DataFrame | None":
    """Means over rugs of one size, and the lowest and highest where there are several."""
    import pandas as pd

    if "curvature" not in study:
        return None
    lines = []
    table = study["curvature"].sort_values(["n_s", "r", "p"])
    for n_s, r, p in dict.fromkeys(zip(table["n_s"], table["r"], table["p"], strict=True)):
        own = table.loc[(table["n_s"] == n_s) & (table["r"] == r) & (table["p"] == p)]
        value = own["curvature"].to_numpy(dtype=float)
        lines.append(
            {
                "n_s": str(n_s), "r": f"{r:g}", "p": f"{p:g}", "seeds": str(len(own)),
                "curvature": with_interval(float(value.mean()), float(value.min()), float(value.max()), 4),
                "lowest on the line": f"{100 * own['lowest on the line'].mean():.1f}%".replace("-", "\u2212"),
                "exact": f"{own['exact'].mean():.3f}", "nudged": f"{own['nudged'].mean():.3f}",
                "verdict": ", ".join(f"{n} {word}" for word, n in own["verdict"].value_counts().items()),
            }
        )  # fmt: skip
    return pd.DataFrame(lines).rename(columns=COLUMNS)
