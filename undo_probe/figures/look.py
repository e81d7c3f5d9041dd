"""How an arm looks: one colour, marker and dash for each, the same in every figure, and one reading order.

The colours are those of Okabe and Ito, told apart with any colour vision; a marker, a dash or a written name
always says the same thing a second time. Neutral colours are tokens: :data:`NIGHT` maps each to its value on
a dark page.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from undo_probe.records import METHOD_LABELS, Arm

INK, SOFT, GRID, PAPER = "#1d1d20", "#67676f", "#e3e3e7", "#ffffff"
GREY, DARK_GREY, LIGHT_GREY = "#7a7a82", "#4d4d55", "#9d9da5"
NIGHT = {
    INK: "#ededf1",
    SOFT: "#a9a9b2",
    GRID: "#37383e",
    PAPER: "#17181b",
    GREY: "#8f8f98",
    DARK_GREY: "#b9b9c2",
    LIGHT_GREY: "#72727a",
}
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
DEEP_BLUE = "#00507D"

_METHODS = {
    "maxent": (ORANGE, "diamond", "solid"),
    "graddiff": (VERMILION, "triangle-up", "dash"),
    "rmu": (PURPLE, "square", "dashdot"),
    "cir": (VERMILION, "hexagram", "longdash"),
    "repselect": (VERMILION, "star-triangle-down", "dashdot"),
    "npo": (PURPLE, "bowtie", "dot"),
    "simnpo": (PURPLE, "hourglass", "dot"),
    "undial": (VERMILION, "diamond-tall", "dot"),
    "sam": (ORANGE, "diamond-wide", "longdash"),
    "repnoise": (ORANGE, "diamond-x", "dashdot"),
    "oracle_matching": (GREEN, "square-x", "dot"),
}
_ALPHA_MARKERS = (
    "circle-dot", "triangle-left", "triangle-down", "triangle-right", "pentagon", "hexagon2",
    "hexagon", "octagon", "star", "star-square", "star-diamond",
)  # fmt: skip
# drawn everywhere; further noise draws, lengths and rates would drown a picture and have their own
STORY_VARIANTS = ("", "b", "twin", "placebo", "fresh")
LENGTHS = re.compile(r"equal steps|x\d|snapshot \d|rate \d")
"""Variants that are the same student taught for another time or at another rate."""
LONGEST = 40
_DIRECTIONS = {chr(code) for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


@dataclass(frozen=True)
class Look:
    """What an arm is drawn with."""

    color: str
    marker: str
    dash: str = "solid"
    width: float = 2.0


def look(arm: Arm) -> Look:
    """The arm's fixed appearance: a function of what the arm is, never of what else is in the figure."""
    if arm.stage == "original":
        return Look(
            INK, "circle" if not arm.variant else "circle-open", "solid" if not arm.variant else "dash", 2.6
        )
    if arm.stage == "oracle":
        return Look(GREY, "cross" if not arm.variant else "cross-open", "dash")
    if arm.stage == "oracle_matched":
        return Look(DARK_GREY, "x", "dot", 2.6)
    if arm.stage == "random":
        return Look(LIGHT_GREY, "circle-x-open", "dot", 1.6)
    if arm.stage == "distilled" and arm.variant == "fresh":
        return Look(GREEN, "star-triangle-up", "dash")
    if arm.alpha is not None:
        return _look_of_alpha(arm, arm.alpha)
    color, marker, dash = _METHODS.get(arm.method, (VERMILION, "asterisk-open", "longdashdot"))
    return Look(color, f"{marker}-open" if arm.variant else marker, "dot" if arm.variant else dash)


def _look_of_alpha(arm: Arm, alpha: float) -> Look:
    """Deeper blue with alpha; a twin or placebo wears its alpha's colour, hollow and dotted."""
    color = blend(SKY, BLUE, alpha / 0.6) if alpha < 0.6 else blend(BLUE, DEEP_BLUE, (alpha - 0.6) / 0.4)
    marker = _ALPHA_MARKERS[min(10, max(0, round(alpha * 10)))]
    if arm.stage == "noised":
        return Look(color, f"{marker}-open-dot", "longdash" if arm.variant else "longdashdot", 1.4)
    if arm.variant:
        return Look(color, f"{marker}-open", "dot" if arm.variant == "twin" else "dashdot")
    return Look(color, marker)


def blend(first: str, second: str, share: float) -> str:
    """The colour ``share`` of the way from one to the other."""
    share = min(1.0, max(0.0, share))
    pairs = zip((first[1:3], first[3:5], first[5:7]), (second[1:3], second[3:5], second[5:7]), strict=True)
    return "#" + "".join(f"{round(int(a, 16) * (1 - share) + int(b, 16) * share):02X}" for a, b in pairs)


def faint(color: str, opacity: float) -> str:
    """The colour as ``rgba(...)`` with an opacity."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def reading_order(arm: Arm) -> tuple[object, ...]:
    """Sorts arms as the story goes: original, unlearned, noised, distilled with twins, and the references."""
    stages = (
        "original",
        "unlearned",
        "noised",
        "distilled",
        "oracle",
        "oracle_matched",
        "random",
        "relearned",
    )
    methods = [*METHOD_LABELS, arm.method]
    alpha = 2.0 if arm.alpha is None else arm.alpha
    return stages.index(arm.stage), arm.variant == "fresh", methods.index(arm.method) if arm.method else -1, alpha, (
        arm.variant, arm.seed)  # fmt: skip


def in_order(arms: Iterable[Arm]) -> list[Arm]:
    """Each arm once, in reading order."""
    return sorted(set(arms), key=reading_order)


def labels(arms: Iterable[Arm]) -> dict[Arm, str]:
    """The name of each arm for a reader; the seed is added where two arms would share a name."""
    found = list(arms)
    shown = [arm.label for arm in found]
    return {
        arm: arm.label if shown.count(arm.label) == 1 else f"{arm.label}, seed {arm.seed}" for arm in found
    }


def clean(text: str) -> str:
    """Text without what no reader can see: control characters, lone surrogates, direction overrides."""
    if text.isprintable():
        return text
    return "".join("\ufffd" if _unseen(letter) else letter for letter in text)


def _unseen(letter: str) -> bool:
    return letter in _DIRECTIONS or (unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t")


def plain(text: str) -> str:
    """Text for a plotly label, which would otherwise read tags and entities in it; cut where it is long."""
    text = clean(text) if len(text) <= LONGEST else f"{clean(text[: LONGEST - 1])}…"
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def layer_order(layer: str) -> tuple[int, int, str]:
    """Sorts hook names from the embedding to the output."""
    parts = layer.split(".")
    if parts[0] == "blocks" and len(parts) > 1 and parts[1].isdigit():
        within = next(
            (at for at, word in enumerate(("resid_pre", "resid_mid", "resid_post")) if word in layer), 1
        )
        return 1 + int(parts[1]), within, layer
    return (0, 0, layer) if "embed" in layer else (10**6, 0, layer)


def layer_label(layer: str) -> str:
    """A hook name for a reader: ``after block 0``."""
    if layer in ("hook_embed", "embed", "blocks.0.hook_resid_pre"):
        return "embedding"
    parts = layer.split(".")
    if parts[0] == "blocks" and len(parts) == 3 and parts[1].isdigit():
        places = {
            "hook_resid_post": "after block",
            "hook_resid_pre": "before block",
            "hook_resid_mid": "in block",
        }
        if parts[2] in places:
            return f"{places[parts[2]]} {parts[1]}"
    return "after the last norm" if layer.startswith("ln_final") else layer


def teacher_method(arms: Iterable[Arm]) -> str:
    """The unlearning method whose model is noised and distilled; empty where no student is there."""
    return next((arm.method for arm in arms if arm.stage == "distilled" and not arm.variant), "")
