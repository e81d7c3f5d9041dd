"""The page of the Persian Rug: whole with everything there, honest with nothing there, and closed to the network."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.report.test_html import FETCHING, Tags
from undo_probe import figures
from undo_probe.cli import main
from undo_probe.errors import UndoProbeError
from undo_probe.figures import Figure
from undo_probe.persian_rug import grid, pictures
from undo_probe.report.rug_page import write_rug_page

POINTS = [(0.25, 0.045), (0.5, 0.2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small trained models, and the tables of a study of curvature."""
    place = tmp_path_factory.mktemp("rug")
    fit = {"steps": 6, "batch_size": 32, "eval_every": 2}
    grid.train_cells(
        grid.figure_cells([32], [0.25, 0.5], [0.045, 0.2], fit=fit, held_out=64), place, workers=1
    )
    cells = [{"n_s": n, "r": r, "p": p, "seed": s} for n in (64, 128) for r, p in POINTS for s in (0, 1)]
    line = [{**cell, "share": x, "change": -x * x, "error": 0.001} for cell in cells for x in (-0.1, 0.1)]
    steps = [{**cell, "start": name, "step": step, "loss": 1 / (1 + step)}
             for cell in cells for name in ("exact", "nudged") for step in (1, 10)]  # fmt: skip
    study = [{**cell, "rows": 9, "curvature": -0.03 - cell["seed"] / 100, "error": 0.001, "lowest on the line": -0.07,
              "exact": 0.98, "nudged": 0.9, "verdict": "saddle"} for cell in cells]  # fmt: skip
    for name, rows in (("line", line), ("escape", steps), ("curvature", study)):
        pd.DataFrame(rows).to_parquet(place / f"{name}.parquet")
    return place


def spec(figure: Figure) -> dict:
    return json.loads(figure.spec())


@pytest.mark.slow
def test_the_page_holds_every_figure_and_asks_nothing_of_any_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["undo-probe", "rug", "report", str(folder), "--out", str(tmp_path / "rug.html")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    page = (tmp_path / "rug.html").read_text()
    tags = Tags(page)
    charts = [found for tag, found in tags.tags if found.get("class") == "chart"]
    assert len(charts) == 10 and "Not shown" not in page
    assert tags.count("figcaption") == page.count("What would have shown the opposite:") == 10
    fetched = [value for _, found in tags.tags for name, value in found.items()
               if name in FETCHING and not str(value).startswith("#")]  # fmt: skip
    assert fetched == [] and len(page.encode()) < 8 * 2**20
    # mean over two rugs, with the lower and the higher
    assert "−0.0350 (−0.0400 to −0.0300)" in page and "2 saddle" in page and "4 autoencoders" in page


def test_a_page_of_theory_alone_says_what_would_make_the_rest(tmp_path: Path) -> None:
    topk = grid.figure_cells([16], [0.5], [0.2], decoder="topk", fit={"steps": 1})
    grid.train_cells(topk, tmp_path, workers=1)
    page = write_rug_page(tmp_path, tmp_path / "rug.html").read_text()  # theory is about relu
    assert page.count("Not shown") == 9
    assert "undo-probe rug train --figure-grid" in page and "is_the_rug_a_saddle.py" in page
    with pytest.raises(UndoProbeError, match="is no folder: give that of a grid"):
        write_rug_page(tmp_path / "none", tmp_path / "rug.html")


def test_figures_say_what_to_look_for_and_hold_their_numbers(folder: Path) -> None:
    found = grid.open_grid(folder)
    table = found.table()
    drawn = [
        pictures.slices_figure("p", [0.25, 0.5], table, n_s=64, rows=8),
        figures.symmetry(table),
        pictures.corner_figure(found.trained(found.configs[0])),
        figures.plateau(found.curves().assign(name="one", floor=0.4)),
        figures.descent(pd.read_parquet(folder / "line.parquet").assign(name="one")),
        figures.dimensionality({"some": [0.2, 0.25, 0.5]}),
    ]
    for figure in drawn:
        assert "Look" in figure.caption and len(figure.opposite) > 40 and not figure.table.empty, figure.name
        assert spec(figure)["config"]["showSendToCloud"] is False
    trained = [trace for trace in spec(drawn[0])["data"] if trace["name"] == "trained"]
    line = table.query("r == 0.25").sort_values("p")
    assert trained[0]["y"] == pytest.approx((line["loss"] / (line["p"] / 3 - line["p"] ** 2 / 4)).tolist())
    assert [level["y0"] for level in spec(drawn[3])["layout"]["shapes"]] == [1.0, 0.4]
    bias = np.array(spec(drawn[2])["data"][0]["z"], dtype=float)[:, -1]
    assert bias == pytest.approx(found.trained(found.configs[0]).model.b[:30].tolist(), abs=6e-4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: pictures.slices_figure("q", [0.1]), "along 'q', 0 lines: expected r or p"),
        (
            lambda: figures.symmetry(pd.DataFrame()),
            "no trained grid with its symmetry is here: `undo-probe rug train",
        ),
        (
            lambda: figures.symmetry(pd.DataFrame({"spread_diagonal": [0, 0], "n_s": [4, 8]})),
            r"n_s \[4, 8\] in one",
        ),
        (lambda: figures.corner({}), "no matrix was given"),
        (lambda: figures.plateau(pd.DataFrame({"name": []})), "0 curves: expected 1 to 6"),
        (lambda: figures.descent(pd.DataFrame({"name": list("abcdefg")})), "7 lines: expected 1 to 6"),
        (lambda: figures.dimensionality({}), "no dimensionalities were given"),
    ],
)
def test_what_cannot_be_drawn_is_said(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
