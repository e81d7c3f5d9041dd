"""Where two models part, in plain words: rules from the comparison's table to sentences, nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undo_probe.figures.look import layer_label
from undo_probe.figures.tables import number
from undo_probe.report.words import listed, percent

if TYPE_CHECKING:
    import pandas as pd

READ = "read"
NOTHING = 1e-3
"""Divergences and distances below this are called none: bits a token, or shares of a norm."""
MILD = 0.05
"""A divergence below this share of a bit a token is called small."""


@dataclass(frozen=True)
class Words:
    """The opening of the page: one sentence, paragraphs with what each is about, and what they do not say."""

    headline: str
    paragraphs: list[tuple[str, str]]
    limits: list[str]


@dataclass(frozen=True)
class _Line:
    """One line of the table, missing numbers as None."""

    layer: str
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
        nearest = (
            min(abs(self.low), abs(self.high))
            if self.low is not None and self.high is not None
            else abs(self.value)
        )
        apart = self.low is None or self.high is None or self.low * self.high > 0
        return apart and nearest > max(NOTHING, self.floor or 0.0)


def words_of(lines: "pd.DataFrame", facts: Mapping[str, Any]) -> Words:
    """The words of a comparison."""
    table = _Table(lines, facts)
    paragraphs = [("What they answer", _behaviour(table)), ("Where their states part", _inside(table))]
    paragraphs += [(lead, text) for lead, text in (("Forget against retain", _contrast(table)), ("The twin", _twin(table)),
                                                   ("Only another basis?", _basis(table)), ("What A can still read", _patched(table)),
                                                   ) if text]  # fmt: skip
    return Words(_headline(table), paragraphs, _limits(table))


class _Table:
    """Look-ups in the comparison's table, and the models' names."""

    def __init__(self, lines: "pd.DataFrame", facts: Mapping[str, Any]) -> None:
        self.facts, self.a, self.b = facts, facts["a"], facts["b"]
        self.splits: list[str] = list(facts["rows"])
        self._found: dict[tuple[str, str, str, str], list[_Line]] = {}
        for row in lines.to_dict("records"):
            value = _known(row["value"])
            if value is not None:
                numbers = [
                    _known(row[name]) for name in ("low", "high", "floor", "twin", "over_twin_low", "a", "b")
                ]
                key = row["measure"], row["split"], row["reading"], row["position"]
                self._found.setdefault(key, []).append(_Line(row["layer"], value, *numbers))

    def layers(self, measure: str, split: str, reading: str = "", position: str = READ) -> list[_Line]:
        return self._found.get((measure, split, reading, position), [])

    def one(self, measure: str, split: str, reading: str = "") -> _Line | None:
        found = self.layers(measure, split, reading, "answer")
        return found[-1] if found else None


def _headline(table: _Table) -> str:
    a, b = table.a, table.b
    kl = {split: line for split in table.splits if (line := table.one("kl", split))}
    parted = [split for split, line in kl.items() if line.beyond]
    moved = [
        split
        for split in table.splits
        if any(each.beyond for each in table.layers("relative_distance", split))
    ]
    if not parted:
        if not moved:
            return f"{b} and {a} do not part: no difference of states or answers exceeds noise."
        return f"{b} answers as {a} does, though its states lie elsewhere."
    change, kept = (
        table.one("answer_log_probability", "forget"),
        table.one("answer_log_probability", "retain"),
    )
    contrast = table.one("forget_less_retain", "forget", "kl")
    if contrast is not None and (contrast.low or 0) > 0 and change is not None and change.beyond:
        verb = "loses" if change.value < 0 else "gains"
        also = f"; on retain rows they change by {_signed(kept.value)}" if kept is not None else ""
        return (
            f"{b} differs from {a} on the forget rows in particular: it {verb} {number(abs(change.value))} bits a token of their "
            f"answers{also}."
        )
    if contrast is not None and contrast.high is not None and contrast.high < 0:
        return (
            f"{b} differs from {a} most on retain rows ({number(kl['retain'].value)} bits a token, {number(kl['forget'].value)} on "
            "forget rows): nothing singles the forget rows out."
        )
    shares = listed([f"{number(line.value)} bits a token on {split} rows" for split, line in kl.items()])
    return f"{b} differs from {a} on forget and retain rows alike ({shares}): nothing singles the forget rows out."


def _behaviour(table: _Table) -> str:
    parts = []
    for split in table.splits:
        kl, change, score = (table.one(name, split) for name in ("kl", "answer_log_probability", "accuracy"))
        if kl is None or change is None:
            continue
        size = (
            "no more than noise"
            if not kl.beyond
            else f"{_interval(kl)} bits a token" + (", which is small," if kl.value < MILD else "")
        )
        text = f"on {split} rows the two models’ predictions diverge by {size}"
        text += f" and the answer’s log-probability changes by {_interval(change, signed=True)}"
        if score is not None and score.a is not None and score.b is not None:
            text += f" (right: {percent(score.a)} before, {percent(score.b)} after)"
        parts.append(text)
    return _sentence("; ".join(parts))


def _inside(table: _Table) -> str:
    if not table.layers("relative_distance", "forget"):
        cka = [
            f"{number(min(line.value for line in found))} on {split} rows"
            for split in table.splits
            if (found := table.layers("cka", split))
        ]
        return f"The models’ widths differ, so only what no basis is needed for is compared; the lowest CKA at the last token of the prompt is {listed(cka)}."
    parts = []
    for split in table.splits:
        found = table.layers("relative_distance", split)
        first = next((line for line in found if line.beyond), None)
        if first is None:
            parts.append(f"on {split} rows no layer lies farther away than noise")
            continue
        most = max(found, key=lambda line: line.value)
        text = f"on {split} rows states part {_layer(first.layer)} ({_over_floor(first)})"
        if most.layer != first.layer:
            text += f" and lie farthest apart {_layer(most.layer)} ({_over_floor(most)})"
        parts.append(text)
    return (
        f"At the last token of the prompt, in shares of the norm of {table.a}’s state: {'; '.join(parts)}. "
        f"The noise floor is {_floor(table)}."
    )


def _contrast(table: _Table) -> str:
    found = table.layers("forget_less_retain", "forget", "relative_distance")
    if not found:
        return ""
    over = [line for line in found if (line.low or 0) > NOTHING]
    if not over:
        return "At no layer do forget rows move farther than retain rows (95% intervals that hold for all layers together)."
    first, most = over[0], max(over, key=lambda line: line.value)
    text = f"Forget rows move farther than retain rows from {_layer(first.layer)} on" if over == found[found.index(first):] else (
        f"Forget rows move farther than retain rows first {_layer(first.layer)}")  # fmt: skip
    text = text.replace("from after", "from").replace("from at", "from")
    return f"{text}, most {_layer(most.layer)}: by {_interval(most)} of the norm (95% intervals that hold for all layers together)."


def _twin(table: _Table) -> str:
    if not table.facts["twin"]:
        return ""
    found = table.layers("relative_distance", "forget")
    over = [line for line in found if (line.over_low or 0) > 0]
    change = table.one("answer_log_probability", "forget")
    text = "On forget rows no layer lies farther away than the twin’s, which lost nothing but its basis"
    if over:
        most = max(over, key=lambda line: line.value - (line.twin or 0))
        text = (
            f"On forget rows states lie beyond the twin’s first {_layer(over[0].layer)} and most {_layer(most.layer)} "
            f"({number(most.value)}, the twin {number(most.twin)})"
        )
    if change is not None and change.twin is not None:
        text += f"; of the answer’s log-probability the twin changes {_signed(change.twin)} bits a token where {table.b} changes {_signed(change.value)}"
    return text + "."


def _basis(table: _Table) -> str:
    raw, mapped = (
        table.layers("lens_log_probability", "forget", name, "answer") for name in ("a's", "mapped")
    )
    if not raw or not mapped:
        return ""
    last, back = raw[-1], mapped[-1]
    text = (
        f"Read by {table.a}’s decoder after the last block, the forget answers change by {_interval(last, signed=True)} bits a token; "
        f"after a map to {table.a}’s basis, fitted on retain rows, by {_interval(back, signed=True)}"
    )
    if last.beyond and last.value < 0 and back.value > last.value / 2:
        return f"{text}. Half or more of that loss was a matter of basis."
    return f"{text}."


def _patched(table: _Table) -> str:
    found = table.layers("patch_drop", "forget", "raw", "answer")
    if not found:
        return ""
    first = next((line for line in found if line.beyond and line.value > 0), None)
    if first is None:
        return f"{table.a} loses nothing of the forget answers when it runs with {table.b}’s states, whatever the block."
    last = found[-1]
    said = "" if last.layer == first.layer else f", and {number(last.value)} {_layer(last.layer)}"
    return (
        f"{table.a} begins to lose the forget answers when it runs with {table.b}’s states {_layer(first.layer)} "
        f"({_interval(first)} bits a token{said})."
    )


def _limits(table: _Table) -> list[str]:
    facts = table.facts
    rows = listed(
        [
            f"{facts['rows'][split]} {split} rows in {facts['families'][split]} families"
            for split in table.splits
        ]
    )
    limits = [
        f"On {rows}; intervals are 95%, over families. Each layer has an interval of its own: of many layers, a few leave theirs by chance.",
    ]
    if not facts["twin"]:
        limits.append(
            "A distance also sees a change of basis that loses nothing; without a twin (twin=) only CKA, Procrustes, mapped readings "
            "and answers tell the two apart."
        )
    return limits + [_sentence(note) for note in facts["notes"]]


def _floor(table: _Table) -> str:
    if table.facts["floor"] == "second seed":
        return "the same figure for another seed of the first model"
    return "how far the figure itself moves when half of the prompts are replaced by the other half"


def _over_floor(line: _Line) -> str:
    if not line.floor:
        return _interval(line)
    return f"{_interval(line)}, {number(line.value / line.floor, 0 if line.value > 3 * line.floor else 1)} times the noise floor"


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
