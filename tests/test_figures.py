"""Figures: fixed looks, honest words, safe text, and nothing that asks a network."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report import synthetic
from undo_probe import figures
from undo_probe.errors import UndoProbeError
from undo_probe.figures import Figure, look
from undo_probe.figures.figure import script_json, table_html
from undo_probe.figures.layout import Panels, beside, spread
from undo_probe.figures.tables import lines_of, thinned
from undo_probe.records import Arm, TaskWords, reading_table

HOSTILE = '<img src=x onerror="alert(1)">&lt;</script>\u2028{{7*7}}'


@pytest.fixture(scope="module")
def readings() -> pd.DataFrame:
    return reading_table(synthetic.readings())


@pytest.fixture(scope="module")
def curves() -> pd.DataFrame:
    return synthetic.curves()


@pytest.fixture(scope="module")
def every_figure(readings: pd.DataFrame, curves: pd.DataFrame) -> list[Figure]:
    probes = [figures.probes(readings, q, s) for q in ("bits", "accuracy") for s in ("forget", "retain")]
    others = [figures.tradeoff, figures.drift_layers, figures.drift_positions, figures.junk]
    drawn = [figures.relearning(curves, readings), figures.attacks(curves), figures.training(curves)]
    drawn.append(figures.lengths(*with_lengths(readings, curves)))
    drawn.append(figures.variations(with_variations(readings)))
    drawn.append(figures.recoveries(synthetic.with_recoveries(readings)))
    return [*drawn, *(draw(readings) for draw in others), *probes]


def spec(figure: Figure) -> dict[str, Any]:
    return json.loads(figure.spec())


def test_every_figure_says_what_to_look_for_and_what_would_have_shown_the_opposite(
    every_figure: list[Figure],
) -> None:
    assert len({figure.name for figure in every_figure}) == len(every_figure)
    for figure in every_figure:
        assert "Look" in figure.caption, figure.name
        assert len(figure.opposite) > 40, figure.name
        assert not figure.table.empty, figure.name
        assert spec(figure)["data"], figure.name


def test_no_figure_offers_to_send_itself_anywhere(every_figure: list[Figure], tmp_path: Path) -> None:
    for figure in every_figure:
        config = spec(figure)["config"]
        assert config["showSendToCloud"] is False
        assert config["plotlyServerURL"] == ""
        assert config["displaylogo"] is False
    shown = every_figure[0]._repr_html_()
    assert "showSendToCloud" in shown
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", shown)
    page = every_figure[0].save(tmp_path / "one.html").read_text()
    assert '"showSendToCloud": false' in page
    assert "default-src 'none'" in page


def test_an_arm_looks_the_same_in_every_figure(every_figure: list[Figure]) -> None:
    seen: dict[str, set[tuple[str, str]]] = {}
    for figure in every_figure:
        if figure.name in ("relearning", "attacks", "tradeoff"):
            for trace in spec(figure)["data"]:
                if "symbol" in trace.get("marker", {}):
                    name = trace["name"].removesuffix(" (data filtering)")
                    seen.setdefault(name, set()).add((trace["marker"]["color"], trace["marker"]["symbol"]))
    assert len(seen) > 10
    assert all(len(looks) == 1 for looks in seen.values()), seen


def test_no_two_arms_differ_by_colour_alone() -> None:
    drawn = [look.look(arm) for arm in synthetic.arms().values()]
    assert len({(one.marker, one.dash) for one in drawn}) == len(drawn)


def test_the_look_depends_on_the_arm_and_not_on_its_checkpoint_or_company() -> None:
    assert look.look(Arm("distilled", "maxent", 0.4, 1, "", "a")) == look.look(
        Arm("distilled", "maxent", 0.4, 2)
    )
    assert look.look(Arm("distilled", "maxent", 0.4)) != look.look(
        Arm("distilled", "maxent", 0.4, variant="twin")
    )


def test_text_from_outside_stays_text(curves: pd.DataFrame) -> None:
    figure = figures.relearning(curves.assign(method=curves["method"].replace("rmu", HOSTILE)))
    text = figure.spec()
    assert "<" not in text and "\u2028" not in text
    names = [trace["name"] for trace in json.loads(text)["data"] if "name" in trace]
    hostile = [name for name in names if "onerror" in name]
    assert hostile and all("<" not in name for name in hostile)
    table = table_html(figure.table)
    assert "<img" not in table and "&lt;img" in table


def test_unseen_characters_are_shown_as_such() -> None:
    assert look.clean("a\x00b\u202ec\ud800d") == "a\ufffdb\ufffdc\ufffdd"
    assert look.plain("<b>&amp;") == "&lt;b&gt;&amp;amp;"


def test_json_for_a_page_cannot_leave_its_element() -> None:
    text = script_json({"a": "</script><!--&\u2029"})
    assert not set("<>&\u2029") & set(text)
    assert json.loads(text) == {"a": "</script><!--&\u2029"}


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=2000, unique=True))
def test_a_thinned_curve_keeps_its_ends_and_its_order(steps: list[int]) -> None:
    kept = thinned(sorted(steps))
    assert len(kept) <= 300
    assert set(kept) <= set(steps)
    assert (kept[0], kept[-1]) == (min(steps), max(steps))
    assert kept == sorted(set(kept))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=14))
def test_labels_keep_apart_in_order_and_inside(values: list[float]) -> None:
    places = spread(values, 0.05, 0.0, 1.0)
    order = sorted(range(len(values)), key=lambda at: (values[at], at))
    steps = [places[b] - places[a] for a, b in zip(order, order[1:], strict=False)]
    assert all(step > 0.05 - 1e-9 for step in steps)
    assert min(places) > -1e-9 and max(places) < 1 + 1e-9


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([0.2, 0.9, 0.5], 0.05, 0.0, 1.0) == pytest.approx([0.2, 0.9, 0.5])


def test_names_cover_neither_points_nor_each_other() -> None:
    points = [(100.0, 100.0), (110.0, 105.0), (125.0, 98.0), (104.0, 92.0)]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points]
    offsets = beside(points, [60.0] * 4, taken)
    boxes = [
        (x + dx if dx > 0 else x + dx - 60, y + dy - 8, x + dx + 60 if dx > 0 else x + dx, y + dy + 8)
        for (x, y), (dx, dy) in zip(points, offsets, strict=True)
    ]
    everything = [*taken, *boxes]
    for one, a in enumerate(everything):
        for b in everything[len(taken) : one]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_panels_never_overlap() -> None:
    for columns in (1, 2, 3, 4):
        boxes = Panels(["title"] * 7, columns=columns, panel_height=100).domains(columns)
        for one, (ax, ay) in enumerate(boxes):
            for bx, by in boxes[:one]:
                assert ax[0] >= bx[1] or bx[0] >= ax[1] or ay[0] >= by[1] or by[0] >= ay[1]
            assert 0 <= ax[0] < ax[1] <= 1 and 0 <= ay[0] < ay[1] <= 1


def test_phone_layouts_name_what_is_there(every_figure: list[Figure]) -> None:
    for figure in every_figure:
        drawn = spec(figure)
        for path in figure.narrow:
            first, *_ = path.split(".")
            known = (
                first in drawn or first in drawn["layout"] or first in ("annotations", "legend", "showlegend")
            )
            assert known, f"{figure.name}: {path}"


def test_a_curve_of_several_attack_seeds_is_their_mean_with_the_widest_interval(curves: pd.DataFrame) -> None:
    second = curves.assign(attack_seed=1, value=curves["value"] + 0.2, high=2.0, low=-1.0)
    both = lines_of(pd.concat([curves, second]), "cumulative_max")
    for one, line in zip(lines_of(curves, "cumulative_max"), both, strict=True):
        assert line.values == pytest.approx([value + 0.1 for value in one.values])
        assert set(line.lows) == {-1.0} and set(line.highs) == {2.0}


def test_the_lead_figure_takes_intervals_from_the_readings_where_the_curves_have_none(
    readings: pd.DataFrame, curves: pd.DataFrame
) -> None:
    bare = curves.drop(columns=["low", "high"])
    assert set(figures.relearning(bare).table["95% interval at the end"]) == {"–"}
    assert "–" not in set(figures.relearning(bare, readings).table["95% interval at the end"])


def test_many_layers_are_drawn_in_part_and_all_are_in_the_table(readings: pd.DataFrame) -> None:
    deep = [readings.assign(layer=readings["layer"].where(readings["layer"].isna(), f"blocks.{n}.hook_resid_post"))
            for n in range(12)]  # fmt: skip
    figure = figures.probes(pd.concat(deep))
    assert "5 of 12 layers" in figure.caption
    assert sum("after block" in column and "," not in column for column in figure.table.columns) == 12


def test_a_failed_probe_control_is_said_in_the_caption(readings: pd.DataFrame) -> None:
    bits = readings["measure"] == "probe_bits"
    failed = readings.assign(
        note=readings["note"].where(~bits, "prompt-only .33; control fails: over-fitted")
    )
    assert "control of shuffled labels failed" in figures.probes(failed).caption
    assert "failed" not in figures.probes(readings).caption


def test_drift_compares_undo_with_its_distilled_twin(readings: pd.DataFrame) -> None:
    noised = readings[(readings["stage"] == "noised") & (readings["alpha"] == 0.8)].assign(
        variant="twin", value=9.0
    )
    with_noised = figures.drift_layers(pd.concat([noised, readings]))
    assert "9.00" not in with_noised.caption
    assert re.search(r"UNDO 0.8 lies 0\.9\d .* its twin 0\.8\d", with_noised.caption)


def test_twins_and_placebos_have_no_place_in_the_price_figure(readings: pd.DataFrame) -> None:
    twin = readings[readings["measure"] == "compute_share"].assign(variant="twin")
    shown = figures.tradeoff(pd.concat([readings, twin])).table["model"]
    assert "Twin 0.8" not in set(shown)
    assert {"MaxEnt", "UNDO 0.8", "Oracle (data filtering)", "Unlearn-and-Distill"} <= set(shown)


def test_recoveries_has_a_panel_a_model_a_row_an_attack_and_both_anchors_in_each(
    readings: pd.DataFrame,
) -> None:
    figure = figures.recoveries(synthetic.with_recoveries(readings))
    drawn = spec(figure)
    assert list(figure.table["attack"]) == [
        "before any attack", "relearning on T", "T and retain rows", "5 of T’s families", "T, LoRA rank 4",
        "4-bit weights", "pruned by 30%",
    ]  # fmt: skip
    assert drawn["layout"]["yaxis"]["ticktext"] == list(figure.table["attack"])
    titles = [note["text"] for note in drawn["layout"]["annotations"]]
    assert titles[0] == "<b>MaxEnt</b>" and len(titles) > 2
    for index, title in enumerate(titles):
        own = [trace for trace in drawn["data"] if trace["xaxis"] == f"x{index + 1 if index else ''}"]
        names = [trace["name"] for trace in own]
        assert names == ["Original", "Oracle (matched)", re.sub("</?b>", "", title)]
        assert ["error_x" in trace for trace in own] == [False, False, True]
        assert all(trace["y"] == list(range(7)) for trace in own)


def test_recoveries_shows_what_was_read_and_neither_retain_nor_the_limited_value(
    readings: pd.DataFrame,
) -> None:
    data = spec(figures.recoveries(synthetic.with_recoveries(readings)))["data"]
    (teacher,) = [trace for trace in data if trace["name"] == "MaxEnt"]
    relearned = teacher["x"][1]
    assert teacher["x"][2:] == pytest.approx([relearned / 2] * len(synthetic.RECOVERIES))
    own = readings.loc[(readings["method"] == "maxent") & (readings["stage"] == "unlearned")]
    own = own.loc[(own["variant"] == "") & (own["measure"] == "relearned") & (own["subset"] == "step 200")]
    assert [teacher["x"][0], relearned] == pytest.approx([0.04, *own["value"]])
    ends = zip(teacher["x"], teacher["error_x"]["array"], teacher["error_x"]["arrayminus"], strict=True)
    assert all(0 <= value - low <= value + high <= 1 for value, high, low in ends)


def test_few_shot_is_labelled_by_number_and_what_its_control_is(readings: pd.DataFrame) -> None:
    attacks = ("few_shot-1", "few_shot-8", "few_shot_random-8", "few_shot", "few_shot_random")
    shown = figures.recoveries(synthetic.with_recoveries(readings, attacks)).table["attack"]
    assert list(shown)[2:] == [
        "1 solved before it", "8 solved before it", "8 solved at random", "solved questions, best number",
        "the same, solved at random",
    ]  # fmt: skip


def test_figures_of_a_task_scored_in_bits_speak_of_no_questions(
    readings: pd.DataFrame, curves: pd.DataFrame
) -> None:
    words = TaskWords(scored="bits", targets={})
    drawn = [
        figures.relearning(curves, readings, words), figures.recoveries(synthetic.with_recoveries(readings), words),
        figures.variations(with_variations(readings), words), figures.junk(readings, words),
        figures.drift_layers(readings, words), figures.drift_positions(readings, words=words),
        figures.training(curves, words), figures.tradeoff(readings), figures.attacks(curves),
    ]  # fmt: skip
    for figure in drawn:
        text = f"{figure.title} {figure.caption} {figure.opposite} {figure.spec()} {list(figure.table)}"
        assert "question" not in text.lower(), figure.name
    assert "bits saved on forget text" in drawn[0].spec()
    with pytest.raises(UndoProbeError, match="nothing that a probe could be trained to read"):
        figures.probes(readings.query("measure != 'probe_bits'"), words=words)


def test_without_further_attacks_recoveries_says_how_to_ask_for_them(readings: pd.DataFrame) -> None:
    with pytest.raises(UndoProbeError, match=r"no attacks beside relearning .*attack.also=\["):
        figures.recoveries(readings)


def test_curves_of_other_attacks_are_not_taken_for_relearning(curves: pd.DataFrame) -> None:
    others = pd.concat([curves, curves.assign(attack="mixed", value=0.0)])
    for kind in ("rate", "cumulative_max", "training"):
        assert lines_of(others, kind) == lines_of(curves, kind)


def with_lengths(readings: pd.DataFrame, curves: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The made-up run with UNDO 0.4 and 0.8 taught for other lengths and at another rate."""
    reached = readings.loc[(readings["measure"] == "relearned") & (readings["stage"] == "distilled")]
    history = curves.loc[(curves["kind"] == "training") & (curves["stage"] == "distilled")]
    more_readings, more_curves = [readings], [curves]
    for variant, share in (("x0.5", 0.5), ("equal steps", 3.0), ("rate 0.002", 0.7), ("twin", 1.0)):
        for alpha in (0.4, 0.8):
            own = reached.loc[(reached["alpha"] == alpha) & (reached["variant"] == "")]
            more_readings.append(own.assign(variant=variant, value=own["value"] * 0.9))
            path = history.loc[(history["alpha"] == alpha) & (history["variant"] == "")]
            more_curves.append(path.assign(variant=variant, step=(path["step"] * share).astype(int)))
    return pd.concat(more_curves), pd.concat(more_readings)


def test_other_lengths_lie_on_the_line_of_their_alpha_and_other_rates_stand_alone(
    readings: pd.DataFrame, curves: pd.DataFrame
) -> None:
    figure = figures.lengths(*with_lengths(readings, curves))
    shown = set(figure.table["model"])
    assert {"UNDO 0.4", "UNDO 0.4 (x0.5)", "UNDO 0.4 (equal steps)", "UNDO 0.8 (rate 0.002)"} <= shown
    assert not any("Twin" in name for name in shown)
    lines = {trace["name"]: trace for trace in spec(figure)["data"] if trace["mode"] == "lines+markers"}
    assert lines["UNDO 0.4"]["x"] == [300, 600, 1800]
    assert lines["UNDO 0.4"]["text"] == ["UNDO 0.4 (x0.5)", "UNDO 0.4", "UNDO 0.4 (equal steps)"]
    alone = [trace["name"] for trace in spec(figure)["data"] if trace["mode"] == "markers+text"]
    assert alone == ["UNDO 0.4 (rate 0.002)", "UNDO 0.8 (rate 0.002)"]


def with_variations(readings: pd.DataFrame) -> pd.DataFrame:
    """The made-up run with UNDO 0.4 and 0.8 made otherwise, weaker and stronger, and once for another time."""
    students = readings.loc[(readings["stage"] == "distilled") & (readings["variant"] == "")]
    students = students.loc[students["alpha"].isin([0.4, 0.8])]
    kinds = {"shrink only": 0.9, "xavier": 0.5, "round 2": 0.2, "x0.5": 1.0, "noise 2": 1.0, "twin": 1.0}
    made = [students.assign(variant=name, value=students["value"] * share) for name, share in kinds.items()]
    return pd.concat([readings, *made])


def test_students_made_otherwise_stand_below_their_own_alpha(readings: pd.DataFrame) -> None:
    figure = figures.variations(with_variations(readings))
    assert list(figure.table["model"]) == [
        f"UNDO {alpha}{kind}"
        for alpha in ("0.4", "0.8")
        for kind in ("", " (round 2)", " (xavier)", " (shrink only)")
    ]
    after = [t["x"][0] for t in spec(figure)["data"] if t["marker"]["symbol"] == "circle"]
    assert after[1] == pytest.approx(0.2 * after[0])
    assert after[3] == pytest.approx(0.9 * after[0])
    with pytest.raises(UndoProbeError, match=r"arms\.variations.*undo-probe run"):
        figures.variations(readings)


def test_a_run_without_other_lengths_says_how_to_get_them(
    readings: pd.DataFrame, curves: pd.DataFrame
) -> None:
    with pytest.raises(UndoProbeError, match=r"arms\.equal_steps.*`undo-probe run small` makes them"):
        figures.lengths(curves, readings)


@pytest.mark.parametrize("name", ["relearning", "attacks", "training"])
def test_without_curves_the_error_names_the_command(name: str, curves: pd.DataFrame) -> None:
    with pytest.raises(UndoProbeError, match="`undo-probe (attack|run)` makes them"):
        getattr(figures, name)(curves[:0])


@pytest.mark.parametrize("name", ["tradeoff", "probes", "drift_layers", "drift_positions", "junk"])
def test_without_readings_the_error_names_the_command(name: str, readings: pd.DataFrame) -> None:
    with pytest.raises(UndoProbeError, match="`undo-probe score` makes them"):
        getattr(figures, name)(readings[:0])


def test_a_closed_gate_is_named_instead_of_drawn(readings: pd.DataFrame) -> None:
    robust = readings["measure"] == "robustness"
    with pytest.raises(UndoProbeError, match="no scale in this run"):
        figures.tradeoff(readings.assign(value=readings["value"].where(~robust)))


def test_wrong_input_is_named(readings: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="no column 'kind'.*curves.parquet"):
        figures.relearning(readings)
    with pytest.raises(UndoProbeError, match="expected bits or accuracy"):
        figures.probes(readings, "nats")
    with pytest.raises(UndoProbeError, match="ends in .html or .json"):
        figures.tradeoff(readings).save(tmp_path / "figure.pdf")


def test_a_saved_figure_is_plotly_json(readings: pd.DataFrame, tmp_path: Path) -> None:
    saved = json.loads(figures.tradeoff(readings).save(tmp_path / "figure.json").read_text())
    assert {"data", "layout"} <= set(saved)


def test_importing_figures_does_not_import_plotly() -> None:
    code = "import sys, undo_probe.figures, undo_probe.report; print({'plotly', 'pandas', 'jinja2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
