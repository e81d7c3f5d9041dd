"""The pipeline: what is made, once, in which order, equal however it was interrupted."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from undo_probe import pipeline
from undo_probe.attacks import attack
from undo_probe.config import RunConfig
from undo_probe.errors import JobsFailed, UndoProbeError
from undo_probe.files import read_json
from undo_probe.models import content_hash
from undo_probe.pipeline import KINDS, load_run, run_undo, stage_identity
from undo_probe.plan import UNTIL, Step, plan
from undo_probe.presets import preset
from undo_probe.report import write_report
from undo_probe.scorecard import score
from undo_probe.store import Run, Store, unused
from undo_probe.training import resolve_device

REPO = Path(__file__).parents[1]
FINGERPRINT = "f" * 64


def identities(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Arm name to what its key is the hash of."""
    found: dict[str, dict[str, Any]] = {}
    for step in plan(config):
        parents = [Store.key(found[parent]) for parent in step.parents]
        found[step.arm.name] = stage_identity(step, parents, FINGERPRINT)
    return found


def keys(config: RunConfig) -> dict[str, str]:
    return {name: Store.key(what) for name, what in identities(config).items()}


def changed(old: RunConfig, new: RunConfig) -> set[str]:
    """Names of the arms that a change of the configuration makes anew."""
    before, after = keys(old), keys(new)
    return {name for name in before if before[name] != after.get(name)}


def steps_of(config: RunConfig) -> dict[str, Step]:
    return {step.arm.name: step for step in plan(config)}


def hashes(run: Run) -> dict[str, str]:
    return {arm.name: arm.checkpoint for arm in run.arms}


def copy_of(run: Run, folder: Path) -> Path:
    shutil.copytree(run.folder, folder)
    return folder


def forbid(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    """Stages of these kinds (all of them by default) may not be computed."""

    def never(*args: Any) -> None:
        raise AssertionError("a stage was computed")

    for kind in kinds or KINDS:
        monkeypatch.setitem(KINDS, kind, (never, KINDS[kind][1]))


# ---- the plan


@pytest.mark.parametrize("name", ["tiny", "small", "smoke"])
def test_parents_come_before_children_and_every_kind_is_known(name: str) -> None:
    made: set[str] = set()
    for step in plan(preset(name)):
        assert set(step.parents) <= made
        assert step.kind in KINDS
        made.add(step.arm.name)


def test_the_plan_holds_the_stages_and_the_controls_of_the_run() -> None:
    names = set(steps_of(preset("tiny", "noise.alphas=[0.4, 0.8]", "arms.twins=[0.8]")))
    assert names == {
        "original",
        "oracle",
        "oracle_matched",
        "random",
        "unlearned-maxent",
        "unlearned-graddiff",
        "unlearned-rmu",
        "unlearned-rmu-placebo",
        "noised-maxent-0.4",
        "distilled-maxent-0.4",
        "noised-maxent-0.8",
        "distilled-maxent-0.8",
        "noised-maxent-0.8-twin",
        "distilled-maxent-0.8-twin",
        "distilled-maxent-fresh",
    }


def test_every_control_arm_can_be_asked_for() -> None:
    config = preset(
        "tiny",
        "noise.alphas=[0.4]",
        "arms.twins=[0.4]",
        "arms.second_seed=true",
        "arms.placebo_alphas=[0.4]",
        "arms.noise_seeds=2",
        "arms.unlearn_and_distill=false",
    )
    steps = steps_of(config)
    assert {"original-b", "oracle-b", "unlearned-maxent-placebo", "noised-maxent-0.4-noise 2"} <= set(steps)
    assert "distilled-maxent-fresh" not in steps
    assert steps["distilled-maxent-0.4-placebo"].parents == (
        "noised-maxent-0.4-placebo",
        "unlearned-maxent-placebo",
    )
    assert steps["unlearned-maxent-placebo"].parents == ("oracle",)


def test_methods_that_build_on_another_bring_it_along_and_oracle_matching_has_both_starts() -> None:
    steps = steps_of(
        preset("tiny", "unlearn.method=repnoise", 'unlearn.also=["sam"]', "arms.oracle_matching=7")
    )
    assert steps["unlearned-repnoise"].parents == ("unlearned-maxent",)
    assert steps["unlearned-sam"].parents == ("original",)
    matching, fresh = steps["unlearned-oracle_matching"], steps["unlearned-oracle_matching-fresh"]
    assert (matching.parents, fresh.parents) == (("original", "oracle"), ("random", "oracle"))
    assert matching.settings == fresh.settings
    assert (matching.settings["fit"]["steps"], matching.settings["fit"]["stop"]) == (7, "never")


def test_a_twin_differs_from_its_student_in_the_teacher_alone() -> None:
    """Same noise, same batches, same settings: what is left is what the teacher knows."""
    steps = steps_of(preset("tiny", "noise.alphas=[0.8]", "arms.twins=[0.8]"))
    for kind in ("noised", "distilled"):
        student, twin = steps[f"{kind}-maxent-0.8"], steps[f"{kind}-maxent-0.8-twin"]
        assert (student.seed, student.settings, student.kind) == (twin.seed, twin.settings, twin.kind)
    assert steps["noised-maxent-0.8-twin"].parents == ("original",)
    assert steps["distilled-maxent-0.8-twin"].parents == ("noised-maxent-0.8-twin", "original")


def test_a_sweep_changes_alpha_and_nothing_else() -> None:
    """Alpha may not travel with the noise draw, the batch order, the rate or the schedule."""
    steps = [step for step in plan(preset("tiny")) if step.arm.alpha is not None and not step.arm.variant]
    for kind in ("noise", "distill"):
        own = [step for step in steps if step.kind == kind]
        assert len({step.seed for step in own}) == 1
        settings = [{k: v for k, v in step.settings.items() if k != "alpha"} for step in own]
        assert all(each == settings[0] for each in settings)


def test_another_noise_seed_is_another_draw_with_the_same_batches() -> None:
    steps = steps_of(preset("tiny", "arms.noise_seeds=2"))
    assert steps["noised-maxent-0.4"].seed != steps["noised-maxent-0.4-noise 2"].seed
    assert steps["distilled-maxent-0.4"].seed == steps["distilled-maxent-0.4-noise 2"].seed


VARIED = (
    "noise.alphas=[0.4,0.8]",
    'arms.variations={"shrink only": {"noise": {"beta": 0}, "alphas": [0.4, 0.6]}, '
    '"retain text": {"distill": {"text": "retain"}}, "moved": {"noise": {"top_delta": 0.1}}}',
)


def test_a_variation_changes_what_it_names_and_shares_what_it_does_not() -> None:
    plain, steps = steps_of(preset("tiny", VARIED[0])), steps_of(preset("tiny", *VARIED))
    assert set(steps) - set(plain) == {
        "noised-maxent-0.4-shrink only",
        "distilled-maxent-0.4-shrink only",
        "noised-maxent-0.6-shrink only",
        "distilled-maxent-0.6-shrink only",
        "distilled-maxent-0.4-retain text",
        "noised-maxent-0.4-moved",
        "distilled-maxent-0.4-moved",
    }
    sweep, shrunk = steps["noised-maxent-0.4"], steps["noised-maxent-0.4-shrink only"]
    assert (shrunk.seed, shrunk.parents) == (sweep.seed, sweep.parents)
    assert shrunk.settings["rule"] == {**sweep.settings["rule"], "beta": 0.0}
    student, filtered = steps["distilled-maxent-0.4"], steps["distilled-maxent-0.4-retain text"]
    assert (filtered.seed, filtered.parents) == (student.seed, student.parents)
    assert filtered.settings["fit"] == {**student.settings["fit"], "text": "retain"}
    assert steps["noised-maxent-0.4-moved"].parents == ("unlearned-maxent", "original")


def test_a_variation_of_the_teacher_has_the_teachers_batches_and_a_student_of_its_own() -> None:
    steps = steps_of(
        preset("tiny", "noise.alphas=[0.4]", 'arms.variations={"weak": {"unlearn": {"steps": 5}}}')
    )
    weak, teacher = steps["unlearned-maxent-weak"], steps["unlearned-maxent"]
    assert (weak.seed, weak.parents) == (teacher.seed, teacher.parents)
    assert weak.settings["fit"] == {**teacher.settings["fit"], "steps": 5}
    assert steps["noised-maxent-0.4-weak"].parents == ("unlearned-maxent-weak",)
    assert steps["distilled-maxent-0.4-weak"].parents == ("noised-maxent-0.4-weak", "unlearned-maxent-weak")


def test_later_rounds_go_on_from_the_student_with_a_new_draw() -> None:
    steps = steps_of(preset("tiny", "noise.alphas=[0.4]", "arms.rounds=3", "arms.serial=2"))
    second, third = steps["distilled-maxent-0.4-round 2"], steps["distilled-maxent-0.4-round 3"]
    assert steps["noised-maxent-0.4-round 2"].parents == ("distilled-maxent-0.4",)
    assert steps["noised-maxent-0.4-round 3"].parents == ("distilled-maxent-0.4-round 2",)
    assert second.parents == ("noised-maxent-0.4-round 2", "unlearned-maxent")
    assert second.settings == third.settings == steps["distilled-maxent-0.4"].settings
    draws = [
        steps[f"noised-maxent-0.4{variant}"].seed for variant in ("", "-round 2", "-round 3", "-serial 2")
    ]
    assert len(set(draws)) == 4
    again = steps["unlearned-maxent-0.4-serial 2"]
    assert again.parents == ("distilled-maxent-0.4",)
    assert steps["noised-maxent-0.4-serial 2"].parents == (again.arm.name,)
    assert steps["distilled-maxent-0.4-serial 2"].parents == ("noised-maxent-0.4-serial 2", again.arm.name)


@pytest.mark.slow
def test_other_noise_other_distillation_and_later_rounds_run_attacked_and_scored(tmp_path: Path) -> None:
    kinds = {
        "init": {"noise": {"draw": "init", "beta": 1.0}},
        "pruned": {"noise": {"rule": "prune"}},
        "moved": {"noise": {"top_delta": 0.2}},
        "one head": {"noise": {"heads": ["1.0"]}},
        "reset": {"noise": {"draw": "init", "beta": 1.0, "layers": [1]}, "alphas": [1.0]},
        "zero gains": {"noise": {"gains": "zero"}},
        "reverse": {"distill": {"loss": "reverse_kl"}},
        "likeliest": {"distill": {"top_k": 4}},
        "streams": {"distill": {"activations": 1.0}},
        "retain text": {"distill": {"text": "retain"}},
    }
    config = preset(
        "smoke",
        "noise.alphas=[0.4]",
        f"arms.variations={json.dumps(kinds)}",
        "arms.rounds=2",
        "arms.serial=2",
    )
    run = attack(run_undo(config, tmp_path / "run", workers=2), workers=2)
    card = score(run, workers=2)
    reached = {r.arm.name for r in card.readings if r.measure == "relearned" and r.value is not None}
    for name in (*kinds, "round 2", "serial 2"):
        assert f"distilled-maxent-{1.0 if name == 'reset' else 0.4:g}-{name}" in reached
    labels = [arm.label for arm in run.arms]
    assert len(set(labels)) == len(labels)
    assert write_report(run, tmp_path / "report.html").is_file()


AGAIN = ("noise.alphas=[0.4,0.8]", "arms.rates=[0.001,0.002]", "arms.times=[0.5,2]")
AGAIN += ("arms.equal_steps=true", "arms.snapshots=2")


def test_the_sweep_again_for_other_lengths_and_rates_differs_in_nothing_else() -> None:
    steps = steps_of(preset("tiny", *AGAIN))
    student, teacher = "distilled-maxent-0.4", "unlearned-maxent"
    parents = {
        f"{student}-equal steps": "distilled-maxent-0.8",
        f"{student}-x0.5": student,
        f"{student}-x2": student,
        f"{student}-snapshot 1": student,
        f"{student}-snapshot 2": student,
        f"{student}-rate 0.002": None,  # 0.001 is the sweep's own
    }
    added = set(steps) - set(steps_of(preset("tiny", "noise.alphas=[0.4,0.8]")))
    assert {name for name in added if "-0.4-" in name} == set(parents)
    assert "distilled-maxent-0.8-equal steps" not in added
    assert "distilled-maxent-0.8-x2" in added
    for name, followed in parents.items():
        assert steps[name].parents == ("noised-maxent-0.4", teacher, *([followed] if followed else []))
        assert steps[name].seed == steps[student].seed
        fit = {**steps[name].settings["fit"], "learning_rate": 1e-3}
        assert fit == steps[student].settings["fit"]


def test_a_student_of_another_length_is_an_earlier_or_later_moment_of_the_same_training(
    tmp_path: Path,
) -> None:
    run = run_undo(tiny.quick(*AGAIN, "distill.eval_every=1"), tmp_path / "run", workers=1)
    itself = run.entry(run.arm("distilled", alpha=0.4))
    assert itself.ledger.steps == 4  # the cap: the rule of this configuration cannot be met
    lengths = {"equal steps": 4, "x0.5": 2, "x2": 8, "snapshot 1": 2, "snapshot 2": 3}
    for variant, steps in lengths.items():
        other = run.entry(run.arm("distilled", alpha=0.4, variant=variant))
        assert other.ledger.steps == steps
        assert other.stopped == f"all {steps} steps done"
        shared = [row for row in itself.rows if row["step"] <= steps]
        assert [row for row in other.rows if row["step"] <= 4] == shared
    same = run.arm("distilled", alpha=0.4, variant="equal steps")
    assert content_hash(run.load(same)) == content_hash(run.model("distilled", alpha=0.4))


def test_references_have_seeds_of_their_own_and_the_oracle_sees_as_many_retain_rows() -> None:
    steps = steps_of(preset("tiny", "arms.second_seed=true"))
    names = ("original", "original-b", "oracle", "oracle-b", "oracle_matched", "random")
    assert len({steps[name].seed for name in names}) == len(names)
    original, oracle, matched = (
        steps[name].settings["fit"] for name in ("original", "oracle", "oracle_matched")
    )
    assert oracle["steps"] == original["steps"] // 2
    assert matched == original
    assert steps["oracle"].settings["mixture"] == "retain"


def test_the_run_seed_moves_every_seed() -> None:
    one, other = steps_of(preset("tiny")), steps_of(preset("tiny", "seed=1"))
    assert not {step.seed for step in one.values()} & {step.seed for step in other.values()}


# ---- keys


DOWNSTREAM = {
    "distill.steps=9": ("distilled",),
    "distill.tolerance=0.2": ("distilled",),
    "noise.beta=0.3": ("noised", "distilled"),
    "unlearn.graddiff.steps=9": ("unlearned-graddiff",),
    "unlearn.rmu.c=9": ("unlearned-rmu",),
    "unlearn.maxent.retain_weight=9": ("unlearned-maxent", "noised", "distilled"),
    "original.steps=9": ("original", "oracle", "unlearned", "noised", "distilled"),
    "model.d_mlp=64": ("original", "oracle", "random", "unlearned", "noised", "distilled"),
    "seed=9": ("",),
}


@pytest.mark.parametrize("assignment", DOWNSTREAM)
def test_a_setting_changes_the_keys_of_what_follows_from_it_and_of_nothing_else(assignment: str) -> None:
    names = {
        name
        for name in keys(preset("tiny"))
        if name.startswith(DOWNSTREAM[assignment])
        # twins are taught by the original, and the fresh student starts from random weights
        and not (assignment.startswith("unlearn.maxent") and name.endswith("twin"))
        and not (assignment.startswith("noise") and name.endswith("fresh"))
    }
    assert changed(preset("tiny"), preset("tiny", assignment)) == names


@pytest.mark.parametrize(
    "assignment",
    [
        "name=other",
        "device=auto",
        "threads=2",
        "attack.steps=300",
        "score.draws=500",
        "arms.second_seed=true",
    ],
)
def test_what_does_not_make_a_model_is_not_in_its_key(assignment: str) -> None:
    assert changed(preset("tiny"), preset("tiny", assignment)) == set()


def test_precision_is_in_the_key_of_what_is_trained() -> None:
    moved = changed(preset("tiny"), preset("tiny", "precision=bf16"))
    assert moved == set(keys(preset("tiny"))) - {"random"}


def test_a_new_version_of_a_stage_makes_it_and_what_follows_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(preset("tiny"))
    monkeypatch.setitem(KINDS, "noise", (KINDS["noise"][0], KINDS["noise"][1] + 1))
    after = keys(preset("tiny"))
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {
        name for name in before if name.startswith(("noised", "distilled")) and "fresh" not in name
    }


def test_no_path_and_no_time_is_in_a_key(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That no hash seed of a process is in one either shows wherever a run is resumed (test_kill_loop.py)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    config = tiny.quick()
    task = pipeline.build_task(config.task, pipeline.split_seed(config))
    found = pipeline._keys(plan(config), task)
    assert [Store.key(what) for what in found.values()] == list(attacked.keys.values())


# ---- running


def test_a_second_call_computes_nothing(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(attacked, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*") if path.is_file()}
    forbid(monkeypatch)
    begin = time.perf_counter()
    again = run_undo(tiny.quick(), folder, workers=1)
    assert time.perf_counter() - begin < 10
    assert hashes(again) == hashes(attacked)
    assert {
        path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*") if path.is_file()
    } == before
    # and what was added after the pipeline is still there
    assert again.manifest["attacks"] == attacked.manifest["attacks"]


def test_the_same_configuration_gives_the_same_checkpoints_anywhere(attacked: Run, tmp_path: Path) -> None:
    again = run_undo(tiny.quick(), tmp_path / "elsewhere", workers=1)
    assert hashes(again) == hashes(attacked)
    assert again.keys == attacked.keys


def test_the_number_of_workers_changes_no_bit(attacked: Run, tmp_path: Path) -> None:
    parallel = run_undo(tiny.quick(), tmp_path / "run", workers=2)
    assert hashes(parallel) == hashes(attacked)


def test_other_seeds_give_other_checkpoints_but_the_same_arms(attacked: Run, tmp_path: Path) -> None:
    other = run_undo(tiny.quick("seed=1"), tmp_path / "run", workers=1, until="unlearned")
    ours = hashes(attacked)
    assert all(ours[name] != found for name, found in hashes(other).items())
    assert [step.arm.name for step in plan(tiny.quick("seed=1"))] == list(ours)


def test_a_failing_stage_is_named_the_others_are_kept_and_the_next_call_goes_on(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:

        def breaks(*args: Any) -> None:
            raise RuntimeError("no more power")

        broken.setitem(KINDS, "distill", (breaks, KINDS["distill"][1]))
        with pytest.raises(JobsFailed, match="distilled-maxent-0.8-twin: RuntimeError: no more power"):
            run_undo(tiny.quick(), tmp_path / "run", workers=1)
    store = Store(tmp_path / "run" / "store")
    kept = {name for name, key in attacked.keys.items() if key in store}
    assert kept >= {name for name in attacked.keys if name.startswith(("original", "oracle", "unlearned"))}
    assert not any(name.startswith("distilled") for name in kept)
    with pytest.raises(UndoProbeError, match="holds no run"):
        load_run(tmp_path / "run")
    forbid(monkeypatch, "fresh", "pretrain", "unlearn")
    assert hashes(run_undo(tiny.quick(), tmp_path / "run", workers=1)) == hashes(attacked)


def test_an_error_that_the_user_can_mend_keeps_its_own_text(tmp_path: Path) -> None:
    config = tiny.quick('unlearn.rmu.tensors=["mlp.W_down"]')
    with pytest.raises(
        UndoProbeError, match=r"unlearn\.rmu\.tensors: the model has no 'blocks\.0\.mlp\.W_down'"
    ) as found:
        run_undo(config, tmp_path / "run", workers=1)
    assert found.value.exit_code == 2


def test_the_folder_of_another_configuration_is_refused_with_the_first_key_that_differs(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(attacked, tmp_path / "run")
    forbid(monkeypatch)
    with pytest.raises(
        UndoProbeError,
        match=r"holds a run of another configuration: noise\.beta: 0\.1 -> 0\.2\. Choose another",
    ):
        run_undo(tiny.quick("noise.beta=0.2"), folder, workers=1)
    with pytest.raises(UndoProbeError, match=r"seed: 0 -> 1; .*\(and 2 more\)"):
        run_undo(
            tiny.quick("seed=1", "threads=2", "noise.beta=0.2", "distill.steps=5", "unlearn.rmu.c=3"), folder
        )
    assert hashes(load_run(folder)) == hashes(attacked)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "stage.json"])
def test_a_damaged_checkpoint_is_refused_by_name_and_mended_by_deleting_its_folder(
    name: str, attacked: Run, tmp_path: Path
) -> None:
    folder = copy_of(attacked, tmp_path / "run")
    stage = folder / "store" / attacked.keys["unlearned-maxent"]
    content = bytearray((stage / name).read_bytes())
    content[len(content) // 2] ^= 1
    (stage / name).write_bytes(content)
    with pytest.raises(UndoProbeError, match=f"{stage.name}/{name.replace('.', chr(92) + '.')}"):
        run_undo(tiny.quick(), folder, workers=1)
    shutil.rmtree(stage)
    mended = run_undo(tiny.quick(), folder, workers=1)
    assert hashes(mended) == hashes(attacked)


def test_a_second_process_in_the_folder_is_told_who_works_there(tmp_path: Path) -> None:
    code = (
        "import sys, time; from undo_probe.files import FolderLock\n"
        "with FolderLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            UndoProbeError, match=f"is in use by process {holder.pid} on .* since .*wait for it"
        ):
            run_undo(tiny.quick(), tmp_path / "run", workers=1)
    finally:
        holder.communicate()
    run_undo(tiny.quick(), tmp_path / "run", workers=1, until="original")


def test_attacking_a_folder_in_use_is_refused_too(attacked: Run, tmp_path: Path) -> None:
    from undo_probe.files import FolderLock

    folder = copy_of(attacked, tmp_path / "run")
    with FolderLock(folder), pytest.raises(UndoProbeError, match="is in use by process"):
        attack(load_run(folder), workers=1)


def test_until_stops_after_a_stage_and_a_later_call_goes_on(attacked: Run, tmp_path: Path) -> None:
    seen: set[str] = set()
    for until in UNTIL:
        found = {arm.stage for arm in run_undo(tiny.quick(), tmp_path / "run", workers=1, until=until).arms}
        assert found - seen
        assert until in found
        assert not found & set(UNTIL[UNTIL.index(until) + 1 :])
        seen = found
    assert hashes(load_run(tmp_path / "run")) == hashes(attacked)


def test_until_an_earlier_stage_forgets_nothing_that_was_made(attacked: Run, tmp_path: Path) -> None:
    run = run_undo(tiny.quick(), copy_of(attacked, tmp_path / "run"), workers=1, until="original")
    assert run.keys == attacked.keys
    assert unused(run) == []
    assert run.manifest["attacks"] == attacked.manifest["attacks"]


def test_attacks_on_models_that_were_made_anew_are_not_in_the_manifest(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(attacked, tmp_path / "run")
    monkeypatch.setitem(KINDS, "distill", (KINDS["distill"][0], 99))
    run = run_undo(tiny.quick(), folder, workers=1)
    attacks = {entry["arm"] for entry in run.manifest["attacks"]}
    assert attacks == {name for name in run.keys if not name.startswith(("distilled", "noised"))}


def test_an_unknown_until_and_a_missing_device_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match="until is 'noise': expected one of original, unlearned"):
        run_undo(tiny.quick(), tmp_path / "run", until="noise")
    assert resolve_device("cpu") == "cpu"
    assert not (tmp_path / "run").exists()


def test_asking_for_a_gpu_that_is_not_there_is_the_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UndoProbeError, match="device is 'cuda', but torch sees no CUDA device here"):
        resolve_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"


def test_runs_that_share_a_store_share_their_stages(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shutil.copytree(attacked.folder / "store", shared)
    forbid(monkeypatch, "fresh", "pretrain", "unlearn", "noise")
    other = run_undo(tiny.quick("distill.steps=3"), tmp_path / "other", workers=1, store=shared)
    assert other.store.folder == shared
    same = {name for name, key in other.keys.items() if key == attacked.keys[name]}
    assert same == {name for name in other.keys if not name.startswith("distilled")}
    assert not (tmp_path / "other" / "store").exists()


def test_progress_announces_every_stage_with_its_cost_and_ends_each(tmp_path: Path) -> None:
    told: dict[str, list[tuple[int, int | None]]] = {}
    costs = {}

    def progress(name: str, step: int, total: int | None, numbers: dict[str, float]) -> None:
        told.setdefault(name, []).append((step, total))
        costs.setdefault(name, numbers.get("cost"))

    run_undo(tiny.quick(), tmp_path / "run", workers=1, until="noised", progress=progress)
    names = [step.arm.name for step in plan(tiny.quick()) if step.until != "distilled"]
    assert list(told) == names
    assert all(cost > 0 for cost in costs.values())
    assert all(events[0] == (0, None) and events[-1] == (1, 1) for events in told.values())


def test_the_manifest_says_what_the_run_was(attacked: Run) -> None:
    manifest = attacked.manifest
    assert manifest["task"]["chance"].keys() == {"+", "-", "*", "/"}
    counts = manifest["task"]["counts"]
    assert {name: part["rows"] for name, part in counts.items()} == {
        name: len(attacked.task.rows(name)) for name in counts
    }
    assert manifest["versions"]["torch"]
    assert manifest["store"] == "store"
    line = next(arm for arm in manifest["arms"] if arm["name"] == "distilled-maxent-0.8")
    assert line["parents"] == ["noised-maxent-0.8", "unlearned-maxent"]
    assert line["label"] == "UNDO 0.8"
    ledger = read_json(attacked.folder / "ledger.json")
    assert [entry["arm"] for entry in ledger][: len(attacked.arms)] == [arm.name for arm in attacked.arms]


def test_a_saved_configuration_runs_again(attacked: Run, tmp_path: Path) -> None:
    from undo_probe.presets import load_config

    assert load_config(attacked.folder / "config.json") == attacked.config == tiny.quick()


def test_steps_are_computed_longest_first() -> None:
    order: Callable[[Step], float] = pipeline._expected_cost
    steps = steps_of(preset("tiny"))
    assert order(steps["distilled-maxent-0.8"]) > order(steps["distilled-maxent-0.4"]) > 0
    assert order(steps["original"]) > order(steps["oracle"])
    assert order(steps["noised-maxent-0.4"]) == 1
