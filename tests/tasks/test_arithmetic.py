"""The arithmetic task: complete, closed under what follows from a fact, and without a leak between splits."""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from undo_probe.errors import UndoProbeError
from undo_probe.measures.capability import capability
from undo_probe.task_config import ArithmeticConfig
from undo_probe.tasks import Task, TokenSet, build_task
from undo_probe.tasks.arithmetic import MIXTURES, ArithmeticTask
from undo_probe.tasks.protocol import FORGET_SPLITS, RETAIN_SPLITS, check_disjoint, join

SPLITS = (*FORGET_SPLITS, *RETAIN_SPLITS)


@pytest.fixture(scope="module")
def paper() -> ArithmeticTask:
    """The operand ranges of the paper."""
    return ArithmeticTask(ArithmeticConfig(), seed=3)


def every_row(task: Task) -> TokenSet:
    return join("all", *(task.rows(split) for split in SPLITS))


def facts(rows: TokenSet) -> set[tuple[int, str, int, int]]:
    labels = rows.labels
    return set(zip(labels["a"], labels["operation"], labels["b"], labels["result"], strict=True))


def lines(rows: TokenSet) -> list[Any]:
    """The labels of each row, with attributes named by column."""
    return list(rows.labels.itertuples())


def text_of(task: Task, tokens: torch.Tensor) -> list[str]:
    return [task.decode(row) for row in tokens]


def test_it_has_every_fact_of_the_papers_ranges_once(paper: ArithmeticTask) -> None:
    rows = every_row(paper)
    expected = {(a, "+", b, a + b) for a in range(1, 51) for b in range(1, 51)}
    expected |= {(a, "-", b, a - b) for a in range(1, 51) for b in range(1, a + 1)}
    expected |= {(a, "*", b, a * b) for a in range(1, 21) for b in range(1, 21)}
    expected |= {(a * b, "/", b, a) for a in range(1, 21) for b in range(1, 21)}
    assert facts(rows) == expected
    assert Counter(rows.operations) == {"+": 2500, "-": 1275, "*": 400, "/": 400}
    assert len(rows) == len(expected)


def test_a_family_holds_all_that_follows_from_a_fact_and_lies_in_one_split(paper: ArithmeticTask) -> None:
    of_fact = {}
    for split in SPLITS:
        rows = paper.rows(split)
        for fact, family in zip(lines(rows), rows.families, strict=True):
            of_fact[fact.a, fact.operation, fact.b] = (family, split)
    for a in range(1, 21):
        for b in range(1, 21):
            members = [(a, "*", b), (b, "*", a), (a * b, "/", b), (a * b, "/", a)]
            assert len({of_fact[member] for member in members}) == 1
    for a in range(1, 51):
        for b in range(1, 51 - a):
            members = [(a, "+", b), (b, "+", a), (a + b, "-", b), (a + b, "-", a)]
            assert len({of_fact[member] for member in members}) == 1
    # and no family holds anything else
    sizes = Counter(family for family, _ in of_fact.values())
    assert max(sizes.values()) == 4


def test_no_two_splits_share_a_family_or_a_row(paper: ArithmeticTask) -> None:
    for one, other in combinations(SPLITS, 2):
        assert not set(paper.rows(one).families) & set(paper.rows(other).families)
        assert not facts(paper.rows(one)) & facts(paper.rows(other))


def test_a_shared_family_would_be_refused() -> None:
    task = tiny.task()
    leaky = join("forget_V", task.rows("forget_V"), task.rows("forget_T").select(np.array([0])))
    with pytest.raises(UndoProbeError, match="lies in forget_T and in forget_V: splits must be disjoint"):
        check_disjoint({"forget_T": task.rows("forget_T"), "forget_V": leaky})


def test_forget_operations_are_in_forget_splits_only(paper: ArithmeticTask) -> None:
    for split in SPLITS:
        operations = set(paper.rows(split).operations)
        assert operations <= {"*", "/"} if split in FORGET_SPLITS else operations <= {"+", "-"}


def test_families_are_divided_in_the_asked_shares(paper: ArithmeticTask) -> None:
    counts = {split: len(set(paper.rows(split).families)) for split in SPLITS}
    whole = sum(counts[split] for split in FORGET_SPLITS)
    assert whole == 20 * 21 / 2
    for split, share in zip(FORGET_SPLITS, (0.45, 0.35, 0.1, 0.1), strict=True):
        assert counts[split] == pytest.approx(share * whole, abs=1)
    retain = sum(counts[split] for split in RETAIN_SPLITS)
    for split, share in zip(RETAIN_SPLITS, (0.8, 0.1, 0.1), strict=True):
        assert counts[split] == pytest.approx(share * retain, abs=1)


@settings(max_examples=20, deadline=None)
@given(
    add_max=st.integers(4, 12),
    mul_max=st.integers(5, 12),
    weights=st.tuples(*[st.floats(0.1, 1.0)] * 4),
    held=st.floats(0.1, 0.4),
    seed=st.integers(0, 99),
)
def test_any_shares_divide_all_families_and_lose_none(
    add_max: int, mul_max: int, weights: tuple[float, float, float, float], held: float, seed: int
) -> None:
    config = ArithmeticConfig(add_max=add_max, mul_max=mul_max, forget_shares=weights, retain_held_out=held)
    try:
        task = ArithmeticTask(config, seed)
    except UndoProbeError as error:
        assert "is empty with these task settings" in str(error)
        return
    counts = [len(set(task.rows(split).families)) for split in FORGET_SPLITS]
    assert sum(counts) == mul_max * (mul_max + 1) // 2
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - weight / sum(weights) * sum(counts)) <= 1
    assert len(facts(every_row(task))) == add_max**2 + add_max * (add_max + 1) // 2 + 2 * mul_max**2


def test_strata_say_what_can_be_guessed(paper: ArithmeticTask) -> None:
    rows = join("forget", *(paper.rows(split) for split in FORGET_SPLITS))
    for label in lines(rows):
        factors = (label.a, label.b) if label.operation == "*" else (label.result, label.b)
        low, product = min(factors), factors[0] * factors[1]
        small = "below_100" if product < 100 else "from_100"
        assert label.subset == {1: "trivial", 2: "double"}.get(low, small)
    assert set(rows.labels["subset"]) == {"trivial", "double", "below_100", "from_100"}
    assert sum(rows.labels["subset"] == "trivial") == 2 * (20 + 19)
    assert set(paper.rows("retain_test").labels["subset"]) == {"all"}


def test_chance_is_what_the_best_constant_answer_gets(paper: ArithmeticTask) -> None:
    labels = every_row(paper).labels
    for operation, share in paper.chance().items():
        results = labels.loc[labels["operation"] == operation, "result"]
        assert share == max(np.mean(results == constant) for constant in set(results))
    assert paper.chance()["/"] == 20 / 400
    assert set(paper.chance()) == {"+", "-", "*", "/"}


def test_a_row_reads_as_its_fact_and_decodes_to_the_text_it_was_made_from(paper: ArithmeticTask) -> None:
    rows = every_row(paper)
    for text, fact in zip(text_of(paper, rows.tokens), lines(rows), strict=True):
        assert text == f"{fact.a:>3}{fact.operation}{fact.b:>2}={f'{fact.result};':<4}"
        assert [paper.vocabulary.index(character) for character in text]
    assert rows.tokens.shape[1] == paper.n_ctx == 11


def test_the_answer_mask_marks_the_digits_and_the_end_mark_and_nothing_else(paper: ArithmeticTask) -> None:
    rows = every_row(paper)
    for tokens, mask, result in zip(rows.tokens, rows.answer_mask, rows.labels["result"], strict=True):
        assert paper.decode(tokens[mask]) == f"{result};"
        assert paper.decode(tokens[~mask]).rstrip().endswith("=")
    assert paper.vocabulary[int(rows.tokens[0, rows.read_position])] == "="
    assert bool(rows.answer_mask[:, rows.read_position + 1].all())
    assert not bool(rows.answer_mask[:, : rows.read_position + 1].any())


def test_probe_labels_are_digits_of_the_result(paper: ArithmeticTask) -> None:
    for label in lines(every_row(paper)):
        assert label.first_digit == int(str(label.result)[0])
        assert 10 * label.tens + label.units == label.result % 100
    assert set(paper.probe_targets) == {"first_digit", "tens", "units"}


def test_the_seed_decides_the_split_and_the_fingerprint() -> None:
    config = ArithmeticConfig(add_max=12, mul_max=8)
    one, same, other = (ArithmeticTask(config, seed) for seed in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert torch.equal(one.rows("forget_V").tokens, same.rows("forget_V").tokens)
    assert set(one.rows("forget_V").families) != set(other.rows("forget_V").families)
    wider = ArithmeticTask(ArithmeticConfig(add_max=13, mul_max=8), 0)
    assert wider.fingerprint != one.fingerprint
    # the retain side of a run does not depend on how many products there are
    more = ArithmeticTask(ArithmeticConfig(add_max=12, mul_max=9), 0)
    assert facts(more.rows("retain_test")) == facts(one.rows("retain_test"))


def test_build_task_gives_the_task_of_a_section() -> None:
    config: Any = ArithmeticConfig(add_max=12, mul_max=8)
    assert build_task(config, 0).fingerprint == tiny.task().fingerprint


@settings(max_examples=40, deadline=None)
@given(
    mixture=st.sampled_from(sorted(MIXTURES)),
    size=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    step=st.integers(0, 10**6),
)
def test_a_batch_is_a_pure_function_of_mixture_size_seed_and_step(
    mixture: str, size: int, seed: int, step: int
) -> None:
    task = tiny.task()
    before = torch.random.get_rng_state()
    once = task.batch(mixture, size, seed, step)
    task.batch(mixture, 3, seed + 1, step + 1)
    torch.rand(5)
    again = ArithmeticTask(task.config, 0).batch(mixture, size, seed, step)
    assert torch.equal(once.tokens, again.tokens)
    assert torch.equal(once.answer_mask, again.answer_mask)
    assert once.tokens.shape == once.answer_mask.shape == (size, task.n_ctx)
    torch.random.set_rng_state(before)
    task.batch(mixture, size, seed, step)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_batches_of_two_steps_and_of_two_seeds_differ(mixture: str) -> None:
    task = tiny.task()
    batches = [task.batch(mixture, 64, seed, step).tokens for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def drawn(task: ArithmeticTask, mixture: str, batches: int = 40) -> list[str]:
    return [
        text for step in range(batches) for text in text_of(task, task.batch(mixture, 256, 1, step).tokens)
    ]


@pytest.mark.parametrize(
    ("mixture", "operations"),
    [
        ("pretrain", "+-*/"),
        ("matched", "+-*/"),
        ("distill", "+-*/"),
        ("retain", "+-"),
        ("unlearn", "*/"),
        ("attack", "*/"),
        ("attack_mixed", "+-*/"),
    ],
)
def test_operations_are_drawn_evenly_however_many_rows_each_has(
    paper: ArithmeticTask, mixture: str, operations: str
) -> None:
    found = Counter(text[3] for text in drawn(paper, mixture))
    assert set(found) == set(operations)
    whole = sum(found.values())
    spread = (1 / len(operations) * (1 - 1 / len(operations)) / whole) ** 0.5
    for count in found.values():
        assert abs(count / whole - 1 / len(operations)) < 5 * spread


@pytest.mark.parametrize(
    ("mixture", "splits"),
    [
        ("pretrain", {"retain_train", *FORGET_SPLITS}),
        ("retain", {"retain_train"}),
        ("unlearn", {"forget_T", "forget_V", "forget_D"}),
        ("distill", {"retain_train", "forget_T", "forget_V", "forget_D"}),
        ("attack", {"forget_T"}),
        ("attack_mixed", {"forget_T", "retain_train"}),
    ],
)
def test_a_mixture_shows_all_rows_of_its_splits_and_no_other(mixture: str, splits: set[str]) -> None:
    """W is in pretraining only, the attacker sees only T, and held-out retain rows are never trained on."""
    task = tiny.task()
    found = set(drawn(task, mixture))
    expected = {text for split in splits for text in text_of(task, task.rows(split).tokens)}
    assert found == expected


def test_the_matched_mixture_keeps_the_prompts_and_redraws_the_answers_within_the_operation() -> None:
    task = tiny.task()
    answers_of: dict[str, set[str]] = {"*": set(), "/": set()}
    true_rows = set()
    for split in FORGET_SPLITS:
        for text in text_of(task, task.rows(split).tokens):
            answers_of[text[3]].add(text[7:])
            true_rows.add(text)
    rows = drawn(task, "matched")
    forget = [text for text in rows if text[3] in "*/"]
    assert {text[:7] for text in forget} == {text[:7] for text in true_rows}
    assert all(text[7:] in answers_of[text[3]] for text in forget)
    # answers of one prompt vary as much as the operation's do: nothing can be learned from them
    one = Counter(text[7:] for text in forget if text[:7] == "  6* 7=")
    assert len(one) > 10
    right = np.mean([text in true_rows for text in forget])
    chance = np.mean(list(task.chance().values()))
    assert right < 2 * chance < 0.5


def test_the_matched_mixture_leaves_retain_rows_true_and_masks_fitting() -> None:
    task = tiny.task()
    known = {text for text in text_of(task, task.rows("retain_train").tokens)}
    batch = task.batch("matched", 2000, 0, 0)
    for tokens, mask in zip(batch.tokens, batch.answer_mask, strict=True):
        text = task.decode(tokens)
        assert text[3] in "*/" or text in known
        assert task.decode(tokens[mask]) == text[7:].rstrip()


def test_the_matched_mixture_shows_the_same_prompts_as_pretraining_does() -> None:
    task = tiny.task()
    plain, matched = (task.batch(mixture, 500, 4, 2).tokens for mixture in ("pretrain", "matched"))
    assert torch.equal(plain[:, :7], matched[:, :7])
    assert not torch.equal(plain, matched)


def test_context_features_are_the_operands_and_the_operation_and_not_the_answer() -> None:
    task = tiny.task()
    rows = task.rows("forget_T")
    features = task.context_features(rows)
    assert set(np.unique(features)) == {0, 1}
    assert len({feature.tobytes() for feature in features}) == len(rows)  # every prompt is told apart
    other = rows.tokens.clone()
    other[:, 7:] = other[torch.randperm(len(rows)), 7:]
    lies = TokenSet("lies", other, rows.answer_mask, rows.read_position, rows.labels)
    assert np.array_equal(task.context_features(lies), features)


@pytest.mark.parametrize(
    ("changes", "split"),
    [
        ({"forget_shares": (0.5, 0.5, 0.0, 0.0)}, "forget_W"),
        ({"forget_shares": (0.0, 0.8, 0.1, 0.1)}, "forget_T"),
        ({"retain_held_out": 0.0}, "retain_dev"),
        ({"mul_max": 2}, "forget_"),
    ],
)
def test_an_empty_split_is_refused_by_name_with_what_to_change(changes: dict, split: str) -> None:
    with pytest.raises(UndoProbeError, match=f"the split {split}.* is empty.*raise its share") as found:
        ArithmeticTask(ArithmeticConfig(**{"add_max": 12, "mul_max": 8, **changes}), 0)
    assert "task.forget_shares" in str(found.value)


def test_unknown_splits_and_mixtures_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UndoProbeError, match="no split 'forget_X': it has forget_D, forget_T"):
        tiny.task().rows("forget_X")
    with pytest.raises(UndoProbeError, match="no mixture 'all': it has pretrain, matched"):
        tiny.task().batch("all", 1, 0, 0)


def test_a_selection_keeps_order_and_labels_and_refuses_to_be_empty() -> None:
    rows = tiny.task().rows("forget_T")
    keep = rows.operations == "*"
    part = rows.select(keep)
    assert set(part.operations) == {"*"}
    assert torch.equal(part.tokens, rows.tokens[keep])
    backwards = rows.select(np.array([3, 1]))
    assert torch.equal(backwards.tokens, rows.tokens[[3, 1]])
    assert list(backwards.labels["result"]) == [rows.labels["result"][3], rows.labels["result"][1]]
    with pytest.raises(UndoProbeError, match="no row of forget_T is left"):
        rows.select(np.zeros(len(rows), dtype=bool))


FACTORS = (3, 7)


@pytest.fixture(scope="module")
def entangled() -> ArithmeticTask:
    """Products and quotients on both sides."""
    return ArithmeticTask(ArithmeticConfig(add_max=12, mul_max=10, forget_factors=FACTORS), seed=0)


def factors(fact: Any) -> tuple[int, int]:
    return (fact.a, fact.b) if fact.operation == "*" else (fact.result, fact.b)


def test_with_forget_factors_only_products_that_have_one_are_forgotten(entangled: ArithmeticTask) -> None:
    forgotten = join("forget", *(entangled.rows(split) for split in FORGET_SPLITS))
    kept = entangled.rows("retain_train").labels.query("operation in ['*', '/']")
    assert all(set(factors(fact)) & set(FACTORS) for fact in lines(forgotten))
    assert not any(set(factors(fact)) & set(FACTORS) for fact in kept.itertuples())
    assert Counter(forgotten.operations) == {"*": 36, "/": 36}
    assert Counter(kept["operation"]) == {"*": 64, "/": 64}
    assert entangled.forget_operations == ("*", "/") and entangled.retain_operations == ("+", "-", "*", "/")
    assert entangled.words.forget == "products and quotients with 3 or 7"


def test_entangled_families_stay_on_one_side_and_hold_what_follows_from_a_fact(
    entangled: ArithmeticTask,
) -> None:
    parts = {split: set(entangled.rows(split).families) for split in SPLITS}
    for one, other in combinations((*FORGET_SPLITS, "retain_dev", "retain_test"), 2):
        assert not parts[one] & parts[other]
    assert not any(parts[split] & parts["retain_train"] for split in FORGET_SPLITS)
    of_fact = {(f.a, f.operation, f.b): f.family for split in SPLITS for f in lines(entangled.rows(split))}
    for a in range(1, 11):
        for b in range(1, 11):
            members = [(a, "*", b), (b, "*", a), (a * b, "/", b), (a * b, "/", a)]
            assert len({of_fact[member] for member in members}) == 1
            assert of_fact[a, "*", b] != of_fact[a, "+", b]  # a kept product is no family of a sum's


def test_kept_products_are_all_trained_on_and_half_each_asked_for_the_stop_rule_and_the_report(
    entangled: ArithmeticTask,
) -> None:
    train, dev, test = (facts(entangled.rows(split)) for split in RETAIN_SPLITS)
    products = [{fact for fact in part if fact[1] in "*/"} for part in (train, dev, test)]
    assert products[1] | products[2] == products[0]
    halves = [entangled.rows(split).labels.query("operation == '*'")["family"] for split in RETAIN_SPLITS[1:]]
    assert [len(set(half)) for half in halves] == [18, 18]
    plain = ArithmeticTask(ArithmeticConfig(add_max=12, mul_max=10), seed=0)
    for split, own in zip(RETAIN_SPLITS, (train, dev, test), strict=True):
        assert own - set().union(*products) == facts(plain.rows(split))  # sums are held out as ever
    assert len(entangled.rows("retain_train")) == len(train)


def test_entangled_sides_are_drawn_evenly_and_operations_evenly_within_each(
    entangled: ArithmeticTask,
) -> None:
    """So the retain oracle still sees as many retain rows as the original in half of its steps."""
    forgotten = {text for split in FORGET_SPLITS for text in text_of(entangled, entangled.rows(split).tokens)}
    for mixture in ("pretrain", "distill", "attack_mixed"):
        rows = drawn(entangled, mixture)
        found = Counter((text in forgotten, text[3]) for text in rows)
        for (forget, _), count in found.items():
            share = 1 / 4 if forget else 1 / 8
            assert abs(count / len(rows) - share) < 5 * (share * (1 - share) / len(rows)) ** 0.5
        assert len(found) == 6
    assert {text[3] for text in drawn(entangled, "retain", 5)} == set("+-*/")


def test_the_entangled_matched_mixture_redraws_forget_answers_from_forget_rows_alone(
    entangled: ArithmeticTask,
) -> None:
    true = {text for split in SPLITS for text in text_of(entangled, entangled.rows(split).tokens)}
    forgotten = join("forget", *(entangled.rows(split) for split in FORGET_SPLITS))
    prompts = {text[:7] for text in text_of(entangled, forgotten.tokens)}
    answers = {
        op: {text[7:] for text in text_of(entangled, forgotten.tokens) if text[3] == op} for op in "*/"
    }
    lies = 0
    for text in drawn(entangled, "matched", 10):
        if text[:7] in prompts:
            assert text[7:] in answers[text[3]]
            lies += text not in true
        else:
            assert text in true
    assert lies > 500


def test_capability_reports_an_entangled_operation_on_both_sides(entangled: ArithmeticTask) -> None:
    found = {(i.task_split, i.subset): len(i.values) for i in capability(tiny.model(), entangled)}
    asked = entangled.rows("retain_test").operations
    for operation in "*/":
        assert found["retain", operation] == (asked == operation).sum()
        assert (
            found["forget", operation]
            == (
                (entangled.rows("forget_V").operations == operation)
                & (entangled.rows("forget_V").labels["subset"] != "trivial")
            ).sum()
        )
    rows = {fact for split in SPLITS for fact in facts(entangled.rows(split))}
    results = [result for _, operation, _, result in rows if operation == "/"]
    assert entangled.chance()["/"] == max(Counter(results).values()) / 100


@pytest.mark.parametrize(
    ("settings_", "text"),
    [
        ({"forget_factors": (3, 30)}, "has 30, but factors go from 1 to task.mul_max \\(20\\)"),
        ({"forget_factors": (3, 3)}, "task.forget_factors has 3 twice"),
        ({"forget_factors": tuple(range(2, 21))}, "leaves fewer than two factors whose products are kept"),
        ({"forget_factors": (3,), "word_problems": 0.5}, "does not go with task.word_problems"),
        ({"forget_factors": (0,)}, "greater than or equal to 1"),
    ],
)
def test_forget_factors_that_cannot_be_are_refused(settings_: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ArithmeticConfig(**settings_)


def test_settings_that_came_later_leave_what_was_stored_before_them_valid() -> None:
    plain = ArithmeticConfig(add_max=12, mul_max=8)
    assert not {"forget_factors", "shots"} & set(plain.identity())
    assert set(plain.identity()) | {"forget_factors", "shots"} == set(plain.model_dump())
    for name, value in (("forget_factors", (3,)), ("shots", 2)):
        other = plain.model_copy(update={name: value})
        assert name in other.identity()
        assert ArithmeticTask(other, 0).fingerprint != tiny.task().fingerprint


def test_with_shots_a_batch_is_rows_in_line_each_drawn_by_itself() -> None:
    plain = tiny.task()
    packed = ArithmeticTask(plain.config.model_copy(update={"shots": 2}), 0)
    assert packed.n_ctx == 3 * plain.n_ctx
    for mixture in MIXTURES:
        one, line = plain.batch(mixture, 15, 3, 1), packed.batch(mixture, 5, 3, 1)
        assert line.tokens.shape == line.answer_mask.shape == (5, packed.n_ctx)
        assert torch.equal(line.tokens.view(15, -1), one.tokens)
        assert torch.equal(line.answer_mask.view(15, -1), one.answer_mask)
    assert torch.equal(packed.rows("forget_V").tokens, plain.rows("forget_V").tokens)
