"""Two processes of ``accelerate launch`` train what one process trains, and what they cannot do they refuse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import together
import torch
from safetensors.torch import load_file

from undo_probe import cli, ranks
from undo_probe.attacks import relearn
from undo_probe.errors import UndoProbeError
from undo_probe.jobs import Job, run_jobs
from undo_probe.models import weights
from undo_probe.pipeline import run_undo
from undo_probe.store import Run
from undo_probe.training import Context

HERE = Path(__file__).parent


def launch(*words: str) -> str:
    """Runs a script (or ``-m module``) in two processes; what it printed.

    With ``--cpu`` accelerate would start two processes only through MPI; ours compute where ``device`` says.
    """
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    place = os.pathsep.join([str(HERE), str(HERE.parent)])
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
         "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", *words],
        env={**own, "OMP_NUM_THREADS": "1", "PYTHONPATH": place},
        capture_output=True,
        text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    launch(str(HERE / "together.py"), str(folder))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", together.CASES)
def test_two_processes_have_the_losses_and_the_weights_of_one(case: str, two: Path) -> None:
    done, losses = together.told(case, Context(together.SEED))
    found = json.loads((two / f"{case}.json").read_text())
    assert found["losses"] == pytest.approx(losses, abs=1e-5, rel=0)
    assert len(losses) == (0 if case == "distill stopped" else 5)
    assert (found["stopped"], found["flops"]) == (done.stopped, done.ledger.flops)
    assert [row["step"] for row in found["rows"]] == [row["step"] for row in done.rows]
    close = 1e-5 if case == "pretrain" else 1e-9  # the others train in double precision
    theirs = load_file(two / f"{case}.safetensors")
    for name, own in weights(done.model).items():
        # no output depends on a key's bias: its gradient is rounding error, of which Adam makes whole steps
        if not name.endswith("attn.b_K"):
            torch.testing.assert_close(
                theirs[name], own, atol=close, rtol=0, msg=lambda text, n=name: n + text
            )


@pytest.mark.slow
def test_all_processes_end_with_the_same_bits_also_when_resumed(two: Path) -> None:
    first, second = (json.loads((two / f"hashes-{rank}-of-2.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["resumed"] == first["pretrain"]
    assert len(set(first.values())) == len(together.CASES)  # cases differ, so equality says something


@pytest.mark.slow
def test_a_run_launched_in_two_processes_has_the_stages_of_one(tmp_path: Path) -> None:
    config = tiny.quick()
    file = tmp_path / "quick.json"
    file.write_text(config.model_dump_json())
    words = ["-m", "undo_probe.cli", "run", str(file), "--out", str(tmp_path / "two")]
    said = launch(*words, "--until", "distilled")
    assert said.count("stages:") == 1
    one, two = run_undo(config, tmp_path / "one", workers=1), Run(tmp_path / "two")
    assert two.keys == one.keys
    for arm in one.arms:
        mine, theirs = one.entry(arm), two.entry(arm)
        assert (mine.stopped, mine.ledger.flops) == (theirs.stopped, theirs.ledger.flops)
    # what it left is a run like any other
    assert run_undo(config, tmp_path / "two", workers=1).arms == two.arms


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the second of two launched processes."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("several")
def test_what_is_one_processes_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndoProbeError, match="an attack was asked for in 2 processes of accelerate launch"):
        relearn(tiny.model(), tiny.task())
    with pytest.raises(UndoProbeError, match="run it without accelerate launch"):
        run_jobs([Job("one", int)], 1)
    with pytest.raises(UndoProbeError, match="a pool of 3 workers was asked for in 2 processes"):
        run_undo(tiny.quick(), tmp_path, workers=3)
    for words in (["--dry-run"], ["--until", "score"], []):
        monkeypatch.setattr(
            sys, "argv", ["undo-probe", "run", "smoke", "--out", str(tmp_path / "run"), *words]
        )
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
    assert not list(tmp_path.iterdir())


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # some schedulers set it for every program
    assert (ranks.size(), ranks.rank(), ranks.is_main()) == (1, 0, True)
    assert ranks.agree("mine") == "mine"
    ranks.refuse("anything", "not at all")
