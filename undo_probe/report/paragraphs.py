"""The paragraphs of the verdict, one idea each, in plain words."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from undo_probe.figures.junk import effect
from undo_probe.figures.look import layer_label, layer_order
from undo_probe.figures.said import said
from undo_probe.figures.tables import last_step, number, readings_of, step_of
from undo_probe.records import Arm, Reading
from undo_probe.report.story import EQUAL, LEARNED, MOST, Story, judge, value_of
from undo_probe.report.words import listed, percent, percent_interval, survival_text

if TYPE_CHECKING:
    import pandas as pd


def suppression(story: Story) -> str:
    """What the model says before and after unlearning."""
    teacher, original = story.teacher, story.original
    before = story.accuracy.get((original, "forget", "V")) if original else None
    after = story.accuracy.get((teacher, "forget", "V")) if teacher else None
    if teacher is None or before is None or after is None:
        return ""
    chance = f", {said(story.words).constant} {percent(story.chance)}" if story.chance is not None else ""
    text = (
        said(story.words).original.format(
            value=percent(before.value), what=story.words.forget, counts=_counts(story, before)
        )
        + f" {teacher.label} brings that to {percent_interval(after)}{chance}"
    )
    kept, was = value_of(story, teacher, "retain", "all"), value_of(story, original, "retain", "all")
    if kept is not None and was is not None:
        text += f", and {_moved(story.words.retain, was, kept)}"
    return f"{text}."


def _moved(what: str, was: float, now: float) -> str:
    if abs(was - now) < 0.01:
        return f"leaves {what} at {percent(now)}"
    return f"takes {what} from {percent(was)} to {percent(now)}"


def _counts(story: Story, reading: Reading) -> str:
    clusters = f" in {reading.n_clusters} families" if reading.n_clusters else ""
    return said(story.words).counts.format(n=reading.n, clusters=clusters)


def hidden(readings: "pd.DataFrame", story: Story) -> str:
    """What the attack brings back from the teacher, beside the matched oracle."""
    reading = story.relearned.get(story.teacher) if story.teacher else None
    if story.teacher is None or reading is None:
        return ""
    steps = step_of(reading)
    text = (
        f"Fine-tuning on other forget families for at most {steps} steps brings {story.teacher.label} back to "
        f"{percent_interval(reading)}."
    )
    matched = story.relearned.get(story.matched) if story.matched else None
    if matched is not None:
        text += (
            f" The same attack brings the matched oracle, {said(story.words).matched}, to "
            f"{percent_interval(matched)}."
        )
    return f"{text} {_meaning(reading)}".strip() + _careful(readings, story)


def _careful(readings: "pd.DataFrame", story: Story) -> str:
    """The same for an attacker who must not wreck the model."""
    kept = last_step(readings_of(readings, "relearned_utility", "forget"))
    reading = kept.get(story.teacher) if story.teacher else None
    if reading is None or story.teacher is None:
        return ""
    return (
        f" An attacker who must keep {_utility(reading)} of the retain accuracy brings {story.teacher.label} to "
        f"{percent_interval(reading)}."
    )


def _utility(reading: Reading) -> str:
    """The share of retain accuracy that the reading's note says was to be kept."""
    match = re.search(r"at least (0?\.\d+|1)", reading.note)
    return percent(float(match[1])) if match else "most"


def _meaning(reading: Reading) -> str:
    kind = judge(reading)
    if kind in ("weak", "none"):
        return (
            "After the attack the original and the matched oracle lie too close together "
            + ("to speak of shares with confidence: only raw values are given." if kind == "weak" else
               "to measure anything between them: survival is not given.")
        )  # fmt: skip
    if reading.survival is None:
        return ""
    closing = {
        "hidden": "most of what had gone was hidden, not removed.",
        "partly": "part of what had gone was hidden, not removed.",
        "removed": "what had gone does not come back.",
        "unclear": f"up to {percent(reading.survival_high)} of it may only have been hidden.",
    }.get(kind, "")
    return f"On a scale from 0 (matched oracle) to 1 (original), S = {survival_text(reading)}: {closing}"


def removed(story: Story) -> str:
    """What noise and distillation changed, over alpha."""
    known = [(arm, story.relearned[arm]) for arm in story.students if arm in story.relearned]
    if not known:
        return ""
    alphas = listed([f"{arm.alpha:g}" for arm, _ in known])
    shares = listed([percent(reading.value) for _, reading in known])
    text = f"The same attack then brings back {shares}, at α = {alphas}."
    student, reading = known[-1]
    kind = judge(reading)
    if reading.survival is not None and kind not in ("weak", "none"):
        above, knew = (reading.survival_low or 0.0) > 0, said(story.words).knew
        upper = f"a remainder of up to {percent(reading.survival_high)} is not excluded."
        text += f" At α = {student.alpha:g}, S = {survival_text(reading)}: " + {
            "removed": f"within {EQUAL:.2f} of {knew}.",
            "unclear": f"it lies above {knew}; {upper}"
            if above
            else f"it is not told apart from {knew}, but {upper}",
            "partly": f"at least {percent(reading.survival_low)} of the range is still there.",
            "hidden": "most of it still comes back.",
        }.get(kind, "")
    retain = value_of(story, student, "retain", "all")
    if retain is not None:
        text += f" {story.words.retain.capitalize()} then stand at {percent(retain)}."
    return text + _twin(story)


def _twin(story: Story) -> str:
    twins = [(arm, value_of(story, arm, "forget", "V")) for arm in story.twins]
    known = [(arm, value) for arm, value in twins if value is not None]
    if not known:
        return ""
    arm, value = max(known, key=lambda pair: pair[0].alpha or 0.0)
    start = value_of(story, story.original, "forget", "V") or 0.0
    if start < (story.chance or 0.0) + LEARNED:
        return ""
    meaning = (
        "so it is the teacher’s silence, not the noise, that removes it" if value >= 0.8 * start
        else "so the noise alone already removes part of it"
    )  # fmt: skip
    still = f"{said(story.words).still} {percent(value)}"
    text = f" The twin, given the same noise but taught by the original, {still}: {meaning}."
    untouched = value_of(story, arm, "forget", "W")
    if untouched is not None and untouched < 0.8 * value:
        text += (
            f" On families that distillation never showed it, though, it keeps only {percent(untouched)}: "
            "what distillation does not exercise, the noise removes by itself."
        )
    return text


def inside(readings: "pd.DataFrame", story: Story, layer: str) -> str:
    """Probe bits on the primary target, at the layer chosen on the original."""
    bits = [r for r in readings_of(readings, "probe_bits", "forget") if r.value is not None]
    targets = [target for target in (*story.words.targets, *dict.fromkeys(r.subset for r in bits))]
    target = next((target for target in targets if any(r.subset == target for r in bits)), "")
    at_original = [r for r in bits if r.arm == story.original and r.subset == target]
    if not at_original or story.teacher is None:
        return ""
    why = "chosen on the original beforehand"
    if layer not in {r.layer for r in at_original}:
        why = "where the original shows most"
        layer = max(at_original, key=lambda r: r.value or 0.0).layer or ""
    here = [r for r in bits if r.subset == target]
    at = {r.arm: r for r in here if (r.layer or "") == layer}
    what = f"the {story.words.targets.get(target, target)} of the answer"
    text = f"A linear probe for {what} ({layer_label(layer)}, {why}) finds {_read(story, at)}."
    matched = at.get(story.matched) if story.matched else None
    if matched is not None:
        text += f" The matched oracle, with nothing to hide, gives {_bits(matched)}."
    last = max((r.layer or "" for r in here), key=layer_order)
    if last != layer:
        at_last = {r.arm: r for r in here if (r.layer or "") == last}
        text += f" At the end ({layer_label(last)}): {_read(story, at_last)}."
    return text + _unread(story, at)


def _read(story: Story, at: Mapping[Arm, Reading]) -> str:
    """``1.90 in the original, 0.59 after MaxEnt and 0.09 after UNDO 0.8``."""
    arms = [
        arm for arm in (story.original, story.teacher, *story.students[-1:]) if arm is not None and arm in at
    ]
    units = (" bits", *[""] * len(arms))
    places = ["in the original" if arm == story.original else f"after {arm.label}" for arm in arms]
    return listed(
        [
            f"{number(at[arm].value)}{bits} {place}"
            for arm, place, bits in zip(arms, places, units, strict=False)
        ]
    )


def _unread(story: Story, at: Mapping[Arm, Reading]) -> str:
    """Where the attack brings back what no probe reads, that is worth a sentence."""
    teacher = story.teacher
    probed = at.get(teacher) if teacher else None
    if teacher is None or probed is None or probed.survival_high is None or judge(probed) in ("weak", "none"):
        return ""
    if judge(story.relearned.get(teacher)) != "hidden" or probed.survival_high >= MOST:
        return ""
    return f" So most of what the attack brings back from {teacher.label} is not there for a linear probe to read."


def junk(readings: "pd.DataFrame", story: Story) -> str:
    """What ablating one direction gives back, where a direction was looked for."""
    found = [r for r in readings_of(readings, "ablated_accuracy", "forget") if r.value is not None]
    found = [r for r in found if not r.arm.variant]
    shown = effect(found)
    if shown is None:
        return ""
    before, after, best = shown
    beats = (after.low if after.low is not None else after.value or 0.0) > (best.value or 0.0)
    return (
        f"Ablating the junk direction takes {found[0].arm.label} from {percent(before.value)} to "
        f"{percent_interval(after)} of {said(story.words).scored.format('forget')}; the best control "
        f"direction gives {percent(best.value)}"
        + ("." if beats else ", so nothing here is special to the junk direction.")
    )


def together(story: Story, headline: Mapping[str, Any]) -> str:
    """The simultaneous bound over the measures named beforehand, beside the models that know the answer."""
    arms = headline.get("arms") or {}
    names = {
        arm.name: arm.label
        for arm in (story.teacher, *story.students[-1:], story.original)
        if arm is not None
    }
    names |= {"oracle": "the oracle", "oracle-b": "a second oracle", "original-b": "a second original"}
    bounds = {name: (arms.get(name) or {}).get("erased_at_least") for name in names}
    shown = [
        f"{names[name]} {percent(max(0.0, bound))}" for name, bound in bounds.items() if bound is not None
    ]
    count = len(headline.get("measures") or [])
    if len(shown) < 2:
        return ""
    return (
        f"Over {count} measures fixed beforehand, the least that is erased, with 95% confidence for all at once: "
        f"{listed(shown)}. Even a clean model does not reach 100%: the oracle’s figure is the one to compare with."
    )


def _bits(reading: Reading) -> str:
    if reading.low is None or reading.high is None:
        return number(reading.value)
    return f"{number(reading.value)} (95% interval {number(reading.low)} to {number(reading.high)})"


def price(readings: "pd.DataFrame", story: Story) -> str:
    """What the strongest setting cost, against leaving the data out."""
    shares = {r.arm: r.value for r in readings_of(readings, "compute_share") if r.value is not None}
    known = [(arm, shares[arm]) for arm in story.students if arm in shares]
    if not known:
        return ""
    arm, share = known[-1]
    dear = ": leaving the data out and starting again would have been cheaper" if share > 1 else ""
    return f"{arm.label} cost {percent(share)} of the compute of training afresh without the data{dear}."
