"""One run from the command to the report, and again: everything is there, and equal."""

import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny

import undo_probe as up
from undo_probe.cli import main
from undo_probe.files import read_json

SETTINGS = (
    *tiny.QUICK,
    "model.n_layers=1",
    'unlearn.also=["rmu"]',
    "arms.placebo_rmu=false",
    "arms.unlearn_and_distill=false",
    "attack.learning_rates=[0.003,0.01]",
    "score.probes.folds=2",
    "score.probes.max_rows=60",
    "score.probes.penalties=[0.1]",
    "score.draws=199",
    'score.also=["depth","lens","weights"]',
)
FILES = {
    "config.json",
    "run.json",
    "ledger.json",
    "curves.parquet",
    "readings.parquet",
    "scorecard.json",
    "report.html",
}


def command(folder: Path) -> int:
    """The one command, in this process."""
    before = sys.argv
    sys.argv = ["undo-probe", "run", "smoke", *SETTINGS, "--out", str(folder), "--workers", "1"]
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main() returned")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("end") / "run"
    assert command(found) == 0
    return found


def test_a_run_leaves_every_file_that_was_promised(folder: Path) -> None:
    assert {path.name for path in folder.iterdir() if path.is_file()} - {".lock"} == FILES
    assert not list(folder.rglob(".tmp-*"))
    assert not (folder / "store" / "work").exists() or not list((folder / "store" / "work").iterdir())


def test_every_arm_is_measured_and_the_readings_are_those_of_the_scorecard(folder: Path) -> None:
    run = up.load_run(folder)
    readings: Any = pd.read_parquet(folder / "readings.parquet")
    accuracy = readings[readings["measure"] == "accuracy"]
    assert set(accuracy["checkpoint"]) == {arm.checkpoint for arm in run.arms}
    card = read_json(folder / "scorecard.json")
    assert len(card["readings"]) == len(readings)
    assert card["verdict"]["attacked"] is True
    assert readings["value"].notna().sum() > len(readings) / 2
    for measure in ("depth", "lens_kl", "barrier"):
        assert set(readings.loc[readings["measure"] == measure, "checkpoint"]) == set(accuracy["checkpoint"])
    attacked = readings[readings["measure"] == "relearned"]
    assert set(attacked["subset"]) == {"step 0", "step 2", "step 4"}


def test_the_report_is_one_page_that_names_every_stage(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for label in ("Original", "MaxEnt", "UNDO 0.8", "Twin 0.8", "Oracle (matched)"):
        assert label in page
    assert not re.search(r"(src|href)=.https?://", re.sub(r"(?s)<script.*?</script>", "", page))
    assert len(page) < 8e6


def test_the_same_seed_gives_the_same_readings_and_curves(folder: Path, tmp_path: Path) -> None:
    config = up.preset("smoke", *SETTINGS)
    run = up.run_undo(config, tmp_path / "run", workers=1)
    up.attack(run, workers=1)  # as in the README: `run` was opened before there were attacks
    card = up.score(run, workers=1)
    for name in ("readings.parquet", "curves.parquet"):
        pd.testing.assert_frame_equal(
            pd.read_parquet(folder / name), pd.read_parquet(run.folder / name), check_exact=True
        )
    assert len(card.table()) == len(pd.read_parquet(folder / "readings.parquet"))
    up.write_report(run, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 1e5


def test_the_same_command_again_computes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*")}
    assert command(folder) == 0
    said = capsys.readouterr().err
    assert [line.split(", done")[0] for line in said.splitlines()] == [
        f"{phase}: nothing to do" for phase in ("stages", "attack", "scorecard")
    ]
    assert {path: path.stat().st_mtime_ns for path in (folder / "store").rglob("*")} == before
