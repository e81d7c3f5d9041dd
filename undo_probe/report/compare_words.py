"""Where two models part, in plain words: rules from the comparison's table to sentences, nothing else."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.figures.look import layer_label
from undo_probe.figures.tables import number
from undo_probe.report.words import listed, percent

if TYPE_CHECKING:
    import pandas as pd

READ, ANSWER = "read", "answer"
NOTHING = 5e-3
"""Divergences and distances below this are called none: bits a token, or shares of a norm."""
SMALL = 0.05
"""A divergence of fewer bits a token is called small."""
FAR = 100
"""Beyond so many times the floor the number says nothing more."""


@dataclass(frozen=True)
class Words:
    """The opening of the page: one sentence, paragraphs with what each is about, and what they do not say."""

    headline: str
    paragraphs: list[tuple[str, str]]
    limits: list[str]


@dataclass(frozen=True)
class _Line:
    """One line of the table, missing numbers as None."""

    reading: str
    layer: str
    position: str
    value: float
    low: float | None
    high: float | None
    floor: float | None
    twin: float | None
    over_low: float | None
    a: float | None
    b: float | None

    @property
    def beyond(self) -> bool:
        """Whether the whole interval lies farther from 0 than noise does."""
        if self.low is None or self.high is None:
            return abs(self.value) > max(NOTHING, self.floor or 0.0)
        return self.low * self.high > 0 and min(abs(self.low), abs(self.high)) > max(
            NOTHING, self.floor or 0.0
        )


def words_of(lines: "pd.DataFrame", facts: Mapping[str, Any]) -> Words:
    """The words of a comparison, from its table and facts."""
    table = _Table(lines, facts)
    paragraphs = [(lead, text) for lead, say in _PARAGRAPHS.items() if (text := say(table))]
    return Words(_headline(table), paragraphs, _limits(table))


class _Table:
    """Look-ups in the comparison's table, and the models' names."""

    def __init__(self, lines: "pd.DataFrame", facts: Mapping[str, Any]) -> None:
        self.facts, self.a, self.b = facts, facts["a"], facts["b"]
        self.splits: list[str] = list(facts["rows"])
        self._found: dict[tuple[str, str], list[_Line]] = {}
        for row in lines.to_dict("records"):
            value = _known(row["value"])
            if value is not None:
                numbers = [
                    _known(row[name]) for name in ("low", "high", "floor", "twin", "over_twin_low", "a", "b")
                ]
                line = _Line(row["reading"], row["layer"], row["position"], value, *numbers)
                self._found.setdefault((row["measure"], row["split"]), []).append(line)

    def lines(self, measure: str, split: str) -> list[_Line]:
        """Every line of a measure on one split."""
        return self._found.get((measure, split), [])

    def layers(self, measure: str, split: str, reading: str = "", position: str = READ) -> list[_Line]:
        """A measure by layer, of one reading at one position."""
        return [
            line
            for line in self.lines(measure, split)
            if (line.reading, line.position) == (reading, position)
        ]

    def one(self, measure: str, split: str, reading: str = "") -> _Line | None:
        """A measure of answers that has no layer."""
        found = self.layers(measure, split, reading, ANSWER)
        return found[-1] if found else None


def _headline(table: _Table) -> str:
    a, b = table.a, table.b
    kl = {split: line for split in table.splits if (line := table.one("kl", split))}
    if not any(line.beyond for line in kl.values()):
        moved = [
            each for split in table.splits for each in table.layers("relative_distance", split) if each.beyond
        ]
        if not moved:
            return f"{b} and {a} do not part: no difference of states or answers exceeds noise."
        return f"{b} answers as {a} does, though its states lie elsewhere."
    change, kept = (
        table.one("answer_log_probability", "forget"),
        table.one("answer_log_probability", "retain"),
    )
    contrast = table.one("forget_less_retain", "forget", "kl")
    low, high = (0.0, 0.0) if contrast is None else (contrast.low or 0.0, contrast.high or 0.0)
    if low > 0 and change is not None and change.beyond:
        also = f"; on retain rows they change by {_signed(kept.value)}" if kept is not None else ""
        verb = "loses" if change.value < 0 else "gains"
        what = f"it {verb} {_size(change)} bits a token of their answers{also}"
        return f"{b} differs from {a} on the forget rows in particular: {what}."
    if high < 0:
        return (
            f"{b} differs from {a} most on retain rows: predictions diverge by {number(kl['retain'].value)} bits a "
            f"token there, by {number(kl['forget'].value)} on forget rows. Nothing singles the forget rows out."
        )
    shares = listed([f"{number(line.value)} on {split} rows" for split, line in kl.items()])
    return (
        f"{b} differs from {a} on forget and retain rows alike: predictions diverge by {shares}, in bits a token. "
        "Nothing singles the forget rows out."
    )


def _size(line: _Line) -> str:
    """The size of a change with its interval, without signs."""
    if line.low is None or line.high is None:
        return number(abs(line.value))
    low, high = sorted((abs(line.low), abs(line.high)))
    return f"{number(abs(line.value))} ({number(low)} to {number(high)})"


def _behaviour(table: _Table) -> str:
    parts = []
    for split in table.splits:
        kl, change, score = (table.one(name, split) for name in ("kl", "answer_log_probability", "accuracy"))
        if kl is None or change is None:
            continue
        size = "no more than noise"
        if kl.beyond:
            size = f"{_interval(kl)} bits a token" + (", which is small," if kl.value < SMALL else "")
        text = f"on {split} rows predictions diverge by {size}"
        text += f" and the answer’s log-probability changes by {_interval(change, signed=True)}"
        if score is not None and score.a is not None and score.b is not None:
            text += f" (right: {percent(score.a)} before, {percent(score.b)} after)"
        parts.append(text)
    return _sentence("; ".join(parts))


def _inside(table: _Table) -> str:
    if not table.lines("relative_distance", "forget"):
        return f"The models’ widths differ, so that only what needs no common basis is compared. {_likeness(table)}"
    parts = []
    for split in table.splits:
        found = table.layers("relative_distance", split)
        first = next((line for line in found if line.beyond), None)
        if first is None:
            parts.append(f"on {split} rows no layer lies farther away than noise")
            continue
        most = max(found, key=lambda line: line.value)
        text = f"{split} rows part {_layer(first.layer)} by {_over_floor(first)}"
        more = f", most {_layer(most.layer)} by {_over_floor(most)}" if most.layer != first.layer else ""
        parts.append(text + more)
    return (
        f"At the last token of the prompt, in shares of the norm of {table.a}’s state: {'; '.join(parts)}. "
        f"The noise floor is {_floor(table)}. {_likeness(table)}"
    )


def _likeness(table: _Table) -> str:
    """The lowest CKA, which no rotation can make."""
    parts = []
    for split in table.splits:
        if found := table.layers("cka", split):
            least = min(found, key=lambda line: line.value)
            parts.append(f"{_interval(least)} on {split} rows {_layer(least.layer)}")
    return f"Up to rotation and scale, likeness (CKA) is lowest at {listed(parts)}." if parts else ""


def _contrast(table: _Table) -> str:
    found = table.layers("forget_less_retain", "forget", "relative_distance")
    over = [line for line in found if (line.low or 0) > NOTHING]
    together = "(95% intervals that hold for all layers together)"
    if not over:
        return f"At no layer do forget rows move farther than retain rows {together}." if found else ""
    first, most = over[0], max(over, key=lambda line: line.value)
    begin = "" if over == found[found.index(first) :] else " with exceptions"
    text = f"Forget rows move farther than retain rows from {_layer(first.layer).removeprefix('after ')} on{begin}"
    text = text.replace("from at", "from")
    return (
        f"{text}, most {_layer(most.layer)}: by {_interval(most)} of the norm {together}.{_elsewhere(table)}"
    )


def _elsewhere(table: _Table) -> str:
    """The prompt position at which forget states lie farthest, where it is not the one that is read."""
    most = max(table.lines("relative_distance", "forget"), key=lambda line: line.value)
    if most.position == READ:
        return ""
    return (
        f" Of all positions of the prompt they lie farthest at {most.position} {_layer(most.layer)}, by "
        f"{_interval(most)}."
    )


def _twin(table: _Table) -> str:
    found = table.layers("relative_distance", "forget")
    if not table.facts["twin"] or not found:
        return ""
    over = [line for line in found if (line.over_low or 0) > 0]
    text = "On forget rows no layer lies farther away than the twin’s, which lost nothing but its basis"
    if over:
        most = max(over, key=lambda line: line.value - (line.twin or 0))
        text = (
            f"On forget rows states lie beyond the twin’s first {_layer(over[0].layer)} and most {_layer(most.layer)} "
            f"({number(most.value)}, the twin {number(most.twin)})"
        )
    change = table.one("answer_log_probability", "forget")
    if change is not None and change.twin is not None:
        text += (
            f"; the twin changes the answer’s log-probability by {_signed(change.twin)} bits a token, {table.b} by "
            f"{_signed(change.value)}"
        )
    return f"{text}."


def _basis(table: _Table) -> str:
    raw, mapped = (table.layers("lens_log_probability", "forget", name, ANSWER) for name in ("a's", "mapped"))
    if not raw or not mapped:
        return ""
    last, back = raw[-1], mapped[-1]
    text = (
        f"Read by {table.a}’s decoder after the last block, forget answers change by {_interval(last, signed=True)} "
        f"bits a token; after a map to {table.a}’s basis, fitted on retain rows, by {_interval(back, signed=True)}"
    )
    if last.beyond and last.value < 0 and back.value > last.value / 2:
        return f"{text}. Half or more of that loss was a matter of basis."
    return f"{text}."


def _patched(table: _Table) -> str:
    found = table.layers("patch_drop", "forget", "raw", ANSWER)
    if not found:
        return ""
    first = next((line for line in found if line.beyond and line.value > 0), None)
    if first is None:
        return f"{table.a} loses nothing of the forget answers when it runs with {table.b}’s states, at any block."
    last = found[-1]
    said = "" if last.layer == first.layer else f", and {number(last.value)} {_layer(last.layer)}"
    return (
        f"{table.a} begins to lose the forget answers when it runs with {table.b}’s states {_layer(first.layer)} "
        f"({_interval(first)} bits a token{said})."
    )


def _probes(table: _Table) -> str:
    """The target and layer that A's own probes read best; no other choice looks at B."""
    refitted = [
        line for line in table.lines("probe_refitted", "forget") if line.a is not None and line.b is not None
    ]
    if not refitted:
        return ""
    best = max(refitted, key=lambda line: line.a or 0.0)
    name = table.facts["words"]["targets"].get(best.reading, best.reading)
    carried = {
        line.reading: line.b
        for line in table.lines("probe_transferred", "forget")
        if line.layer == best.layer
    }
    text = (
        f"Probes of {table.a} read {name} best {_layer(best.layer)} and get {percent(best.a)} right there; refitted on "
        f"{table.b} they get {percent(best.b)} (a change of {_interval(best, signed=True)})"
    )
    if best.reading in carried:
        text += f", carried over unchanged {percent(carried[best.reading])}"
    if f"{best.reading}, mapped" in carried:
        text += f", on mapped states {percent(carried[f'{best.reading}, mapped'])}"
    return f"{text}."


def _written(table: _Table) -> str:
    found = table.lines("attribution", "forget")
    lead = next((line for line in found if line.reading == "lead"), None)
    parts = [line for line in found if line.reading not in ("lead", "bias") and line.beyond]
    if lead is None or not parts:
        return ""
    most = max(parts, key=lambda line: abs(line.value))
    block = most.layer.split(".")[1]
    what = most.reading if most.reading == "embedding" else f"the {most.reading} of block {block}"
    if most.reading.startswith("head"):
        what = f"{most.reading} of block {block}"
    return (
        f"The answer’s first token leads its rivals by {number(lead.a)} logits in {table.a} and {number(lead.b)} in "
        f"{table.b}; of what writes that lead, {what} changes most, by {_interval(most, signed=True)}."
    )


def _weights(table: _Table) -> str:
    found = {line.reading: line for line in table.lines("weight_distance", "")}
    if "all weights" not in found:
        return ""
    every = found.pop("all weights")
    if not every.value:
        return f"{table.b} has the weights of {table.a}."
    most = max(found.values(), key=lambda line: line.value)
    beside = "" if every.twin is None else f", the twin’s {every.twin:.2g}"
    return (
        f"{table.b}’s weights lie {every.value:.2g} of their norm from {table.a}’s{beside}; the tensor that moved "
        f"farthest is {most.reading}, by {most.value:.2g}."
    )


# what a paragraph is about -> what says it, in the order of the page; one that has nothing to say is left out
_PARAGRAPHS: dict[str, Callable[[_Table], str]] = {
    "What they answer": _behaviour,
    "Where their states part": _inside,
    "Forget against retain": _contrast,
    "The twin": _twin,
    "A change of basis": _basis,
    "What the original can still read": _patched,
    "What a probe can still read": _probes,
    "Who writes the answer": _written,
    "How far the weights moved": _weights,
}


def _limits(table: _Table) -> list[str]:
    facts = table.facts
    rows = [
        f"{facts['rows'][split]} {split} rows in {facts['families'][split]} families"
        for split in table.splits
    ]
    limits = [
        f"On {listed(rows)}; intervals are 95%, over families. Each layer has an interval of its own: of many layers, "
        "a few leave theirs by chance."
    ]
    if not facts["twin"]:
        limits.append(
            "A distance also sees a change of basis that loses nothing; without a twin only CKA, Procrustes, mapped "
            "readings and answers tell the two apart."
        )
    return limits + [_sentence(note) for note in facts["notes"]]


def _floor(table: _Table) -> str:
    if table.facts["floor"] == "second seed":
        return "the same figure for another seed of the first model"
    return "how far the figure itself moves when half of the prompts are replaced by the other half"


def _over_floor(line: _Line) -> str:
    if line.floor is None or line.floor < NOTHING:
        return _interval(line)
    times = line.value / line.floor
    said = f"over {FAR}" if times > FAR else number(times, 0 if times > 3 else 1)
    return f"{_interval(line)}, {said} times the noise floor"


def _layer(name: str) -> str:
    label = layer_label(name)
    return "at the embedding" if label == "embedding" else label


def _interval(line: _Line, signed: bool = False) -> str:
    show = _signed if signed else number
    if line.low is None or line.high is None:
        return show(line.value)
    return f"{show(line.value)} ({show(line.low)} to {show(line.high)})"


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 and float(number(value)) else number(value)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith(".") else f"{text}."


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
