"""The forward-engineered weights: a projector with rows that are alike, and the loss that theory foretells."""

import math

import pytest
import torch
from scipy.linalg import hadamard

from undo_probe import figures, persian_rug
from undo_probe.errors import UndoProbeError
from undo_probe.figures.rug import LINES
from undo_probe.persian_rug import engineered, limits, pictures, theory
from undo_probe.randomness import generator

FRAMES = [
    ("hadamard", 64, 24),
    ("harmonic", 60, 15),
    ("harmonic", 63, 16),
    ("harmonic", 63, 17),
    ("haar", 60, 15),
]


def projector(kind: str, n_s: int, n_d: int) -> torch.Tensor:
    made = engineered.frame(n_s, n_d, kind)
    return made.up(made.down(torch.eye(n_s, dtype=torch.float64)))


def test_the_fast_transform_is_the_hadamard_matrix() -> None:
    x = torch.randn(3, 2, 32, dtype=torch.float64)
    assert torch.allclose(engineered.walsh_hadamard(x), x @ torch.tensor(hadamard(32)).double())
    with pytest.raises(UndoProbeError, match="transform of 12 values: expected a power of two"):
        engineered.walsh_hadamard(torch.zeros(12))


@pytest.mark.parametrize(("kind", "n_s", "n_d"), FRAMES)
def test_every_frame_is_a_projector_of_full_rank(kind: str, n_s: int, n_d: int) -> None:
    p = projector(kind, n_s, n_d)
    tolerance = 1e-5 if kind == "haar" else 1e-12  # its basis is kept in float32
    assert torch.allclose(p @ p, p, atol=tolerance) and torch.allclose(p, p.T, atol=tolerance)
    assert float(p.trace()) == pytest.approx(n_d, rel=1e-5)
    made = engineered.frame(n_s, n_d, kind)
    assert torch.allclose(made.diagonal.double(), p.diagonal(), atol=1e-6)
    off = p - torch.diag(p.diagonal())
    assert made.coherence == pytest.approx(float((off.abs().amax(1) / p.diagonal()).max()), rel=1e-4)
    x, h = torch.randn(4, n_s, dtype=torch.float64), torch.randn(4, n_d, dtype=torch.float64)
    assert float((made.down(x) * h).sum()) == pytest.approx(float((x * made.up(h)).sum()), rel=1e-5)


@pytest.mark.parametrize(("kind", "n_s", "n_d"), FRAMES[:4])
def test_rows_have_the_least_noise_all_the_same(kind: str, n_s: int, n_d: int) -> None:
    p = projector(kind, n_s, n_d) * n_s / n_d
    noise = (p - torch.eye(n_s)).square().sum(1)
    assert torch.allclose(p.diagonal(), torch.ones(n_s, dtype=torch.float64))
    assert torch.allclose(noise, torch.full_like(noise, n_s / n_d - 1))
    if kind == "hadamard":
        assert torch.allclose(p.sort(1).values[0], p.sort(1).values)  # permutations of each other
    if n_d % 2 == 0:
        assert torch.allclose(p.sum(1), torch.zeros(n_s, dtype=torch.float64), atol=1e-9)


def test_haar_rows_are_alike_on_average_only() -> None:
    assert float(projector("haar", 60, 15).diagonal().std()) > 0.01


def test_rows_that_repeat_features_are_never_taken() -> None:
    """A few rows of few features nearly always hold duplicates; where all draws do, that is said."""
    assert all(engineered.frame(16, 8, "hadamard", seed).coherence < 0.999 for seed in range(6))
    with pytest.raises(UndoProbeError, match="2 of 32 hadamard rows left two features too near each other"):
        engineered.frame(32, 2, "hadamard")


def test_the_seed_decides_the_rows() -> None:
    a, b, again = (persian_rug.weights(64, 0.25, seed=seed).matrices()[0] for seed in (0, 1, 0))
    assert torch.equal(a, again) and not torch.allclose(a, b)


def test_parameters_are_those_of_theory() -> None:
    rug, best = persian_rug.weights(512, 0.25, 0.045), theory.optimum(0.25, 0.045)
    encoder, decoder = rug.matrices()
    w = decoder @ encoder
    assert torch.allclose(w.diagonal(), torch.full((512,), float(best.a)), rtol=1e-5)
    assert torch.allclose(rug.bias, torch.full((512,), float(best.a * (best.m + 0.045 / 2))))
    assert torch.allclose(decoder.square().sum(1), w.diagonal(), rtol=1e-5)  # balanced
    x = persian_rug.features(5, 512, 0.045, generator(0))
    assert torch.allclose(rug(x), torch.relu(x @ w.T + rug.bias), atol=1e-5)


def test_features_are_uniform_where_they_are_on() -> None:
    for p in (0.3, 1e-3):
        x = persian_rug.features(400, 1000, p, generator(1, p))
        on = x[x > 0]
        n = 400_000
        assert abs(len(on) - n * p) < 4 * math.sqrt(n * p)
        assert abs(float(on.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / len(on))
        assert float(on.min()) < 0.03 and float(on.max()) > 0.97


def test_a_small_rate_does_not_leave_a_grid_of_few_values() -> None:
    x = persian_rug.features(400, 1000, 1e-4, generator(2))
    draws = x[x > 0].double() * 1e-4 * 2**24  # whole numbers, had they been drawn in float32
    assert len(draws) > 10 and float((draws - draws.round()).abs().mean()) > 0.1


def measured(n_s: int, r: float, p: float, rows: int, kind: str = "auto") -> tuple[float, float]:
    rug = persian_rug.weights(n_s, r, p, kind=kind)
    found = persian_rug.measured_loss(rug, n_s, p, rows)
    best = theory.optimal_loss(rug.r, p)
    return found.value / best, found.error / best


@pytest.mark.parametrize(("n_s", "r", "p", "kind"), [(1024, 0.5, 0.2, "auto"), (1000, 0.25, 0.045, "auto")])
def test_the_loss_is_that_of_theory(n_s: int, r: float, p: float, kind: str) -> None:
    ratio, error = measured(n_s, r, p, 1024, kind)
    assert abs(ratio - 1) < 0.01 + 3 * error if n_s * p >= 100 else abs(ratio - 1) < 0.03 + 3 * error
    assert error < 0.02


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_s", "r", "p", "rows"),
    [(1024, 0.25, 0.045, 16384), (1024, 0.1, 0.2, 8192), (8192, 0.25, 0.045, 1536), (8192, 0.5, 0.2, 512)],
)
def test_the_bars_of_the_forward_engineered_weights(n_s: int, r: float, p: float, rows: int) -> None:
    ratio, error = measured(n_s, r, p, rows)
    assert error < 0.006
    assert abs(ratio - 1) <= (0.01 if n_s * p >= 100 else 0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("n_s", "r", "p"), [(1024, 0.1, 0.01), (2048, 0.5, 0.01), (256, 0.25, 0.1)])
def test_small_sizes_lose_what_the_first_edgeworth_term_says(n_s: int, r: float, p: float) -> None:
    ratio, error = measured(n_s, r, p, 16384)
    foretold = limits.finite_loss(n_s, r, p) / theory.optimal_loss(r, p)
    assert error < 0.01
    assert abs(ratio - foretold) < 0.07
    if n_s * p < 25:
        assert ratio > 1.05  # so that a prediction of one would fail


def test_the_carpet_is_cosmetic() -> None:
    figure = pictures.carpet_figure(64, 0.25)
    rug, waves, haar = figure.table.to_dict("records")
    assert rug["noise in a row (s), mean"] == pytest.approx(3) == waves["noise in a row (s), mean"]
    assert rug["its deviation over rows"] < 1e-5 < 0.1 < haar["its deviation over rows"]
    assert rug["different values"] < haar["different values"]
    assert "Look" in figure.caption and len(figure.opposite) > 40 and figure.spec()


def test_the_figure_of_losses_draws_every_code() -> None:
    figure = pictures.loss_figure(0.045)
    assert len(figure.plotly.data) == len(LINES)
    assert "Look" in figure.caption and len(figure.opposite) > 40 and figure.spec()
    trained = figure.table.head(2)[["r", "p"]].assign(loss=[0.012, 0.011])
    assert len(pictures.loss_figure(0.045, trained).plotly.data) == len(LINES) + 1


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: persian_rug.weights(1, 0.5), "n_s = 1 features in n_d = 1 dimensions"),
        (lambda: engineered.frame(60, 15, "hadamard"), "the frame is 'hadamard' for n_s = 60.*power of two"),
        (lambda: engineered.frame(64, 16, "paley"), "expected one of auto, hadamard, harmonic, haar"),
        (lambda: pictures.carpet_figure(512), "a carpet of 512 features: expected matrices of 2 to 128 rows"),
        (lambda: figures.rug_loss(pictures.theory_table([0.1]).drop(columns="r")), "expected r, one p"),
    ],
)
def test_what_makes_no_rug_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
