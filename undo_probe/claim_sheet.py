"""The runs that the claims need, and the sheet of verdicts: what the scripts of ``analyses/`` share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from undo_probe import intervals
from undo_probe.claims import CLAIMS, MEASURES, Evidence, Verdict, judge, judge_all

if TYPE_CHECKING:
    from undo_probe.config import RunConfig

ARMS = (
    "arms.oracle_matching=1500",
    'unlearn.also=["graddiff", "rmu", "sam", "repnoise"]',
    'arms.variations={"shrink only": {"noise": {"beta": 0}}, "retain text": {"distill": {"text": "retain"}}, '
    '"weak teacher": {"unlearn": {"steps": 20}}, "jitter": {"noise": {"rule": "jitter"}, "alphas": [0.8]}}',
)
"""Overrides of a preset with which its runs have what every claim is about; C17 needs a second run a seed."""
ENTANGLED = {
    "arithmetic": (
        "task.forget_factors=[3, 6, 7, 8, 9, 12]",
        # sums are an eighth of what is shown here, not a quarter: twice the steps show each as often
        "original.steps=3000",
        # chosen on D of seed 0: tiny's own settings leave a fifth of the forget products of D answered
        "unlearn.maxent.steps=200",
        "unlearn.maxent.learning_rate=0.001",
    ),
    # as many facts are forgotten and kept as without, of twice as many people; chosen on D of seed 0: with half the
    # steps SimNPO leaves a quarter of D's facts answered
    "invented": ("task.forget_share=0.8", "task.forget_relations=2", "unlearn.simnpo.steps=600"),
}
"""By task, overrides for C17's second run: half of all products are forgotten, or half of what is true of a person."""
_ONE_STUDENT = ("unlearn.also=[]", 'arms={"twins": [], "unlearn_and_distill": false, "placebo_rmu": false}')


def entangled(config: "RunConfig") -> "RunConfig | None":
    """A configuration's second run for C17, with its strongest student only; None where its task has no such form."""
    from undo_probe.presets import override

    if config.task.name not in ENTANGLED:
        return None
    strongest = f"noise.alphas=[{max(config.noise.alphas)}]"
    return override(config, *ENTANGLED[config.task.name], *_ONE_STUDENT, strongest)


def main(name: str = "") -> None:
    """What a claim's script does: run what is missing, then print one claim's verdict, or the sheet of all."""
    import argparse

    from undo_probe.presets import preset
    from undo_probe.replicates import replicate

    parser = argparse.ArgumentParser(description=CLAIMS[name].says if name else "every claim on one sheet")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[31, 32, 33, 34, 35, 36])
    parser.add_argument(
        "--out", default="runs/claims", type=Path, help="one folder a seed; finished stages are loaded"
    )
    parser.add_argument(
        "--readings", type=Path, help="a Parquet file that keeps readings; seeds it holds are not run again"
    )
    told = "a second run a seed, in OUT/entangled, for C17 on the sheet of all"
    parser.add_argument("--entangled", action="store_true", help=told)
    parser.add_argument(
        "overrides", nargs="*", help="settings after the claims' own, such as arms.oracle_matching=600"
    )
    asked = parser.parse_args()

    def evidence(config: "RunConfig", folder: Path, beside: Evidence | None = None) -> Evidence:
        found = replicate(config, asked.seeds, folder, kept=asked.readings, measures=MEASURES)
        return Evidence(found, config.unlearn.method, config.arms.rates_alpha, beside)

    second = entangled(preset(asked.preset, *asked.overrides)) if asked.entangled or name == "C17" else None
    beside = second and evidence(second, asked.out / "entangled")
    every = evidence(preset(asked.preset, *ARMS, *asked.overrides), asked.out, beside)
    print(judge(name, every) if name else table(judge_all(every)))  # noqa: T201


def table(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as a Markdown table; p-values are also given adjusted over the sheet (Holm)."""
    tested = [each for each in verdicts if each.p_value is not None]
    adjusted = intervals.holm([each.p_value for each in tested if each.p_value is not None]) if tested else []
    holm = {each.name: value for each, value in zip(tested, adjusted, strict=True)}
    lines = [
        "| claim | contrast (one margin a seed) | mean, 95 % interval | n | p (Holm) | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for each in verdicts:
        found = each.interval
        cells = ["–"] * 3
        if found is not None and each.p_value is not None:
            cells = [
                f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]",
                str(found.n),
                f"{each.p_value:.3f} ({holm[each.name]:.2f})",
            ]
        lines.append(
            " | ".join(
                [f"| {each.name}: {each.claim.says}", each.claim.contrast, *cells, f"{each.verdict} |"]
            )
        )
    return "\n".join(lines)
