"""Configurations by name, from files and with overrides; and how two of them differ."""

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from undo_probe.collapse_config import BudgetConfig, CIRConfig, RepSelectConfig
from undo_probe.config import (
    FORMAT,
    ArmsConfig,
    AttackConfig,
    DistillConfig,
    GradDiffConfig,
    MaxEntConfig,
    ModelConfig,
    NoiseConfig,
    NPOConfig,
    OriginalConfig,
    ProbeConfig,
    RepNoiseConfig,
    RMUConfig,
    RunConfig,
    SAMConfig,
    ScoreConfig,
    SimNPOConfig,
    UnlearnConfig,
)
from undo_probe.errors import UndoProbeError
from undo_probe.published import PAPER_ARITHMETIC, PAPER_LANGUAGE, PAPER_WMDP
from undo_probe.task_config import (
    TASKS,
    ArithmeticConfig,
    FactsConfig,
    FactSource,
    InventedConfig,
    LanguageConfig,
)

TINY = RunConfig(name="tiny")
# every arm of the controls, and the sweep again at other lengths and rates; an hour or more on two cores
SMALL = RunConfig(
    name="small",
    model=ModelConfig(n_layers=4),
    noise=NoiseConfig(alphas=(0.1, 0.2, 0.4, 0.6, 0.8)),
    attack=AttackConfig(seeds=2),
    arms=ArmsConfig(
        twins=(0.1, 0.2, 0.4, 0.6, 0.8),
        second_seed=True,
        placebo_alphas=(0.4, 0.8),
        noise_seeds=2,
        equal_steps=True,
        rates=(5e-4, 2e-3),
        times=(0.5, 2.0),
    ),
)
# seconds, to see that everything runs; its numbers mean nothing
SMOKE = RunConfig(
    name="smoke",
    task=ArithmeticConfig(add_max=12, mul_max=8),
    model=ModelConfig(d_model=32, n_heads=2, d_mlp=64),
    original=OriginalConfig(steps=40, batch_size=64, eval_every=20),
    unlearn=UnlearnConfig(
        maxent=MaxEntConfig(steps=10, batch_size=32),
        graddiff=GradDiffConfig(steps=10, batch_size=32),
        rmu=RMUConfig(steps=10, batch_size=32),
        cir=CIRConfig(steps=6, batch_size=32, basis_batches=1),
        repselect=RepSelectConfig(batch_size=32, accumulate=2, adversary_steps=4),
    ),
    noise=NoiseConfig(alphas=(0.4, 0.8)),
    distill=DistillConfig(steps=20, batch_size=32, eval_every=10),
    attack=AttackConfig(learning_rates=(3e-4, 1e-3, 3e-3), steps=10, eval_steps=(0, 5, 10), max_extensions=0),
    score=ScoreConfig(probes=ProbeConfig(folds=3, shuffles=1, max_rows=120), draws=199),
)
# facts instead of a skill, in a model without LayerNorm: memorised people, whom nothing implies
FACTS_TINY = RunConfig(
    name="facts-tiny",
    task=InventedConfig(),
    model=ModelConfig(n_layers=4, normalization="RMS"),
    original=OriginalConfig(steps=2000, batch_size=256, learning_rate=3e-3, eval_every=50),
    # MaxEnt leaves the right answer barely the likeliest, or destroys it; on D, SimNPO hides it and spares W most
    unlearn=UnlearnConfig(
        method="simnpo",
        also=("maxent", "graddiff", "rmu"),
        simnpo=SimNPOConfig(steps=300, batch_size=256, learning_rate=3e-4, retain_weight=1.0),
        maxent=MaxEntConfig(steps=150, batch_size=256, learning_rate=5e-4, retain_weight=3.0),
        graddiff=GradDiffConfig(steps=150, batch_size=256, learning_rate=5e-4, retain_weight=3.0),
        # c is six times the norm of the states there; no LayerNorm removes what u has along all ones
        rmu=RMUConfig(
            steps=600,
            batch_size=256,
            learning_rate=2e-3,
            schedule="cosine",
            layer=1,
            c=120.0,
            retain_weight=30.0,
            target="uniform",
            tensors=("mlp.W_out",),
        ),
        sam=SAMConfig(steps=300, batch_size=256, learning_rate=1e-3, retain_weight=3.0),
        repnoise=RepNoiseConfig(steps=150, batch_size=256, learning_rate=5e-4, retain_weight=3.0),
        # on D: of three losses MaxEnt takes most within this budget, and the MLPs alone more than all maps
        cir=CIRConfig(
            loss="maxent", step_norm=0.5, steps=60, basis_batches=2, budget=BudgetConfig(retain=0.1)
        ),
        repselect=RepSelectConfig(budget=BudgetConfig(retain=0.1)),
    ),
    # repair takes 20 steps at a low alpha, so the stop rule has to look often
    distill=DistillConfig(steps=1200, batch_size=256, eval_every=5),
    attack=AttackConfig(
        learning_rates=(3e-4, 1e-3, 3e-3), steps=100, eval_steps=(0, 1, 2, 5, 10, 25, 50, 100)
    ),
    arms=ArmsConfig(twins=(0.4, 0.8)),
)
# a language: needs the user's text, task.text=FOLDER, which `undo-probe text FOLDER` gathers
LANGUAGE_TINY = RunConfig(
    name="language-tiny",
    task=LanguageConfig(),
    model=ModelConfig(d_model=96, d_mlp=384, normalization="RMS"),
    original=OriginalConfig(
        steps=500, batch_size=32, learning_rate=4e-3, warmup=50, weight_decay=0.1, eval_every=100
    ),
    unlearn=UnlearnConfig(
        # gradient ascent is without bound and wrecks both languages when it goes on; RMU has a hundred ablations
        also=("graddiff",),
        maxent=MaxEntConfig(steps=60, batch_size=16, learning_rate=1e-3, retain_weight=3.0),
        graddiff=GradDiffConfig(steps=20, batch_size=16, learning_rate=6e-4, retain_weight=3.0),
        rmu=RMUConfig(batch_size=16),
    ),
    noise=NoiseConfig(alphas=(0.4, 0.6, 0.8)),
    distill=DistillConfig(steps=400, batch_size=32, learning_rate=2e-3, eval_every=10),
    attack=AttackConfig(
        learning_rates=(3e-4, 1e-3, 3e-3),
        steps=40,
        batch_size=16,
        eval_steps=(0, 2, 5, 10, 20, 40),
        max_extensions=1,
    ),
    score=ScoreConfig(draws=999),
)
# facts of a real model: Europe's and Asia's capitals are forgotten, all other capitals are their siblings. Every method
# is held to one budget, so that what the attack brings back can be compared; settings were chosen on D (docs/log.md).
# Needs `make smollm`, better with task.known=FILE
FACTS_SMOLLM = RunConfig(
    name="facts-smollm",
    task=FactsConfig(
        forget=FactSource(relations=("capital",), groups=("Europe", "Asia")),
        retain=FactSource(relations=("capital", "continent", "symbol")),
        n_ctx=16,
    ),
    original=OriginalConfig(source="smollm"),
    unlearn=UnlearnConfig(
        method="cir",
        also=("rmu", "npo", "repselect"),
        budget=BudgetConfig(retain=0.1, siblings=0.2, rows=24),
        cir=CIRConfig(steps=12, batch_size=16, step_norm=0.02, basis_batches=2, refresh=4, eval_every=12),
        repselect=RepSelectConfig(batch_size=16, accumulate=4, adversary_steps=8, adversary_rate=1e-4),
        npo=NPOConfig(steps=12, batch_size=16, learning_rate=3e-5, retain_weight=1.0, eval_every=12),
        # states there have a norm of 140
        rmu=RMUConfig(
            steps=24,
            batch_size=16,
            learning_rate=2e-4,
            layer=9,
            c=200.0,
            retain_weight=10.0,
            tensors=("mlp.W_out",),
            eval_every=24,
        ),
    ),
    noise=NoiseConfig(alphas=(0.1,)),
    distill=DistillConfig(steps=100, batch_size=16, learning_rate=1e-4, eval_every=20),
    attack=AttackConfig(
        learning_rates=(1e-5, 3e-5, 1e-4),
        steps=20,
        batch_size=8,
        eval_steps=(0, 5, 10, 20),
        max_extensions=1,
    ),
    arms=ArmsConfig(twins=(), unlearn_and_distill=False, rates_alpha=0.1),
)
PRESETS: dict[str, RunConfig] = {
    "tiny": TINY,
    "small": SMALL,
    "smoke": SMOKE,
    "facts-tiny": FACTS_TINY,
    "facts-smollm": FACTS_SMOLLM,
    "language-tiny": LANGUAGE_TINY,
    "paper-language": PAPER_LANGUAGE,
    "paper-arithmetic": PAPER_ARITHMETIC,
    "paper-wmdp": PAPER_WMDP,
}


def preset(name: str, *overrides: str) -> RunConfig:
    """A named configuration with dotted overrides, for example ``preset("tiny", "noise.alphas=[0.4]")``.

    Raises:
        UndoProbeError: no such preset, or an override that does not fit; near-misses are named.
    """
    if name not in PRESETS:
        raise UndoProbeError(
            f"there is no preset {name!r}{near(name, list(PRESETS))}: the presets are {', '.join(PRESETS)}"
        )
    return override(PRESETS[name], *overrides)


def load_config(source: str | Path, *overrides: str) -> RunConfig:
    """A configuration from a TOML or JSON file (or a preset's name) with dotted overrides.

    A file may start from a preset with ``extends = "tiny"``.

    Raises:
        UndoProbeError: the file is missing or unreadable, a key is unknown, a value does not fit.
    """
    path = Path(source)
    if str(source) in PRESETS and not path.is_file():
        return preset(str(source), *overrides)
    return override(from_values(read_settings(path), str(path), path.stem), *overrides)


def from_values(values: dict[str, Any], where: str, name: str) -> RunConfig:
    """The configuration that a file's settings make: ``where`` names the file in errors, ``name`` the run."""
    values = dict(upgrade(values, where))
    base = values.pop("extends", None)
    if base is not None:
        start = preset(str(base)).model_dump(mode="json")
        values = _merge(start, {"name": name, **values})
    return _validate(values, where)


def override(config: RunConfig, *assignments: str, where: str = "the overrides") -> RunConfig:
    """The configuration with ``a.b=value`` assignments applied; values are JSON, or plain text."""
    values = config.model_dump(mode="json")
    for assignment in assignments:
        path, sign, text = assignment.partition("=")
        if not sign or not path:
            raise UndoProbeError(
                f"{assignment!r} is no override: write section.key=value, for example noise.beta=0.05"
            )
        _assign(values, path.strip().split("."), _value(text), assignment)
    return _validate(values, where) if assignments else config


def upgrade(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Brings a configuration of an older format to the present one, a named function a step."""
    found = values.get("format", FORMAT)
    if found != FORMAT:
        raise UndoProbeError(
            f"{where} has format {found!r}; this undo_probe reads format {FORMAT}: install a newer one"
        )
    return values


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """``key: old -> new`` for every setting in which two configurations differ."""
    flat_old, flat_new = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    keys = dict.fromkeys([*flat_old, *flat_new])
    return [
        f"{key}: {json.dumps(flat_old.get(key))} -> {json.dumps(flat_new.get(key))}"
        for key in keys
        if flat_old.get(key) != flat_new.get(key)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_kind(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _same_kind(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether two versions of a section may be mixed: of another task nothing stays."""
    return new.get("name", old.get("name")) == old.get("name")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a TOML or JSON file, not checked yet."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UndoProbeError(
            f"there is no file and no preset {str(path)!r}{near(str(path), list(PRESETS))}: give a .toml or "
            f".json file, or one of {', '.join(PRESETS)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UndoProbeError(
            f"{path} cannot be read ({error}): expected a UTF-8 .toml or .json file"
        ) from error
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise UndoProbeError(f"{path} is not valid {kind}: {error}") from error
    except RecursionError as error:
        raise UndoProbeError(f"{path} is nested too deeply to be a configuration") from error
    if not isinstance(values, dict):
        raise UndoProbeError(f"{path} holds a {type(values).__name__}: expected a table of settings")
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _assign(values: dict[str, Any], path: list[str], value: Any, assignment: str) -> None:
    place: Any = values
    for depth, part in enumerate(path):
        if not isinstance(place, dict) or part not in place:
            known = list(place) if isinstance(place, dict) else []
            where = ".".join(path[:depth]) or "the configuration"
            raise UndoProbeError(
                f"{assignment!r}: {where} has no key {part!r}{near(part, known)}"
                + (f" (it has {', '.join(known)})" if known else "")
            )
        if depth < len(path) - 1:
            place = place[part]
    if path == ["task", "name"] and value != place["name"] and value in list(TASKS):
        values["task"] = TASKS[value]().model_dump(mode="json")  # another task starts from its own defaults
        return
    place[path[-1]] = value


def near(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` where a known name is like the given one, else nothing."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _validate(values: dict[str, Any], where: str) -> RunConfig:
    try:
        # as JSON, whose lists may be tuples even when true may not be 1, nor "3" a number
        return RunConfig.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        lead = f"{where}: " if len(problems) == 1 else f"{where} has {len(problems)} problems: "
        raise UndoProbeError(lead + "; ".join(problems)) from None


def _problem(item: Any) -> str:
    words, parent = _place(item["loc"])
    place = ".".join(words) or "the configuration"
    if item["type"] == "extra_forbidden":
        known = near(words[-1], list(parent.model_fields)) or _elsewhere(words)
        return f"unknown key {place!r}{known}"
    if item["type"] == "union_tag_invalid":
        name = item["input"]["name"]
        known = f"{', '.join(TASKS)}{near(str(name), list(TASKS))}"
        return f"{place}.name is {json.dumps(name)[:80]}: expected one of {known}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{place} is {json.dumps(item['input'], default=str)[:80]}: {message}" if words else message


def _elsewhere(words: Sequence[str]) -> str:
    """Which other task would know a key of the task section."""
    owner = next((name for name, section in TASKS.items() if words[-1] in section.model_fields), "")
    return f": it belongs to the task {owner}" if words[:-1] == ["task"] and owner else ""


def _place(location: Sequence[Any]) -> tuple[list[str], Any]:
    """Where an error is, as a user writes it, and the section that should know its last word."""
    words: list[str] = []
    parent: Any = RunConfig
    section: Any = RunConfig
    for part in location:
        if words == ["task"] and section is None:
            section = TASKS[part]  # pydantic names the kind of task too
            continue
        words.append(str(part))
        parent, fields = section, getattr(section, "model_fields", {})
        kind = fields[part].annotation if part in fields else ()
        section = None if words == ["task"] else kind
    return words, parent
