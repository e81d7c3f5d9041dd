"""The verdict in plain words: what was removed, what was only hidden, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undo_probe.records import Arm, Reading
from undo_probe.report import paragraphs
from undo_probe.report.otherwise import otherwise
from undo_probe.report.recovered import recovered_gap, recovered_headline
from undo_probe.report.story import LEARNED, Story, judge, story_of, value_of
from undo_probe.report.words import percent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Verdict:
    """A headline that can stand alone, the paragraphs that carry it (a lead and a text each), and the limits."""

    headline: str
    paragraphs: tuple[tuple[str, str], ...] = ()
    limits: tuple[str, ...] = ()


def verdict(
    readings: "pd.DataFrame", run: Mapping[str, Any] | None = None, card: Mapping[str, Any] | None = None
) -> Verdict:
    """Say in plain words what the readings of one run show.

    Args:
        readings: The table of a run's readings.
        run: What ``run.json`` says, for chance levels and the seed.
        card: The ``verdict`` of its scorecard: the probed layer and the simultaneous bounds.
    """
    story, card = story_of(readings, run or {}), card or {}
    if story.teacher is None or story.original is None:
        return Verdict("There is nothing to say yet: no unlearned model has been scored.")
    told = (
        *_by_teacher(readings, story),
        ("Noised and distilled", paragraphs.removed(story)),
        ("Attacked otherwise", otherwise(readings, story)),
        ("Inside", paragraphs.inside(readings, story, str(card.get("inner_layer") or ""))),
        ("Junk direction", paragraphs.junk(readings, story)),
        ("All together", paragraphs.together(story, card.get("headline") or {})),
        ("Price", paragraphs.price(readings, story)),
    )
    kept = tuple((lead, text) for lead, text in told if text)
    headline = recovered_headline(readings, story) if story.matched is None else ""
    return Verdict(headline or _headline(story), kept, tuple(_limits(story, run or {})))


def _by_teacher(readings: "pd.DataFrame", story: Story) -> Sequence[tuple[str, str]]:
    """What unlearning did; of finished models that were given, for each of them."""
    if not story.words.given or len(story.unlearned) < 2:
        return (
            ("Suppressed", paragraphs.suppression(story)),
            ("Attacked", paragraphs.hidden(readings, story)),
            ("Without an oracle", recovered_gap(readings, story)),
        )
    found = []
    for arm in story.unlearned:
        own = replace(story, teacher=arm)
        parts = (paragraphs.suppression(own), paragraphs.hidden(readings, own), recovered_gap(readings, own))
        found.append((arm.label, " ".join(part for part in parts if part)))
    return found


def _headline(story: Story) -> str:
    teacher = story.teacher
    if teacher is None:
        return ""
    if not story.relearned:
        return f"What {teacher.label} removed and what it only hid is not known yet: no attack has been run."
    known = value_of(story, story.original, "forget", "V")
    if known is not None and known < (story.chance or 0.0) + LEARNED:
        return f"The original never learned {story.words.forget}, so this run says nothing about removing it."
    open_share = value_of(story, teacher, "forget", "V")
    floor = (story.chance or 0.0) + LEARNED
    if open_share is not None and open_share > floor:
        first = f"{teacher.label} left {percent(open_share)} of {story.words.forget} in plain sight"
    else:
        first = _first(teacher.label, story.words.forget, story.relearned.get(teacher))
    second = _second(story.students[-1], story.relearned.get(story.students[-1])) if story.students else ""
    return f"{first}. {second}." if second else f"{first}."


def _first(name: str, what: str, reading: Reading | None) -> str:
    return {
        "hidden": f"{name} hid {what}; it did not remove what the model knew",
        "removed": f"{name} removed {what}, as far as this attack can tell",
        "partly": f"{name} removed part of {what} and hid the rest",
        "unclear": f"Whether {name} removed {what} or hid it is not settled by this run",
        "weak": f"The range of this run is too weak to say what share of {what} {name} removed",
        "none": f"This run cannot say what {name} removed: attacked, the original and the matched oracle score alike",
        "unknown": f"{name} suppressed {what}; no survival could be computed for it",
    }[judge(reading)]


def _second(student: Arm, reading: Reading | None) -> str:
    name = student.label.replace("UNDO ", "UNDO at α = ")
    low, high = (reading.survival_low, reading.survival_high) if reading else (None, None)
    return {
        "removed": f"{name} removed it, as far as this attack can tell",
        "hidden": f"{name} did not remove it either",
        "partly": f"{name} removed part of it: between {percent(low)} and {percent(high)} is left",
        "unclear": f"{name} left at most {percent(high)} of that",
    }.get(judge(reading), "")


def _limits(story: Story, run: Mapping[str, Any]) -> Sequence[str]:
    """What the paragraphs above must not be taken to say."""
    seed = run.get("seed")
    which = f" (seed {seed})" if seed is not None else ""
    found = [story.words.scored] if story.words.scored else []
    found += [
        f"This is one run{which}, and one seed is one model: an interval says how sure a figure is for the models of "
        "this run, over families, and not how the method would do with another seed."
    ]
    if story.words.given:
        oracle = (
            " The oracle that was given stands where a matched oracle does elsewhere."
            if story.matched
            else ""
        )
        found.append(f"The models were given: nothing is known here of how they were trained.{oracle}")
    if story.relearned:
        found.append(
            "“Removed” means that this attack and linear probes found nothing beyond the matched oracle; "
            "a stronger attack, or a probe of another kind, might."
        )
    if story.relearned and story.matched is None:
        found.append("There is no matched oracle in this run, so nothing here is anchored at zero.")
    return found
