"""Curvature at the rug: against autograd at tiny sizes, and a minimum is not called a saddle."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import blocks, hessian, saddle
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.engineered import Measured, features, measured_loss
from undo_probe.persian_rug.hessian import Bowl, Direction, parameters
from undo_probe.randomness import generator

WIDTH = 0.05


def smooth(flat: Tensor, like: Direction, x: Tensor, h: float = WIDTH) -> Tensor:
    """The expected loss under noise h z on every pre-activation, written a second time."""
    encoder, decoder, bias = (
        each.view_as(p) for each, p in zip(flat.split([p.numel() for p in like]), like, strict=True)
    )
    y = x @ encoder.T @ decoder.T + bias
    below, density = torch.special.ndtr(y / h), torch.exp(-((y / h) ** 2) / 2) / math.sqrt(2 * math.pi)
    second = (y * y + h * h) * below + y * h * density
    return (second - 2 * x * (y * below + h * density) + x * x).sum(1).mean()


def full(bowl: Bowl) -> Tensor:
    size = sum(each.numel() for each in bowl.at)
    basis = torch.eye(size, dtype=torch.float64)
    return torch.stack([bowl.product(hessian.shaped(each, bowl.at)).flat() for each in basis])


def tiny() -> tuple[Autoencoder, Tensor]:
    return start(Autoencoder(8, 4), "random", 0.3, seed=0), features(100, 8, 0.3, generator(1)).double()


def test_products_are_those_of_the_full_hessian_and_lanczos_finds_its_ends() -> None:
    model, x = tiny()
    bowl, at = Bowl(model, x, WIDTH), parameters(model)
    whole = torch.autograd.functional.hessian(lambda flat: smooth(flat, at, x), at.flat())
    assert isinstance(whole, Tensor)
    assert torch.allclose(full(bowl), whole, atol=1e-12)
    slope = torch.autograd.functional.jacobian(lambda flat: smooth(flat, at, x), at.flat())
    assert isinstance(slope, Tensor) and torch.allclose(bowl.gradient().flat(), slope, atol=1e-13)
    ends = torch.linalg.eigvalsh(whole)[[0, -1]]
    for which, value in zip(("SA", "LA"), ends, strict=True):
        found, direction = bowl.end(which, 0, 1e-8)
        assert found == pytest.approx(float(value), rel=1e-6)
        assert float(bowl.along(direction).mean()) == pytest.approx(found, rel=1e-6)
        assert direction.norm() == pytest.approx(1)


def test_the_kink_that_autograd_does_not_see_counts() -> None:
    """The second difference of the plain expected loss, which is smooth, against both Hessians."""
    model, x = tiny()
    x = features(100_000, 8, 0.3, generator(2)).double()
    at = parameters(model)
    v = torch.randn(at.flat().shape, generator=generator(3), dtype=torch.float64)
    v = v / v.norm()

    def plain(flat: Tensor) -> Tensor:
        encoder, decoder, bias = (
            each.view_as(p) for each, p in zip(flat.split([p.numel() for p in at]), at, strict=True)
        )
        return (torch.relu(x @ encoder.T @ decoder.T + bias) - x).square().sum(1).mean()

    step = 0.02
    with torch.no_grad():
        differences = float(plain(at.flat() + step * v) - 2 * plain(at.flat()) + plain(at.flat() - step * v))
    moves = torch.autograd.functional.hvp(plain, at.flat(), v)[1]
    assert isinstance(moves, Tensor)
    naive, ours = float(moves @ v), float(Bowl(model, x, 0.02).along(hessian.shaped(v, at)).mean())
    assert ours == pytest.approx(differences / step**2, rel=0.02)
    assert abs(naive - differences / step**2) > 5 * abs(ours - differences / step**2)


def test_the_scale_of_encoder_against_decoder_is_all_gauge_and_flat() -> None:
    rug = blocks.settled(blocks.woven(16, 0.5, 0.3), 0.3, rows=4096)
    model = rug.model()
    scale = Direction(model.W_in.detach(), -model.W_out.detach(), torch.zeros(16).double())
    assert hessian.gauge_share(model, scale) == pytest.approx(1)
    other = Direction(*(torch.randn(p.shape, generator=generator(4)).double() for p in scale))
    assert hessian.gauge_share(model, other) < 0.7
    x = features(4096, 16, 0.3, generator(5)).double()
    bowl = Bowl(model, x, hessian.width(model, 0.3))
    flat = float(bowl.along(scale).mean()) / scale.norm() ** 2
    rough = float(bowl.along(other).mean()) / other.norm() ** 2
    assert abs(flat) < 0.02 < 0.1 < rough


def test_blocks_have_the_eigenvalues_of_the_whole_hessian_over_all_renamings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = blocks.woven(8, 0.5, 0.3)
    rug = blocks.Woven(8, plain.rows, plain.gain * torch.linspace(0.8, 1.2, 4), plain.bias)
    x = features(40, 8, 0.3, generator(6))
    renamed = torch.cat([x[:, torch.arange(8) ^ k] for k in range(8)]).double()
    model = rug.model()
    whole = full(Bowl(model, renamed, hessian.width(model, 0.3)))
    monkeypatch.setattr(blocks, "features", lambda *rest: x)
    found = blocks.blocks(rug, 0.3, rows=40)
    parts = torch.cat([torch.linalg.eigvalsh(found.block(t)) for t in range(8)])
    assert torch.allclose(parts.sort().values, torch.linalg.eigvalsh(whole), atol=1e-12)
    values, vectors = torch.linalg.eigh(found.block(3))
    direction = found.direction(3, vectors[:, 0])
    assert torch.allclose(whole @ direction.flat(), values[0] * direction.flat(), atol=1e-12)


def test_the_woven_rug_is_the_made_one_and_settling_lowers_its_loss_and_slope() -> None:
    rug, p = blocks.woven(32, 0.25, 0.2), 0.2
    model = start(Autoencoder(32, 8), "rug", p, seed=0)
    same = rug.model()
    assert torch.allclose(same.W_out @ same.W_in, (model.W_out @ model.W_in).double(), atol=1e-5)
    settled = blocks.settled(rug, p, rows=2048).model()
    x = features(8192, 32, p, generator(7)).double()
    slopes = [Bowl(each, x, hessian.width(each, p)).gradient().norm() for each in (same, settled)]
    assert slopes[1] < 0.6 * slopes[0]
    losses = [measured_loss(each.float(), 32, p, 4096).value for each in (same, settled)]
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_the_rug_is_a_saddle_and_training_leaves_it_sooner_along_its_eigenvector() -> None:
    found = saddle.escape(32, 0.5, 0.2, rows=4096, line_rows=8192, steps=60, learning_rate=2e-3)
    assert found.curvature.negative and found.curvature.gauge < 0.01
    assert found.curvature.fitted == pytest.approx(found.curvature.curvature.value, rel=0.25)
    assert found.verdict == "saddle"
    near = [line for line in found.line.to_dict("records") if abs(line["share"]) == 0.05]
    assert len(near) == 2 and max(line["change"] + 2 * line["error"] for line in near) < 0
    assert found.nudged.loss.value < found.exact.loss.value
    assert set(found.summary()) >= {"curvature", "error", "verdict"} and len(found.curves()) == 2 * 21
    upwards = replace(found, curvature=replace(found.curvature, curvature=Measured(0.1, 0.01)))
    assert upwards.verdict == "unstable under jitter"
    assert replace(upwards, nudged=found.exact, exact=found.nudged).verdict == "not shown"


def test_the_stiffest_direction_is_no_way_down() -> None:
    model, p = blocks.woven(16, 0.5, 0.3).model(), 0.3
    x = features(2048, 16, p, generator(8)).double()
    value, direction = Bowl(model, x, hessian.width(model, p)).end("LA", 0, 1e-2)
    found = hessian.remeasured(model, direction, p, 2048, 0, value, value)
    assert not found.negative and found.curvature.value == pytest.approx(value, rel=0.2)
    line = hessian.along(model, direction, p, rows=4096)
    assert not hessian.falls(line)
    step = line.loc[line["share"] == 0.05, "change"].item()
    assert step > 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: parameters(Autoencoder(8, 4, "topk")),
            "the decoder is 'topk': the curvature is worked out for relu",
        ),
        (lambda: blocks.woven(48, 0.5, 0.2), "n_s is 48: expected a power of two"),
    ],
)
def test_what_has_no_such_curvature_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
