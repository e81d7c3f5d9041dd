"""Two languages: no document in two splits, equal tokens of both, and scores in bits."""

from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import two_languages
from hypothesis import given, settings
from hypothesis import strategies as st

import undo_probe as up
from undo_probe.cli import main
from undo_probe.config import ModelConfig
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answer_bits, recovered, row_scores
from undo_probe.measures.capability import capability
from undo_probe.measures.junk_direction import junk_measures
from undo_probe.models import build
from undo_probe.task_config import LanguageConfig
from undo_probe.tasks import Task, build_task
from undo_probe.tasks.corpus import BOS, Document, characters_begun, cut_rows, deal, train_tokenizer
from undo_probe.tasks.language import MIXTURES, LanguageTask, check_families
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS

SPLITS = (*FORGET_SPLITS, *RETAIN_SPLITS)
HELD_OUT = ("forget_V", "forget_D", "retain_dev", "retain_test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_languages.write(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def task(folder: Path) -> LanguageTask:
    return LanguageTask(two_languages.config(folder, eval_rows=400), 3)


def documents_of(task: LanguageTask, split: str) -> set[str]:
    """Numbers at which the documents of a split's rows begin; every document begins with its own."""
    starts = task._splits[split].family
    first = [int(np.flatnonzero(starts == number)[0]) for number in np.unique(starts)]
    return {
        task.decode(torch.from_numpy(task._splits[split].tokens[row].astype(np.int64))).split()[0]
        for row in first
    }


def test_it_is_a_task_with_equal_rows_that_are_all_answer(task: LanguageTask) -> None:
    assert isinstance(task, Task)
    for split in SPLITS:
        rows = task.rows(split)
        assert rows.tokens.shape[1] == task.n_ctx == 24
        assert (rows.tokens[:, 0] == task.reader.tokenizer.token_to_id(BOS)).all()
        assert rows.answer_mask[:, 1:].all() and not rows.answer_mask[:, 0].any()
        assert set(rows.operations) == {"Korean" if split.startswith("forget") else "English"}
    assert task.metric == "bits" and task.probe_targets == ()


def test_documents_are_in_one_split_only_and_sides_have_their_own_language(task: LanguageTask) -> None:
    for names in (FORGET_SPLITS, RETAIN_SPLITS):
        parts = [documents_of(task, name) for name in names]
        for one, other in combinations(parts, 2):
            assert not one & other
        assert sum(map(len, parts)) == 40
    for split in SPLITS:
        text = " ".join(task.decode(row) for row in task.rows(split).tokens)
        assert any("가" <= c <= "힣" for c in text) == split.startswith("forget")
        assert any(c in "aeiou" for c in text.replace(BOS, "")) == split.startswith("retain")


def test_a_family_in_two_splits_would_be_refused(task: LanguageTask) -> None:
    check_families(task._splits)
    for victim in ("retain_train", "forget_V", "forget_W"):
        with pytest.raises(UndoProbeError, match=r"the family \w+:\w+ lies in .*splits must be disjoint"):
            check_families({**task._splits, victim: task._splits["forget_T"]})


def test_the_shares_are_of_tokens(task: LanguageTask) -> None:
    sizes = np.array([len(task._splits[name].tokens) for name in FORGET_SPLITS])
    assert np.allclose(sizes / sizes.sum(), (0.5, 0.2, 0.2, 0.1), atol=0.05)


def texts(task: LanguageTask, *splits: str) -> set[bytes]:
    return {row.astype(np.int64).tobytes() for split in splits for row in task._splits[split].tokens}


@pytest.mark.parametrize("mixture", [name for name in MIXTURES if name != "matched"])
def test_a_mixture_shows_its_own_splits_and_never_what_is_held_out(task: LanguageTask, mixture: str) -> None:
    drawn = [task.batch(mixture, 200, 0, step) for step in range(10)]
    shown = {row.numpy().tobytes() for batch in drawn for row in batch.tokens}
    assert shown <= texts(task, *MIXTURES[mixture])
    assert not set(MIXTURES[mixture]) & set(HELD_OUT)
    for split in MIXTURES[mixture]:
        assert shown & texts(task, split)


def test_both_languages_get_as_many_tokens(task: LanguageTask) -> None:
    forget = texts(task, *FORGET_SPLITS)
    for mixture in ("pretrain", "distill", "attack_mixed"):
        tokens = torch.cat([task.batch(mixture, 500, 1, step).tokens for step in range(4)])
        share = np.mean([row.numpy().tobytes() in forget for row in tokens])
        assert abs(share - 0.5) < 4 * (0.25 / len(tokens)) ** 0.5


def test_matched_keeps_how_often_a_forget_token_comes_and_nothing_of_its_order(task: LanguageTask) -> None:
    retain = texts(task, "retain_train")
    tokens = torch.cat([task.batch("matched", 500, 1, step).tokens for step in range(20)])
    is_retain = np.array([row.numpy().tobytes() in retain for row in tokens])
    assert abs(is_retain.mean() - 0.5) < 0.02
    drawn, pool = (
        tokens[~is_retain][:, 1:],
        np.concatenate([task._splits[f"forget_{n}"].tokens[:, 1:] for n in "TW"]),
    )
    seen, known = (np.bincount(np.asarray(part).ravel(), minlength=task.d_vocab) for part in (drawn, pool))
    assert np.abs(seen / seen.sum() - known / known.sum()).max() < 0.01
    # in the text what follows a token is far from the marginal; here it is not
    assert information(pool) > 5 * information(drawn.numpy())


def information(tokens: np.ndarray) -> float:
    """Mutual information of neighbours in bits, plug-in."""
    pairs = np.stack([tokens[:, :-1].ravel(), tokens[:, 1:].ravel()])
    joint = np.unique(pairs, axis=1, return_counts=True)[1] / pairs.shape[1]
    alone = [np.unique(side, return_counts=True)[1] / pairs.shape[1] for side in pairs]
    return float(sum(-(p * np.log2(p)).sum() for p in alone) + (joint * np.log2(joint)).sum())


@cache
def opened(folder: Path, seed: int) -> LanguageTask:
    return LanguageTask(two_languages.config(folder), seed)


def test_a_batch_is_a_pure_function_of_its_arguments(folder: Path) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.sampled_from(list(MIXTURES)), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 10**6))
    def check(mixture: str, size: int, seed: int, step: int) -> None:
        before = torch.random.get_rng_state()
        task = opened(folder, 0)
        once = task.batch(mixture, size, seed, step).tokens
        task.batch(mixture, 3, seed + 1, step + 1)
        assert torch.equal(once, LanguageTask(task.config, 0).batch(mixture, size, seed, step).tokens)
        assert once.shape == (size, task.n_ctx)
        assert torch.equal(torch.random.get_rng_state(), before)

    check()


def test_the_fingerprint_follows_text_tokenizer_and_seed_and_not_where_they_lie(
    folder: Path, tmp_path: Path
) -> None:
    same = two_languages.write(tmp_path / "elsewhere" / "text")
    first = opened(folder, 0)
    copy = LanguageTask(two_languages.config(same), 0)
    assert copy.fingerprint == first.fingerprint
    for split in SPLITS:
        assert torch.equal(copy.rows(split).tokens, first.rows(split).tokens)
    others = [
        opened(folder, 1),
        LanguageTask(two_languages.config(folder, vocab=310), 0),
        LanguageTask(two_languages.config(folder, n_ctx=20), 0),
    ]
    (same / "korean" / "more.txt").write_text(two_languages.texts(two_languages.KOREAN, 1, 90, 9)[0])
    others.append(LanguageTask(two_languages.config(same), 0))
    assert len({task.fingerprint for task in (first, *others)}) == 5


def test_what_is_prepared_is_read_from_the_cache_and_damage_is_noticed(folder: Path, tmp_path: Path) -> None:
    config = two_languages.config(folder, cache=str(tmp_path))
    first = LanguageTask(config, 0)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = LanguageTask(config, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == made
    assert again.fingerprint == first.fingerprint
    LanguageTask(config, 1)  # another split of the same text: the tokenizer is not trained again
    assert len(list(tmp_path.glob("tokenizer-*"))) == 1
    rows = next(tmp_path.glob("rows-*/rows.safetensors"))
    rows.write_bytes(rows.read_bytes()[:-1] + b"\7")
    with pytest.raises(UndoProbeError, match=r"is damaged: delete it, and it is made again from your text"):
        [LanguageTask(config, seed) for seed in (0, 1)]


def test_copies_near_copies_and_short_documents_are_left_out_and_counted(
    folder: Path, tmp_path: Path
) -> None:
    mine = two_languages.write(tmp_path / "text", documents=30)
    text = (mine / "english" / "0.txt").read_text()
    (mine / "english" / "copy.txt").write_text(text + "\r\n")
    (mine / "korean" / "copy.txt").write_text(text)  # the same document on both sides
    (mine / "english" / "near.txt").write_text(text + " with one more word")
    (mine / "english" / "short.txt").write_text("too short")
    facts = LanguageTask(two_languages.config(mine, near_duplicates=0.9), 0).facts
    assert facts["retain"]["copies"] == 1 and facts["forget"]["copies"] == 1
    assert facts["retain"]["near_copies"] == 1 and facts["retain"]["short"] == 1
    assert facts["retain"]["documents"] == 30 == facts["forget"]["documents"]
    assert facts["retain"]["read"] == 33


def test_too_little_text_says_which_split_is_empty(folder: Path, tmp_path: Path) -> None:
    few = two_languages.write(tmp_path / "text", documents=3)
    with pytest.raises(
        UndoProbeError, match=r"the split retain_(dev|test) is empty: 3 English documents of \d+ tokens"
    ):
        LanguageTask(two_languages.config(few), 0)
    with pytest.raises(
        UndoProbeError, match=r"no English document of at least 9000 characters .*\(40 were read\)"
    ):
        LanguageTask(two_languages.config(folder, min_characters=9000), 0)
    with pytest.raises(UndoProbeError, match="language has no split 'forget_X': it has forget_D"):
        opened(folder, 0).rows("forget_X")
    with pytest.raises(UndoProbeError, match="language has no mixture 'x': it has pretrain"):
        opened(folder, 0).batch("x", 1, 0, 0)


def test_reading_stops_after_so_many_tokens(folder: Path) -> None:
    facts = LanguageTask(two_languages.config(folder, max_tokens=3000), 0).facts
    for side in facts.values():
        assert 3000 <= side["tokens"] < 3000 + 400


def test_the_presets_say_in_one_line_that_they_need_text() -> None:
    config = up.preset("language-tiny")
    with pytest.raises(UndoProbeError, match=r"^task\.text is empty: [^\n]*`undo-probe text FOLDER`[^\n]*$"):
        build_task(config.task, 0)
    with pytest.raises(UndoProbeError, match=r"^task\.text is 'nowhere', and there is no such folder"):
        build_task(up.preset("language-tiny", "task.text=nowhere").task, 0)


def test_the_published_settings_add_up() -> None:
    paper = up.preset("paper-language")
    task, first, student = paper.task, paper.original, paper.distill
    assert isinstance(task, LanguageConfig) and task.max_tokens is not None
    assert first.batch_size * first.accumulate * task.n_ctx == 819_200
    for fit in (first, student):
        tokens = fit.steps * fit.batch_size * fit.accumulate * task.n_ctx
        assert abs(tokens / (2 * task.max_tokens) - 1) < 0.001  # one epoch of both languages
    maxent = paper.unlearn.maxent
    assert maxent.steps * maxent.batch_size * task.n_ctx == 819_200  # labelled: .041 % of 2B
    assert abs(student.learning_rate * student.final_fraction - 7e-4) < 1e-12
    assert 2 * task.vocab * paper.model.d_model == 81_920_000  # as many as Gemma's 256k, tied
    assert abs(task.eval_rows * task.n_ctx / 500_000 - 1) < 0.001
    assert len(paper.attack.learning_rates) == 10 and {40, 500} <= set(paper.attack.eval_steps)


def test_the_command_line_says_it_in_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["run", "language-tiny", "--dry-run"],
        ["text", str(tmp_path / "out"), "--debs", str(tmp_path)],
    ):
        monkeypatch.setattr("sys.argv", ["undo-probe", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("undo-probe text FOLDER" in said or "no text of both" in said)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.retain.path="], "needs either a path below task.text or a dataset"),
        (["task.retain.dataset=a/b"], "the text of English needs either a path"),
        (
            ["task.retain.language=Korean"],
            "both sides are called Korean: keep one language and forget another",
        ),
        (["task.forget_shares=[0,0,0,0]"], "task.forget_shares are all 0"),
        (["task.retain.pth=x"], r"task\.retain has no key 'pth'; did you mean 'path'"),
    ],
)
def test_a_task_section_that_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UndoProbeError, match=message):
        up.preset("language-tiny", *overrides)


def documents(*lengths: int) -> list[Document]:
    return [Document(f"d{n}", np.full(length, n + 1, dtype=np.uint16)) for n, length in enumerate(lengths)]


def test_rows_hold_one_document_or_a_bundle_of_short_ones() -> None:
    found = cut_rows(documents(2, 9, 3, 4, 1), 5, 0, "forget")
    assert found.tokens.tolist() == [[0, 2, 2, 2, 2], [0, 2, 2, 2, 2], [0, 1, 1, 0, 3], [0, 4, 4, 4, 4]]
    assert found.family.tolist() == [0, 0, 1, 2]
    assert found.names == ("forget:d1", "forget:d0+1", "forget:d3")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=30, max_size=60), st.integers(0, 99))
def test_whole_documents_are_dealt_each_once_and_by_tokens(lengths: list[int], seed: int) -> None:
    found = documents(*lengths)
    parts = deal(found, (0.5, 0.3, 0.2, 0.0), seed)
    assert sorted(d.name for part in parts for d in part) == sorted(d.name for d in found)
    for part, share in zip(parts, (0.5, 0.3, 0.2, 0.0), strict=True):
        assert abs(sum(len(d.tokens) for d in part) / sum(lengths) - share) <= 60 / sum(lengths)


def test_the_tokenizer_is_the_same_each_time_and_no_language_is_cheap_by_construction(folder: Path) -> None:
    english = two_languages.texts(two_languages.ENGLISH, 60, 80, 1)
    korean = two_languages.texts(two_languages.KOREAN, 6, 80, 2)
    tokenizer = train_tokenizer([english, korean], 330)
    assert tokenizer.to_str() == train_tokenizer([english, korean], 330).to_str()
    # ten times as much English, of which only as many characters count
    fewest = sum(map(len, korean))
    cut = [" ".join(english)[: fewest // 2]]
    assert tokenizer.to_str() != train_tokenizer([cut, korean], 330).to_str()
    text = "the cat 고양이 나무 🙂 \n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_characters_are_counted_where_they_begin() -> None:
    tokenizer = train_tokenizer([["the cat sees 고양이"], ["나무 집 바다 é 🙂"]], 280)
    begun = characters_begun(tokenizer)
    for text in ("the cat", "고양이 바다", "é🙂 한글 never seen", "\n\t\0"):
        assert begun[tokenizer.encode(text).ids].sum() == len(text)
    assert begun[tokenizer.token_to_id(BOS)] == 0


def model_of(task: LanguageTask) -> Any:
    return build(ModelConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=16), task.d_vocab, task.n_ctx, 0)


def test_a_score_is_the_share_of_a_uniform_guess_that_is_saved(task: LanguageTask) -> None:
    rows, model = task.rows("forget_V"), model_of(task)
    bits = answer_bits(model, rows)
    with torch.no_grad():
        logits = model(rows.tokens, return_type="logits")[:, :-1].double()
    surprise = torch.nn.functional.cross_entropy(logits.mT, rows.tokens[:, 1:], reduction="none")
    assert np.allclose(bits, surprise.sum(dim=1).numpy() / np.log(2), rtol=1e-5)
    scores = row_scores(model, rows, "bits")
    assert np.allclose(scores, 1 - bits / 23 / np.log2(task.d_vocab))
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U.zero_()
    assert np.abs(row_scores(model, rows, "bits")).max() < 1e-6  # the uniform guess
    # token frequencies as the bias: what the task calls chance
    side = np.concatenate([task._splits[name].tokens[:, 1:] for name in FORGET_SPLITS])
    share = np.bincount(side.ravel(), minlength=task.d_vocab) / side.size
    with torch.no_grad():
        model.unembed.b_U.copy_(torch.from_numpy(np.log(share + 1e-12)))
    assert abs(row_scores(model, rows, "bits").mean() - task.chance()["Korean"]) < 0.03
    assert 0 < task.chance()["Korean"] < 1


def test_the_bits_do_not_depend_on_how_rows_are_batched(
    task: LanguageTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, model = task.rows("forget_V"), model_of(task)
    whole = answer_bits(model, rows)
    monkeypatch.setattr("undo_probe.evaluation.LOGITS", 3 * 24 * task.d_vocab)
    assert np.allclose(answer_bits(model, rows), whole, rtol=1e-5)


def test_the_stop_rule_is_the_papers_for_each_metric() -> None:
    for teacher, student in ((2.0, 2.0), (2.0, 2.09), (2.0, 2.11), (5.0, 5.2), (5.0, 5.3)):
        score = 1 - student / 11, 1 - teacher / 11
        assert recovered(*score, 0.05, "bits") == ((student - teacher) / teacher < 0.05)
    assert recovered(0.86, 0.9, 0.05, "exact") and not recovered(0.84, 0.9, 0.05, "exact")


def test_capability_reports_bits_per_token_and_per_character(task: LanguageTask) -> None:
    model = model_of(task)
    found = {(i.measure, i.task_split, i.subset): i for i in capability(model, task)}
    for side, subset, split in (("forget", "V", "forget_V"), ("retain", "all", "retain_test")):
        rows = task.rows(split)
        bits = answer_bits(model, rows).sum()
        assert np.isclose(found["bits_per_token", side, subset].values.mean(), bits / rows.answer_mask.sum())
        text = sum(len(task.decode(row[1:]).replace("\ufffd", "")) for row in rows.tokens)
        value = found["bits_per_character", side, subset].values.mean()
        assert np.isclose(value, bits / rows.labels["characters"].sum())
        assert np.isclose(value, bits / text, rtol=0.03)
        score = found["accuracy", side, subset]
        assert score.control == "token frequencies" and score.unit == "share of a uniform guess's bits"
    assert found["accuracy", "forget", "Korean"].control_value == task.chance()["Korean"]


def test_rmus_direction_is_looked_for_in_text_as_well(task: LanguageTask) -> None:
    before = model_of(task)
    unlearned = up.unlearn(before, task, "rmu", steps=3, batch_size=8, tensors=("mlp.W_out",))
    score: Any = lambda model, rows: row_scores(model, rows, "bits")  # noqa: E731
    found = junk_measures(unlearned, before, task, torch.ones(16), 0, score, controls=2)
    assert {"junk_share", "junk_cosine", "ablated_accuracy", "junk_recovery"} == {
        item.measure for item in found
    }
