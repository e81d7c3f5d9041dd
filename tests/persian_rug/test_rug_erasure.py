"""Erasure in a solvable world: every prediction beside its measurement with the suite's own tools."""

import pytest
import torch
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import erasure, theory
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.engineered import features
from undo_probe.randomness import generator

N_S, R, P = 512, 0.25, 0.045
N_D = round(N_S * R)


@pytest.fixture(scope="module")
def rug() -> Autoencoder:
    return start(Autoencoder(N_S, N_D), "rug", P, seed=0)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return features(6000, N_S, P, generator("erasure"))


def split(phi: float) -> tuple[Tensor, Tensor]:
    order = torch.randperm(N_S, generator=generator("forget", phi))
    return order[: round(phi * N_S)], order[round(phi * N_S) :]


def errors(model: Autoencoder, x: Tensor) -> Tensor:
    with torch.no_grad():
        return (model(x) - x).square().mean(0)


def test_output_ablation_hides_a_feature_and_removes_nothing(rug: Autoencoder, x: Tensor) -> None:
    forget, keep = split(0.1)
    hidden = erasure.ablate_outputs(rug, forget)
    lost, kept = erasure.after_output_ablation(R, P)
    before, after = errors(rug, x), errors(hidden, x)
    assert torch.equal(after[keep], before[keep])
    assert float(after[forget].mean()) == pytest.approx(float(lost), rel=0.05)
    assert float(after[keep].mean()) == pytest.approx(float(kept), rel=0.05)
    assert float(erasure.probed(hidden, x, forget, 4000).mean()) == pytest.approx(R, abs=0.02)
    assert erasure.linear_r2(R) == R


@pytest.mark.parametrize("phi", [0.05, 0.2])
def test_encoder_ablation_removes_features_and_helps_the_others(
    rug: Autoencoder, x: Tensor, phi: float
) -> None:
    forget, keep = split(phi)
    ablated, foretold = (
        erasure.ablate_encoder(rug, forget),
        erasure.after_encoder_ablation(R, P, len(forget) / N_S),
    )
    found = float(errors(ablated, x)[keep].mean())
    assert found == pytest.approx(float(foretold.untouched), rel=0.05)
    assert found < float(errors(rug, x)[keep].mean())
    assert foretold.retuned < foretold.untouched
    assert abs(float(erasure.probed(ablated, x, forget, 4000).mean())) < 0.05


@pytest.mark.parametrize("phi", [0.05, 0.2])
def test_projecting_a_span_out_removes_features_at_the_cost_of_the_others(
    rug: Autoencoder, x: Tensor, phi: float
) -> None:
    forget, keep = split(phi)
    projected, foretold = erasure.project_out(rug, forget), erasure.after_projection(R, P, len(forget) / N_S)
    found = float(errors(projected, x)[keep].mean())
    assert found == pytest.approx(float(foretold.untouched), rel=0.05)
    assert found > 1.15 * float(errors(rug, x)[keep].mean())
    assert abs(float(erasure.probed(projected, x, forget, 4000).mean())) < 0.05
    w = (projected.W_out @ projected.W_in).detach()
    ratio = float(w.diagonal()[keep].mean() / (rug.W_out @ rug.W_in).detach().diagonal().mean()) * R
    assert ratio == pytest.approx(float(foretold.ratio), rel=1e-3)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 1.0), (0.3, 1.0), (0.4, 0.0)])
def test_the_noise_rule_costs_what_is_foretold(
    rug: Autoencoder, x: Tensor, alpha: float, beta: float
) -> None:
    found = float(errors(erasure.perturb(rug, alpha, beta), x).mean())
    foretold = float(erasure.after_noise(R, P, N_S, alpha, beta))
    assert found == pytest.approx(foretold, rel=0.05)
    assert foretold > 1.05 * theory.optimal_loss(R, P)


@pytest.mark.parametrize(("samples", "within"), [(160, 0.07), (256, 0.07), (1024, 0.05), (4096, 0.05)])
def test_relearning_is_sharp_at_as_many_samples_as_dimensions(
    rug: Autoencoder, x: Tensor, samples: int, within: float
) -> None:
    h = rug.encode(x).detach()
    found = erasure.relearn((h[:samples], x[:samples]), (h[-1500:], x[-1500:])).mean()
    assert float(found) == pytest.approx(float(erasure.after_relearning(R, P, N_D, samples)), rel=within)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: erasure.after_projection(0.1, 0.1, 0.2), "expected phi < r"),
        (lambda: erasure.after_encoder_ablation(0.6, 0.1, 0.5), "ratio of what is kept is 1.2"),
        (lambda: erasure.after_relearning(0.25, 0.1, 128, 130), "least squares needs more than n_d . 2"),
    ],
)
def test_what_cannot_be_foretold_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
