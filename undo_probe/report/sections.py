"""What the page shows besides its figures: the diagram of stages, and the tables, as plain data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from undo_probe.figures.look import NIGHT, STORY_VARIANTS, in_order, look, teacher_method
from undo_probe.figures.said import Said, said
from undo_probe.figures.tables import (
    arm_from_row,
    last_step,
    number,
    readings_of,
    step_of,
    with_interval,
)
from undo_probe.records import STAGES, Arm, Reading, TaskWords
from undo_probe.report.words import SYMBOLS, percent, survival_text

if TYPE_CHECKING:
    import pandas as pd

    from undo_probe.report.folder import RunFiles

STRATA = {
    "V": "V: attacked, held out",
    "T": "T: the attacker’s own",
    "W": "W: in pretraining only",
}


@dataclass(frozen=True)
class Bar:
    """One accuracy of a card: which operation, on which side, how much."""

    symbol: str
    name: str
    side: str
    value: float
    text: str


@dataclass(frozen=True)
class Card:
    """One model in the diagram of stages."""

    label: str
    note: str
    color: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Diagram:
    """The chain original, unlearned, noised, distilled, and the references beside it."""

    columns: tuple["Column", ...]


@dataclass(frozen=True)
class Column:
    """One stage of the diagram: the models of the chain, and below them what stands beside it."""

    name: str
    how: str
    cards: tuple[Card, ...]
    beside_name: str
    beside: tuple[Card, ...]


def diagram(readings: "pd.DataFrame", words: TaskWords) -> Diagram | None:
    """The stages with the accuracies of each, or None where nothing was scored."""
    found = [reading for reading in readings_of(readings, "accuracy") if reading.value is not None]
    arms = [arm for arm in in_order(r.arm for r in found) if arm.variant in STORY_VARIANTS]
    if not arms:
        return None
    main, speak = teacher_method(arms), said(words)
    chain: dict[str, list[Arm]] = {stage: [] for stage in _COLUMNS}
    beside: dict[str, list[Arm]] = {stage: [] for stage in _COLUMNS}
    for arm in arms:
        place = arm.stage if arm.stage in chain else "original"
        in_chain = arm.stage in chain and not arm.variant
        in_chain = in_chain and (arm.stage != "unlearned" or not main or arm.method == main)
        (chain if in_chain else beside)[place].append(arm)
    trained = any(arm.stage == "oracle_matched" for arm in arms) and not words.given
    cards = {arm: _card(arm, [reading for reading in found if reading.arm == arm], words) for arm in arms}
    columns = tuple(
        Column(
            stage.capitalize(),
            how.format(silent=speak.silent) if stage != "original" or trained else "loaded, as it came",
            tuple(cards[arm] for arm in chain[stage]), below,
            tuple(_noted(cards[arm], arm, speak) for arm in beside[stage]),
        )
        for stage, (how, below) in _COLUMNS.items() if chain[stage] or beside[stage]
    )  # fmt: skip
    return Diagram(columns)


_COLUMNS = {
    "original": ("trained on everything", "References"),
    "unlearned": ("{silent}", "Other methods and placebos"),
    "noised": ("weights shrunk by α, a little noise added", "Controls"),
    "distilled": ("taught by the unlearned model until retain is back", "Controls"),
}


def _noted(card: Card, arm: Arm, speak: Said) -> Card:
    return replace(card, note=_note(arm, speak))


def _card(arm: Arm, readings: Sequence[Reading], words: TaskWords) -> Card:
    at = {(reading.task_split, reading.subset): reading for reading in readings}
    by_operation = [
        key for symbol in words.operations for split in ("retain", "forget") if (key := (split, symbol)) in at
    ]
    if len({symbol for _, symbol in by_operation}) < len(by_operation):
        by_operation = []  # asked on both sides: twice as many bars would say no more
    keys = by_operation or [key for key in (("retain", "all"), ("forget", "V")) if key in at]
    bars = tuple(
        Bar(SYMBOLS.get(subset, subset), words.operations.get(subset, subset), split, _share(at[split, subset]),
            percent(at[split, subset].value))
        for split, subset in keys
    )  # fmt: skip
    return Card(arm.label, "", css_color(arm), bars)


def css_color(arm: Arm) -> str:
    """The arm's colour for a style sheet, with its other value on a dark page where it has one."""
    color = look(arm).color
    return f"light-dark({color}, {NIGHT[color]})" if color in NIGHT else color


def _share(reading: Reading) -> float:
    return min(1.0, max(0.0, reading.value or 0.0))


def _note(arm: Arm, speak: Said) -> str:
    """What a reader needs to know of an arm beside the chain."""
    if arm.variant == "twin" and arm.stage == "noised":
        return "the original’s weights, the same noise"
    if arm.variant == "placebo" and arm.stage == "unlearned":
        return "the same method, on the oracle"
    if arm.variant == "twin":
        return "same noise, taught by the original"
    if arm.variant == "placebo":
        return "the oracle sent through the pipeline"
    if arm.variant == "fresh":
        return "same teacher, student from random weights"
    return {
        "oracle": "never saw the forget data",
        "oracle_matched": speak.never_told,
        "random": "untrained",
    }.get(arm.stage, "")


@dataclass(frozen=True)
class Lead:
    """One line of the small picture beside the verdict: before the attack, and after it."""

    label: str
    color: str
    before: float | None
    after: float
    low: float
    high: float


def lead(readings: "pd.DataFrame") -> list[Lead]:
    """The story in a few bars: the original, the teacher, each alpha, and the matched oracle."""
    before = {r.arm.name: r.value for r in readings_of(readings, "accuracy", "forget") if r.subset == "V"}
    after = last_step(readings_of(readings, "relearned", "forget"))
    method = teacher_method(after)
    stages = ("original", "unlearned", "distilled", "oracle_matched")
    shown = [arm for arm in in_order(after) if arm.stage in stages and not arm.variant]
    shown = [arm for arm in shown if arm.stage != "unlearned" or arm.method == (method or arm.method)]
    return [_lead(arm, before.get(arm.name), after[arm]) for arm in shown]


def _lead(arm: Arm, before: float | None, reading: Reading) -> Lead:
    value = _share(reading)
    low, high = (value if limit is None else limit for limit in (reading.low, reading.high))
    return Lead(arm.label, css_color(arm), before, value, max(0.0, low), min(1.0, high))


def summary_table(readings: "pd.DataFrame") -> "pd.DataFrame":
    """One row an arm: before and after the attack, survival or why there is none, robustness and price."""
    import pandas as pd

    accuracy = {(r.arm, r.task_split, r.subset): r for r in readings_of(readings, "accuracy")}
    after = last_step(readings_of(readings, "relearned", "forget"))
    robust = {r.arm: r for r in readings_of(readings, "robustness")}
    regained = {r.arm: r for r in readings_of(readings, "recovered_gap")}
    slow = {r.arm: r for r in readings_of(readings, "relearn_log_steps")}
    price = {r.arm: r.value for r in readings_of(readings, "compute_share")}
    steps = max((step_of(reading) for reading in after.values()), default=0)
    rows = [
        {
            "model": arm.label,
            "retain": _plain(accuracy.get((arm, "retain", "all"))),
            "forget": _plain(accuracy.get((arm, "forget", "V"))),
            f"forget, attacked {steps} steps": _interval(after[arm]),
            "survival S": _survival(after[arm]),
            "log₂ steps to\u00a0θ": _log_steps(slow.get(arm)),
            "robustness": _interval(robust.get(arm)),
            **({"of what had gone": _interval(regained.get(arm))} if regained else {}),
            "compute": "–" if price.get(arm) is None else percent(price[arm]),
        }
        for arm in in_order(after)
    ]
    return pd.DataFrame(rows)


def _plain(reading: Reading | None) -> str:
    return number(reading.value if reading else None)


def _interval(reading: Reading | None) -> str:
    return "–" if reading is None else with_interval(reading.value, reading.low, reading.high)


def _two_lines(reading: Reading | None) -> str:
    """The value, and its interval on a line below."""
    return _interval(reading).replace(" (", "\n(")


def _log_steps(reading: Reading | None) -> str:
    """The restricted mean, marked where the threshold was not reached."""
    if reading is None:
        return "–"
    return ("≥\u202f" if "censored)" in reading.note else "") + number(reading.value, 1)


def _survival(reading: Reading) -> str:
    if reading.survival is None:
        return reading.gate or reading.note or "–"
    return survival_text(reading)


def strata_table(readings: "pd.DataFrame", words: TaskWords) -> "pd.DataFrame":
    """Forget accuracy of every arm on every split and stratum, with the number of rows in the heading."""
    import pandas as pd

    found = [r for r in readings_of(readings, "accuracy", "forget") if r.value is not None]
    known = list(dict.fromkeys(r.subset for r in found if r.subset not in words.operations))
    strata = {**STRATA, **words.strata}
    subsets = [name for name in strata if name in known] + [name for name in known if name not in strata]
    sizes = {subset: max(r.n for r in found if r.subset == subset) for subset in subsets}
    at = {(r.arm, r.subset): r for r in found}
    headings = {subset: f"{strata.get(subset, subset)} (n\u00a0=\u00a0{sizes[subset]})" for subset in subsets}
    rows = [
        {"model": arm.label} | {headings[subset]: _two_lines(at.get((arm, subset))) for subset in subsets}
        for arm in in_order(r.arm for r in found)
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Cost:
    """One line of the ledger."""

    label: str
    kind: str
    flops: str
    tokens: str
    labelled: str
    steps: str
    seconds: float
    share: float
    stopped: str


def costs(ledger: Iterable[Mapping[str, Any]]) -> list[Cost]:
    """The ledger, stages first and attacks after them, with each one's share of the time."""
    entries = list(ledger)
    total = sum(_seconds(entry) for entry in entries) or 1.0
    entries.sort(key=lambda entry: entry.get("stage") == "relearned")
    return [_cost(entry, total) for entry in entries]


def total_cost(found: Sequence[Cost]) -> dict[str, float]:
    """Seconds of stages and of attacks."""
    attacks = sum(cost.seconds for cost in found if cost.kind == "attack")
    return {"stages": sum(cost.seconds for cost in found) - attacks, "attacks": attacks}


def _seconds(entry: Mapping[str, Any]) -> float:
    return float(entry.get("cpu_seconds") or entry.get("seconds") or 0.0)


def _cost(entry: Mapping[str, Any], total: float) -> Cost:
    attack = entry.get("stage") == "relearned"
    tokens = int(entry.get("tokens") or 0)
    return Cost(
        label=_entry_label(entry),
        kind="attack" if attack else str(entry.get("stage", "")),
        flops=scaled(float(entry.get("flops") or 0.0)),
        tokens=scaled(float(tokens)),
        labelled="–" if not tokens else percent((entry.get("labelled_tokens") or 0) / tokens),
        steps=f"{int(entry.get('steps') or 0):,}".replace(",", "\u202f"),
        seconds=_seconds(entry),
        share=_seconds(entry) / total,
        stopped=str(entry.get("stopped") or ""),
    )


def _entry_label(entry: Mapping[str, Any]) -> str:
    """The label of the arm an entry belongs to; the entry of an attack names its arm in ``arm``."""
    name = str(entry.get("arm", ""))
    if entry.get("label"):
        return str(entry["label"])
    known = {
        **entry,
        "stage": next((s for s in sorted(STAGES, key=len, reverse=True) if name.startswith(s)), ""),
    }
    if not known["stage"]:
        return name
    return arm_from_row(known).label


def scaled(value: float) -> str:
    """A large number in short: ``22 T``, ``1.3 G``."""
    for power, letter in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power:
            shown = value / 10**power
            return f"{shown:.0f}\u202f{letter}" if shown >= 10 else f"{shown:.1f}\u202f{letter}"
    return f"{value:.0f}"


def flat(config: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """A configuration as dotted names and values, in the form that the command line takes."""
    found: list[tuple[str, str]] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{before}{name}.")
        else:
            found.append((f"{before}{name}", _setting(value)))
    return found


def _setting(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def provenance(run: "RunFiles") -> list[tuple[str, str]]:
    """Versions, seeds and fingerprints, as name and value."""
    record = run.run
    git = record.get("git") or {}
    commit = str(git.get("commit") or "not in a git repository") + (
        " (with local changes)" if git.get("dirty") else ""
    )
    facts = [("run", run.name), ("seed", record.get("seed")), ("undo_probe", record.get("undo_probe"))]
    facts += [(str(name), version) for name, version in (record.get("versions") or {}).items()]
    facts += [("git commit", commit), ("device", record.get("device")), ("threads", record.get("threads"))]
    task = record.get("task") or {}
    facts.append(("task fingerprint", task.get("fingerprint")))
    for split, count in (task.get("counts") or {}).items():
        facts.append((f"rows of {split}", f"{count.get('rows')} in {count.get('families')} families"))
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


@dataclass(frozen=True)
class Model:
    """One line of the table of models."""

    label: str
    parents: str
    stopped: str
    seed: str
    checkpoint: str
    key: str


def models(run: "RunFiles") -> list[Model]:
    """Every model with its parents, how it stopped, and its hashes."""
    listed_arms = run.run.get("arms") or []
    labels = {entry.get("name"): str(entry.get("label") or entry.get("name", "")) for entry in listed_arms}
    return [
        Model(
            label=labels[entry.get("name")],
            parents=", ".join(labels.get(parent, str(parent)) for parent in entry.get("parents") or []),
            stopped=str(entry.get("stopped") or ""),
            seed=str(entry.get("seed", "")),
            checkpoint=str(entry.get("checkpoint") or ""),
            key=str(entry.get("key") or ""),
        )
        for entry in listed_arms
    ]
