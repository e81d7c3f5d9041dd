"""What a run says about itself: arms, readings, curves and ledgers, as plain data."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from undo_probe.errors import UndoProbeError

STAGES = ("original", "unlearned", "noised", "distilled", "oracle", "oracle_matched", "random", "relearned")


class Record:
    """A frozen dataclass that goes to a flat JSON object and back without loss."""

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Field names to plain values; nested records become nested objects."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record back from :meth:`to_dict`; an unknown field is an error."""
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise UndoProbeError(
                f"{cls.__name__} has no field {unknown[0]!r} (known: {', '.join(sorted(known))}). "
                "The file was probably written by a newer undo_probe."
            )
        return cls(**values)


@dataclass(frozen=True)
class Arm(Record):
    """Which model of a run: the stage, how it was made, and its checkpoint.

    ``variant`` holds what the other fields cannot: ``twin`` (taught by the original), ``placebo`` (the
    pipeline applied to the oracle), ``b`` (second seed), ``fresh`` (a student from random weights), ``noise 2``
    (another draw), students of students (``round 2``, ``serial 2``), of another length or rate (``equal steps``,
    ``x2``, ``snapshot 3``, ``rate 0.002``), and the names of the configuration's ``variations``.
    """

    stage: str
    method: str = ""
    alpha: float | None = None
    seed: int = 0
    variant: str = ""
    checkpoint: str = ""

    def __post_init__(self) -> None:
        """Refuses a stage that no reader of the tables would know."""
        if self.stage not in STAGES:
            raise UndoProbeError(f"unknown stage {self.stage!r}: expected one of {', '.join(STAGES)}")

    @property
    def name(self) -> str:
        """A short name, unique within a run: ``distilled-maxent-0.4``, ``original-b``."""
        parts = [self.stage, self.method, "" if self.alpha is None else f"{self.alpha:g}", self.variant]
        return "-".join(part for part in parts if part)

    @property
    def label(self) -> str:
        """The name for a reader: ``UNDO 0.4``, ``MaxEnt``, ``oracle (matched)``."""
        shown = METHOD_LABELS.get(self.method, self.method)
        if self.stage == "distilled" and self.variant == "fresh":
            return "Unlearn-and-Distill"
        if self.stage in ("distilled", "noised"):
            control = self.variant in ("twin", "placebo")
            if self.stage == "noised":
                kind = f"Noised {self.variant}" if control else "Noised"
            else:
                kind = self.variant.capitalize() if control else "UNDO"
            name = f"{kind} {self.alpha:g}" if self.alpha is not None else kind
            return f"{name} ({self.variant})" if self.variant and not control else name
        if self.stage == "unlearned":
            shown = shown if self.alpha is None else f"{shown} {self.alpha:g}"
            return f"{shown} ({self.variant})" if self.variant else shown
        base = {"oracle_matched": "Oracle (matched)"}.get(self.stage, self.stage.capitalize())
        return f"{base} ({self.variant})" if self.variant else base

    def columns(self) -> dict[str, Any]:
        """The arm's columns in ``readings.parquet`` and ``curves.parquet``."""
        return self.to_dict()


METHOD_LABELS = {
    "maxent": "MaxEnt",
    "graddiff": "GradDiff",
    "rmu": "RMU",
    "cir": "CIR",
    "repselect": "RepSelect",
    "npo": "NPO",
    "simnpo": "SimNPO",
    "undial": "UNDIAL",
    "sam": "SAM",
    "repnoise": "RepNoise",
    "oracle_matching": "Oracle matching",
}


@dataclass(frozen=True)
class TaskWords(Record):
    """What a task's sides and parts are called in text. The defaults are arithmetic's: older runs were nothing else.

    ``forget`` and ``retain`` are phrases that can be the object of a sentence; ``read_at`` is the token at which the
    answer is read, ``read_mark`` how it is written; ``prompt`` is what the question's text gives away; ``family``
    and ``strata_note`` are sentences. ``scored`` says what an accuracy is where it is not a share of questions answered
    exactly. The mappings give a name for each operation, stratum and probe target. ``given`` says of a run that its
    models came from elsewhere, so that no text tells how they were trained.
    """

    forget: str = "multiplication and division"
    retain: str = "addition and subtraction"
    read_at: str = "the equals sign"
    read_mark: str = "="
    prompt: str = "operation, position and operands"
    family: str = "Questions that share their numbers, such as 7 × 8, 8 × 7, 56 ÷ 7 and 56 ÷ 8."
    strata_note: str = (
        "A factor of 1 can be guessed and a factor of 2 is an addition that retain teaches anyway: a method that only "
        "keeps those has not kept the skill."
    )
    operations: Mapping[str, str] = field(
        default_factory=lambda: {"+": "addition", "-": "subtraction", "*": "multiplication", "/": "division"}
    )
    strata: Mapping[str, str] = field(
        default_factory=lambda: {
            "trivial": "factor 1",
            "double": "factor 2",
            "below_100": "product below 100",
            "from_100": "product 100 and above",
        }
    )
    targets: Mapping[str, str] = field(
        default_factory=lambda: {"first_digit": "first digit", "tens": "tens digit", "units": "units digit"}
    )
    scored: str = ""
    given: bool = False


@dataclass(frozen=True)
class Reading(Record):
    """One measured number with its interval, its n and its control.

    ``n`` counts rows and ``n_clusters`` what was resampled (fact families, people or seeds). ``value`` is
    None, with a reason in ``note``, where the measure does not apply.
    """

    arm: Arm
    measure: str
    task_split: str
    subset: str = "all"
    layer: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    n_clusters: int = 0
    unit: str = ""
    control: str = ""
    control_value: float | None = None
    survival: float | None = None
    survival_low: float | None = None
    survival_high: float | None = None
    gate: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        """Refuses NaN and infinity, which JSON cannot hold and readers misread."""
        for name in ("value", "low", "high", "control_value", "survival", "survival_low", "survival_high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise UndoProbeError(
                    f"reading {self.measure!r} of {self.arm.name}: {name} is {number}; pass None and say why in note"
                )

    def row(self) -> dict[str, Any]:
        """One row of ``readings.parquet``."""
        values = self.to_dict()
        return {**values.pop("arm"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reading back from :meth:`to_dict`."""
        return super().from_dict({**values, "arm": Arm.from_dict(values["arm"])})


@dataclass(frozen=True)
class Curve(Record):
    """A measured quantity over steps: a training history or one relearning attack.

    ``rows`` hold ``step``, ``task_split``, ``subset``, ``value`` and ``n``.
    """

    rows: tuple[dict[str, Any], ...] = ()
    stopped: str = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The curve back from :meth:`to_dict`."""
        return super().from_dict({**values, "rows": tuple(values["rows"])})


@dataclass(frozen=True)
class Ledger(Record):
    """What a stage cost. FLOPs count multiply-adds twice and include teacher forward passes."""

    flops: float = 0.0
    tokens: int = 0
    labelled_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Ledger") -> "Ledger":
        """Field-wise sum, for the cost of a chain of stages."""
        return Ledger(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)}
        )


@dataclass(frozen=True)
class Scorecard(Record):
    """Every measure on every arm of a run, with what the run was."""

    readings: tuple[Reading, ...]
    verdict: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The scorecard back from :meth:`to_dict`."""
        readings = tuple(Reading.from_dict(reading) for reading in values["readings"])
        return super().from_dict({**values, "readings": readings})

    def table(self) -> Any:
        """All readings as a ``pandas.DataFrame``, one row each."""
        return reading_table(self.readings)

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, float_format="%.3f", na_rep="")


def reading_table(readings: Iterable[Reading]) -> Any:
    """Readings as a ``pandas.DataFrame`` with the columns of ``readings.parquet``."""
    import pandas as pd

    names = [f.name for f in dataclasses.fields(Arm)]
    names += [f.name for f in dataclasses.fields(Reading) if f.name != "arm"]
    return pd.DataFrame([reading.row() for reading in readings], columns=names)
