"""One pass over complete rows says the same as decoding token by token."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.evaluation import (
    accuracy_by_operation,
    answer_log_probability,
    answers_correct,
    by_operation,
    continuations,
    decode_greedily,
    option_scores,
)
from undo_probe.models import HookedTransformer
from undo_probe.tasks import TokenSet
from undo_probe.tasks.protocol import answers_end, join

TASK = tiny.small_task()
ROWS = join("all", *(TASK.rows(split) for split in ("forget_T", "forget_V", "retain_train", "retain_test")))


@pytest.fixture(params=["random", "half trained", "trained"])
def model(request: pytest.FixtureRequest) -> HookedTransformer:
    kinds = {"random": tiny.model, "half trained": tiny.half_trained, "trained": tiny.knowing}
    return kinds[request.param]()


def written(model: HookedTransformer, rows: TokenSet) -> list[str]:
    """What each row's prompt is continued with, one row and one token at a time."""
    found = []
    for row in rows.tokens[:, : rows.read_position + 1]:
        tokens = row
        for _ in range(TASK.n_ctx - len(row)):
            tokens = torch.cat([tokens, tiny.logits(model, tokens[None])[0, -1].argmax()[None]])
        found.append(TASK.decode(tokens[len(row) :]))
    return found


def test_correct_rows_are_those_whose_answer_greedy_decoding_writes(model: HookedTransformer) -> None:
    expected = [
        text.startswith(f"{result};")
        for text, result in zip(written(model, ROWS), ROWS.labels["result"], strict=True)
    ]
    assert answers_correct(model, ROWS).tolist() == expected


def test_the_half_trained_model_is_a_real_test_of_that() -> None:
    share = answers_correct(tiny.half_trained(), ROWS).mean()
    assert 0.2 < share < 0.8


def test_decoding_all_rows_at_once_equals_one_at_a_time(model: HookedTransformer) -> None:
    prompts = ROWS.tokens[:, : ROWS.read_position + 1]
    at_once = decode_greedily(model, prompts, 4)
    assert [TASK.decode(row) for row in at_once] == written(model, ROWS)


def test_log_probabilities_equal_a_loop_over_answer_tokens(model: HookedTransformer) -> None:
    expected = []
    for tokens, mask in zip(ROWS.tokens, ROWS.answer_mask, strict=True):
        log_p = tiny.logits(model, tokens[None])[0].double().log_softmax(-1)
        places = torch.nonzero(mask)[:, 0].tolist()
        expected.append(sum(float(log_p[place - 1, tokens[place]]) for place in places))
    found = answer_log_probability(model, ROWS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert (found < 0).all()


def test_a_sure_answer_is_a_right_one() -> None:
    # more than half of the probability on every token of the answer leaves no other choice
    sure = answer_log_probability(tiny.half_trained(), ROWS) > np.log(0.5)
    assert sure.any()
    assert answers_correct(tiny.half_trained(), ROWS)[sure].all()


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_the_size_of_a_batch_changes_nothing(size: int) -> None:
    model = tiny.half_trained()
    assert np.array_equal(answers_correct(model, ROWS, size), answers_correct(model, ROWS))
    np.testing.assert_allclose(
        answer_log_probability(model, ROWS, size), answer_log_probability(model, ROWS), rtol=1e-4, atol=1e-5
    )


def test_what_follows_the_end_mark_does_not_count() -> None:
    tokens = ROWS.tokens.clone()
    tokens[~ROWS.answer_mask & (torch.arange(TASK.n_ctx) > ROWS.read_position)] = 0
    padded = TokenSet("padded", tokens, ROWS.answer_mask, ROWS.read_position, ROWS.labels)
    model = tiny.half_trained()
    assert np.array_equal(answers_correct(model, padded), answers_correct(model, ROWS))


@pytest.mark.parametrize("score", [answers_correct, answer_log_probability])
def test_filling_behind_all_answers_is_not_read(score: Callable[..., np.ndarray]) -> None:
    end = answers_end(ROWS.answer_mask)
    filled = replace(
        ROWS,
        tokens=torch.nn.functional.pad(ROWS.tokens[:, :end], (0, 5)),
        answer_mask=torch.nn.functional.pad(ROWS.answer_mask[:, :end], (0, 5)),
    )
    # longer than the model reads: any pass over the filling would be refused
    model = tiny.half_trained()
    assert filled.tokens.shape[1] > model.cfg.n_ctx + 1
    assert np.array_equal(score(model, filled), score(model, ROWS))


def test_accuracy_by_operation_is_the_mean_over_its_rows() -> None:
    model = tiny.half_trained()
    rows = TASK.rows("forget_T")
    correct = answers_correct(model, rows)
    found = accuracy_by_operation(model, TASK, "forget_T")
    assert found == by_operation(correct, rows)
    for operation, share in found.items():
        assert share == np.mean(
            [c for c, op in zip(correct, rows.operations, strict=True) if op == operation]
        )
    weighted = sum(share * np.mean(rows.operations == operation) for operation, share in found.items())
    assert weighted == pytest.approx(correct.mean())


def test_asking_leaves_gradients_switched_on_and_the_model_as_it_was() -> None:
    model = tiny.half_trained()
    hooks = tiny.hook_count(model)
    answers_correct(model, ROWS)
    answer_log_probability(model, ROWS)
    assert torch.is_grad_enabled()
    assert tiny.hook_count(model) == hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("cap", [-1.0, 2.0])
def test_option_scores_are_those_of_the_whole_logits(cap: float) -> None:
    """Read at one place of each row only, from prompts of different lengths, some with fewer options."""
    model = tiny.model()
    model.cfg.output_logits_soft_cap = cap
    tokens = tiny.tokens(5)
    read = torch.tensor([1, 4, 2, 3, 4])
    options = torch.tensor([[3, 4, 5], [6, 7, -1], [1, 2, 3], [9, 8, 7], [5, 4, -1]])
    labels = pd.DataFrame(
        {"operation": "x", "family": list("abcde"), "subset": "all", "answer": [0, 1, 2, 0, 1]}
    )
    mask = torch.arange(tokens.shape[1]) == read[:, None] + 1
    rows = TokenSet("quiz", tokens, mask, read, labels, options)
    found = option_scores(model, rows, size=2)
    with torch.no_grad():
        logits = model(tokens, return_type="logits")
    for row in range(len(rows)):
        here, answer = logits[row, read[row]], int(rows.labels["answer"].tolist()[row])
        own = [int(option) for option in options[row] if option >= 0]
        p = here.softmax(dim=0)[own]
        assert found["probability"][row] == pytest.approx(float(p[answer] / p.sum()), rel=1e-4)
        assert found["choice"][row] == (int(p.argmax()) == answer)
        assert found["exact"][row] == (int(here.argmax()) == own[answer])
    with pytest.raises(UndoProbeError, match="the rows of quiz have no options: score them as exact"):
        option_scores(model, TokenSet("quiz", tokens, mask, read, labels))


PROMPTS = [[1, 4, 2], [5, 6], [3, 3, 7, 1, 2]]
OPTIONS = [
    [[9], [9, 8], [9, 8, 7], [9, 6]],  # each begins as the one before it
    [[4], [2]],
    [[1, 2, 3, 4], [1, 2, 3, 5], [8, 8]],
]


@pytest.mark.parametrize("size", [1, 3, 1024])
def test_continuations_are_scored_as_one_by_one(size: int) -> None:
    model = tiny.half_trained()
    for row, said in enumerate(continuations(model, PROMPTS, OPTIONS, size)):
        for at, option in enumerate(OPTIONS[row]):
            whole = torch.tensor([[*PROMPTS[row], *option]])
            log_p = tiny.logits(model, whole)[0].double().log_softmax(dim=-1)
            places = range(len(PROMPTS[row]) - 1, whole.shape[1] - 1)
            expected = sum(float(log_p[place, whole[0, place + 1]]) for place in places)
            greedy = all(int(log_p[place].argmax()) == int(whole[0, place + 1]) for place in places)
            assert said.log_probability[at] == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert said.greedy[at] == greedy


def test_continuations_that_begin_alike_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny.model(), []
    forward = model.embed.forward

    def counted(tokens: torch.Tensor) -> torch.Tensor:
        rows.append(len(tokens))
        return forward(tokens)

    monkeypatch.setattr(model.embed, "forward", counted)
    continuations(model, PROMPTS, OPTIONS)
    assert sum(rows) == 1 + 1 + 2  # of nine continuations


def test_options_of_several_tokens_are_compared_by_all_of_them() -> None:
    model = tiny.half_trained()
    options = torch.full((3, 4, 4), -1)
    tokens = torch.zeros(3, 10, dtype=torch.int64)
    for row, own in enumerate(OPTIONS):
        tokens[row, : len(PROMPTS[row])] = torch.tensor(PROMPTS[row])
        for at, option in enumerate(own):
            options[row, at, : len(option)] = torch.tensor(option)
    answers = [2, 0, 1]
    labels = pd.DataFrame({"operation": "x", "family": list("abc"), "subset": "all", "answer": answers})
    read = torch.tensor([len(prompt) - 1 for prompt in PROMPTS])
    rows = TokenSet("facts", tokens, torch.zeros(3, 10, dtype=torch.bool), read, labels, options)
    found = option_scores(model, rows)
    for row, said in enumerate(continuations(model, PROMPTS, OPTIONS)):
        p = np.exp(said.log_probability)
        assert found["log_probability"][row] == pytest.approx(said.log_probability[answers[row]])
        assert found["probability"][row] == pytest.approx(p[answers[row]] / p.sum())
        assert found["choice"][row] == (p.argmax() == answers[row])
        assert found["exact"][row] == said.greedy[answers[row]]
