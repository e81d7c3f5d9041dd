"""The command line: exit codes, and one clear line where the input is wrong."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny

from undo_probe.cli import main
from undo_probe.presets import PRESETS, preset
from undo_probe.store import Run, Store

REPO = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from undo_probe.cli import main; main()"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs a command in this process."""

    def run(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["undo-probe", *(str(word) for word in words)])
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        assert isinstance(code, int)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


def quick(*words: str | Path) -> list[str | Path]:
    return ["run", "smoke", *tiny.QUICK, *words]


def assert_users_mistake(said: Said, *texts: str) -> None:
    assert said.code == 2
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("undo-probe: ")
    assert "Traceback" not in said.err + said.out
    for text in texts:
        assert text in said.err


@pytest.fixture
def folder(attacked: Run, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(attacked.folder, tmp_path / "run")
    return tmp_path / "run"


# ---- what works


def test_help_lists_every_command(call: Call) -> None:
    said = call("--help")
    assert said.code == 0
    commands = re.findall(r"^  ([a-z]+)  ", said.out, flags=re.MULTILINE)
    assert {"run", "attack", "score", "report", "show", "export", "sweep", "presets", "store"} <= set(
        commands
    )
    assert {"list", "prune"} <= set(re.findall(r"^  ([a-z]+)  ", call("store", "--help").out, re.MULTILINE))


@pytest.mark.parametrize(
    "command", ["run", "attack", "score", "report", "show", "export", "sweep", "presets"]
)
def test_every_command_explains_itself(command: str, call: Call) -> None:
    said = call(command, "--help")
    assert said.code == 0
    assert f"Usage: undo-probe {command}" in said.out


def test_presets_are_listed_and_printed_as_the_configuration_they_are(call: Call) -> None:
    assert [line.split()[0] for line in call("presets").out.splitlines()] == list(PRESETS)
    said = call("presets", "tiny")
    assert json.loads(said.out) == preset("tiny").model_dump(mode="json")


def test_a_printed_preset_is_a_configuration_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(call("presets", "smoke").out)
    said = call("run", tmp_path / "mine.json", "noise.beta=7", "--out", tmp_path / "run")
    assert_users_mistake(said, "noise.beta is 7")


def test_a_run_stops_where_it_is_told_and_resumes(call: Call, tmp_path: Path, attacked: Run) -> None:
    said = call(*quick("--out", tmp_path / "run", "--until", "original", "--workers", "1"))
    assert said.code == 0, said.err
    assert re.fullmatch(r"stages: 4 to do, done in \d+ s\n", said.err)
    said = call(*quick("--out", tmp_path / "run", "--until", "original", "--workers", "1"))
    assert re.fullmatch(r"stages: nothing to do, done in \d+ s\n", said.err)
    run = Run(tmp_path / "run")
    assert [arm.checkpoint for arm in run.arms] == [arm.checkpoint for arm in attacked.arms[:4]]


def test_show_prints_every_arm_and_why_it_stopped(call: Call, folder: Path, attacked: Run) -> None:
    said = call("show", folder)
    assert said.code == 0
    for arm in attacked.arms:
        assert arm.label in said.out
        assert arm.checkpoint[:12] in said.out
    assert "all 6 steps done" in said.out


def test_export_writes_one_arm_for_transformers(call: Call, attacked: Run, tmp_path: Path) -> None:
    said = call("export", attacked.folder, tmp_path / "out", "--arm", "Random")
    assert (said.code, said.out) == (0, f"Random, without a tokenizer: {tmp_path / 'out'}\n")
    assert json.loads((tmp_path / "out/config.json").read_text())["model_type"] == "gpt2"
    assert_users_mistake(
        call("export", attacked.folder, tmp_path / "more", "--arm", "Nobody"), "original (Original)"
    )


def test_attacking_a_finished_run_again_has_nothing_to_do(call: Call, folder: Path) -> None:
    said = call("attack", folder, "--workers", "1")
    assert (said.code, said.out) == (0, "")
    assert "attack: nothing to do" in said.err


def test_the_store_is_listed_from_its_own_folder_and_from_the_runs(call: Call, folder: Path) -> None:
    said = call("store", "list", folder)
    assert said.code == 0
    assert said == call("store", "list", folder / "store")
    keys = [line.split()[0] for line in said.out.splitlines()]
    assert keys == [key[:12] for key in Run(folder).store.keys()]


def test_pruning_asks_first_and_deletes_only_what_the_run_does_not_use(call: Call, folder: Path) -> None:
    used = Run(folder).store.keys()
    assert call("store", "prune", folder).out == ""
    stray = Run(folder).store.write({"kind": "noise", "parents": []}, model=tiny.model())
    said = call("store", "prune", folder)
    assert re.fullmatch(rf"would delete {stray[:12]}  \d\.\d\d MB\n", said.out)
    assert stray in Run(folder).store
    assert call("store", "prune", folder, "--yes").out.startswith(f"deleted {stray[:12]}")
    assert Run(folder).store.keys() == used


def test_a_dry_run_says_what_it_would_cost_and_makes_nothing(call: Call, tmp_path: Path) -> None:
    said = call("run", "smoke", "--dry-run", "--workers", "3", "--out", tmp_path / "run")
    assert said.code == 0
    assert re.search(r"students +\d+ +\d+", said.out)
    assert "with 3 processes" in said.out
    assert not (tmp_path / "run").exists()


def test_the_rug_prints_its_theory_trains_and_draws(call: Call, tmp_path: Path) -> None:
    said = call("rug", "theory", "--r", "0.25", "--p", "0.045")
    assert said.code == 0 and "0.004856" in said.out and len(said.out.splitlines()) == 2
    words = ["rug", "train", "decoder=topk", "fit.steps=4", "held_out=64", "--n-s", "16", "--n-s", "32"]
    said = call(*words, "--out", tmp_path / "grid", "--workers", "1")
    assert said.code == 0 and len(said.out.splitlines()) == 3
    assert "rug: nothing to do" in call(*words, "--out", tmp_path / "grid", "--workers", "1").err
    assert "trainings" in call(*words, "--out", tmp_path / "other", "--dry-run").out
    assert not (tmp_path / "other").exists()
    assert call("rug", "figure", "--carpet", "--n-s", "32", "--out", tmp_path / "rug.json").code == 0
    assert (tmp_path / "rug.json").stat().st_size > 1000
    assert_users_mistake(call("rug", "train", "fit.stps=3"), "fit.stps", "the settings are n_s, r, p")


def test_the_rug_tells_what_erasing_leaves(call: Call) -> None:
    said = call("rug", "erase", "--n-s", "64", "--r", "0.5", "--p", "0.3", "--seeds", "1")
    assert said.code == 0 and len(said.out.splitlines()) == 54
    assert re.search(r"encoder ablation +0\.1 +loss, kept, re-fitted", said.out)
    assert_users_mistake(call("rug", "erase", "--seeds", "0"), "no seed was given", "at least one")
    assert_users_mistake(
        call("rug", "calibrate", "--phi", "0"), "is 0 to forget", "some to forget and some to keep"
    )


@pytest.mark.slow
def test_the_rug_calibrates_measures(call: Call) -> None:
    said = call("rug", "calibrate", "--n-s", "64", "--p", "0.2", "--seeds", "1")
    assert said.code == 0 and said.err == "seed 0\n"
    assert re.search(r"cosine +survival .* True\n", said.out) and re.search(
        r"CKA +survival .* False\n", said.out
    )


def test_pruning_also_takes_what_stages_share_and_can_make_again(call: Call, folder: Path) -> None:
    store = Run(folder).store
    used = store.keys()
    kept = store.shared / "teacher" / "answers.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(bytes(20_000))
    assert call("store", "prune", folder).out == "would delete what stages share  0.02 MB\n"
    assert kept.is_file()
    assert call("store", "prune", folder, "--yes").out == "deleted what stages share  0.02 MB\n"
    assert not store.shared.exists()
    assert store.keys() == used


# ---- what the user can get wrong


def test_an_unknown_key_is_answered_with_the_nearest(call: Call, tmp_path: Path) -> None:
    said = call("run", "smoke", "nois.beta=0.1", "--out", tmp_path / "run")
    assert_users_mistake(said, "no key 'nois'", "did you mean 'noise'?")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["smoke", "noise.alphas=[1.5]"], "noise.alphas.0 is 1.5"),
        (["smok"], "did you mean 'smoke'?"),
        (["nowhere/config.toml"], "there is no file and no preset 'nowhere/config.toml'"),
        (["smoke", "seed"], "'seed' is no override: write section.key=value"),
        (["smoke", "--until", "noise"], "--until is 'noise': expected one of original"),
        (["smoke", "task.forget_shares=[0.5,0.5,0,0]"], "the split forget_W is empty"),
        (["smoke", "--workers", "-3"], "workers is -3"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_two(
    words: list[str], text: str, call: Call, tmp_path: Path
) -> None:
    assert_users_mistake(call("run", *words, "--out", tmp_path / "run"), text)


def test_a_wrong_option_is_exit_code_two_without_a_traceback(call: Call) -> None:
    for words in (("run", "--outt", "x"), ("nonsense",), ("show",), ("run", "--workers", "many")):
        said = call(*words)
        assert said.code == 2
        assert "Error" in said.err
        assert "Traceback" not in said.err
    said = call()
    assert said.code == 2
    assert "Usage: undo-probe" in said.out + said.err


def test_a_measure_that_is_not_there_is_refused_before_anything_is_measured(call: Call, folder: Path) -> None:
    before = Store(folder / "store").keys()
    said = call("score", folder, "--also", "height", "--workers", "1")
    assert_users_mistake(said, "no measure 'height' to add: there are depth, lens, weights")
    assert Store(folder / "store").keys() == before


@pytest.mark.parametrize("command", [["show"], ["attack"], ["score"], ["store", "prune"]])
def test_a_folder_without_a_run_is_said_to_be_none(command: list[str], call: Call, tmp_path: Path) -> None:
    assert_users_mistake(call(*command, tmp_path), "holds no run", "undo-probe run --out")


def test_listing_what_is_no_store_is_refused(call: Call, tmp_path: Path) -> None:
    assert_users_mistake(call("store", "list", tmp_path / "nowhere"), "is no folder")


def test_the_folder_of_another_configuration_is_refused(call: Call, folder: Path) -> None:
    said = call(*quick("noise.beta=0.2", "--out", folder))
    assert_users_mistake(said, "holds a run of another configuration: noise.beta: 0.1 -> 0.2")


def test_a_flipped_bit_in_a_checkpoint_is_refused_by_name(call: Call, folder: Path, attacked: Run) -> None:
    path = folder / "store" / attacked.keys["original"] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 8
    path.write_bytes(content)
    assert_users_mistake(call(*quick("--out", folder, "--workers", "1")), str(path), "is damaged", "Delete")


def test_a_truncated_manifest_is_refused_by_name(call: Call, folder: Path) -> None:
    path = folder / "run.json"
    path.write_text(path.read_text()[:300])
    assert_users_mistake(call("show", folder), "run.json", "not whole, valid JSON")


def test_a_folder_in_use_is_refused_with_its_holder(call: Call, folder: Path) -> None:
    from undo_probe.files import FolderLock

    with FolderLock(folder):
        assert_users_mistake(call("attack", folder), f"is in use by process {os.getpid()}")


def test_a_folder_that_may_not_be_written_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the tests may run as root, whom no mode keeps out: so the system's answer is given here
    real = os.mkdir

    def denied(path: Any, *args: Any, **more: Any) -> None:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path, *args, **more)

    monkeypatch.setattr(os, "mkdir", denied)
    said = call(*quick("--out", tmp_path / "locked"))
    assert_users_mistake(said, str(tmp_path / "locked"), "permission was denied; choose a folder")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    out = tmp_path / "run"
    written = 0

    def fills(descriptor: int, data: Any) -> int:
        nonlocal written
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if out in path.parents:
            written += len(data)
            if written > 60_000:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as full:
        full.setattr(os, "write", fills)
        said = call(*quick("--out", out, "--workers", "1"))
    assert_users_mistake(said, "no space is left", "free some space")
    assert not list(out.rglob(".tmp-*"))
    store = Store(out / "store")
    for key in store.keys():
        store.verify(key)
    # the same command goes on once there is space
    assert call(*quick("--out", out, "--workers", "1", "--until", "original")).code == 0


# ---- what can go wrong otherwise


def test_an_interrupted_run_says_how_to_go_on(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("undo_probe.pipeline.run_undo", interrupted)
    said = call(*quick("--out", tmp_path / "run"))
    assert said.code == 130
    assert said.err.strip() == "undo-probe: interrupted: the same command goes on where this one stopped"


def test_our_own_mistake_is_exit_code_one_and_its_place_is_shown_on_request(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: Any, **more: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("undo_probe.pipeline.run_undo", breaks)
    said = call(*quick("--out", tmp_path / "run"))
    assert said.code == 1
    assert said.err == "undo-probe: failed: RuntimeError: out of luck (UNDO_PROBE_DEBUG=1 shows where)\n"
    monkeypatch.setenv("UNDO_PROBE_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["undo-probe", "run", "smoke", "--out", str(tmp_path / "run")])
    with pytest.raises(RuntimeError, match="out of luck"):
        main()


def test_a_stage_that_breaks_is_exit_code_one_and_named(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from undo_probe.pipeline import KINDS

    def breaks(*args: Any) -> None:
        raise RuntimeError("no more power")

    monkeypatch.setitem(KINDS, "pretrain", (breaks, 1))
    said = call(*quick("--out", tmp_path / "run", "--workers", "1"))
    assert said.code == 1
    assert "3 of 4 jobs failed" in said.err
    assert "original: RuntimeError: no more power" in said.err
    assert "Traceback" not in said.err


def run_outside(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], cwd=REPO, capture_output=True, text=True, timeout=120)


def test_the_command_works_as_a_process_of_its_own() -> None:
    done = run_outside("presets")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(PRESETS)


def test_a_mistake_in_a_process_of_its_own_is_one_line(tmp_path: Path) -> None:
    done = run_outside("run", "smoke", "noise.alphas=[2]", "--out", str(tmp_path / "run"))
    assert_users_mistake(Said(done.returncode, done.stdout, done.stderr), "noise.alphas.0 is 2")
