"""The verdict says what the readings allow, and no more."""

import re

import pandas as pd
import pytest

from tests.report import synthetic
from undo_probe.records import Arm, Reading, TaskWords, reading_table
from undo_probe.report.story import judge
from undo_probe.report.verdict import Verdict, verdict
from undo_probe.report.words import listed, percent

RUN = synthetic.run_record()


@pytest.fixture(scope="module")
def readings() -> pd.DataFrame:
    return reading_table(synthetic.readings())


def text_of(said: Verdict) -> str:
    return " ".join([said.headline, *(text for _, text in said.paragraphs), *said.limits])


@pytest.mark.parametrize(
    ("low", "high", "gate", "expected"),
    [
        (0.75, 0.92, "ok", "hidden"),
        (0.2, 0.6, "ok", "partly"),
        (-0.05, 0.08, "ok", "removed"),
        (-0.3, -0.1, "ok", "removed"),
        (-0.05, 0.2, "ok", "unclear"),
        (0.05, 0.9, "ok", "unclear"),
        (0.75, 0.92, "weak range", "weak"),
        (0.75, 0.92, "no range", "none"),
        (None, None, "ok", "unknown"),
    ],
)
def test_the_interval_decides_and_not_the_point(
    low: float | None, high: float | None, gate: str, expected: str
) -> None:
    reading = Reading(
        Arm("unlearned", "maxent"),
        "relearned",
        "forget",
        value=0.5,
        survival_low=low,
        survival_high=high,
        gate=gate,
    )
    assert judge(reading) == expected


def test_the_story_of_the_prototype_is_told(readings: pd.DataFrame) -> None:
    said = verdict(readings, RUN, synthetic.scored())
    assert said.headline == (
        "MaxEnt hid multiplication and division; it did not remove what the model knew. "
        "UNDO at α = 0.8 left at most 14% of that."
    )
    text = text_of(said)
    assert "340 questions in 74 families" in text
    assert "88% (95% interval 79 to 94%)" in text
    assert "one seed is one model" in text
    assert "still answers 96%" in text and "the teacher’s silence" in text
    assert "a remainder of up to 14% is not excluded" in text
    assert "Even a clean model does not reach 100%" in text


def test_sides_and_targets_are_called_what_the_run_calls_them(readings: pd.DataFrame) -> None:
    words = TaskWords(forget="the towns", retain="the rivers", targets={"first_digit": "initial"}).to_dict()
    named = {**RUN, "task": {**RUN["task"], "words": words}}
    said = verdict(readings, named, synthetic.scored())
    assert said.headline.startswith("MaxEnt hid the towns;")
    assert "of the questions on the towns" in text_of(said) and "The rivers then stand at" in text_of(said)
    assert "linear probe for the initial of the answer" in text_of(said)
    assert "multiplication" not in text_of(said) and "subtraction" not in text_of(said)


@pytest.mark.parametrize("gate", ["weak range", "no range"])
def test_behind_a_closed_gate_no_survival_is_printed(gate: str) -> None:
    said = verdict(reading_table(synthetic.readings(gate=gate)), RUN)
    text = text_of(said)
    assert "S =" not in text
    assert "hid multiplication" not in said.headline and "removed it" not in said.headline
    assert ("too weak" in said.headline) if gate == "weak range" else ("cannot say" in said.headline)
    assert "88%" in text, "raw values stay"


def test_without_an_attack_nothing_is_called_removed(readings: pd.DataFrame) -> None:
    said = verdict(readings.loc[readings["measure"] == "accuracy"], RUN)
    assert "not known yet" in said.headline
    assert "hid" not in text_of(said).replace("hidden", "").replace("only hid", "")


def test_a_removed_capability_and_an_open_one_are_called_so(readings: pd.DataFrame) -> None:
    low = readings.assign(
        survival_low=readings["survival_low"] - 1, survival_high=readings["survival_high"] - 1
    )
    assert verdict(low, RUN).headline.startswith("MaxEnt removed multiplication and division, as far as")
    speaks = (
        (readings["measure"] == "accuracy")
        & (readings["method"] == "maxent")
        & (readings["stage"] == "unlearned")
    )
    loud = readings.assign(value=readings["value"].where(~speaks, 0.7))
    assert "left 70% of multiplication and division in plain sight" in verdict(loud, RUN).headline


def test_a_model_that_never_learned_is_not_judged(readings: pd.DataFrame) -> None:
    original = (readings["measure"] == "accuracy") & (readings["stage"] == "original")
    said = verdict(readings.assign(value=readings["value"].where(~original, 0.05)), RUN)
    assert "never learned" in said.headline
    assert "twin" not in text_of(said).lower()


def test_no_readings_no_verdict(readings: pd.DataFrame) -> None:
    assert "nothing to say yet" in verdict(readings.head(0), RUN).headline
    assert verdict(readings.head(0)).paragraphs == ()


def test_the_probed_layer_is_the_one_the_scorecard_chose(readings: pd.DataFrame) -> None:
    inside = dict(verdict(readings, RUN, {"inner_layer": "blocks.0.hook_resid_post"}).paragraphs)["Inside"]
    assert "after block 0" in inside
    assert "after block 1" in dict(verdict(readings, RUN).paragraphs)["Inside"]


def test_an_attacker_who_keeps_the_model_usable_is_reported_too(readings: pd.DataFrame) -> None:
    attacked = dict(verdict(readings, RUN).paragraphs)["Attacked"]
    assert "must keep 90% of the retain accuracy brings MaxEnt to 85%" in attacked


def test_a_control_that_does_as_well_takes_the_junk_direction_its_meaning(readings: pd.DataFrame) -> None:
    said = dict(verdict(readings, RUN).paragraphs)["Junk direction"]
    assert said.endswith("the best control direction gives 11%.")
    placebo = (readings["measure"] == "ablated_accuracy") & (readings["subset"] == "placebo")
    strong = readings.assign(value=readings["value"].where(~placebo, 0.6))
    assert (
        "nothing here is special to the junk direction"
        in dict(verdict(strong, RUN).paragraphs)["Junk direction"]
    )


def test_a_student_above_the_oracle_is_not_said_to_be_like_it(readings: pd.DataFrame) -> None:
    strongest = (readings["stage"] == "distilled") & (readings["alpha"] == 0.8) & (readings["variant"] == "")
    at_end = strongest & (readings["measure"] == "relearned") & (readings["subset"] == "step 200")
    for low, expected in ((-0.04, "it is not told apart from"), (0.04, "it lies above")):
        changed = readings.assign(
            survival_low=readings["survival_low"].where(~at_end, low),
            survival_high=readings["survival_high"].where(~at_end, 0.15),
        )
        said = dict(verdict(changed, RUN).paragraphs)["Noised and distilled"]
        assert f"{expected} a model that never knew the answers" in said
        assert "a remainder of up to 15% is not excluded" in said


def test_what_noise_alone_removes_is_not_credited_to_the_teacher(readings: pd.DataFrame) -> None:
    untouched = (readings["variant"] == "twin") & (readings["subset"] == "W")
    said = text_of(verdict(readings.assign(value=readings["value"].where(~untouched, 0.29)), RUN))
    assert "it keeps only 29%: what distillation does not exercise, the noise removes by itself" in said
    assert "the noise removes by itself" not in text_of(verdict(readings, RUN))


def test_numbers_read_as_a_reader_says_them() -> None:
    shares = (0.0, 0.004, 0.0951, 0.12, 0.994, 1.0)
    assert " ".join(map(percent, shares)) == "0% 0.4% 9.5% 12% 99.4% 100%"
    assert percent(-0.06) == "\u22126%"
    assert listed(["a", "b", "c"]) == "a, b and c"


def otherwise(readings: pd.DataFrame, *attacks: str) -> str:
    said = verdict(synthetic.with_recoveries(readings, attacks), RUN)
    return dict(said.paragraphs).get("Attacked otherwise", "")


def test_every_further_attack_has_a_sentence_with_teacher_student_and_matched_oracle(
    readings: pd.DataFrame,
) -> None:
    text = otherwise(
        readings, "mixed", "dose-1", "dose-80", "lora-4", "quantised-8", "quantised-4", "pruned-0.3"
    )
    # everything is half of what relearning brings back: .88, .17 and .15
    assert "Relearning with retain rows mixed in brings MaxEnt to 44% (95% interval" in text
    assert re.search(r"Relearning on 1 of T’s families brings MaxEnt to 44% \([^)]*\), on 80 to 44% \(", text)
    assert "Relearning through a LoRA of rank 4 brings MaxEnt to 44%" in text
    assert re.search(
        r"Rounding the weights to 8 bits, .* MaxEnt to 44% \([^)]*\), rounding to 4 bits to 44%", text
    )
    assert "Setting the smallest 30% of the weights to zero" in text
    for sentence in text.split(". ")[:5]:
        assert re.search(r"; UNDO 0.8 to 8.5% \([^)]*\), the matched oracle to 7.5% \(", sentence), sentence
    assert otherwise(readings) == ""


def test_few_shots_stand_beside_the_same_questions_solved_at_random(readings: pd.DataFrame) -> None:
    attacks = ("few_shot-1", "few_shot-8", "few_shot_random-8", "few_shot", "few_shot_random")
    text = otherwise(readings, *attacks)
    assert text.startswith(
        "Shown up to 8 solved questions of T first, without training, MaxEnt answers 44% (95%"
    )
    assert re.search(r"\), and 44% \([^)]*\) where they are solved at random; UNDO 0.8 8.5% \(", text)
    assert "solved at random" not in otherwise(readings, "few_shot-8", "few_shot")


def test_an_attack_under_which_the_student_surely_lies_above_the_oracle_is_named(
    readings: pd.DataFrame,
) -> None:
    table = synthetic.with_recoveries(readings, ("mixed", "lora-4"))
    assert "Part of it survives" not in dict(verdict(table, RUN).paragraphs)["Attacked otherwise"]
    student = (table["measure"] == "after_lora-4") & (table["alpha"] == 0.8) & (table["variant"] == "")
    table.loc[student, ["survival", "survival_low", "survival_high"]] = (0.4, 0.3, 0.5)
    text = dict(verdict(table, RUN).paragraphs)["Attacked otherwise"]
    assert "Part of it survives in UNDO 0.8 under 1 of 2 of these (T, LoRA rank 4)" in text
    assert "one may stand out by chance" in text


def test_the_verdict_on_running_text_speaks_of_no_questions(readings: pd.DataFrame) -> None:
    words = TaskWords(forget="Korean", retain="English", targets={}, scored="bits").to_dict()
    table = synthetic.with_recoveries(readings)
    said = verdict(table, {**RUN, "task": {**RUN["task"], "words": words}}, synthetic.scored())
    assert "question" not in text_of(said).lower()
    assert "bits saved on forget text" in text_of(said)
