"""Which models a run has: every arm with its settings, its seed and its parents, before anything is computed."""

from dataclasses import dataclass, replace
from typing import Any

from undo_probe.config import DistillConfig, NoiseRule, RunConfig
from undo_probe.randomness import derive_seed
from undo_probe.records import Arm
from undo_probe.sources import find_source, identity
from undo_probe.stages import unlearn

UNTIL = ("original", "unlearned", "noised", "distilled")
QUICK = ("fresh", "load", "noise")
"""Kinds of step that train nothing."""


@dataclass(frozen=True)
class Step:
    """One model to make: which arm it is, how, and from which other arms (by name, in order)."""

    arm: Arm
    kind: str
    settings: dict[str, Any]
    seed: int
    parents: tuple[str, ...] = ()
    until: str = "original"


def plan(config: RunConfig) -> list[Step]:
    """Every model of a run, parents before children."""
    if config.given.unlearned:
        return _given(config)
    return [*_references(config), *_unlearned(config), *_students(config)]


def _step(
    config: RunConfig, arm: Arm, kind: str, settings: dict, parents: tuple = (), purpose: str = ""
) -> Step:
    """A step with its derived seed; ``purpose`` names the stream that arms share (one batch order a sweep)."""
    seed = derive_seed(config.seed, kind, purpose or arm.name)
    trained = {"precision": config.precision} if kind not in QUICK else {}
    arm = replace(arm, seed=config.seed)
    return Step(
        arm, kind, {**settings, **trained}, seed, parents, arm.stage if arm.stage in UNTIL else "original"
    )


def places_of(config: RunConfig) -> dict[str, tuple[str, str]]:
    """Where the models lie that a run loads, with their revision, by the name of the arm."""
    places = {"original": (config.original.source, config.original.revision)}
    places |= {Arm("unlearned", name).name: (place, "main") for name, place in config.given.unlearned.items()}
    if config.given.oracle:
        places["oracle_matched"] = (config.given.oracle, "main")
    return places


def _given(config: RunConfig) -> list[Step]:
    """Finished models only; a given oracle stands where a matched oracle stands otherwise."""
    arms = [Arm("original"), *(Arm("unlearned", name) for name in config.given.unlearned)]
    arms += [Arm("oracle_matched")] if config.given.oracle else []
    places = places_of(config)
    loaded = []
    for arm in arms:
        # a known set was measured on the original, and only there it is checked
        given = {"given": True} if arm.stage != "original" else {}
        source = identity(find_source(*places[arm.name]))
        loaded.append(_step(config, arm, "load", {"source": source, **given}))
    return [*loaded, _step(config, Arm("random"), "fresh", {}, ("original",))]


def _references(config: RunConfig) -> list[Step]:
    """The original, both oracles (same number of retain tokens as the original), the random floor."""
    if config.original.source:
        source = identity(find_source(config.original.source, config.original.revision))
        loaded = _step(config, Arm("original"), "load", {"source": source})
        return [loaded, _step(config, Arm("random"), "fresh", {}, ("original",))]
    model = config.model.model_dump(mode="json")
    fit = config.original.model_dump(mode="json", exclude={"source", "revision"})
    # half of the original's rows are retain rows
    half = {**fit, "steps": max(1, fit["steps"] // 2)} if fit["steps"] else fit
    trained = [("original", "pretrain", fit), ("oracle", "retain", half), ("oracle_matched", "matched", fit)]
    steps = []
    for variant in ("", "b") if config.arms.second_seed else ("",):
        for stage, mixture, schedule in trained:
            if variant and stage == "oracle_matched":
                continue
            settings = {"model": model, "fit": schedule, "mixture": mixture}
            steps.append(_step(config, Arm(stage, variant=variant), "pretrain", settings))
    return [*steps, _step(config, Arm("random"), "fresh", {"model": model})]


def _unlearned(config: RunConfig) -> list[Step]:
    """The teacher, the methods beside it, placebos (the same methods on the oracle), and oracle matching."""
    wanted = dict.fromkeys((config.unlearn.method, *config.unlearn.also))
    first = [unlearn.STARTS_FROM[method] for method in wanted if method in unlearn.STARTS_FROM]
    steps = []
    for method in dict.fromkeys((*first, *wanted)):
        settings = {"method": method, "fit": config.unlearn.of(method).identity()}
        before = unlearn.STARTS_FROM.get(method)
        start = Arm("unlearned", before).name if before else "original"
        steps.append(_step(config, Arm("unlearned", method), "unlearn", settings, (start,)))
        wanted_placebo = method == "rmu" and config.arms.placebo_rmu and not config.original.source
        if wanted_placebo or (method == config.unlearn.method and config.arms.placebo_alphas):
            arm = Arm("unlearned", method, variant="placebo")
            # its own seed: a placebo that shared RMU's control vector would be no control
            steps.append(_step(config, arm, "unlearn", settings, ("oracle",)))
    if config.arms.oracle_matching:
        fit = config.distill.identity()
        fit |= {"steps": config.arms.oracle_matching, "stop": "never"}
        for variant, start in (("", "original"), ("fresh", "random")):
            arm = Arm("unlearned", "oracle_matching", variant=variant)
            steps.append(
                _step(config, arm, "distill", {"fit": fit}, (start, "oracle"), purpose="oracle matching")
            )
    return steps


def _students(config: RunConfig) -> list[Step]:
    """Noised and distilled models: the sweep over alpha, its twins and placebos, and the fresh student.

    Within the sweep all but alpha and the step at which the stop rule fires is fixed: noise draw, batch
    order, peak rate and the schedule in absolute steps.
    """
    method, arms = config.unlearn.method, config.arms
    teacher = Arm("unlearned", method).name
    rule = NoiseRule(**{key: getattr(config.noise, key) for key in NoiseRule.model_fields})
    families = [
        ("" if n == 0 else f"noise {n + 1}", teacher, config.noise.alphas) for n in range(arms.noise_seeds)
    ]
    families.append(("twin", "original", arms.twins))
    families.append(("placebo", Arm("unlearned", method, variant="placebo").name, arms.placebo_alphas))
    steps = []
    for variant, taught_by, alphas in families:
        draw = variant if variant.startswith("noise") else "noise 1"
        for alpha in alphas:
            arm = Arm("distilled", method, alpha, variant=variant)
            steps += _student(config, arm, (rule, config.distill), (taught_by, taught_by), draw)
    steps += _varied(config, teacher, rule)
    for alpha in config.noise.alphas:
        steps += _rounds(config, alpha, teacher, rule)
    fit = config.distill.identity()
    steps += _again(config, teacher, fit)
    if arms.unlearn_and_distill:
        student = Arm("distilled", method, variant="fresh")
        steps.append(_step(config, student, "distill", {"fit": fit}, ("random", teacher), purpose="distill"))
    return steps


def _student(
    config: RunConfig,
    arm: Arm,
    settings: tuple[NoiseRule, DistillConfig],
    parents: tuple[str, str],
    draw: str = "noise 1",
) -> list[Step]:
    """Noise and distillation: ``parents`` are what is noised and who teaches, ``draw`` the noise's stream."""
    rule, fit = settings
    noised = replace(arm, stage="noised")
    start = (parents[0], "original") if rule.top_delta is not None else parents[:1]
    noise = {"alpha": arm.alpha, "rule": rule.identity()}
    fitted = {"fit": fit.identity()}
    return [
        _step(config, noised, "noise", noise, start, purpose=draw),
        _step(config, arm, "distill", fitted, (noised.name, parents[1]), purpose="distill"),
    ]


def _varied(config: RunConfig, teacher: str, own: NoiseRule) -> list[Step]:
    """Students made with other settings; what a variation leaves alone, it shares with the sweep."""
    method, steps = config.unlearn.method, []
    for name, variation in config.arms.variations.items():
        rule, fit, taught = config.varied(name, variation)
        taught_by = teacher
        if variation.unlearn:
            settings = {"method": method, "fit": taught.identity()}
            start = unlearn.STARTS_FROM.get(method)
            before = Arm("unlearned", start).name if start else "original"
            weak = Arm("unlearned", method, variant=name)
            # the teacher's own batches: only the settings differ
            steps.append(_step(config, weak, "unlearn", settings, (before,), purpose=teacher))
            taught_by = weak.name
        for alpha in variation.alphas or (config.arms.rates_alpha,):
            arm = Arm("distilled", method, alpha, variant=name)
            noised, student = _student(config, arm, (rule, fit), (taught_by, taught_by))
            if taught_by == teacher and rule == own and alpha in config.noise.alphas:
                parents = (Arm("noised", method, alpha).name, teacher)
                steps.append(replace(student, parents=parents))
            else:
                steps += [noised, student]
    return steps


def _rounds(config: RunConfig, alpha: float, teacher: str, rule: NoiseRule) -> list[Step]:
    """Students of students: noised and taught again, by the same teacher or by their unlearned selves."""
    method, steps = config.unlearn.method, []
    first = Arm("distilled", method, alpha).name
    for kind, count in (("round", config.arms.rounds), ("serial", config.arms.serial)):
        before, taught_by = first, teacher
        for number in range(2, count + 1):
            variant = f"{kind} {number}"
            if kind == "serial":
                settings = {
                    "method": method,
                    "fit": config.unlearn.of(method).identity(),
                }
                again = Arm("unlearned", method, alpha, variant=variant)
                steps.append(_step(config, again, "unlearn", settings, (before,)))
                before = taught_by = again.name
            arm = Arm("distilled", method, alpha, variant=variant)
            # a new draw each time: the same noise again would only push further the same way
            steps += _student(config, arm, (rule, config.distill), (before, taught_by), f"noise 1 {variant}")
            before = arm.name
    return steps


def _again(config: RunConfig, teacher: str, fit: dict[str, Any]) -> list[Step]:
    """The sweep's students once more, for other lengths of training and at other rates.

    A length that depends on another student's is worked out when that one is there: see ``pipeline.length_of``. The
    batches are those of the sweep, so a shorter student is a moment in the life of the longer one.
    """
    method, arms, alphas = config.unlearn.method, config.arms, config.noise.alphas
    steps = []

    def add(alpha: float, variant: str, settings: dict[str, Any], like: tuple[str, ...] = ()) -> None:
        arm = Arm("distilled", method, alpha, variant=variant)
        parents = (Arm("noised", method, alpha).name, teacher, *like)
        steps.append(_step(config, arm, "distill", settings, parents, purpose="distill"))

    for alpha in alphas:
        itself = (Arm("distilled", method, alpha).name,)
        if arms.equal_steps and alpha != max(alphas):
            longest = (Arm("distilled", method, max(alphas)).name,)
            add(alpha, "equal steps", {"fit": fit, "length": {"times": 1.0}}, longest)
        for times in arms.times:
            add(alpha, f"x{times:g}", {"fit": fit, "length": {"times": times}}, itself)
        for number in range(1, arms.snapshots + 1):
            power = number / (arms.snapshots + 1)
            add(alpha, f"snapshot {number}", {"fit": fit, "length": {"power": power}}, itself)
    for rate in arms.rates if arms.rates_alpha in alphas else ():
        if rate != fit["learning_rate"]:
            add(arms.rates_alpha, f"rate {rate:g}", {"fit": {**fit, "learning_rate": rate}})
    return steps
