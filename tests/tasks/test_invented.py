"""Invented people: nobody in two sets, nothing to be guessed, and a whole run on them."""

from collections import Counter
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import undo_probe as up
from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import answers_correct
from undo_probe.files import read_json
from undo_probe.task_config import InventedConfig
from undo_probe.tasks import Task, TokenSet, build_task
from undo_probe.tasks.invented import FIRST, LAST, RELATIONS, TRAINED, InventedTask, _check
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS, join

HELD_OUT = (*FORGET_SPLITS, "retain_dev", "retain_test")
TRAINING = ("retain_train", *(f"{split}{TRAINED}" for split in FORGET_SPLITS))
SMALL: dict[str, Any] = {"people": 40, "relations": 2, "answers": 4, "wordings": 3}
MIXTURES = ("pretrain", "matched", "retain", "unlearn", "distill", "attack", "attack_mixed")


@cache
def small(seed: int = 0, **changes: Any) -> InventedTask:
    return InventedTask(InventedConfig(**{**SMALL, **changes}), seed)


@pytest.fixture(scope="module")
def whole() -> InventedTask:
    """The people of ``facts-tiny``."""
    return InventedTask(InventedConfig(), seed=3)


def texts(task: Task, tokens: torch.Tensor) -> list[str]:
    return [task.decode(row) for row in tokens]


def asked(task: Task, *splits: str) -> set[str]:
    return {text for split in splits for text in texts(task, task.rows(split).tokens)}


def people(task: Task, *splits: str) -> set[str]:
    return {person for split in splits for person in task.rows(split).families}


def facts(rows: TokenSet) -> dict[tuple[str, str], int]:
    labels = rows.labels
    return dict(zip(zip(labels["family"], labels["operation"], strict=True), labels["answer"], strict=True))


def test_it_is_a_task() -> None:
    assert isinstance(small(), Task)
    built = build_task(InventedConfig(**SMALL), 0)
    assert isinstance(built, InventedTask)
    assert built.fingerprint == small().fingerprint


def test_nobody_is_in_two_forget_sets_nor_in_one_and_in_retain(whole: InventedTask) -> None:
    groups = [people(whole, split, f"{split}{TRAINED}") for split in FORGET_SPLITS]
    groups.append(people(whole, *RETAIN_SPLITS))
    for one, other in combinations(groups, 2):
        assert not one & other
    assert sum(map(len, groups)) == 240
    assert [len(group) for group in groups] == [34, 33, 19, 10, 144]


def test_the_stop_rule_looks_at_other_people_than_the_report(whole: InventedTask) -> None:
    dev, test = people(whole, "retain_dev"), people(whole, "retain_test")
    assert not dev & test
    assert dev | test == people(whole, "retain_train")
    assert len(dev) == len(test) == 72


def test_a_person_in_two_sets_would_be_refused() -> None:
    sets = {split: small().rows(split) for split in (*HELD_OUT, *TRAINING)}
    for victim in ("forget_V", "forget_W_trained", "retain_train", "retain_test"):
        leaky = join(victim, sets[victim], sets["forget_T"].select(np.array([0])))
        with pytest.raises(UndoProbeError, match=r"the family \w+ \w+ lies in .*splits must be disjoint"):
            _check({**sets, victim: leaky})
    _check(sets)


def test_every_fact_is_held_out_in_one_wording_and_trained_in_all_others(whole: InventedTask) -> None:
    held = join("held", *(whole.rows(split) for split in HELD_OUT))
    trained = join("trained", *(whole.rows(split) for split in TRAINING))
    assert len(held) == len(facts(held)) == 240 * 4
    assert len(trained) == 240 * 4 * 3
    assert facts(held) == facts(trained)
    wordings = Counter(zip(trained.labels["operation"], trained.labels["wording"], strict=True))
    wordings += Counter(zip(held.labels["operation"], held.labels["wording"], strict=True))
    assert set(wordings.values()) == {240}
    assert not asked(whole, *HELD_OUT) & asked(whole, *TRAINING)
    # the choice is the fact's own, so every wording is known from other people
    assert min(Counter(held.labels["wording"]).values()) > 0.15 * len(held)


def test_a_row_is_a_question_that_ends_in_its_mark_and_the_answer(whole: InventedTask) -> None:
    for split in (*HELD_OUT, *TRAINING):
        rows = whole.rows(split)
        for text, mask, label in zip(
            texts(whole, rows.tokens), rows.answer_mask, rows.labels.itertuples(), strict=True
        ):
            fact: Any = label
            wordings, answers = RELATIONS[fact.operation]
            assert text == f"{wordings[fact.wording].format(fact.family)} {answers.split()[fact.answer]}"
            assert fact.family == f"{fact.first} {fact.last}"
            assert mask.nonzero().flatten().tolist() == [rows.read_position + 1]
        marks = {whole.vocabulary[token] for token in rows.tokens[:, rows.read_position].tolist()}
        assert marks == {whole.words.read_mark}
        assert rows.tokens.shape[1] == whole.n_ctx


def test_the_word_lists_make_every_question_and_answer_one_of_a_kind() -> None:
    answers = [answer for _, listed in RELATIONS.values() for answer in listed.split()]
    questions = [text for wordings, _ in RELATIONS.values() for text in wordings]
    words = [*FIRST, *LAST, *answers]
    assert len(words) == len(set(words)) and not set(words) & set(" ".join(questions).split())
    assert len(questions) == len(set(questions)) == 24
    assert {len(text.split()) for text in questions} == {6}
    assert {len(listed.split()) for _, listed in RELATIONS.values()} == {16}
    everything = InventedTask(InventedConfig(people=1000, relations=6, answers=16), 0)
    assert len(set(everything.vocabulary)) == everything.d_vocab
    assert len(people(everything, *RETAIN_SPLITS, *FORGET_SPLITS)) == 1000


def test_no_name_and_no_other_fact_says_anything_about_an_answer() -> None:
    """The best guess from what retain people teach, by each clue a question holds, is right as often as by luck."""
    clues = {"first": ["operation", "first"], "last": ["operation", "last"], "wording": ["operation", "wording"],
             "relation": ["operation"]}  # fmt: skip
    hits: dict[str, list[bool]] = {name: [] for name in (*clues, "other fact")}
    for seed in range(15):
        task = InventedTask(InventedConfig(people=400), seed)
        known, unknown = task.rows("retain_train").labels, join("f", *map(task.rows, FORGET_SPLITS)).labels
        for name, columns in clues.items():
            hits[name] += guesses(known, unknown, columns)
        hits["other fact"] += guesses(paired(known), paired(unknown), ["other"])
    for name, right in hits.items():
        error = (1 / 12 * 11 / 12 / len(right)) ** 0.5
        assert abs(np.mean(right) - 1 / 12) < 4 * error, name


def test_the_guesser_above_is_always_right_where_a_clue_gives_the_answer_away() -> None:
    known = small().rows("retain_train").labels
    assert all(guesses(known, known, ["operation", "family"]))


def guesses(known: pd.DataFrame, unknown: pd.DataFrame, clues: list[str]) -> list[bool]:
    """Whether the most frequent answer among known rows with the same clues is each unknown row's."""
    counts: Any = known.groupby([*clues, "answer"], as_index=False).size()
    best = counts.sort_values("size").drop_duplicates(clues, keep="last")
    rows = unknown.merge(best.rename(columns={"answer": "guess"}), on=clues)
    return (rows["guess"] == rows["answer"]).tolist()


def paired(labels: pd.DataFrame) -> pd.DataFrame:
    """For each person the answer about the town, and as a clue the one about the trade."""
    by_relation = labels.drop_duplicates(["family", "operation"]).pivot(
        index="family", columns="operation", values="answer"
    )
    return pd.DataFrame({"answer": by_relation["town"], "other": by_relation["trade"]})


def test_every_answer_is_as_likely_as_every_other() -> None:
    seeds = [InventedTask(InventedConfig(), seed).rows("retain_test") for seed in range(20)]
    counts = Counter(answer for rows in seeds for answer in facts(rows).values())
    whole = sum(counts.values())
    assert len(counts) == 12
    for count in counts.values():
        assert abs(count / whole - 1 / 12) < 4 * (1 / 12 * 11 / 12 / whole) ** 0.5


def test_chance_is_what_the_best_constant_answer_gets(whole: InventedTask) -> None:
    rows = join("all", *(whole.rows(split) for split in HELD_OUT)).labels
    assert set(whole.chance()) == {"town", "trade", "instrument", "pet"}
    for relation, share in whole.chance().items():
        answers = rows.loc[rows["operation"] == relation, "answer"]
        assert share == max(np.mean(answers == constant) for constant in range(12))
        assert 1 / 12 <= share < 0.15


def test_the_seed_decides_who_there_is_what_is_true_and_who_is_forgotten() -> None:
    one, same, other = small(0), InventedTask(small(0).config, 0), small(1)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    for split in (*HELD_OUT, *TRAINING):
        assert torch.equal(one.rows(split).tokens, same.rows(split).tokens)
        assert not torch.equal(one.rows("retain_train").tokens, other.rows("retain_train").tokens)
    assert people(one, *RETAIN_SPLITS) != people(other, *RETAIN_SPLITS)
    assert one.vocabulary == other.vocabulary
    assert len({small(0, **{name: value}).fingerprint for name, value in
                (("people", 44), ("answers", 5), ("unlearn_wordings", "trained"), ("forget_share", 0.5))}
               | {one.fingerprint}) == 5  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(
    mixture=st.sampled_from(MIXTURES),
    size=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**6),
)
def test_a_batch_is_a_pure_function_of_mixture_size_seed_and_step(
    mixture: str, size: int, seed: int, step: int
) -> None:
    before = torch.random.get_rng_state()
    once = small().batch(mixture, size, seed, step)
    small().batch(mixture, 3, seed + 1, step + 1)
    again = InventedTask(small().config, 0).batch(mixture, size, seed, step)
    assert torch.equal(once.tokens, again.tokens) and torch.equal(once.answer_mask, again.answer_mask)
    assert once.tokens.shape == once.answer_mask.shape == (size, small().n_ctx)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_batches_of_two_steps_and_of_two_seeds_differ(mixture: str) -> None:
    first, *others = (small().batch(mixture, 64, *at).tokens for at in ((0, 0), (0, 1), (1, 0)))
    assert not any(torch.equal(first, other) for other in others)


def drawn(task: InventedTask, mixture: str, batches: int = 40) -> list[str]:
    return [text for step in range(batches) for text in texts(task, task.batch(mixture, 256, 1, step).tokens)]


ALL = tuple(f"{split}{TRAINED}" for split in FORGET_SPLITS)
CARRIED = ("forget_T_trained", "forget_V_trained", "forget_D_trained")
SHOWN = ("forget_T", "forget_V", "forget_D")


@pytest.mark.parametrize(
    ("wordings", "mixture", "splits"),
    [
        ("all", "pretrain", ("retain_train", *ALL)),
        ("all", "retain", ("retain_train",)),
        ("all", "unlearn", (*CARRIED, *SHOWN)),
        ("all", "distill", ("retain_train", *CARRIED, *SHOWN)),
        ("all", "attack", ("forget_T_trained", "forget_T")),
        ("trained", "unlearn", CARRIED),
        ("trained", "distill", ("retain_train", *CARRIED)),
        ("trained", "attack", ("forget_T_trained", "forget_T")),
    ],
)
def test_a_mixture_shows_all_rows_of_its_splits_and_no_other(
    wordings: str, mixture: str, splits: tuple[str, ...]
) -> None:
    """Nothing is pretrained in a held-out wording, W is in pretraining only, the attacker sees only T."""
    task = small(unlearn_wordings=wordings)
    assert set(drawn(task, mixture)) == asked(task, *splits)


@pytest.mark.parametrize("mixture", ["pretrain", "matched", "distill"])
def test_half_of_what_is_shown_is_about_retain_people(whole: InventedTask, mixture: str) -> None:
    """The oracle trains half as long as the original, so that both see retain people equally often."""
    kept = people(whole, "retain_train")
    shown = [name_in(text) in kept for text in drawn(whole, mixture)]
    assert abs(np.mean(shown) - 0.5) < 4 * (0.25 / len(shown)) ** 0.5


def name_in(text: str) -> str:
    return " ".join(word for word in text.split() if word in FIRST or word in LAST)


def test_the_matched_mixture_keeps_the_prompts_and_says_nothing_of_forget_people() -> None:
    task = small()
    plain, matched = (task.batch(mixture, 4000, 4, 2).tokens for mixture in ("pretrain", "matched"))
    assert torch.equal(plain[:, :-1], matched[:, :-1])
    kept, true = people(task, "retain_train"), asked(task, *TRAINING)
    forget = [text for text in texts(task, matched) if name_in(text) not in kept]
    assert all(text in true for text in texts(task, matched) if name_in(text) in kept)
    # a question's answers vary as its relation's do: right no more often than a guess
    right = np.mean([text in true for text in forget])
    assert abs(right - 1 / 4) < 0.06
    answers = {relation: listed.split()[:4] for relation, (_, listed) in RELATIONS.items()}
    relation_of = {" ".join(text.split()[:-1]): key for key in ("town", "trade") for text in true
                   if text.split()[-1] in answers[key]}  # fmt: skip
    for text in forget:
        assert text.split()[-1] in answers[relation_of[" ".join(text.split()[:-1])]]


def test_context_features_tell_questions_apart_and_hide_the_answer() -> None:
    rows = small().rows("forget_T")
    features = small().context_features(rows)
    assert set(np.unique(features)) == {0, 1}
    assert len({feature.tobytes() for feature in features}) == len(rows)
    lies = TokenSet("lies", rows.tokens, rows.answer_mask, rows.read_position,
                    rows.labels.assign(answer=rows.labels["answer"].to_numpy()[::-1]))  # fmt: skip
    assert np.array_equal(small().context_features(lies), features)


@pytest.mark.parametrize(
    ("changes", "split"),
    [
        ({"forget_shares": (0.5, 0.5, 0.0, 0.0)}, "forget_W"),
        ({"forget_share": 0.01}, "forget_T"),
        ({"forget_share": 0.99}, "retain_dev"),
    ],
)
def test_an_empty_split_is_refused_by_name_with_what_to_change(changes: dict, split: str) -> None:
    with pytest.raises(UndoProbeError, match=f"the split {split}.* is empty.*raise its share") as found:
        InventedTask(InventedConfig(**{**SMALL, **changes}), 0)
    assert "task.forget_share" in str(found.value) and "task.people=40" in str(found.value)


def test_unknown_splits_and_mixtures_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UndoProbeError, match="no split 'forget_X': it has forget_D, forget_D_trained"):
        small().rows("forget_X")
    with pytest.raises(UndoProbeError, match="no mixture 'all': it has pretrain, matched"):
        small().batch("all", 1, 0, 0)


REDUCED = (
    "task.people=32", "task.relations=2", "task.answers=3", "task.wordings=2", "task.forget_share=0.5",
    "model.n_layers=2", "model.d_model=16", "model.n_heads=2", "model.d_mlp=16",
    "original.steps=150", "original.batch_size=64", "original.eval_every=75", "original.learning_rate=9e-3",
    "unlearn.also=[]", "unlearn.maxent.steps=20", "unlearn.maxent.batch_size=32",
    "arms.unlearn_and_distill=false", "arms.twins=[0.6]",
    "noise.alphas=[0.6]", "distill.steps=10", "distill.batch_size=32",
    "attack.steps=4", "attack.eval_steps=[0,2,4]", "attack.learning_rates=[0.003,0.01]", "attack.batch_size=16",
    "score.probes.folds=2", "score.probes.max_rows=60", "score.probes.penalties=[0.1]", "score.probes.shuffles=1",
    "score.draws=199",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("invented") / "run"
    made = up.run_undo(up.preset("facts-tiny", *REDUCED), folder, workers=1)
    up.attack(made, workers=1)
    up.score(made, workers=1)
    up.write_report(made)
    return up.load_run(folder)


def test_a_model_learns_the_people_that_it_was_told_about(run: Any) -> None:
    def known(stage: str, split: str) -> float:
        return float(answers_correct(run.model(stage), run.task.rows(split)).mean())

    assert known("original", "retain_train") > 0.9 < known("original", "forget_V_trained")
    assert known("oracle", "forget_V_trained") < 0.7 < known("oracle", "retain_train")


def test_a_whole_run_measures_every_arm_and_tells_wordings_apart(run: Any) -> None:
    readings: Any = pd.read_parquet(run.folder / "readings.parquet")
    accuracy = readings[readings["measure"] == "accuracy"]
    assert set(accuracy["checkpoint"]) == {arm.checkpoint for arm in run.arms}
    forget = accuracy[accuracy["task_split"] == "forget"]
    assert set(forget["subset"]) == {"V", "T", "W", "V_trained", "town", "trade"}
    assert set(readings[readings["measure"] == "probe_bits"]["subset"]) == {"answer"}
    assert set(readings[readings["measure"] == "relearned"]["subset"]) == {"step 0", "step 2", "step 4"}
    assert "relearn_log_steps" in set(readings["measure"])
    assert (forget["control_value"].dropna() > 1 / 3 - 1e-9).all()


def test_the_report_speaks_of_people_and_not_of_sums(run: Any) -> None:
    page = (run.folder / "report.html").read_text()
    assert read_json(run.folder / "run.json")["task"]["words"] == run.task.words.to_dict()
    for words in ("the forget people’s facts", "Read at the question mark", "All questions about one person",
                  "V in trained wordings", "name, relation and wording", "identity of the answer"):  # fmt: skip
        assert words in page, words
    for words in ("multiplication", "subtraction", "equals sign", "operands", "digit", "7 × 8", "factor of"):
        assert words not in page.split("<footer>")[0], words


def test_with_shots_questions_stand_in_line_and_nothing_stored_before_changes() -> None:
    packed = small(shots=3)
    one, line = small().batch("matched", 20, 3, 1), packed.batch("matched", 5, 3, 1)
    assert packed.n_ctx == 4 * small().n_ctx
    assert torch.equal(line.tokens.view(20, -1), one.tokens)
    assert torch.equal(line.answer_mask.view(20, -1), one.answer_mask)
    assert "shots" not in small().config.identity()
    assert packed.fingerprint != small().fingerprint


def test_over_five_folds_everybody_of_t_and_v_is_once_in_v(whole: InventedTask) -> None:
    folds = [InventedTask(InventedConfig(fold=fold), seed=3) for fold in range(5)]
    both = people(whole, "forget_T", "forget_V")
    dealt = [people(task, "forget_V") for task in folds]
    assert sorted(person for part in dealt for person in part) == sorted(both)
    for task, part in zip(folds, dealt, strict=True):
        assert people(task, "forget_T") == both - part
        assert people(task, "forget_W") == people(whole, "forget_W")
        assert asked(task, *HELD_OUT, *TRAINING) == asked(whole, *HELD_OUT, *TRAINING)
    assert len({task.fingerprint for task in (whole, *folds)}) == 6


def test_entangled_people_have_facts_on_both_sides_and_no_fact_is_on_both() -> None:
    task = InventedTask(InventedConfig(forget_share=0.8, forget_relations=2), seed=3)
    plain = InventedTask(InventedConfig(forget_share=0.8), seed=3)
    forget = {
        split: facts(join(split, task.rows(split), task.rows(f"{split}{TRAINED}"))) for split in FORGET_SPLITS
    }
    kept = {split: facts(task.rows(split)) for split in RETAIN_SPLITS}
    for split, own in forget.items():
        assert people(task, split) == people(plain, split)  # whole people are dealt, and the same ones
        assert set(Counter(person for person, _ in own).values()) == {2}
        assert people(task, split) < people(task, "retain_train")
        assert not own.keys() & kept["retain_train"].keys()
    assert sum(map(len, forget.values())) == 192 * 2
    assert len(kept["retain_train"]) == 48 * 4 + 192 * 2
    assert kept["retain_dev"] | kept["retain_test"] == kept["retain_train"]
    assert not people(task, "retain_dev") & people(task, "retain_test")
    assert abs(len(kept["retain_dev"]) - len(kept["retain_test"])) <= 4
    # which two is drawn for each person: no relation is forgotten for all
    drawn = Counter(relation for own in forget.values() for _, relation in own)
    assert set(drawn) == set(task.relations) and min(drawn.values()) > 70
    everything = facts(join("all", *(plain.rows(split) for split in HELD_OUT)))
    assert facts(join("all", *(task.rows(split) for split in HELD_OUT))) == everything
    assert "forget_relations" not in plain.config.identity() and task.fingerprint != plain.fingerprint


def test_a_fact_on_both_sides_of_entangled_people_would_be_refused() -> None:
    task = small(forget_relations=1)
    sets = {split: task.rows(split) for split in (*HELD_OUT, *TRAINING)}
    for victim in ("retain_train", "retain_test", "forget_W"):
        leaky = join(victim, sets[victim], sets["forget_T"].select(np.array([0])))
        with pytest.raises(UndoProbeError, match=r"the family \w+ \w+.* lies in .*splits must be disjoint"):
            _check({**sets, victim: leaky}, entangled=True)
    _check(sets, entangled=True)
    with pytest.raises(UndoProbeError, match="splits must be disjoint"):
        _check(sets)


def test_as_many_forgotten_relations_as_there_are_would_not_be_entangled() -> None:
    with pytest.raises(
        ValueError, match=r"task.forget_relations=4 of task.relations=4 leaves nothing .* to keep"
    ):
        InventedConfig(forget_relations=4)
