"""A whole run from a Hugging Face folder: loaded, unlearned, noised, distilled, attacked, scored and reported."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import quiz
import tiny
import torch

import undo_probe as up
from undo_probe.attacks.arms import attack_tables
from undo_probe.attacks.one_model import core_rows
from undo_probe.errors import UndoProbeError
from undo_probe.estimate import estimate
from undo_probe.evaluation import option_scores
from undo_probe.export import export
from undo_probe.models import content_hash, load_model, save_model, ties
from undo_probe.pipeline import recipe, split_seed
from undo_probe.presets import preset
from undo_probe.store import Store
from undo_probe.tasks.choice import ChoiceTask

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("choice run")]
QUICK = (
    "task.name=choice", "task.near_duplicates=null", "task.n_ctx=48", "task.forget_shares=[0.35,0.45,0.1,0.1]",
    'unlearn.also=["rmu"]', "unlearn.maxent.steps=30", "unlearn.maxent.batch_size=16",
    "unlearn.maxent.learning_rate=0.003", "unlearn.maxent.retain_loss=kl", "unlearn.rmu.batch_size=16",
    "unlearn.rmu.steps=4", 'unlearn.rmu.tensors=["mlp.W_out"]', "unlearn.rmu.layer=1", "unlearn.rmu.blocks=[1]",
    "noise.alphas=[0.3]", "noise.beta=0", "arms.twins=[0.3]", "arms.unlearn_and_distill=false",
    "distill.steps=10", "distill.eval_every=5", "distill.batch_size=16",
    "attack.steps=12", "attack.eval_steps=[0,4,12]", "attack.learning_rates=[0.003]",
    "attack.max_extensions=0", "attack.batch_size=16", "score.draws=199", 'attack.also=["block"]',
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``text``, and ``model``: a small Llama that knows the answers as the run will ask for them."""
    folder = tmp_path_factory.mktemp("choice")
    quiz.write(folder / "text")
    settings = quiz.config(folder / "text", near_duplicates=None, forget_shares=(0.35, 0.45, 0.1, 0.1))
    task = ChoiceTask(settings, split_seed(preset("tiny")))
    quiz.model_folder(task, folder / "model", steps=80)
    return folder


def settings(place: Path, *more: str) -> Any:
    where = (
        f"task.text={place / 'text'}",
        f"task.cache={place / 'cache'}",
        f"original.source={place / 'model'}",
    )
    return preset("tiny", *QUICK, *where, *more)


@pytest.fixture(scope="module")
def run(place: Path) -> Any:
    made = up.attack(up.run_undo(settings(place), place / "run", workers=1), workers=1)
    up.score(made, workers=1)
    return up.load_run(place / "run")


@pytest.fixture(scope="module")
def readings(run: Any) -> Any:
    return pd.read_parquet(run.folder / "readings.parquet")


def test_the_original_is_the_model_of_the_folder(run: Any, place: Path) -> None:
    arms = [arm.name for arm in run.arms]
    assert arms[:2] == ["original", "random"]
    assert not [name for name in arms if "oracle" in name or "placebo" in name]
    original = run.model("original")
    assert content_hash(original) == content_hash(load_model(place / "model", n_ctx=48))
    entry = run.entry(run.arm("original"))
    assert (entry.kind, entry.stopped, entry.ledger.flops) == ("load", "loaded model", 0.0)
    assert str(place) not in str(entry.what)
    random = run.model("random")
    assert [p.shape for p in random.parameters()] == [p.shape for p in original.parameters()]
    assert run.n_layers == 2 != len(preset("tiny").noise.alphas)


def test_what_the_family_lacks_stays_at_zero_and_what_is_tied_stays_tied(run: Any) -> None:
    for arm in run.arms:
        model = run.load(arm)
        frozen = [p for p in model.parameters() if not p.requires_grad]
        assert (
            len(frozen) == 6 * 2 + 1
        )  # queries, keys, values, outputs, and both sides of the MLP; the unembedding
        assert not any(p.any() for p in frozen), arm.name
        assert ties(model) == [("embed.W_E", "unembed.W_U")]


def test_a_student_is_exported_in_the_form_of_the_source_with_its_tokenizer(
    run: Any, place: Path, tmp_path: Path
) -> None:
    export(run.folder, tmp_path / "out", arm="UNDO 0.3")
    student = run.model("distilled", alpha=0.3, variant="")
    assert content_hash(load_model(tmp_path / "out")) == content_hash(student)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (place / "model" / name).read_bytes()


def test_unlearning_hides_what_the_model_knew_and_the_attack_brings_it_back(run: Any, readings: Any) -> None:
    accuracy = readings[(readings["measure"] == "accuracy") & (readings["variant"] == "")]
    forget = accuracy[accuracy["subset"] == "V"].set_index("stage")["value"]
    kept = accuracy[accuracy["task_split"].eq("retain") & accuracy["subset"].eq("all")].set_index("stage")[
        "value"
    ]
    assert forget["original"] > 0.9
    assert kept["original"] > 0.9
    teacher = run.arm("unlearned").name
    table = attack_tables(run)[teacher]
    core = core_rows(run.task)
    assert table.forget[0, 0, 0, core].mean() < 0.7
    found = readings[readings["measure"] == "recovered_gap"].set_index(["stage", "method"])
    assert found.loc[("unlearned", "maxent"), "value"] > 0.2
    assert found.loc[("original", ""), "value"] > 0.8
    assert found.loc[("random", ""), "value"] < 0.3


def test_recovered_gap_is_the_share_of_what_unlearning_took(run: Any, readings: Any) -> None:
    tables, core = attack_tables(run), core_rows(run.task)
    teacher = tables[run.arm("unlearned").name].forget[0, 0, 0, core].mean()
    original = tables["original"].forget[0, 0, 0, core].mean()
    for _, line in readings[readings["measure"] == "recovered_gap"].iterrows():
        named = tuple(line[name] for name in ("stage", "method", "variant"))
        arm = next(arm for arm in run.arms if (arm.stage, arm.method, arm.variant) == named)
        reached = tables[arm.name].cumulative_max(core)[-1, core].mean()
        assert line["value"] == pytest.approx((reached - teacher) / (original - teacher))
        assert line["low"] < line["value"] < line["high"]


def test_measures_that_need_an_oracle_are_refused(run: Any) -> None:
    with pytest.raises(
        UndoProbeError, match="depth would be read beside the matched oracle, which this run does"
    ):
        up.score(run, workers=1, also=["depth"])


def test_survival_is_null_with_its_reason(readings: Any) -> None:
    assert readings["survival"].isna().all()
    lacking = readings[readings["gate"] == "no oracle"]
    assert set(lacking["measure"]) >= {"accuracy", "relearned", "relearn_area", "robustness", "after_block-1"}
    assert lacking["note"].str.contains("the original was loaded").all()
    assert readings[readings["measure"] == "compute_share"]["value"].isna().all()
    steps = readings[readings["measure"] == "relearn_log_steps"]
    assert steps["value"].notna().all()


def test_three_scores_of_a_choice_stand_side_by_side(run: Any, readings: Any) -> None:
    rows = run.task.rows("forget_V")
    found = option_scores(run.model("original"), rows)
    table = readings[(readings["stage"] == "original") & (readings["subset"] == "V")].set_index("measure")[
        "value"
    ]
    assert table["accuracy"] == pytest.approx(found["choice"].mean())
    assert table["option_probability"] == pytest.approx(found["probability"].mean())
    assert table["exact_match"] == pytest.approx(found["exact"].mean())


def test_the_page_tells_it_without_an_oracle(run: Any, tmp_path: Path) -> None:
    page = up.write_report(run, tmp_path / "page.html").read_text()
    for text in (
        "Without an oracle",
        "loaded, as it came",
        "no oracle",
        "of what had gone",
        "no matched oracle in this run",
    ):
        assert text in page
    for text in ("trained on everything", "lie too close together", "multiplication"):
        assert text not in page


def test_a_second_run_makes_nothing_again_and_opening_needs_no_source(
    run: Any, place: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.store.folder.glob("*/stage.json")}
    up.run_undo(settings(place), run.folder, workers=1)
    assert {path: path.stat().st_mtime_ns for path in run.store.folder.glob("*/stage.json")} == before
    shutil.copytree(run.folder, tmp_path / "moved")
    moved = up.load_run(tmp_path / "moved")
    away = place / "away"
    (place / "model").rename(away)
    try:
        assert len(moved.stages) == len(run.arms)
        assert up.write_report(moved, tmp_path / "page.html").is_file()
    finally:
        away.rename(place / "model")


def keys(config: Any) -> dict[str, str]:
    return {name: Store.key(what) for name, what in recipe(config).what.items()}


def test_every_key_follows_the_content_of_the_source_and_not_its_place(place: Path, tmp_path: Path) -> None:
    here = keys(settings(place))
    shutil.copytree(place / "model", tmp_path / "copy")
    copied = settings(place, f"original.source={tmp_path / 'copy'}")
    assert keys(copied) == here
    model = load_model(place / "model")
    with torch.no_grad():
        model.blocks[0].mlp.W_in[0, 0] += 1
    save_model(model, tmp_path / "own")
    other = keys(settings(place, f"original.source={tmp_path / 'own'}", f"task.tokenizer={place / 'model'}"))
    assert not set(other.values()) & set(here.values())
    # nothing is trained here, and the shape is the source's
    assert keys(settings(place, "original.steps=7", "model.d_model=128")) == here


def test_the_dry_run_counts_what_the_run_then_counts(run: Any, place: Path) -> None:
    made = estimate(settings(place))
    lines = {line.what: line for line in made.lines}
    assert "original and oracles" not in lines
    for arm in run.arms:
        if arm.stage == "unlearned":
            assert lines[arm.label].flops == pytest.approx(run.entry(arm).ledger.flops)
    assert lines["attacks"].models == len(run.manifest["attacks"])
    assert made.parameters == sum(p.numel() for p in run.model("original").parameters())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("unlearn.rmu.layer=5", r"rmu\.layer is 5, but the model of original\.source \(.*\) has layers 0\.\.1"),
        ("noise.layers=[2]", r"noise names 2, but the model of original\.source .* 2 layers of 4 heads"),
        ("task.n_ctx=200", r"a row of the task has 200 tokens, but the model of .* reads 128"),
        ("task.name=arithmetic", "reads 425 tokens, the task arithmetic has 17: take a model that was trained on this"),
        ("unlearn.rmu.tensors=[\"mlp.W_up\"]", r"unlearn\.rmu\.tensors: the model has no 'blocks\.1\.mlp\.W_up'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_source_is_said(change: str, said: str, place: Path, tmp_path: Path) -> None:
    with pytest.raises(UndoProbeError, match=said):
        up.run_undo(settings(place, change), tmp_path / "run", workers=1, until="unlearned")


@pytest.mark.parametrize(
    "change", ["arms.second_seed=true", "arms.oracle_matching=5", "arms.placebo_alphas=[0.4]"]
)
def test_arms_that_need_training_from_scratch_are_refused(change: str, place: Path) -> None:
    name = change.partition("=")[0]
    with pytest.raises(UndoProbeError, match=f"{name} needs models that were trained from scratch"):
        settings(place, change)


def test_a_run_goes_on_from_the_original_of_another(tmp_path: Path) -> None:
    first = up.run_undo(tiny.quick(), tmp_path / "first", workers=1, until="original")
    save_model(first.model("original"), tmp_path / "checkpoint")
    config = tiny.quick(f"original.source={tmp_path / 'checkpoint'}")
    second = up.run_undo(config, tmp_path / "second", workers=1)
    assert content_hash(second.model("original")) == content_hash(first.model("original"))
    assert second.task.fingerprint == first.task.fingerprint
    quiz.write(tmp_path / "text")
    with pytest.raises(UndoProbeError, match="has no tokenizer: give task.tokenizer"):
        recipe(
            preset(
                "tiny", *QUICK, f"task.text={tmp_path / 'text'}", f"task.tokenizer={tmp_path / 'checkpoint'}"
            )
        )


def test_what_answers_at_random_is_at_chance(run: Any) -> None:
    found = option_scores(run.model("random"), run.task.rows("retain_train"))
    assert abs(found["probability"].mean() - 0.25) < 0.05
    assert np.isin(found["choice"], (True, False)).all()
