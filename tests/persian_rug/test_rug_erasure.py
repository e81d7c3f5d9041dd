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


def test_a_dose_of_one_changes_nothing_and_one_of_nought_ablates(rug: Autoencoder) -> None:
    forget, _ = split(0.1)
    for made, wanted in (
        (erasure.scale_encoder(rug, forget, 1.0), rug),
        (erasure.scale_encoder(rug, forget, 0.0), erasure.ablate_encoder(rug, forget)),
    ):
        assert all(
            torch.equal(made.get_parameter(name), wanted.get_parameter(name))
            for name in ("W_in", "W_out", "b")
        )
    half = erasure.scale_encoder(rug, forget, 0.5)
    assert torch.equal(half.W_in[:, forget], 0.5 * rug.W_in[:, forget]) and not torch.equal(
        half.W_in, rug.W_in
    )


def test_turning_the_hidden_state_keeps_outputs_and_what_is_known(rug: Autoencoder, x: Tensor) -> None:
    turned = erasure.rotate(rug, seed=3)
    assert torch.allclose(turned(x[:200]), rug(x[:200]), atol=1e-5)
    assert torch.allclose(erasure.readable(turned), erasure.readable(rug), atol=1e-6)
    moved = (turned.W_in - rug.W_in).detach().norm() / rug.W_in.detach().norm()
    assert float(moved) == pytest.approx(2**0.5, rel=0.05)  # as far as an unrelated basis
    assert torch.equal(erasure.rotate(rug, seed=3).W_in, turned.W_in)


@pytest.mark.parametrize("phi", [0.05, 0.2])
def test_what_a_dose_leaves_is_known_from_the_dose(rug: Autoencoder, phi: float) -> None:
    forget, keep = split(phi)
    share = len(forget) / N_S
    for dose in (0.2, 0.5, 0.8):
        known = erasure.readable(erasure.scale_encoder(rug, forget, dose))
        lost, kept = erasure.scaled_r2(R, share, dose)
        assert float(known[forget].mean()) == pytest.approx(float(lost), rel=0.02)
        assert float(known[keep].mean()) == pytest.approx(float(kept), rel=0.02)
        assert share * lost + (1 - share) * kept == pytest.approx(R)
    assert erasure.scaled_r2(R, share, [0.0, 1.0])[0] == pytest.approx([0.0, R])
    one = erasure.readable(erasure.scale_encoder(rug, forget[:1], 0.5))[forget[0]]
    assert float(one) == pytest.approx(0.25 * R / (1 - R + 0.25 * R), rel=1e-5)


def test_bits_are_those_of_a_gaussian_channel() -> None:
    r2 = [0.0, 0.25, 0.75]
    assert erasure.channel_bits(r2) == pytest.approx([0.0, 0.2075187, 1.0])
    assert 1 - 4 ** -erasure.channel_bits(r2) == pytest.approx(r2)


def test_what_some_features_lose_others_gain(rug: Autoencoder) -> None:
    forget, keep = split(0.1)
    drawn = start(Autoencoder(N_S, N_D), "random", P, seed=0)
    for model in (drawn, erasure.perturb(rug, 0.7), erasure.ablate_encoder(rug, forget)):
        assert float(erasure.readable(model).sum()) == pytest.approx(N_D, rel=1e-6)
    left = erasure.readable(erasure.project_out(rug, forget))
    assert float(left.sum()) == pytest.approx(N_D - len(forget), rel=1e-6)
    assert float(left[forget].abs().max()) < 1e-6 < float(left[keep].min())


def test_the_best_decoder_of_a_rug_is_its_own(rug: Autoencoder, x: Tensor) -> None:
    forget, keep = split(0.1)
    found = erasure.retune(erasure.ablate_outputs(rug, forget), torch.arange(N_S), P)
    assert torch.allclose(found.W_out, rug.W_out, atol=1e-4) and torch.allclose(found.b, rug.b, atol=1e-4)
    half = erasure.retune(rug, keep, P)
    assert float(half(x[:50])[:, forget].detach().abs().max()) == 0
    assert torch.allclose(half.W_out[keep], rug.W_out[keep], atol=1e-4)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: erasure.scaled_r2(0.25, 0.1, 1.5), "expected numbers from 0, ablated, to 1"),
        (lambda: erasure.channel_bits(1.0), "expected numbers from 0 to below 1"),
        (
            lambda: erasure.retune(
                erasure.ablate_encoder(start(Autoencoder(32, 16), "rug", 0.2, 0), torch.tensor([3])),
                torch.arange(8),
                0.2,
            ),
            "leave out features that were ablated",
        ),
        (lambda: erasure.after_projection(0.1, 0.1, 0.2), "expected phi < r"),
        (lambda: erasure.after_encoder_ablation(0.6, 0.1, 0.5), "ratio of what is kept is 1.2"),
        (lambda: erasure.after_relearning(0.25, 0.1, 128, 130), "least squares needs more than n_d . 2"),
    ],
)
def test_what_cannot_be_foretold_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
