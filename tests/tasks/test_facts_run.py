"""A whole run on facts that a loaded model knows: the known set, then unlearned, noised, distilled and attacked."""

from pathlib import Path
from typing import Any

import atlas
import pandas as pd
import pytest

import undo_probe as up
from undo_probe.cli import app
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import option_scores
from undo_probe.models import load_model, save_model
from undo_probe.presets import preset
from undo_probe.tasks.facts import FactsTask

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("facts run")]
QUICK = (
    "unlearn.also=[]", "attack.also=[]",
    "unlearn.maxent.steps=40", "unlearn.maxent.batch_size=16", "unlearn.maxent.learning_rate=0.003",
    "unlearn.maxent.retain_loss=kl", 'unlearn.rmu.tensors=["mlp.W_out"]', "noise.alphas=[0.3]", "noise.beta=0",
    "arms.twins=[]", "arms.unlearn_and_distill=false", "distill.steps=10", "distill.eval_every=5",
    "distill.batch_size=16", "attack.steps=12", "attack.eval_steps=[0,4,12]", "attack.learning_rates=[0.003]",
    "attack.max_extensions=0", "attack.batch_size=16", "score.draws=199",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``text``; ``model``, a small Llama that knows all facts but those of three places; and ``known.json``."""
    folder = tmp_path_factory.mktemp("facts")
    task = FactsTask(atlas.config(atlas.write(folder / "text")), seed=0)
    atlas.model_folder(task, folder / "model", steps=80)
    return folder


def overrides(place: Path, *more: str) -> list[str]:
    shares = "task.forget_shares=[0.3,0.5,0.1,0.1]"
    return [*QUICK, *atlas.overrides(place / "text"), f"original.source={place / 'model'}", shares, *more]


@pytest.fixture(scope="module")
def table(place: Path) -> pd.DataFrame:
    from typer.testing import CliRunner

    words = ["known", "tiny", *overrides(place), "--out", str(place / "known.json")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    header, *lines = (line.split() for line in done.stdout.splitlines())
    return pd.DataFrame([dict(zip(header, line, strict=True)) for line in lines]).set_index("relation")


@pytest.fixture(scope="module")
def run(place: Path, table: pd.DataFrame) -> Any:
    config = preset("tiny", *overrides(place, f"task.known={place / 'known.json'}"))
    made = up.attack(up.run_undo(config, place / "run", workers=1), workers=1)
    up.score(made, workers=1)
    return up.load_run(place / "run")


@pytest.fixture(scope="module")
def readings(run: Any) -> pd.DataFrame:
    return pd.read_parquet(run.folder / "readings.parquet")


def test_the_known_set_is_what_the_model_was_taught(table: pd.DataFrame) -> None:
    assert table["facts"].astype(int).tolist() == [32, 32]
    assert all(29 <= count <= 30 for count in table["known"].astype(int))


def test_what_is_not_known_is_in_no_split(run: Any) -> None:
    asked = {
        family.partition(":")[2]
        for split in (
            "forget_T",
            "forget_V",
            "forget_W",
            "forget_D",
            "retain_train",
            "retain_dev",
            "retain_test",
        )
        for family in run.task.rows(split).families
    }
    assert len(asked & {*atlas.UNTAUGHT}) <= 1
    assert len(asked) >= 29


def test_the_original_answers_all_and_unlearning_hides_it(run: Any, readings: pd.DataFrame) -> None:
    accuracy = readings.query("measure == 'accuracy' and variant == ''")
    forget = accuracy.query("subset == 'V'").set_index("stage")
    kept = accuracy.query("task_split == 'retain' and subset == 'all'").set_index("stage")
    # among four, in a wording in which it is right among all
    assert forget.loc["original", "value"] == kept.loc["original", "value"] == 1
    assert forget.loc["unlearned", "value"] < 0.8
    assert forget.loc["original", "control_value"] == pytest.approx(0.25)
    assert {*accuracy["subset"]} >= {"V", "T", "W", "V_trained", "seats", "ores"}


def test_the_log_probability_of_answers_stands_beside(run: Any, readings: pd.DataFrame) -> None:
    found = option_scores(run.model("original"), run.task.rows("forget_V"))
    rows = readings[(readings["stage"] == "original") & (readings["subset"] == "V")].set_index("measure")
    assert rows.loc["answer_log_probability", "value"] == pytest.approx(
        found["log_probability"].mean(), rel=1e-4
    )
    assert rows.loc["answer_log_probability", "unit"] == "nats"
    assert rows.loc["option_probability", "value"] == pytest.approx(found["probability"].mean(), rel=1e-4)


def test_the_attack_is_read_and_the_page_tells_it(run: Any, readings: pd.DataFrame, tmp_path: Path) -> None:
    assert {*readings.query("measure == 'relearned'")["stage"]} >= {
        "original",
        "unlearned",
        "distilled",
        "random",
    }
    # 14 facts are few: what came back is no share of so uncertain a gap, and that is said
    gap = readings.query("measure == 'recovered_gap'")
    assert bool(gap["value"].isna().all())
    assert gap["note"].str.contains("standard errors apart").all()
    page = up.write_report(run, tmp_path / "page.html").read_text()
    for text in ("the facts to forget (seats)", "Without an oracle", "V in trained wordings"):
        assert text in page


def test_a_known_set_of_another_model_is_refused(place: Path, table: pd.DataFrame, tmp_path: Path) -> None:
    model = load_model(place / "model")
    model.blocks[0].mlp.W_in.data[0, 0] += 1
    save_model(model, tmp_path / "other")
    changed = (f"task.known={place / 'known.json'}", f"task.tokenizer={place / 'model'}")
    config = preset("tiny", *overrides(place, *changed, f"original.source={tmp_path / 'other'}"))
    with pytest.raises(
        UndoProbeError, match=r"task\.known .* was measured on another model than that of original"
    ):
        up.run_undo(config, tmp_path / "run", workers=1, until="original")
