"""Two models side by side: identities, what a change of basis leaves alone, floors, and what is refused."""

import inspect
import json
from pathlib import Path

import atlas
import basis
import numpy as np
import pandas as pd
import pytest
import tiny
import torch

import undo_probe as up
from tests.report.test_html import FETCHING, HOSTILE, Tags
from undo_probe.cli import main
from undo_probe.comparison import Comparison
from undo_probe.comparison.parts import PARTS
from undo_probe.comparison.prompts import GivenPrompts, neutral_rows
from undo_probe.comparison.sides import answer_places, ask
from undo_probe.config import FitConfig, ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answer_log_probability
from undo_probe.losses import next_token
from undo_probe.models import HookedTransformer, build, clone, weights
from undo_probe.report.compare_page import render
from undo_probe.report.compare_words import words_of
from undo_probe.store import Run
from undo_probe.tasks.facts import FactsTask
from undo_probe.tasks.protocol import TokenSet
from undo_probe.training import Context, fit, step_cost

ROWS = 24


@pytest.fixture(scope="module")
def same() -> Comparison:
    model = tiny.model()
    return up.compare(model, model, tiny.small_task(), max_rows=ROWS, names=("A", "A too"), also=("lens",))


def values(made: Comparison, measure: str, **where: str) -> np.ndarray:
    table = made.table(measure)
    for column, wanted in where.items():
        table = table.loc[table[column] == wanted]
    found = table["value"].dropna().to_numpy(float)
    assert len(found)
    return found


ONES = {"cka", "cosine", "norm_ratio", "attribution_cosine", "stitch_explained"}
"""What is 1 between equal models; everything else is 0."""


def assert_equal_models(made: Comparison) -> None:
    for line in made.table().dropna(subset="value").to_dict("records"):
        if line["measure"] != "stitch_outside":  # of one model alone
            assert line["value"] == pytest.approx(float(line["measure"] in ONES), abs=2e-3), line


def test_a_model_is_not_apart_from_itself(same: Comparison) -> None:
    assert_equal_models(same)
    for measure in ("kl", "relative_distance", "mean_shift", "lens_kl"):
        np.testing.assert_allclose(values(same, measure), 0, atol=2e-3 if measure == "lens_kl" else 1e-9)
    assert same.words.headline == "A too and A do not part: no difference of states or answers exceeds noise."


@pytest.mark.slow
def test_no_part_finds_a_model_apart_from_itself() -> None:
    model = tiny.model()
    made = up.compare(model, model, tiny.small_task(), gold=tiny.model(2), max_rows=ROWS)
    assert {"patch_drop", "probe_refitted", "attribution", "stitch_explained"} <= set(made.table()["measure"])
    assert "tuned" in set(made.table()["reading"])
    assert_equal_models(made)


@pytest.mark.slow
def test_another_basis_moves_states_and_neither_answers_nor_likeness() -> None:
    """A model in another basis, which is its own twin, with another seed as the floor."""
    model = tiny.model()
    other = basis.reordered(model)
    made = up.compare(
        model, other, tiny.small_task(), twin=other, second_seed=tiny.model(1), max_rows=ROWS, also=("lens",)
    )
    np.testing.assert_allclose(values(made, "kl"), 0, atol=1e-6)
    np.testing.assert_allclose(values(made, "cka"), 1, atol=1e-6)
    np.testing.assert_allclose(values(made, "procrustes"), 0, atol=1e-6)
    assert values(made, "relative_distance").min() > 0.5
    assert values(made, "cosine").mean() < 0.5
    reading = {
        name: np.abs(values(made, "lens_log_probability", reading=name, split="forget")).max()
        for name in ("own", "a's")
    }
    assert reading["own"] < 1e-4 and reading["a's"] > 100 * reading["own"]
    # another seed of A lies as far away, so that not even the states need count as apart
    assert made.words.headline.endswith(("though its states lie elsewhere.", "exceeds noise."))
    table = made.table("relative_distance")
    np.testing.assert_allclose(table["twin"].to_numpy(float), table["value"].to_numpy(float))
    np.testing.assert_allclose(table[["over_twin", "over_twin_low", "over_twin_high"]].to_numpy(float), 0)
    assert made.facts["floor"] == "second seed" and table["floor"].to_numpy(float).min() > 0.5
    assert "no layer lies farther away than the twin’s" in dict(made.words.paragraphs)["The twin"]


@pytest.mark.parametrize("cap", [0.0, 0.2])
def test_answers_are_those_of_the_models_themselves(cap: float) -> None:
    """The last state is read before the final norm: norm, unembedding and one soft cap give the model's own logits."""
    a, b, task = tiny.model(0), tiny.model(1), tiny.small_task()
    a.cfg.output_logits_soft_cap = b.cfg.output_logits_soft_cap = cap
    made = up.compare(a, b, task, max_rows=2 * ROWS, also=())
    asked = {each.split: each.rows for each in ask(task, 2 * ROWS, 0)}
    for line in made.table("answer_log_probability").to_dict("records"):
        rows = asked[line["split"]]
        tokens = rows.answer_mask[:, 1:].sum(1).numpy()
        levels = [(answer_log_probability(model, rows) / tokens).mean() / np.log(2) for model in (a, b)]
        np.testing.assert_allclose([line["a"], line["b"]], levels, rtol=1e-5)
        assert line["low"] < line["value"] < line["high"]
    kl = made.table("kl", "forget").iloc[0]
    logs = [tiny.logits(model, asked["forget"].tokens[:, :-1]).double().log_softmax(-1) for model in (a, b)]
    each = (logs[0].exp() * (logs[0] - logs[1])).sum(-1) / np.log(2)
    mask = asked["forget"].answer_mask[:, 1:]
    assert kl["value"] == pytest.approx(float(((each * mask).sum(1) / mask.sum(1)).mean()), rel=1e-5)
    assert kl["floor"] > 0 and made.facts["floor"] == "halves of the prompts"


def test_widths_and_depths_may_differ_but_not_tokens() -> None:
    task = tiny.small_task()
    made = up.compare(
        tiny.model(), tiny.model(d_model=8, n_layers=3), task, max_rows=ROWS, also=("lens", "depth")
    )
    assert "relative_distance" not in set(made.table()["measure"])
    assert {"kl", "cka", "procrustes", "lens_kl"} <= set(made.table()["measure"])
    notes = " ".join(made.facts["notes"])
    assert "widths 16 and 8" in notes and "2 and 3 blocks: layers are matched by relative depth" in notes
    assert made.figure("where").table.shape[0] == 6
    with pytest.raises(UndoProbeError, match="no shared components"):
        made.figure("points")
    assert "Up to rotation and scale" in dict(made.words.paragraphs)["Where their states part"]
    with pytest.raises(
        UndoProbeError, match="has 17 tokens and B 23: two models are compared on the same tokens"
    ):
        up.compare(tiny.model(), _vocabulary(23), task)


def _vocabulary(size: int) -> HookedTransformer:
    return build(ModelConfig(n_layers=2, d_model=16, n_heads=2, d_mlp=16), size, 12, 0)


def test_what_cannot_be_compared_says_what_to_do(tmp_path: Path) -> None:
    a, task = tiny.model(), tiny.small_task()
    with pytest.raises(UndoProbeError, match="what are the models to be compared on"):
        up.compare(a, a)
    with pytest.raises(UndoProbeError, match="no part is called 'lenses': also takes lens, tuned"):
        up.compare(a, a, task, also=["lenses"])
    with pytest.raises(
        UndoProbeError, match="max_rows=1 is less than one family of forget rows: give at least"
    ):
        up.compare(a, a, task, max_rows=1)
    with pytest.raises(UndoProbeError, match="expected what undo_probe's save_model"):
        up.compare(str(tmp_path), a, task)
    with pytest.raises(
        UndoProbeError, match="prompts by split need forget and retain, .* 'retain' is missing"
    ):
        up.compare(a, a, {"forget": [[1, 2]]})
    with pytest.raises(
        UndoProbeError, match=f"a row has 99 tokens and the models read {a.cfg.n_ctx} at most"
    ):
        up.compare(a, a, {"forget": [[1] * 99], "retain": [[1, 2]]})
    with pytest.raises(UndoProbeError, match="'other' is no split"):
        GivenPrompts({"forget": [[1, 2]], "retain": [[1, 2]], "other": []}, 9)
    with pytest.raises(UndoProbeError, match="are text and there is no tokenizer"):
        GivenPrompts({"forget": ["two words"], "retain": [[1, 2]]}, 9)
    with pytest.raises(UndoProbeError, match="expected a text, token ids from 0 to 8"):
        GivenPrompts({"forget": [[1, 9]], "retain": [[1, 2]]}, 9)


def test_prompts_by_split_are_padded_and_read_where_their_answers_begin() -> None:
    given = {
        "forget": [([1, 2, 3], [4, 5]), ([1, 2], [6])],
        "retain": torch.tensor([[1, 2, 3, 4], [2, 3, 4, 5]]),
        "neutral": [[3, 4, 5]],
    }
    task = GivenPrompts(given, 9)
    forget, retain = task.rows("forget_V"), task.rows("retain")
    assert forget.tokens.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 0, 0]]
    assert forget.answer_mask.int().tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]
    assert torch.as_tensor(forget.read_position).tolist() == [2, 1]
    assert retain.read_position == 2 and retain.answer_mask[:, 1:4].all()
    assert task.splits == ["forget", "retain", "neutral"] and task.decode(retain.tokens[0, :2]) == "1 2"
    both = [set(task.rows(split).families) for split in ("retain_train", "retain_test")]
    assert not both[0] & both[1] and both[0] | both[1] == set(retain.families)


def test_long_answers_are_read_at_spread_places_and_short_ones_filled_up() -> None:
    mask = torch.zeros(2, 21, dtype=torch.bool)
    mask[0, 1:], mask[1, 3:5] = True, True
    labels = pd.DataFrame({"operation": "x", "family": ["a", "b"], "subset": "all"})
    places, counts = answer_places(TokenSet("rows", torch.zeros(2, 21, dtype=torch.long), mask, 19, labels))
    assert places.shape == (2, 8) and places[0, 0] == 0 and places[0, -1] == 19
    assert places[1, :2].tolist() == [2, 3] and counts.sum(1).tolist() == [8, 2]


def test_neutral_text_is_a_file_or_a_folder_read_with_the_tasks_own_tokenizer(tmp_path: Path) -> None:
    task = FactsTask(atlas.config(atlas.write(tmp_path / "atlas")), 0)
    text = "\n\n".join([f"{number} winds blow over a mild and quiet north. " * 6 for number in range(40)])
    (tmp_path / "short.txt").write_text(f"Weather\n\n{text}")
    rows = neutral_rows(tmp_path / "short.txt", task.d_vocab, 24, task.reader, most=10)
    assert rows.tokens.shape == (10, 24) and len(set(rows.families)) == 10
    assert (rows.tokens[:, 0] == task.reader.start[0]).all() and rows.answer_mask[:, 1:].all()
    said = [task.decode(row) for row in rows.tokens]
    assert all("winds blow over" in each for each in said)  # a heading is too short for a row
    first = [int(each.split()[0].removeprefix("<|begin|>")) for each in said]
    assert first == sorted(first) and first[0] < 4 and first[-1] > 34  # evenly spread

    model = build(ModelConfig(n_layers=2, d_model=16, n_heads=2, d_mlp=16), task.d_vocab, 24, 0)
    where = str(tmp_path / "nowhere")
    with pytest.raises(UndoProbeError, match=f"there is no text at '{where}': give neutral= a text file"):
        up.compare(model, model, task, neutral=where)
    with pytest.raises(UndoProbeError, match="no paragraph of .* has 8 tokens: give longer text"):
        (tmp_path / "heading.txt").write_text("Hm")
        neutral_rows(tmp_path / "heading.txt", task.d_vocab, 24, task.reader)
    with pytest.raises(UndoProbeError, match="neither the task nor the models bring one: give tokenizer="):
        up.compare(tiny.model(), tiny.model(), tiny.small_task(), neutral=tmp_path / "short.txt")
    with pytest.raises(UndoProbeError, match="a row has 30 tokens and the models read 24 at most"):
        up.compare(model, model, task, neutral=[[1] * 30])


@pytest.mark.slow
def test_facts_and_a_folder_of_text_are_compared_together(tmp_path: Path) -> None:
    task = FactsTask(atlas.config(atlas.write(tmp_path / "atlas")), 0)
    model = build(ModelConfig(n_layers=2, d_model=16, n_heads=2, d_mlp=16), task.d_vocab, 24, 0)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "long.md").write_text(
        "\n\n".join(f"{at} winds blow over the north." * 6 for at in range(20))
    )
    made = up.compare(model, model, task, neutral=tmp_path / "texts", max_rows=12, also=("attribution",))
    assert "attribution" in set(made.table()["measure"])  # of answers of several tokens, by their first
    assert made.facts["rows"]["neutral"] == 12 and "neutral" in set(made.table("kl")["split"])


@pytest.mark.slow
def test_how_far_the_weights_moved_is_told_tensor_by_tensor() -> None:
    model, task = tiny.model(), tiny.small_task()
    moved = clone(model)
    with torch.no_grad():
        moved.blocks[1].mlp.W_in.mul_(1.5)
    made = up.compare(model, moved, task, twin=model, max_rows=ROWS, also=("weights",))
    lines = made.table("weight_distance")
    found = dict(zip(lines["reading"], lines["value"].tolist(), strict=True))
    everything = float(sum(weight.detach().double().square().sum() for weight in weights(model).values()))
    share = float(model.blocks[1].mlp.W_in.detach().double().norm()) / everything**0.5
    assert found.pop("all weights") == pytest.approx(share / 2)
    assert found.pop("blocks.1.mlp.W_in") == pytest.approx(0.5)
    assert found and set(found.values()) == {0.0}
    said = dict(made.words.paragraphs)["How far the weights moved"]
    assert "the tensor that moved farthest is blocks.1.mlp.W_in, by 0.5." in said and "the twin’s 0;" in said
    drawn = made.figure("weights").table
    assert dict(zip(drawn["layer"], drawn["in"], strict=True)) == {"0": "0.00", "1": "0.50"}
    wider = up.compare(model, tiny.model(d_model=8), task, max_rows=ROWS, also=("weights",))
    assert "weight_distance" not in set(wider.table()["measure"])
    assert "no weights are compared: the models have different tensors" in wider.facts["notes"]


@pytest.mark.slow
def test_prompts_of_tokens_are_compared_whole() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = {split: torch.randint(1, 17, (12, 4), generator=draw) for split in ("forget", "retain", "neutral")}
    made = up.compare(tiny.model(0), tiny.model(1), rows, also=())
    assert set(made.table()["split"]) == {"forget", "retain", "neutral"}
    assert {row["split"] for row in made.tokens} == {"forget", "retain", "neutral"}
    assert values(made, "kl").min() > 0
    beside = ask(tiny.small_task(), ROWS, 0, GivenPrompts(rows, 17).rows("neutral"))
    assert [each.split for each in beside] == ["forget", "retain", "neutral"]


def test_a_comparison_is_stored_and_read_back(same: Comparison, tmp_path: Path) -> None:
    again = Comparison.load(same.save(tmp_path / "kept"))
    pd.testing.assert_frame_equal(again.table(), same.table())
    assert again.words == same.words and again.tokens == same.tokens
    assert "do not part" in again._repr_html_() and again.figures == same.figures
    said = json.loads((tmp_path / "kept" / "comparison.json").read_text())
    (tmp_path / "kept" / "comparison.json").write_text(json.dumps({**said, "format": 9}))
    with pytest.raises(UndoProbeError, match="has format 9: this version reads format 1"):
        Comparison.load(tmp_path / "kept")
    with pytest.raises(UndoProbeError, match="holds no comparison"):
        Comparison.load(tmp_path)
    with pytest.raises(UndoProbeError, match="there is no measure 'ckka' here: expected one of .*cka"):
        same.table("ckka")
    with pytest.raises(UndoProbeError, match="no figure is called 'maps': expected one of where, alike"):
        same.figure("maps")


def test_the_page_is_one_safe_file_with_every_figure(same: Comparison) -> None:
    rows = [{**row, "tokens": [HOSTILE, *row["tokens"][1:]]} for row in same.tokens]
    page = Tags(render(Comparison(same.lines, same.points, rows, {**same.facts, "b": HOSTILE})))
    left_out = sum(
        "Not shown: nothing" in text for text in page.words
    )  # of the parts that were not asked for
    assert left_out == 4 and page.count("figure") == len(same.figures) - left_out
    assert not [
        (tag, name) for tag, given in page.tags for name in given if name in FETCHING and tag not in ("a",)
    ]
    ids = {given["id"] for _, given in page.tags if given.get("id")}
    linked = {str(given["href"])[1:] for tag, given in page.tags if tag == "a"}
    assert linked and linked <= ids
    assert not any(tag == "img" or "onerror" in given for tag, given in page.tags)
    shaded = [given for tag, given in page.tags if "--shade" in (given.get("style") or "")]
    assert len(shaded) == (1 + len(rows[0]["moved"])) * sum(len(row["tokens"]) for row in rows)
    assert all("divergence 0.000 bits" in (given["title"] or "") for given in shaded)


def test_every_part_is_named_in_the_call() -> None:
    assert inspect.signature(up.compare).parameters["also"].default == tuple(PARTS)
    assert all(f"``{name}``" in (up.compare.__doc__ or "") for name in PARTS)


FACTS = {"a": "A", "b": "B", "rows": {"forget": 40, "retain": 40}, "families": {"forget": 20, "retain": 20},
         "floor": "halves of the prompts", "twin": False, "notes": [], "words": {"targets": {}}}  # fmt: skip


def table_of(*lines: tuple[str, str, float, float, float]) -> pd.DataFrame:
    """Measure, split, value, low and high of readings of answers, or of states after block 1."""
    inside = {"relative_distance"}
    blank = dict.fromkeys(("floor", "twin", "over_twin_low", "a", "b"))
    return pd.DataFrame([
        {"measure": name, "split": split, "value": value, "low": low, "high": high, **blank,
         "layer": "blocks.1.hook_resid_post" if name in inside else "",
         "position": "read" if name in inside else "answer", "reading": "kl" if name == "forget_less_retain" else ""}
        for name, split, value, low, high in lines
    ])  # fmt: skip


def story(forget: float, retain: float, less: tuple[float, float], change: float) -> str:
    lines = table_of(
        ("kl", "forget", forget, 0.9 * forget, 1.1 * forget),
        ("kl", "retain", retain, 0.9 * retain, 1.1 * retain),
        ("forget_less_retain", "forget", forget - retain, *less),
        ("answer_log_probability", "forget", change, change - 0.1, change + 0.1),
        ("answer_log_probability", "retain", -0.01, -0.02, 0.0),
        ("relative_distance", "forget", 0.5, 0.4, 0.6),
    )
    return words_of(lines, FACTS).headline


def test_the_opening_tells_a_lost_relation_from_a_model_that_changed_everywhere() -> None:
    lost = story(3.0, 0.1, (2.5, 3.3), -3.0)
    assert lost == (
        "B differs from A on the forget rows in particular: it loses 3.00 (2.90 to 3.10) bits a token of their "
        "answers; on retain rows they change by −0.01."
    )
    assert "gains 3.00" in story(3.0, 0.1, (2.5, 3.3), 3.0)
    assert story(0.3, 0.9, (-0.8, -0.4), 0.2).startswith("B differs from A most on retain rows")
    assert "alike: predictions diverge by 0.30 on forget rows and 0.28 on retain rows" in story(
        0.3, 0.28, (-0.1, 0.2), -1
    )
    assert story(1e-5, 1e-5, (0, 0), 0.0) == "B answers as A does, though its states lie elsewhere."


@pytest.mark.slow
def test_a_lost_relation_and_further_training_on_retain_read_differently() -> None:
    original, task = tiny.knowing(), tiny.small_task()
    forgot = up.compare(original, tiny.suppressed().model, task, max_rows=60, also=("lens", "depth"))
    assert "on the forget rows in particular: it loses" in forgot.words.headline
    assert values(forgot, "forget_less_retain", reading="kl")[0] > 1

    def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
        batch = task.batch("retain", 32, 0, step)
        return next_token(model(batch.tokens[:, :-1], return_type="logits"), batch.tokens, batch.answer_mask)

    settings = FitConfig(steps=3, batch_size=32, learning_rate=1e-3, eval_every=3)
    cost = step_cost(original, 32, task.n_ctx, passes=3)
    kept = fit(clone(original), settings, loss, Context(seed=0), cost=cost).model
    again = up.compare(original, kept, task, max_rows=60, also=("lens",))
    assert "in particular: it loses" not in again.words.headline


@pytest.mark.slow
def test_arms_of_a_run_are_compared_from_the_command_line(
    attacked: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["undo-probe", "compare", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return f"{end.value.code} {said.out}{said.err}"

    at = f"{attacked.folder}:"
    page, kept = tmp_path / "page.html", tmp_path / "kept"
    more = ("--twin", f"{at}distilled-maxent-0.8-twin", "--rows", "40", "--save", str(kept))
    said = call(f"{at}original", f"{at}MaxEnt", "--out", str(page), *more)
    assert said.startswith("0 ") and f"comparison: {page}" in said
    made = Comparison.load(kept)
    assert made.facts["a"] == "Original" and made.facts["b"] == "MaxEnt" and made.facts["twin"]
    assert made.facts["task"] == attacked.task.name
    assert made.words.headline in page.read_text()
    assert "2 undo-probe: the run has no arm 'originl'" in call(f"{at}originl", f"{at}MaxEnt")
    assert "is a run of several models: name one" in call(str(attacked.folder), f"{at}MaxEnt")
    (tmp_path / "text.txt").write_text("It rains in the north.")
    without = call(f"{at}original", f"{at}MaxEnt", "--neutral", str(tmp_path / "text.txt"))
    assert "2 undo-probe: neutral text needs a tokenizer" in without
