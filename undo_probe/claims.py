"""The paper's claims as one pre-registered contrast each, with seeds as the unit.

A contrast gives one margin a seed: how far the claim holds there, in the unit of its measure, with the threshold
taken off. The claim holds where Student's interval of the margins lies above 0 over at least six seeds. Whatever a
run lacks for a claim is named instead of a verdict.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from undo_probe import intervals
from undo_probe.errors import UndoProbeError
from undo_probe.replicates import ENOUGH, by_seed

if TYPE_CHECKING:
    import pandas as pd

Margins = np.ndarray
MEASURES = (
    "accuracy",
    "relearned",
    "relearned_utility",
    "relearn_log_steps",
    "compute_share",
    "probe_bits",
)
"""What the contrasts below read of a scorecard."""


class Missing(UndoProbeError):
    """The runs lack what a claim is about."""


class Evidence:
    """The readings of several seeds, as :func:`undo_probe.replicates.replicate` gives them."""

    def __init__(
        self,
        readings: "pd.DataFrame",
        method: str = "maxent",
        alpha: float = 0.4,
        entangled: "Evidence | None" = None,
    ) -> None:
        """``method`` made the teacher; ``alpha`` is the strength at which single students are compared.

        ``entangled`` are the same seeds on a task whose forget set shares structure with what is kept.
        """
        self.readings, self.method, self.alpha, self.entangled = readings, method, alpha, entangled
        names = (re.fullmatch(rf"distilled-{method}-([\d.]+)", str(arm)) for arm in readings["arm"].unique())
        self.alphas = sorted(float(name[1]) for name in names if name)

    @property
    def teacher(self) -> str:
        """The unlearned arm that was noised and distilled."""
        return f"unlearned-{self.method}"

    def student(self, alpha: float | None = None, variant: str = "") -> str:
        """The name of a distilled arm; without alpha the strongest of the sweep."""
        strength = self.alphas[-1] if alpha is None else alpha
        return f"distilled-{self.method}-{strength:g}" + (f"-{variant}" if variant else "")

    def values(self, arm: str, query: str, column: str = "value") -> Margins:
        """One value a seed."""
        try:
            frame = by_seed(self.readings.assign(value=self.readings[column]), query)
        except UndoProbeError as error:
            raise Missing(f"no reading for {query}") from error
        if arm not in frame:
            raise Missing(f"no {arm} in every run")
        found = frame[arm].to_numpy(dtype=float)
        if np.isnan(found).any():
            raise Missing(f"{arm} is missing in some run, or withheld, for {query.split(' and ')[0]}")
        return found

    def reached(self, arm: str, column: str = "value") -> Margins:
        """Forget accuracy that the attack reaches: cumulative maximum at the last step."""
        steps = self.readings.loc[self.readings["measure"] == "relearned", "subset"].unique()
        if not len(steps):
            raise Missing("no attack was run")
        last = max((str(step) for step in steps), key=lambda text: int(text.split()[-1]))
        return self.values(arm, f"measure == 'relearned' and subset == '{last}'", column)

    def gain(self) -> Margins:
        """Survival after the attack, teacher less strongest student: between each run's own anchors."""
        pair = self.teacher, self.student()
        for arm in pair:
            self.reached(arm)  # an arm that is missing is named as such
        try:
            high, low = (self.reached(arm, "survival") for arm in pair)
        except Missing as lack:
            raise Missing("the anchors lie too close together for survival in some run") from lack
        return high - low

    def log_steps(self, arm: str) -> Margins:
        """log2(1 + steps) to the threshold, capped at the attack's length (so a difference is understated)."""
        return self.values(arm, "measure == 'relearn_log_steps'")

    def accuracy(self, arm: str, side: str = "forget") -> Margins:
        """Accuracy before any attack: V, or held-out retain rows."""
        subset = "V" if side == "forget" else "all"
        return self.values(arm, f"measure == 'accuracy' and task_split == '{side}' and subset == '{subset}'")

    def compute(self, arm: str) -> Margins:
        """Compute as a share of training without the forget data."""
        return self.values(arm, "measure == 'compute_share'")

    def along(self, values: Callable[[str], Margins]) -> Margins:
        """Shape (seed, alpha): a value of every student of the sweep."""
        if len(self.alphas) < 3:
            raise Missing("fewer than three alphas")
        return np.stack([values(self.student(alpha)) for alpha in self.alphas], axis=1)


@dataclass(frozen=True)
class Claim:
    """A claim, its contrast in words, and the function that gives one margin a seed."""

    says: str
    contrast: str
    margins: Callable[[Evidence], Margins]
    equal_within: float | None = None
    """For claims of equality: the margins are differences, and this is the largest that counts as none."""


@dataclass(frozen=True)
class Verdict:
    """What came out."""

    name: str
    claim: Claim
    verdict: str
    interval: intervals.Interval | None = None
    p_value: float | None = None

    def __str__(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.name}: {self.claim.says}", f"  contrast: {self.claim.contrast}"]
        if self.interval is not None:
            found = self.interval
            low = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.n} seeds"
            lines.append(f"  {low}, sign-flip p {self.p_value:.3f}")
        return "\n".join([*lines, f"  {self.verdict}"])


def judge(name: str, evidence: Evidence) -> Verdict:
    """The verdict on one claim.

    Raises:
        UndoProbeError: there is no such claim.
    """
    if name not in CLAIMS:
        raise UndoProbeError(f"there is no claim {name!r}: there are {', '.join(CLAIMS)}")
    claim = CLAIMS[name]
    try:
        margins = claim.margins(evidence)
    except Missing as lack:
        return Verdict(name, claim, f"not measured: {lack}")
    if len(margins) < 2:
        return Verdict(name, claim, f"not measured: one seed ({margins[0]:.3f})")
    found = intervals.t_interval(margins)
    p_value = intervals.sign_flip_test(margins).p_value
    return Verdict(name, claim, _word(claim, found), found, p_value)


def judge_all(evidence: Evidence) -> list[Verdict]:
    """Every claim's verdict, in order."""
    return [judge(name, evidence) for name in CLAIMS]


def _word(claim: Claim, found: intervals.Interval) -> str:
    if found.n < ENOUGH:
        return f"points only: fewer than {ENOUGH} seeds"
    if claim.equal_within is not None:
        within = -claim.equal_within < found.low and found.high < claim.equal_within
        return "holds" if within else f"equality within {claim.equal_within:g} is not shown"
    if found.low > 0:
        return "holds"
    return "does not hold" if found.high < 0 else "not shown: the interval holds 0"


def _spearman(rows: Margins, levels: Margins | list[float]) -> Margins:
    from scipy import stats

    ranks = stats.rankdata(np.asarray(levels))
    return np.array([float(np.corrcoef(ranks, stats.rankdata(row))[0, 1]) for row in rows])


def _c1(e: Evidence) -> Margins:
    return np.minimum(e.accuracy("original"), e.accuracy("original", "retain")) - 0.9


def _c2(e: Evidence) -> Margins:
    chance = by_seed(
        e.readings.assign(value=e.readings["control_value"]), "measure == 'accuracy' and subset == 'V'"
    )[e.teacher].to_numpy(dtype=float)
    left = e.accuracy(e.teacher) - chance
    lost = e.accuracy("original", "retain") - e.accuracy(e.teacher, "retain")
    return 0.05 - np.maximum(left, lost)


def _c9(e: Evidence) -> Margins:
    """Robustness less compute, times the gap between the chord's ends: of its sign, and defined where they are near."""
    start, end = e.reached(e.teacher), e.reached("oracle_matched")
    chord = start[:, None] - e.along(e.compute) * (start - end)[:, None]
    return (chord - e.along(e.reached)).mean(axis=1)


def _c17(e: Evidence) -> Margins:
    if e.entangled is None:
        raise Missing("no entangled runs (--entangled, on a preset of arithmetic or invented people)")
    own, other = (sorted(set(each.readings["seed"])) for each in (e, e.entangled))
    if own != other:
        raise Missing(f"the entangled runs have seeds {other}, the others {own}")
    return e.gain() - e.entangled.gain()


def _c14(e: Evidence) -> Margins:
    baselines = np.minimum(e.reached("unlearned-sam"), e.reached("unlearned-repnoise"))
    return baselines - e.reached(e.student())


_ANSWERS = ("first_digit", "answer")  # what probes read of an answer, by task


def _c16(e: Evidence) -> Margins:
    """Over unlearned models and students: not the original and the oracles, which would fix the ends."""
    layers = [str(layer) for layer in e.readings["layer"].dropna().unique()]
    streams = [layer for layer in layers if layer.endswith("hook_resid_post")]
    last = max(streams, key=lambda layer: int(layer.split(".")[1]))
    read = e.readings[(e.readings["measure"] == "probe_bits") & (e.readings["task_split"] == "forget")]
    target = next((name for name in _ANSWERS if name in set(read["subset"])), None)
    if target is None:
        raise Missing(f"no probe of {' or '.join(_ANSWERS)} was fitted")
    query = (
        f"measure == 'probe_bits' and task_split == 'forget' and subset == '{target}' and layer == '{last}'"
    )
    arms = sorted(str(arm) for arm in e.readings["arm"].unique())
    names = [arm for arm in arms if arm.startswith(("unlearned-", "distilled-"))]
    pairs = [(e.values(arm, query), e.reached(arm)) for arm in names]
    bits, reached = (np.stack(side, axis=1) for side in zip(*pairs, strict=True))
    return np.array([_spearman(r[None], b)[0] for b, r in zip(bits, reached, strict=True)])


CLAIMS: dict[str, Claim] = {
    "C1": Claim("the original knows both", "lower of forget and retain accuracy, less .9", _c1),
    "C2": Claim("unlearning suppresses", ".05 less the larger of forget above chance and retain lost", _c2),
    "C3": Claim(
        "suppression is shallow",
        "log2 steps to the threshold, matched oracle less teacher, less log2(10)",
        lambda e: e.log_steps("oracle_matched") - e.log_steps(e.teacher) - np.log2(10),
    ),
    "C4": Claim(
        "matching the oracle's outputs does not remove",
        "attack reaches: student from the original less student from random weights",
        lambda e: e.reached("unlearned-oracle_matching") - e.reached("unlearned-oracle_matching-fresh"),
    ),
    "C5": Claim(
        "distilling into random weights makes robust",
        "log2 steps to the threshold, Unlearn-and-Distill less teacher, less log2(3)",
        lambda e: e.log_steps(f"distilled-{e.method}-fresh") - e.log_steps(e.teacher) - np.log2(3),
    ),
    "C6": Claim(
        "weak suppression leaks",
        "attack reaches: the variation `weak teacher` less the sweep's student",
        lambda e: e.reached(e.student(e.alpha, "weak teacher")) - e.reached(e.student(e.alpha)),
    ),
    "C7": Claim(
        "more alpha, more robust",
        "Spearman of alpha and minus what the attack reaches, less .8",
        lambda e: _spearman(-e.along(e.reached), e.alphas) - 0.8,
    ),
    "C8": Claim(
        "more alpha, more steps of distillation",
        "Spearman of alpha and compute, less .8",
        lambda e: _spearman(e.along(e.compute), e.alphas) - 0.8,
    ),
    "C9": Claim(
        "robustness is bought at or above the chord",
        "attack reaches: chord from teacher to matched oracle at the student's compute, less student; mean over alphas",
        _c9,
    ),
    "C10": Claim(
        "shrinking does the work",
        "attack reaches: the variation `shrink only` (beta 0) less the sweep's student",
        lambda e: e.reached(e.student(e.alpha, "shrink only")) - e.reached(e.student(e.alpha)),
        equal_within=0.05,
    ),
    "C11": Claim(
        "noise without the teacher's forget outputs is not enough",
        "attack reaches: the variation `retain text` less the sweep's student",
        lambda e: e.reached(e.student(e.alpha, "retain text")) - e.reached(e.student(e.alpha)),
    ),
    "C12": Claim(
        "distillation without shrinking gives nothing",
        "attack reaches: the variation `jitter` (moved as far, not shrunk) at the largest alpha less the sweep's",
        lambda e: e.reached(e.student(None, "jitter")) - e.reached(e.student()),
    ),
    "C13": Claim(
        "a small alpha re-exposes",
        "forget accuracy before any attack: weakest student less teacher",
        lambda e: e.accuracy(e.student(e.alphas[0])) - e.accuracy(e.teacher),
    ),
    "C14": Claim(
        "robust baselines fall under attack",
        "attack reaches: the better of SAM and RepNoise less the strongest student",
        _c14,
    ),
    "C15": Claim(
        "a teacher that knows passes it on",
        "twin's forget accuracy less .9",
        lambda e: e.accuracy(e.student(e.alpha, "twin")) - 0.9,
    ),
    "C16": Claim(
        "what probes read tracks what the attack brings back",
        "Spearman of bits of the answer (its first digit) and attack's reach over unlearned models and students",
        _c16,
    ),
    "C17": Claim(
        "entangled forget sets are harder",
        "survival after the attack, teacher less strongest student: sides apart less sides entangled",
        _c17,
    ),
    "C18": Claim(
        "the choice of attack changes the verdict",
        "attack reaches, teacher less strongest student: free attacker less one who must keep retain",
        lambda e: (
            (e.reached(e.teacher) - e.reached(e.student()))
            - (
                e.values(e.teacher, "measure == 'relearned_utility'")
                - e.values(e.student(), "measure == 'relearned_utility'")
            )
        ),
    ),
}
