"""What a verdict is made of: the arms of the story, their readings, and how each is judged."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.figures.tables import last_step, readings_of
from undo_probe.records import Arm, Reading, TaskWords
from undo_probe.report.folder import words_of

if TYPE_CHECKING:
    import pandas as pd

EQUAL = 0.10
"""Survival within this of 0 counts as removed: the margin that the run's equivalence tests use."""
LEARNED = 0.10
"""Accuracy this far above the best constant answer counts as knowing something."""
MOST = 0.50
"""Survival surely above this counts as hidden rather than removed."""


@dataclass(frozen=True)
class Story:
    """What the verdict is made of, picked from the readings once."""

    teacher: Arm | None
    unlearned: tuple[Arm, ...]
    students: tuple[Arm, ...]
    original: Arm | None
    matched: Arm | None
    twins: tuple[Arm, ...]
    accuracy: dict[tuple[Arm, str, str], Reading]
    relearned: dict[Arm, Reading]
    words: TaskWords
    chance: float | None


def story_of(readings: "pd.DataFrame", run: Mapping[str, Any]) -> Story:
    """Pick from the readings what the verdict tells."""
    accuracy = {
        (r.arm, r.task_split, r.subset): r for r in readings_of(readings, "accuracy") if r.value is not None
    }
    relearned = last_step(readings_of(readings, "relearned", "forget"))
    arms = list(dict.fromkeys([key[0] for key in accuracy] + list(relearned)))
    students = sorted(
        (arm for arm in arms if arm.stage == "distilled" and not arm.variant and arm.alpha is not None),
        key=lambda arm: arm.alpha or 0.0,
    )
    unlearned = [arm for arm in arms if arm.stage == "unlearned" and not arm.variant]
    teachers = [arm for arm in unlearned if students and arm.method == students[0].method] or unlearned
    forget = [subset for _, split, subset in accuracy if split == "forget"]
    task = run.get("task") or {}
    chances = [share for symbol, share in (task.get("chance") or {}).items() if symbol in forget]
    guessed = next(
        (r.control_value for (_, _, subset), r in accuracy.items() if subset == "V" and r.control_value), None
    )
    return Story(
        teacher=teachers[0] if teachers else None,
        unlearned=tuple(unlearned),
        students=tuple(students),
        original=next((arm for arm in arms if arm.stage == "original" and not arm.variant), None),
        matched=next((arm for arm in arms if arm.stage == "oracle_matched" and not arm.variant), None),
        twins=tuple(arm for arm in arms if arm.variant == "twin" and arm.stage == "distilled"),
        accuracy=accuracy,
        relearned=relearned,
        words=words_of(run),
        chance=sum(chances) / len(chances) if guessed is None and chances else guessed,
    )


def judge(reading: Reading | None) -> str:
    """``removed``, ``hidden``, ``partly``, ``unclear``, or why there is no answer: ``weak``, ``none``, ``unknown``."""
    if reading is None or reading.value is None:
        return "unknown"
    if "no range" in reading.gate:
        return "none"
    if "weak" in reading.gate:
        return "weak"
    low, high = reading.survival_low, reading.survival_high
    if low is None or high is None:
        return "unknown"
    if high <= EQUAL:
        return "removed"
    if low >= MOST:
        return "hidden"
    return "partly" if low > EQUAL else "unclear"


def value_of(story: Story, arm: Arm | None, split: str, subset: str) -> float | None:
    """The accuracy of an arm on a subset before any attack; None where it was not measured."""
    reading = story.accuracy.get((arm, split, subset)) if arm is not None else None
    return reading.value if reading is not None else None
