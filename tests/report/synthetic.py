"""A plausible run folder from made-up numbers: the files that a report reads, without training anything."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from undo_probe.records import Arm, Reading, Scorecard, reading_table

STEPS = (0, 1, 2, 5, 10, 25, 50, 100, 200)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
LAYERS = ("hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
POSITIONS = ("pos 0", "pos 1", "pos 2", "pos 3", "pos 4", "pos 5", "=")
STRATA = {"trivial": 33, "double": 36, "below_100": 94, "from_100": 177}
ROWS, FAMILIES = 340, 74


def arms(seed: int = 1) -> dict[str, Arm]:
    """The arms of a ``tiny`` run, by the name that the tables below use."""
    found = {
        "original": Arm("original"),
        "oracle": Arm("oracle"),
        "oracle_matched": Arm("oracle_matched"),
        "random": Arm("random"),
        "maxent": Arm("unlearned", "maxent"),
        "graddiff": Arm("unlearned", "graddiff"),
        "rmu": Arm("unlearned", "rmu"),
        "fresh": Arm("distilled", "maxent", variant="fresh"),
        "twin 0.8": Arm("distilled", "maxent", 0.8, variant="twin"),
    }
    for alpha in (0.2, 0.4, 0.6, 0.8):
        found[f"noised {alpha}"] = Arm("noised", "maxent", alpha)
        found[f"undo {alpha}"] = Arm("distilled", "maxent", alpha)
    hashed = {name: f"{abs(hash_text(name)):016x}" * 4 for name in found}
    return {
        name: Arm(arm.stage, arm.method, arm.alpha, seed, arm.variant, hashed[name])
        for name, arm in found.items()
    }


def hash_text(text: str) -> int:
    """A stable number for a text (the built-in hash changes between processes)."""
    number = 1469598103934665603
    for byte in text.encode():
        number = (number ^ byte) * 1099511628211 % 2**64
    return number


# name: accuracies [+, -, *, /], then held-out forget accuracy after 0, 10, 25, 50, 100, 200 attack steps
STORY: dict[str, tuple[tuple[float, ...], tuple[float, ...] | None]] = {
    "original": ((0.998, 0.948, 1.0, 1.0), (1.0, 1.0, 0.99, 0.98, 0.98, 0.98)),
    "oracle": ((0.998, 0.987, 0.002, 0.002), (0.0, 0.05, 0.08, 0.11, 0.12, 0.13)),
    "oracle_matched": ((0.997, 0.982, 0.02, 0.03), (0.02, 0.08, 0.1, 0.12, 0.14, 0.15)),
    "random": ((0.0, 0.002, 0.0, 0.0), (0.0, 0.01, 0.01, 0.02, 0.02, 0.03)),
    "maxent": ((0.996, 0.934, 0.013, 0.013), (0.01, 0.5, 0.62, 0.81, 0.88, 0.88)),
    "graddiff": ((0.986, 0.853, 0.007, 0.108), (0.04, 0.39, 0.68, 0.86, 0.92, 0.94)),
    "rmu": ((0.997, 0.88, 0.03, 0.01), (0.02, 0.5, 0.69, 0.76, 0.78, 0.78)),
    "undo 0.2": ((0.974, 0.884, 0.013, 0.0), (0.01, 0.32, 0.45, 0.52, 0.59, 0.59)),
    "undo 0.4": ((0.979, 0.893, 0.018, 0.015), (0.02, 0.18, 0.28, 0.31, 0.35, 0.4)),
    "undo 0.6": ((0.982, 0.901, 0.002, 0.01), (0.01, 0.12, 0.15, 0.19, 0.22, 0.26)),
    "undo 0.8": ((0.978, 0.891, 0.0, 0.018), (0.01, 0.09, 0.11, 0.11, 0.13, 0.17)),
    "fresh": ((0.969, 0.886, 0.007, 0.0), (0.0, 0.07, 0.09, 0.1, 0.12, 0.12)),
    "twin 0.8": ((0.98, 0.92, 0.96, 0.97), (0.97, 0.98, 0.98, 0.98, 0.98, 0.98)),
    "noised 0.2": ((0.86, 0.71, 0.01, 0.02), None),
    "noised 0.4": ((0.23, 0.17, 0.0, 0.01), None),
    "noised 0.6": ((0.02, 0.03, 0.0, 0.0), None),
    "noised 0.8": ((0.0, 0.02, 0.0, 0.02), None),
}
BITS = {
    "original": 1.9, "maxent": 0.62, "graddiff": 0.58, "rmu": 0.5, "undo 0.2": 0.45, "undo 0.4": 0.38,
    "undo 0.6": 0.2, "undo 0.8": 0.07, "fresh": 0.05, "oracle": 0.03, "oracle_matched": 0.06, "random": 0.01,
    "twin 0.8": 1.8, "noised 0.2": 0.4, "noised 0.4": 0.3, "noised 0.6": 0.15, "noised 0.8": 0.05,
}  # fmt: skip
DRIFT = {
    "original": 0.0, "maxent": 0.25, "graddiff": 0.3, "rmu": 0.6, "undo 0.2": 0.35, "undo 0.4": 0.5,
    "undo 0.6": 0.75, "undo 0.8": 0.95, "fresh": 1.3, "oracle": 1.25, "oracle_matched": 1.2, "random": 1.5,
    "twin 0.8": 0.85, "noised 0.2": 0.3, "noised 0.4": 0.5, "noised 0.6": 0.75, "noised 0.8": 0.9,
}  # fmt: skip
SHARES = {
    "maxent": 0.12,
    "undo 0.2": 0.4,
    "undo 0.4": 0.48,
    "undo 0.6": 0.75,
    "undo 0.8": 1.55,
    "fresh": 1.35,
}


def interval(value: float, clusters: int = FAMILIES) -> tuple[float, float]:
    """A Wilson interval, wide enough to look like the real one."""
    z = 1.96
    centre = (value + z * z / (2 * clusters)) / (1 + z * z / clusters)
    half = z * math.sqrt(value * (1 - value) / clusters + z * z / (4 * clusters**2)) / (1 + z * z / clusters)
    return max(0.0, centre - half), min(1.0, centre + half)


def _proportion(arm: Arm, measure: str, split: str, subset: str, value: float, **more: Any) -> Reading:
    low, high = interval(value)
    more = {"n": ROWS, "n_clusters": FAMILIES, **more}
    return Reading(arm, measure, split, subset, value=value, low=low, high=high, unit="share", **more)


def _curve_at(points: tuple[float, ...]) -> dict[int, float]:
    known = np.log2(1 + np.array([0, 10, 25, 50, 100, 200]))
    return {step: float(np.interp(np.log2(1 + step), known, points)) for step in STEPS}


def _accuracies(found: dict[str, Arm], rng: np.random.Generator) -> Iterator[Reading]:
    for name, (operations, _) in STORY.items():
        arm = found[name]
        for symbol, value in zip("+-*/", operations, strict=True):
            split = "forget" if symbol in "*/" else "retain"
            yield _proportion(arm, "accuracy", split, symbol, value, n=170)
        yield _proportion(arm, "accuracy", "retain", "all", sum(operations[:2]) / 2)
        forget = sum(operations[2:]) / 2
        for subset in ("V", "T"):
            yield _proportion(arm, "accuracy", "forget", subset, forget)
        yield _proportion(arm, "accuracy", "forget", "W", min(1.0, forget * 1.1 + 0.01), n=80, n_clusters=21)
        for stratum, rows in STRATA.items():
            value = float(np.clip(forget + rng.normal(0, 0.02) + 0.05 * (stratum == "trivial"), 0, 1))
            yield _proportion(arm, "accuracy", "forget", stratum, value, n=rows, n_clusters=rows // 4)


def _relearned(found: dict[str, Arm], gate: str) -> Iterator[Reading]:
    for name, (_, points) in STORY.items():
        if points is None:
            continue
        arm, best = found[name], _curve_at(points)
        envelope = np.maximum.accumulate(list(best.values()))
        for step, value in zip(STEPS, envelope, strict=True):
            if step >= 10:
                shown: dict[str, Any] = {"gate": gate}
                if gate == "ok":
                    low, high = interval(float(value))
                    shown |= {
                        "survival": _share(value),
                        "survival_low": _share(low),
                        "survival_high": _share(high),
                    }
                yield _proportion(arm, "relearned", "forget", f"step {step}", float(value), **shown)
        area = float(np.mean(envelope))
        yield Reading(
            arm, "relearn_area", "forget", "V", value=area, low=area - 0.04, high=area + 0.04, n=ROWS
        )
        limited = float(envelope[-1]) * 0.97
        note = "retain accuracy at least 0.9 of before"
        yield _proportion(arm, "relearned_utility", "forget", "step 200", limited, note=note)
        reach = next(
            (math.log2(1 + s) for s, v in zip(STEPS, envelope, strict=True) if v >= 0.36), math.log2(201)
        )
        note = "to 0.360" + ("; not reached in 200 steps (censored)" if envelope[-1] < 0.36 else "")
        yield Reading(arm, "relearn_log_steps", "forget", "V", value=reach, unit="log2 steps", note=note)
        robust = (float(envelope[-1]) - 0.88) / (0.15 - 0.88)
        yield Reading(
            arm, "robustness", "forget", "V", value=robust, low=robust - 0.1, high=robust + 0.1, n=ROWS
        )
        if name in SHARES:
            yield Reading(arm, "compute_share", "forget", "all", value=SHARES[name])


def _share(value: float) -> float:
    return (float(value) - 0.15) / (1.0 - 0.15)


def _probes(found: dict[str, Arm], rng: np.random.Generator) -> Iterator[Reading]:
    for target in ("first_digit", "tens", "units"):
        for split in ("forget", "retain"):
            yield _proportion(found["original"], "context_accuracy", split, target, 0.33)
    for name, arm in found.items():
        for depth, layer in enumerate(LAYERS):
            for target, strength in (("first_digit", 1.0), ("tens", 0.7), ("units", 0.8)):
                for split in ("forget", "retain"):
                    known = BITS[name] if split == "forget" else (2.0 if name != "random" else 0.02)
                    bits = known * strength * (0.05, 0.4, 1.0)[depth] + float(rng.normal(0, 0.02))
                    accuracy = 0.33 + 0.33 * max(bits, 0.0)
                    common: dict[str, Any] = {"layer": layer, "n": ROWS, "n_clusters": FAMILIES}
                    yield Reading(
                        arm, "probe_bits", split, target, value=bits, low=bits - 0.08, high=bits + 0.08, unit="bits",
                        control="shuffled labels", control_value=float(rng.normal(-0.02, 0.02)), **common,
                    )  # fmt: skip
                    yield _proportion(
                        arm, "probe_accuracy", split, target, min(accuracy, 1.0),
                        control="shuffled labels", control_value=0.24, **common,
                    )  # fmt: skip


def _drifts(found: dict[str, Arm], rng: np.random.Generator) -> Iterator[Reading]:
    for name, arm in found.items():
        for depth, layer in enumerate(LAYERS):
            for place, position in enumerate(POSITIONS):
                for split in ("forget", "retain"):
                    size = DRIFT[name] * (0.4, 0.8, 1.0)[depth] * (0.4 + 0.1 * place)
                    size *= 1.0 if split == "forget" else 0.7
                    size = abs(size + float(rng.normal(0, 0.01))) * (name != "original")
                    values = {
                        "norm_ratio": 1 + 0.2 * size,
                        "relative_distance": size,
                        "cosine": 1 - min(size, 1.6) / 2,
                        "cka": max(0.0, 1 - 0.6 * size),
                    }
                    for measure, value in values.items():
                        yield Reading(
                            arm, measure, split, position, layer, value, n=ROWS, n_clusters=FAMILIES
                        )


def _junk(found: dict[str, Arm]) -> Iterator[Reading]:
    arm = found["rmu"]
    layer = LAYERS[1]
    for measure, subset, value, control in (
        ("junk_cosine", "raw", 0.995, 0.2),
        ("junk_cosine", "mean removed", 0.94, 0.2),
        ("junk_share", "held-out half", 0.82, 0.02),
    ):
        yield Reading(arm, measure, "forget", subset, layer, value, value - 0.02, min(1.0, value + 0.02), ROWS,
                      FAMILIES, control="isotropic", control_value=control)  # fmt: skip
    controls = ("isotropic", "covariance", "components", "retain", "placebo", "isotropic, all blocks")
    for split, single, levels in (
        ("forget", (0.02, 0.53, 1.0, 0.5), (0.02, 0.06, 0.05, 0.03, 0.11, 0.02)),
        ("retain", (0.94, 0.95, 0.95, 0.7), (0.94, 0.86, 0.8, 0.9, 0.93, 0.7)),
    ):
        names = (
            "no ablation",
            "junk direction",
            "junk direction in the original",
            "junk direction, all blocks",
        )
        for name, value in zip(names, single, strict=True):
            yield _proportion(arm, "ablated_accuracy", split, name, value, layer=layer)
        for control, level in zip(controls, levels, strict=True):
            low, high = max(0, level - 0.05), level + 0.04
            yield Reading(arm, "ablated_accuracy", split, control, layer, level, low, high, 20, FAMILIES)


def readings(seed: int = 1, gate: str = "ok") -> list[Reading]:
    """Every reading of the made-up run."""
    rng = np.random.default_rng(seed)
    found = arms(seed)
    return [
        *_accuracies(found, rng),
        *_relearned(found, gate),
        *_probes(found, rng),
        *_drifts(found, rng),
        *_junk(found),
    ]


RECOVERIES = ("mixed", "dose-5", "lora-4", "quantised-4", "pruned-0.3")


def with_recoveries(readings: pd.DataFrame, attacks: Sequence[str] = RECOVERIES) -> pd.DataFrame:
    """The made-up run after further attacks, each giving back half as much as the last steps of relearning."""
    last = readings.loc[(readings["measure"] == "relearned") & (readings["subset"] == "step 200")]
    more = [readings, last.assign(subset="step 0", value=0.04, low=0.02, high=0.06)]
    for attack in attacks:
        subset = "V" if attack.startswith(("quantised", "pruned", "few_shot")) else "step 200"
        changed = last.assign(measure=f"after_{attack}", subset=subset)
        more.append(changed.assign(**{name: last[name] / 2 for name in ("value", "low", "high")}))
        more.append(changed.assign(subset=f"{subset}, retain kept", value=0.99))
        more.append(changed.assign(task_split="retain", value=0.98))
    return pd.concat(more, ignore_index=True)


def curves(seed: int = 1) -> pd.DataFrame:
    """Training histories and relearning curves of the made-up run."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for name, arm in arms(seed).items():
        points = STORY[name][1]
        if points is None:
            continue
        best = np.array(list(_curve_at(points).values()))
        retain = sum(STORY[name][0][:2]) / 2
        for index, rate in enumerate(RATES):
            fade = (0.35, 0.75, 1.0, 0.95, 0.6)[index]
            values = best[0] + (best - best[0]) * fade + rng.normal(0, 0.01, len(best))
            rows += _curve_rows(arm, "rate", rate, "forget", "V", values)
            damage = (0.0, 0.01, 0.03, 0.1, 0.4)[index] * np.log2(1 + np.array(STEPS)) / np.log2(201)
            rows += _curve_rows(arm, "rate", rate, "retain", "all", retain * (1 - damage))
        rows += _curve_rows(arm, "oracle_rate", 3e-3, "forget", "V", best * 0.96)
        rows += _curve_rows(arm, "cumulative_max", math.nan, "forget", "V", np.maximum.accumulate(best))
        limited = np.maximum.accumulate(best) * 0.97
        rows += _curve_rows(arm, "cumulative_max_utility", math.nan, "forget", "V", limited)
    for name in ("original", "maxent", "undo 0.4", "undo 0.8"):
        arm = arms(seed)[name]
        for step in range(0, 620, 20):
            for symbol, level in zip("+-*/", STORY[name][0], strict=True):
                value = level * (1 - math.exp(-step / (100 if symbol == "+" else 150)))
                split = "forget" if symbol in "*/" else "retain"
                rows.append(
                    _curve_row(arm, "training", math.nan, split, symbol, step, value) | {"attack": ""}
                )
    return pd.DataFrame(rows)


def _curve_rows(
    arm: Arm, kind: str, rate: float, split: str, subset: str, values: np.ndarray
) -> list[dict[str, Any]]:
    return [
        _curve_row(arm, kind, rate, split, subset, step, float(np.clip(value, 0, 1)))
        for step, value in zip(STEPS, values, strict=True)
    ]


def _curve_row(
    arm: Arm, kind: str, rate: float, split: str, subset: str, step: int, value: float
) -> dict[str, Any]:
    low, high = interval(value)
    return {
        **arm.columns(), "attack": "relearn", "kind": kind, "learning_rate": rate, "attack_seed": 0, "step": step,
        "task_split": split, "subset": subset, "value": value, "low": low, "high": high, "n": ROWS,
    }  # fmt: skip


def run_record(name: str = "tiny", seed: int = 1) -> dict[str, Any]:
    """What ``run.json`` says."""
    listed = []
    for arm in arms(seed).values():
        parents = {
            "unlearned": ["original"],
            "noised": ["unlearned-maxent"],
            "distilled": ["unlearned-maxent"],
        }
        listed.append(
            arm.to_dict()
            | {
                "name": arm.name,
                "label": arm.label,
                "key": arm.checkpoint[::-1],
                "parents": parents.get(arm.stage, []),
            }
            | {
                "stopped": "retain accuracy is back" if arm.stage == "distilled" else "all steps done",
                "steps": 240,
            }
        )
    return {
        "format": 1,
        "name": name,
        "seed": seed,
        "undo_probe": "0.1.0",
        "versions": {"python": "3.11.2", "torch": "2.13.0", "transformer_lens": "3.9.0", "numpy": "2.4.6"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "device": "cpu",
        "threads": 1,
        "task": {
            "fingerprint": "9f" * 32,
            "chance": {"+": 0.02, "-": 0.05, "*": 0.03, "/": 0.05},
            "counts": {
                "forget_T": {"rows": 360, "families": 94},
                "forget_V": {"rows": ROWS, "families": FAMILIES},
                "forget_W": {"rows": 80, "families": 21},
                "forget_D": {"rows": 80, "families": 21},
                "retain_train": {"rows": 4000, "families": 1000},
            },
        },
        "arms": listed,
    }


def ledger(seed: int = 1) -> list[dict[str, Any]]:
    """What ``ledger.json`` says: one entry a stage and one an attack."""
    cost = {
        "original": (19, 2.2e13), "oracle": (10, 1.1e13), "oracle_matched": (20, 2.2e13), "random": (0.1, 0),
        "maxent": (3, 1.3e12), "graddiff": (2, 1e12), "rmu": (4, 1.5e12), "undo 0.2": (5, 3.1e12),
        "undo 0.4": (8, 4e12), "undo 0.6": (12, 7e12), "undo 0.8": (36, 1.6e13), "fresh": (32, 1.4e13),
        "twin 0.8": (34, 1.5e13),
    }  # fmt: skip
    rows = []
    for name, arm in arms(seed).items():
        seconds, flops = cost.get(name, (0.1, 0.0))
        about = {
            "arm": arm.name,
            "label": arm.label,
            "stage": arm.stage,
            "method": arm.method,
            "alpha": arm.alpha,
        }
        about["variant"] = arm.variant
        used = {
            "flops": flops,
            "tokens": int(flops / 6e5),
            "steps": 240,
            "seconds": seconds,
            "cpu_seconds": seconds,
        }
        labelled = (
            used["tokens"] if arm.stage == "original" else used["tokens"] // 3 * (arm.stage == "unlearned")
        )
        rows.append(about | used | {"labelled_tokens": labelled, "stopped": "all steps done"})
        if STORY[name][1] is not None:
            attack = {"flops": 8e12, "tokens": 900_000, "labelled_tokens": 900_000, "steps": 1000}
            named = {
                "arm": f"attack on {arm.name}",
                "label": f"5 attacks on {arm.label}",
                "stage": "relearned",
            }
            rows.append(
                about
                | attack
                | named
                | {"seconds": 11.0, "cpu_seconds": 11.0, "stopped": "all 200 steps done"}
            )
    return rows


def scored() -> dict[str, Any]:
    """What the scorecard says beside its readings."""
    bounds = {"original": 0.0, "unlearned-maxent": 0.03, "distilled-maxent-0.8": 0.71, "oracle": 0.74}
    measures = [
        ["accuracy", "V", None],
        ["relearned", "step 200", None],
        ["probe_bits", "first_digit", LAYERS[1]],
    ]
    arms = {name: {"erased_at_least": bound} for name, bound in bounds.items()}
    return {"inner_layer": LAYERS[1], "attacked": True, "headline": {"measures": measures, "arms": arms}}


def write_folder(folder: Path, seed: int = 1, name: str = "tiny", gate: str = "ok") -> Path:
    """Write the whole made-up run to a folder and return it."""
    from undo_probe.config import RunConfig

    folder.mkdir(parents=True, exist_ok=True)
    found = readings(seed, gate)
    (folder / "config.json").write_text(json.dumps(RunConfig(name="tiny", seed=seed).model_dump(mode="json")))
    (folder / "run.json").write_text(json.dumps(run_record(name, seed)))
    (folder / "ledger.json").write_text(json.dumps(ledger(seed)))
    (folder / "scorecard.json").write_text(json.dumps(Scorecard(tuple(found), scored()).to_dict()))
    reading_table(found).to_parquet(folder / "readings.parquet")
    curves(seed).to_parquet(folder / "curves.parquet")
    return folder


BLOCKS = LAYERS[1:]
LENS_SUBSETS = ("own", "original's", "mapped", "tuned", "tuned, mapped")
HEADS = 2


def with_stream(readings: pd.DataFrame, twin: str = "twin 0.8") -> pd.DataFrame:
    """The made-up run with ``score.also``: depth, lenses, attribution and weights, each by how far an arm drifted."""
    found = arms(int(readings["seed"].iloc[0]))
    size: dict[str, Any] = {"n": ROWS, "n_clusters": FAMILIES}
    more: list[Reading] = []
    for name, arm in found.items():
        far = min(1.0, DRIFT[name])
        beside = {"control": found[twin].label, "control_value": DRIFT[twin]} if name == "undo 0.8" else {}
        for kind, share in (("raw", 1.0), ("stitched", 0.8)):
            parts = [("all blocks", None), *(("one block", block) for block in BLOCKS)]
            for part, layer in parts:
                more.append(_ranged(arm, "depth", f"{kind}, {part}", layer, share * far, **size, **beside))
        for subset in LENS_SUBSETS:
            for depth, layer in enumerate(LAYERS):
                more.append(
                    _ranged(arm, "lens_log_probability", subset, layer, -1 - far * (3 - depth), **size)
                )
        for name_of, layer in _components():
            more.append(_ranged(arm, "attribution", name_of, layer, 1 - far, **size))
        more.append(_ranged(arm, "attribution", "lead", None, (1 - far) * len(_components()), **size))
        more.append(_ranged(arm, "attribution_cosine", "components", None, 1 - far, **size))
        more.append(Reading(arm, "weight_distance", "forget", "all weights", value=far, n=1, n_clusters=1))
        for rank in (1.5, 3.0, 9.0):
            more.append(
                Reading(arm, "change_stable_rank", "forget", f"W {rank}", value=rank, n=1, n_clusters=1)
            )
        apart = arm.stage.startswith(("oracle", "random"))
        for split in ("forget", "retain"):
            note = "not applicable: trained from other initial weights" if apart else ""
            value = None if apart else far
            more.append(Reading(arm, "barrier", split, "V", value=value, note=note, **size))
        more += _subspaces(arm, far)
    fit = _ranged(found["original"], "lens_fit", "tuned", LAYERS[0], 0.4, control="plain logit lens",
                  control_value=1.9, **size)  # fmt: skip
    last = fit.replace(layer=LAYERS[-1], value=0.0)
    more += [fit.replace(task_split="retain"), last.replace(task_split="retain")]
    return pd.concat([readings, reading_table(more)], ignore_index=True)


def _subspaces(arm: Arm, far: float) -> list[Reading]:
    """Shares of four fifths and a fifth in two bands, updates twice as often as chance there, cosines that halve."""
    size: dict[str, Any] = {"n": ROWS, "n_clusters": FAMILIES}
    more: list[Reading] = []
    for side, ending in (("inputs", "W_in"), ("gradients", "W_out")):
        for band, share in (("mean", 0.8 - 0.3 * far), ("rest", 0.2 + 0.3 * far)):
            for block in range(len(BLOCKS)):
                layer = f"blocks.{block}.mlp.{ending}"
                for split in ("forget", "retain"):
                    reading = _ranged(arm, "shared_variance", f"{side}, {band}", layer, share, **size,
                                      control="a random direction", control_value=0.5)  # fmt: skip
                    more.append(reading.replace(task_split=split))
            more.append(Reading(arm, "update_energy", "forget", f"relearning: {ending} {side}, {band}", value=share,
                                control="a random direction", control_value=share / 2, n=2, n_clusters=1))  # fmt: skip
    for kind, split in (("paraphrase", "forget"), ("sibling", "retain")):
        for k in (0, 8, 16):
            value = 0.8 / (1 + k)
            more.append(
                _ranged(arm, "selectivity", f"{kind}, k={k}", None, value, **size).replace(task_split=split)
            )
    return more


def _components() -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = [("embedding", "blocks.0.hook_resid_pre"), ("bias", None)]
    for block in range(len(BLOCKS)):
        found += [(f"head {head}", f"blocks.{block}.attn.hook_z") for head in range(HEADS)]
        found += [
            ("attention bias", f"blocks.{block}.hook_attn_out"),
            ("MLP", f"blocks.{block}.hook_mlp_out"),
        ]
    return found


def _ranged(arm: Arm, measure: str, subset: str, layer: str | None, value: float, **more: Any) -> Reading:
    return Reading(arm, measure, "forget", subset, layer, value, value - 0.05, value + 0.05, **more)
