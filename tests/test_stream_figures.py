"""The residual stream's chapter: the picture to remember, depth, lenses, attribution, and the table of weights."""

import json
from typing import Any

import pandas as pd
import pytest

from tests.report import synthetic
from undo_probe import figures
from undo_probe.errors import UndoProbeError
from undo_probe.figures import Figure
from undo_probe.figures.stream import chain
from undo_probe.records import Arm, TaskWords, reading_table
from undo_probe.report.weights import weights_table

HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture(scope="module")
def readings() -> pd.DataFrame:
    return synthetic.with_stream(reading_table(synthetic.readings()))


@pytest.fixture(scope="module")
def drawn(readings: pd.DataFrame) -> dict[str, Figure]:
    makers = (
        figures.stream,
        figures.depth_by_block,
        figures.lenses,
        figures.attribution,
        figures.subspaces,
        figures.update_energy,
        figures.selectivity,
    )
    return {figure.name: figure for make in makers for figure in [make(readings)]}


def spec(figure: Figure) -> dict[str, Any]:
    return json.loads(figure.spec())


def cell(figure: Figure, panel: int, row: str, column: str) -> float | None:
    trace = spec(figure)["data"][panel]
    return trace["z"][trace["y"].index(row)][trace["x"].index(column)]


def test_each_says_what_to_look_for_and_what_would_have_shown_the_opposite(drawn: dict[str, Figure]) -> None:
    inside = {"subspaces", "subspaces-updates", "subspaces-selectivity"}
    assert set(drawn) == {"stream", "stream-depth", "stream-lens", "stream-attribution", *inside}
    for figure in drawn.values():
        assert "Look for" in figure.caption
        assert len(figure.opposite) > 40
        assert not figure.table.empty
        assert "95%" in figure.caption or "n = " in figure.caption


def test_rows_follow_the_stages_and_leave_other_methods_out(drawn: dict[str, Figure]) -> None:
    rows = spec(drawn["stream"])["data"][0]["y"]
    noised, students = ([f"{kind} {alpha}" for alpha in (0.2, 0.4, 0.6, 0.8)] for kind in ("Noised", "UNDO"))
    assert rows == ["Original", "MaxEnt", *noised, *students, "Twin 0.8", "Oracle (matched)"]
    seconds = [Arm("original"), Arm("original", variant="b"), Arm("unlearned", "rmu", variant="placebo")]
    assert chain([*seconds, Arm("oracle"), Arm("random")]) == [*seconds[:2], Arm("oracle")]


def test_the_twins_share_is_its_distance_over_the_students(
    drawn: dict[str, Figure], readings: pd.DataFrame
) -> None:
    figure = drawn["stream"]
    asked = f"measure == 'relative_distance' and task_split == 'forget' and layer == '{synthetic.LAYERS[-1]}'"
    at = readings.query(f"{asked} and subset == '=' and stage == 'distilled' and alpha == 0.8")
    student, twin = (at.query("variant == @variant")["value"].item() for variant in ("", "twin"))
    assert cell(figure, 2, "UNDO 0.8", "1") == pytest.approx(twin / student)
    assert cell(figure, 0, "UNDO 0.8", "1") == pytest.approx(student)
    assert cell(figure, 1, "UNDO 0.8", "1") == pytest.approx(0.8 * synthetic.DRIFT["undo 0.8"])
    assert cell(figure, 2, "UNDO 0.4", "1") is None
    assert cell(figure, 2, "Twin 0.8", "1") is None
    assert f"Of UNDO 0.8’s distance its twin shows {twin / student:.0%}" in figure.caption
    table = figure.table.set_index(["model", "layer"])
    assert table.loc[("UNDO 0.8", "after block 1"), "its twin’s share"] == f"{twin / student:.0%}"
    assert " to " in str(table.loc[("UNDO 0.8", "after block 1"), "towards the oracle"])


def test_without_twin_depth_or_oracle_the_picture_says_so(readings: pd.DataFrame) -> None:
    alone = readings.query("variant != 'twin' and measure != 'depth' and not stage.str.startswith('oracle')")
    figure = figures.stream(alone)
    assert len(spec(figure)["data"]) == 1
    assert "This run has no twin" in figure.caption
    assert "no matched oracle" in figure.caption
    assert "--also depth" in figures.stream(readings.query("measure != 'depth'")).caption
    assert "racle" not in " ".join(figure.table["model"])


def test_depth_shows_the_excess_over_the_twin(drawn: dict[str, Figure]) -> None:
    traces = spec(drawn["stream-depth"])["data"]
    assert {trace["name"] for trace in traces} >= {"MaxEnt", "UNDO 0.8", "Twin 0.8"}
    assert not {"Original", "Oracle (matched)", "Noised 0.8"} & {trace["name"] for trace in traces}
    line = drawn["stream-depth"].table.query("model == 'UNDO 0.8' and states == 'raw'").iloc[0]
    excess = synthetic.DRIFT["undo 0.8"] - synthetic.DRIFT["twin 0.8"]
    assert line["excess"] == f"{excess:.2f}"
    assert set(drawn["stream-depth"].table.query("model == 'UNDO 0.4'")["excess"]) == {"–"}


def test_lenses_say_what_the_tuned_one_misses(drawn: dict[str, Figure], readings: pd.DataFrame) -> None:
    assert len({trace["xaxis"] for trace in spec(drawn["stream-lens"])["data"]}) == len(
        synthetic.LENS_SUBSETS
    )
    assert "embedding 0.40 (1.90)" in drawn["stream-lens"].caption
    plain = figures.lenses(readings.query("measure != 'lens_fit' and not subset.str.startswith('tuned')"))
    assert len({trace["xaxis"] for trace in spec(plain)["data"]}) == 3
    assert "misses" not in plain.caption


def test_a_row_of_components_adds_up_to_its_lead(
    drawn: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = spec(drawn["stream-attribution"])["data"][0]
    assert trace["x"] == ["emb", "0 h0", "0 h1", "0 MLP", "1 h0", "1 h1", "1 MLP", "biases", "lead"]
    for row in trace["z"]:
        assert sum(row[:-1]) == pytest.approx(row[-1])
    monkeypatch.setattr("undo_probe.figures.writers._WIDEST", 3)
    wide = reading_table(synthetic.readings())
    summed = spec(figures.attribution(synthetic.with_stream(wide)))["data"][0]
    assert summed["x"] == ["emb", "0 heads", "0 MLP", "1 heads", "1 MLP", "biases", "lead"]
    assert summed["z"][0][1] == pytest.approx(trace["z"][0][1] + trace["z"][0][2])


def test_the_table_of_weights_says_where_a_barrier_does_not_apply(readings: pd.DataFrame) -> None:
    table = weights_table(readings).set_index("model")
    assert "Original" not in table.index
    assert table.loc["Oracle (matched)", "barrier, forget"] == "not applicable"
    assert table.loc["MaxEnt", "stable rank"] == "3.0\n(1.5 to 9.0)"
    assert table.loc["MaxEnt", "distance"] == "0.25"
    assert weights_table(reading_table(synthetic.readings())).empty


def test_what_is_not_there_says_which_command_makes_it() -> None:
    readings = reading_table(synthetic.readings())
    for make, name in (
        (figures.depth_by_block, "depth"),
        (figures.lenses, "lens"),
        (figures.attribution, "attribution"),
    ):
        with pytest.raises(UndoProbeError, match=f"undo-probe score RUN --also {name}"):
            make(readings)
    with pytest.raises(UndoProbeError, match="no drift readings yet"):
        figures.stream(readings.query("measure == 'accuracy'"))


def test_names_from_outside_are_no_markup_and_text_is_spoken_of_as_text(readings: pd.DataFrame) -> None:
    hostile = readings.assign(method=readings["method"].replace("maxent", HOSTILE))
    words = TaskWords(scored="Scores are bits.", read_at="the end", forget="Korean")
    for make in (figures.stream, figures.depth_by_block, figures.lenses, figures.attribution):
        names = json.dumps(
            [[t.get("y") if t["type"] == "heatmap" else t["name"]] for t in spec(make(hostile))["data"]]
        )
        assert "<img" not in names and "&lt;img" in names
        assert "question" not in make(readings, words).caption


def test_shared_directions_are_summed_over_leading_bands_and_updates_are_multiples_of_chance(
    drawn: dict[str, Figure],
) -> None:
    shares = spec(drawn["subspaces"])
    assert [note["text"] for note in shares["layout"]["annotations"]][:2] == [
        "<b>inputs, V</b>",
        "<b>inputs, retain</b>",
    ]
    assert cell(drawn["subspaces"], 0, "Original", "0") == pytest.approx(
        0.8 - 0.3 * synthetic.DRIFT["original"]
    )
    assert {y for trace in spec(drawn["subspaces-updates"])["data"] for y in trace["y"]} == {2.0}
    lines = [trace for trace in spec(drawn["subspaces-selectivity"])["data"] if trace["name"] == "Original"]
    assert lines[0]["x"] == ["0", "8", "16"]  # by size, not as text
    assert lines[0]["y"] == pytest.approx([0.8, 0.8 / 9, 0.8 / 17])


def test_without_readings_each_says_how_to_make_them() -> None:
    empty = reading_table(synthetic.readings())
    for make in (figures.subspaces, figures.update_energy, figures.selectivity):
        with pytest.raises(UndoProbeError, match="undo-probe score RUN --also subspaces"):
            make(empty)
