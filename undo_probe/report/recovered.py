"""A run without oracles: which share of what unlearning took away an attacked model has."""

from typing import TYPE_CHECKING

from undo_probe.figures.tables import readings_of
from undo_probe.records import Arm, Reading
from undo_probe.report.story import MOST, Story, value_of
from undo_probe.report.words import listed, percent, percent_interval

if TYPE_CHECKING:
    import pandas as pd


def recovered_headline(readings: "pd.DataFrame", story: Story) -> str:
    """What can be said of the teacher in one line; empty where the scale has no range."""
    teacher = story.teacher
    found = _found(readings).get(teacher) if teacher else None
    if teacher is None or found is None or found.value is None:
        return ""
    what = story.words.forget
    if found.low is not None and found.low >= MOST:
        return f"{teacher.label} hid {what}: the attack brings {percent(found.value)} of what had gone back."
    return f"Of what {teacher.label} took from {what}, the attack brings back {percent_interval(found)}."


def recovered_gap(readings: "pd.DataFrame", story: Story) -> str:
    """The paragraph on the scale from the teacher to the original, both before any attack."""
    found, teacher = _found(readings), story.teacher
    if teacher not in found or teacher is None:
        return ""
    text = (
        "The original was loaded and not trained here: no model of this run learned everything but the forgotten, so "
        "survival has no zero. "
    )
    before, after = (value_of(story, arm, "forget", "V") for arm in (story.original, teacher))
    if found[teacher].value is None:
        return (
            f"{text}{teacher.label} took too little away to measure what comes back ({found[teacher].note})."
        )
    arms = [arm for arm in (teacher, *story.students) if arm in found and found[arm].value is not None]
    shares = listed([f"{percent_interval(found[arm])} after {arm.label}" for arm in arms])
    gap = f" (from {percent(before)} to {percent(after)})" if before is not None and after is not None else ""
    text += f"Of what {teacher.label} took away{gap}, an attacked model has {shares}."
    floor = next((reading for arm, reading in found.items() if arm.stage == "random"), None)
    if floor is not None and floor.value is not None:
        text += f" The untrained model, attacked alike, has {percent(floor.value)}: the attack teaches that by itself."
    return text


def _found(readings: "pd.DataFrame") -> dict[Arm, Reading]:
    return {reading.arm: reading for reading in readings_of(readings, "recovered_gap", "forget")}
