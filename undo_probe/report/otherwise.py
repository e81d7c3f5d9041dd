"""The verdict's paragraph on the attacks beside relearning: what each brings back, with its interval."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from undo_probe.figures.recoveries import attacks_found, label_of, number_of
from undo_probe.records import Arm, Reading
from undo_probe.report.story import Story, judge
from undo_probe.report.words import listed, percent_interval

if TYPE_CHECKING:
    import pandas as pd

# how a sentence begins, and how it goes on with the last of several numbers
_BEGINS: dict[str, tuple[str, str]] = {
    "mixed": ("Relearning with retain rows mixed in", ""),
    "retain_only": ("Training on retain rows alone", ""),
    "noised": ("Relearning after noise of the attacker’s own", ""),
    "dose": ("Relearning on {} of T’s families", "on {}"),
    "lora": ("Relearning through a LoRA of rank {}", "of rank {}"),
    "subspace": ("Relearning in a random subspace of dimension {}", "of dimension {}"),
    "block": ("Relearning in block {} alone", "in block {} alone"),
    "quantised": ("Rounding the weights to {} bits, without training,", "rounding to {} bits"),
    "pruned": ("Setting the smallest {} of the weights to zero, without training,", "the smallest {}"),
}
Found = Mapping[str, Mapping[Arm, Reading]]


def otherwise(readings: "pd.DataFrame", story: Story) -> str:
    """A sentence a kind of attack: the teacher, and beside it the strongest student and the matched oracle.

    Of several numbers the first and the last are given; that some attack stands out by chance is said where one does.
    """
    found = attacks_found(readings)
    sentences = [_of_kind(kind, found, story) for kind in _BEGINS] + [_few_shot(found, story)]
    kept = [sentence for sentence in sentences if sentence]
    return " ".join([*kept, _above(found, story)]).strip() if kept else ""


def _of_kind(kind: str, found: Found, story: Story) -> str:
    own = [attack for attack in found if attack == kind or attack.rpartition("-")[0] == kind]
    own = [attack for attack in own if story.teacher in found[attack]]
    if story.teacher is None or not own:
        return ""
    first, more = _BEGINS[kind]
    text = f"{first.format(number_of(own[0]))} brings {story.teacher.label} to "
    text += percent_interval(found[own[0]][story.teacher])
    if len(own) > 1:
        text += f", {more.format(number_of(own[-1]))} to {percent_interval(found[own[-1]][story.teacher])}"
    return text + _beside(found[own[-1]], story, "to ") + "."


def _few_shot(found: Found, story: Story) -> str:
    teacher, best = story.teacher, found.get("few_shot", {})
    if teacher is None or teacher not in best:
        return ""
    most = max(int(number_of(attack)) for attack in found if attack.startswith("few_shot-"))
    text = (
        f"Shown up to {most} solved questions of T first, without training, {teacher.label} answers "
        f"{percent_interval(best[teacher])}"
    )
    random = found.get("few_shot_random", {}).get(teacher)
    if random is not None:
        text += f", and {percent_interval(random)} where they are solved at random"
    return text + _beside(best, story, "") + "."


def _beside(row: Mapping[Arm, Reading], story: Story, to: str) -> str:
    """``; UNDO 0.8 to 5%, the matched oracle to 4%`` under the same attack."""
    named: list[tuple[str, Arm | None]] = [(arm.label, arm) for arm in story.students[-1:]]
    named.append(("the matched oracle", story.matched))
    said = [
        f"{name} {to}{percent_interval(row[arm])}" for name, arm in named if arm is not None and arm in row
    ]
    return f"; {', '.join(said)}" if said else ""


def _above(found: Found, story: Story) -> str:
    """Attacks under which the strongest student surely lies above the matched oracle, by the margin of the verdict."""
    rows: Sequence[str] = [attack for attack in found if attack not in ("before", "relearn")]
    if not story.students:
        return ""
    student = story.students[-1]
    tried = [attack for attack in rows if student in found[attack]]
    above = [attack for attack in tried if judge(found[attack][student]) in ("partly", "hidden")]
    if not above:
        return ""
    return (
        f"Part of it survives in {student.label} under {len(above)} of {len(tried)} of these "
        f"({listed([label_of(attack) for attack in above])}); each is judged by itself, so one may stand out by chance."
    )
