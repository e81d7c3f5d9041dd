"""A whole run on two made-up languages: trained, attacked, scored and reported without anything that is exact."""

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import two_languages

import undo_probe as up
from undo_probe.evaluation import recovered, row_scores
from undo_probe.files import read_json
from undo_probe.records import Scorecard

QUICK = (
    "model.n_layers=2", "model.d_model=32", "model.n_heads=2", "model.d_mlp=64",
    "original.steps=60", "original.batch_size=32", "original.warmup=5", "original.eval_every=30",
    "unlearn.also=[]", "unlearn.maxent.steps=15",
    "noise.alphas=[0.6]", "arms.twins=[0.6]", "arms.unlearn_and_distill=false",
    "distill.steps=20", "distill.eval_every=5", "attack.steps=4", "attack.eval_steps=[0,2,4]",
    "attack.learning_rates=[0.001,0.01]", "attack.max_extensions=0", "score.draws=199",
    'attack.also=["mixed","quantised"]', "attack.recovery.bits=[4]",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = two_languages.write(tmp_path_factory.mktemp("corpus") / "text")
    settings = {"text": str(folder), "cache": str(folder.parent / "cache"), "vocab": 300, "n_ctx": 24}
    more = {"min_characters": 20, "near_duplicates": "null", "retain_held_out": 0.15, "eval_rows": 12}
    overrides = [f"task.{name}={value}" for name, value in {**settings, **more}.items()]
    overrides.append("task.forget_shares=[0.5,0.2,0.2,0.1]")
    config = up.preset("language-tiny", *QUICK, *overrides)
    made = up.attack(up.run_undo(config, tmp_path_factory.mktemp("run") / "run", workers=1), workers=1)
    up.score(made, workers=1)
    return made


def test_a_run_on_two_languages_is_scored_without_probes(run: Any) -> None:
    card = Scorecard.from_dict(read_json(run.folder / "scorecard.json"))
    table: Any = card.table()
    accuracy = table[(table["measure"] == "accuracy") & (table["subset"] == "V")].set_index("stage")["value"]
    assert accuracy["original"] > accuracy["random"] + 0.1
    assert accuracy["original"] > accuracy["oracle"]
    assert set(table["measure"]) >= {
        "bits_per_token",
        "bits_per_character",
        "relearned",
        "cosine",
        "after_mixed",
    }
    assert not {name for name in table["measure"] if name.startswith("probe")}
    assert table["value"].dropna().abs().max() < 1e9
    assert card.verdict["inner_layer"] == ""
    assert [place[0] for place in card.verdict["headline"]["measures"]] == ["accuracy", "relearned"]
    shown = run.stages.set_index("arm")
    assert {"retain English", "forget Korean"} <= set(shown.columns)


def test_the_student_stopped_by_cross_entropy(run: Any) -> None:
    rows = pd.DataFrame(run.entry(run.arm("distilled", alpha=0.6)).rows)
    retain = rows[rows["task_split"] == "retain"].set_index("step")["value"]
    rows = run.task.rows("retain_dev")
    goal = float(row_scores(run.model("unlearned"), rows, "bits").mean())
    met = [recovered(value, goal, 0.05, "bits") for value in retain]
    assert not any(met[:-1])
    assert met[-1] == ("stop rule met" in run.entry(run.arm("distilled", alpha=0.6)).stopped)


def test_the_report_says_what_its_figures_are(run: Any, tmp_path: Path) -> None:
    page = up.write_report(run, tmp_path / "page.html").read_text()
    for text in ("Korean", "a uniform guess’s bits", "token frequencies alone", "Probes are absent"):
        assert text in page
    for text in ("multiplication", "exactly right"):
        assert text not in page
    # whatever is said or drawn: all but the drawing library and the page's own script
    shown = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "bits saved on forget text" in shown
    assert "question" not in shown.lower()
