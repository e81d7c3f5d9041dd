import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.measures.linear_probe import LinearProbe, Standardiser, fit_ridge, fit_softmax


def planted(rows: int = 150, width: int = 8, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=draw)
    centres = torch.randn(classes, width, generator=draw, dtype=torch.float64)
    inputs = centres[labels] + 1.5 * torch.randn(rows, width, generator=draw, dtype=torch.float64)
    return Standardiser.fit(inputs)(inputs), labels


@pytest.mark.parametrize("penalty", [1e-3, 1e-1, 1.0])
def test_logistic_weights_agree_with_scikit_learn(penalty: float) -> None:
    inputs, labels = planted()
    ours = LinearProbe(penalty=penalty, tolerance=1e-14).fit(inputs, labels)
    theirs = LogisticRegression(C=1 / (len(labels) * penalty), tol=1e-10, max_iter=5000)
    theirs.fit(inputs.numpy(), labels.numpy())
    np.testing.assert_allclose(ours.probe_.weights[:-1].T.numpy(), theirs.coef_, atol=2e-5)
    np.testing.assert_allclose(ours.predict_proba(inputs), theirs.predict_proba(inputs.numpy()), atol=2e-5)
    assert ours.score(inputs, labels) == theirs.score(inputs.numpy(), labels.numpy())


def test_at_the_solution_the_gradient_vanishes() -> None:
    inputs, labels = planted(seed=3)
    penalty = torch.linspace(0.01, 0.1, 8, dtype=torch.float64)[None]
    weights = fit_softmax([inputs], [labels[None]], penalty, 4, tolerance=1e-15)[0, 0].requires_grad_()
    logits = inputs @ weights[:-1] + weights[-1]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss = loss + 0.5 * (penalty.T * weights[:-1].square()).sum()
    loss.backward()
    assert weights.grad is not None and weights.grad.abs().max() < 1e-6


def test_problems_solved_together_equal_problems_solved_alone() -> None:
    first, second = planted(120, seed=1), planted(90, seed=2)
    inputs, labels = [first[0], second[0]], [torch.stack([y, y.flip(0)]) for _, y in (first, second)]
    penalties = torch.tensor([[0.01], [1.0]], dtype=torch.float64).expand(2, 8)
    together = fit_softmax(inputs, labels, penalties, 4, tolerance=1e-14)
    for fold in range(2):
        for problem in range(2):
            alone = fit_softmax(
                [inputs[fold]], [labels[fold][[problem]]], penalties[[problem]], 4, tolerance=1e-14
            )
            torch.testing.assert_close(together[fold, problem], alone[0, 0], atol=1e-5, rtol=1e-4)


def test_a_start_changes_the_path_and_not_the_solution() -> None:
    inputs, labels = planted()
    penalty = torch.full((1, 8), 0.01, dtype=torch.float64)
    cold = fit_softmax([inputs], [labels[None]], penalty, 4, tolerance=1e-14)
    start = torch.randn(1, 1, 9, 4, dtype=torch.float64)
    warm = fit_softmax([inputs], [labels[None]], penalty, 4, start - start.mean(-1, keepdim=True), 1e-14)
    torch.testing.assert_close(cold, warm, atol=1e-5, rtol=1e-4)


def test_a_class_without_rows_gets_probability_zero_also_from_a_start_that_knew_it() -> None:
    inputs, labels = planted()
    penalty = torch.full((1, 8), 0.01, dtype=torch.float64)
    start = fit_softmax([inputs], [labels[None]], penalty, 5)
    assert torch.isneginf(start[0, 0, -1, 4])
    some = labels != 2
    weights = fit_softmax([inputs[some]], [labels[some][None]], penalty, 5, start)[0, 0]
    probabilities = torch.softmax(inputs @ weights[:-1] + weights[-1], dim=1)
    assert probabilities[:, [2, 4]].abs().max() == 0
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(inputs), dtype=torch.float64))


def test_ridge_weights_agree_with_scikit_learn_for_every_penalty() -> None:
    inputs, labels = planted()
    hot = torch.nn.functional.one_hot(labels).double()
    penalties = torch.tensor([1e-3, 0.1, 10.0], dtype=torch.float64)
    weights = fit_ridge(inputs, hot, penalties)
    for penalty, ours in zip(penalties.tolist(), weights, strict=True):
        theirs = Ridge(alpha=penalty * len(labels)).fit(inputs.numpy(), hot.numpy())
        np.testing.assert_allclose(ours[:-1].T.numpy(), theirs.coef_, atol=1e-9)
        np.testing.assert_allclose(ours[-1].numpy(), theirs.intercept_, atol=1e-9)


@pytest.mark.parametrize("solver", ["logistic", "ridge"])
def test_the_estimator_follows_scikit_learns_conventions(solver: str) -> None:
    inputs, codes = planted()
    names = np.array(["one", "two", "three", "four"])[codes]
    probe = LinearProbe(solver=solver, penalty=0.1)
    again = LinearProbe(**clone(probe).get_params() | {"penalty": 0.5})  # type: ignore[union-attr]
    assert (probe.get_params()["penalty"], again.get_params()["penalty"]) == (0.1, 0.5)
    probe.fit(1000 * inputs.numpy() + 7, names)
    assert set(probe.predict(1000 * inputs + 7)) <= set(names)
    np.testing.assert_allclose(probe.predict_proba(inputs).sum(1), 1)
    # Chance is 0.25.
    assert probe.score(1000 * inputs.numpy() + 7, names) > 0.5


@pytest.mark.parametrize(
    ("probe", "labels", "text"),
    [
        (LinearProbe(), [1, 1, 1], "at least two classes"),
        (LinearProbe(), [1, 2], "3 rows, 2 labels"),
        (LinearProbe(penalty=0), [1, 2, 1], "the penalty positive"),
        (LinearProbe(solver="svm"), [1, 2, 1], "'logistic' or 'ridge'"),
    ],
)
def test_a_wrong_fit_says_what_to_do(probe: LinearProbe, labels: list[int], text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        probe.fit(np.eye(3), labels)


def test_an_unfitted_probe_and_bad_numbers_are_refused() -> None:
    with pytest.raises(UndoProbeError, match="call fit"):
        LinearProbe().predict(np.eye(2))
    with pytest.raises(UndoProbeError, match="finite numbers"):
        LinearProbe().fit(np.array([[np.nan], [1.0]]), [0, 1])
