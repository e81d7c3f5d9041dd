"""Records go to JSON and back without loss, and refuse what no reader would understand."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undo_probe.errors import UndoProbeError
from undo_probe.plan import plan
from undo_probe.presets import preset
from undo_probe.records import STAGES, Arm, Curve, Ledger, Reading, Record, Scorecard, reading_table

ARM = Arm("distilled", "maxent", 0.4, seed=3, variant="twin", checkpoint="abc")
READING = Reading(ARM, "accuracy", "forget", "V", layer="blocks.0", value=0.5, low=0.4, high=0.6, n=10)
CURVE = Curve(({"step": 0, "task_split": "forget", "subset": "V", "value": 0.25, "n": 4},), "all steps done")
LEDGER = Ledger(flops=1e12, tokens=3, labelled_tokens=2, steps=1, seconds=0.1, cpu_seconds=0.2)
CARD = Scorecard((READING, READING.replace(value=None, note="no oracle")), {"attacked": False})


@pytest.mark.parametrize("record", [ARM, READING, CURVE, LEDGER, CARD], ids=lambda r: type(r).__name__)
def test_a_record_comes_back_equal_from_json(record: Record) -> None:
    assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record


numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(value=numbers, low=numbers, survival=numbers, note=st.text(), n=st.integers(0, 10**9))
def test_any_finite_reading_comes_back_bit_equal(
    value: float | None, low: float | None, survival: float | None, note: str, n: int
) -> None:
    reading = Reading(ARM, "m", "forget", value=value, low=low, survival=survival, note=note, n=n)
    assert Reading.from_dict(json.loads(json.dumps(reading.to_dict()))) == reading


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "field", ["value", "low", "high", "control_value", "survival", "survival_low", "survival_high"]
)
def test_nan_and_infinity_are_refused_in_every_number(field: str, number: float) -> None:
    with pytest.raises(UndoProbeError, match=f"reading 'accuracy' of {ARM.name}: {field} is .*pass None"):
        READING.replace(**{field: number})


def test_an_unknown_field_is_said_to_come_from_a_newer_version() -> None:
    with pytest.raises(UndoProbeError, match="Arm has no field 'temperature' .*newer undo_probe"):
        Arm.from_dict({"stage": "original", "temperature": 1.0})


def test_an_unknown_stage_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(UndoProbeError, match=f"unknown stage 'destilled': expected one of {STAGES[0]}"):
        Arm("destilled")


def test_replacing_leaves_the_record_as_it_was() -> None:
    changed = ARM.replace(alpha=0.8)
    assert (ARM.alpha, changed.alpha, changed.variant) == (0.4, 0.8, "twin")


@pytest.mark.parametrize("name", ["tiny", "small", "smoke"])
def test_every_arm_of_a_run_has_a_name_and_a_label_of_its_own(name: str) -> None:
    arms = [step.arm for step in plan(preset(name))]
    assert len({arm.name for arm in arms}) == len(arms)
    assert len({arm.label for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("arm", "name", "label"),
    [
        (Arm("original"), "original", "Original"),
        (Arm("original", variant="b"), "original-b", "Original (b)"),
        (Arm("oracle_matched"), "oracle_matched", "Oracle (matched)"),
        (Arm("unlearned", "maxent"), "unlearned-maxent", "MaxEnt"),
        (Arm("unlearned", "rmu", variant="placebo"), "unlearned-rmu-placebo", "RMU (placebo)"),
        (Arm("noised", "maxent", 0.4), "noised-maxent-0.4", "Noised 0.4"),
        (Arm("noised", "maxent", 0.4, variant="twin"), "noised-maxent-0.4-twin", "Noised twin 0.4"),
        (
            Arm("noised", "maxent", 0.4, variant="noise 2"),
            "noised-maxent-0.4-noise 2",
            "Noised 0.4 (noise 2)",
        ),
        (Arm("distilled", "maxent", 0.4), "distilled-maxent-0.4", "UNDO 0.4"),
        (Arm("distilled", "maxent", 0.0), "distilled-maxent-0", "UNDO 0"),
        (Arm("distilled", "maxent", 0.4, variant="twin"), "distilled-maxent-0.4-twin", "Twin 0.4"),
        (Arm("distilled", "maxent", variant="fresh"), "distilled-maxent-fresh", "Unlearn-and-Distill"),
    ],
)
def test_names_and_labels_read_as_documented(arm: Arm, name: str, label: str) -> None:
    assert (arm.name, arm.label) == (name, label)


def test_ledgers_add_field_by_field() -> None:
    assert LEDGER + LEDGER == Ledger(2e12, 6, 4, 2, 0.2, 0.4)
    assert LEDGER + Ledger() == LEDGER


def test_the_table_has_one_line_a_reading_and_its_columns_even_when_empty() -> None:
    table = CARD.table()
    assert len(table) == 2
    assert table.loc[0, "stage"] == "distilled"
    assert table.loc[0, "value"] == 0.5
    assert list(reading_table([]).columns) == list(table.columns) == list(READING.row())
    assert "<table" in CARD._repr_html_()
