"""Diagnostics: codes that are made to be one thing or another are called by its name."""

import numpy as np
import pytest
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.persian_rug import diagnostics, engineered
from undo_probe.persian_rug.autoencoder import Autoencoder, start
from undo_probe.persian_rug.limits import kurtosis
from undo_probe.randomness import generator


def rug(n_s: int = 256, r: float = 0.25, p: float = 0.045) -> Autoencoder:
    return start(Autoencoder(n_s, round(n_s * r)), "rug", p, seed=0)


def made_of(columns: torch.Tensor) -> Autoencoder:
    model = Autoencoder(columns.shape[1], columns.shape[0])
    with torch.no_grad():
        model.W_in.copy_(columns)
        model.W_out.copy_(columns.T)
    return model


def pairs(n_d: int) -> torch.Tensor:
    return torch.cat([torch.eye(n_d), -torch.eye(n_d)], dim=1)


def test_a_rug_is_called_one_at_every_ratio() -> None:
    for r, p in ((0.1, 0.01), (0.25, 0.045), (0.5, 0.2)):
        found = diagnostics.diagnose(rug(r=r, p=p), p)
        assert found.phase == "rug" and found.shares["rug"] == 1
        assert max(found.spread.values()) < 1e-5
        assert found.excess == pytest.approx(1, rel=0.05)  # round(n_s r) is not n_s r


def test_digons_private_and_dropped_features_are_told_apart() -> None:
    assert diagnostics.diagnose(made_of(pairs(8)), 0.2).phase == "digon"
    mixed = torch.cat([pairs(4), torch.zeros(4, 6)], dim=1)
    mixed = torch.block_diag(mixed, torch.eye(10))
    found = diagnostics.diagnose(made_of(mixed), 0.2)
    assert found.phase == "mixed"
    assert found.shares == {"rug": 0, "digon": 8 / 24, "private": 10 / 24, "dropped": 6 / 24, "other": 0}
    unequal = made_of(torch.cat([torch.eye(8), -0.4 * torch.eye(8)], dim=1))
    with torch.no_grad():
        unequal.W_out[8:] /= 0.16  # both reach their outputs whole, as trained pairs do
    assert diagnostics.diagnose(unequal, 0.2).phase == "digon"
    noisy = made_of(pairs(32) + 0.03 * torch.randn(32, 64, generator=generator(0)))
    assert diagnostics.diagnose(noisy, 0.2).phase == "digon"


def test_a_rug_of_the_features_that_were_kept_is_called_one() -> None:
    """A fifth of the features dropped: the others share the dimensions, and stand on their own floor."""
    woven = rug(256, 0.25, 0.045)
    model = Autoencoder(320, 64)
    with torch.no_grad():
        model.W_in[:, :256].copy_(woven.W_in)
        model.W_out[:256].copy_(woven.W_out)
    found = diagnostics.diagnose(model, 0.045)
    assert found.phase == "rug" and found.shares["rug"] == 0.8 and found.shares["dropped"] == 0.2
    assert found.excess == pytest.approx(1, rel=1e-3)
    # by the ratio of all features, 64 / 320, each would have a quarter too much
    assert float(diagnostics.rows_of(model, 0.045).dimensionality[0]) == pytest.approx(0.25, rel=1e-3)
    alone = diagnostics.diagnose(made_of(torch.cat([torch.eye(4), torch.zeros(4, 4)], dim=1)), 0.045)
    assert alone.phase == "private" and alone.excess != alone.excess  # no floor to stand on


def test_the_histogram_has_its_peaks_where_the_codes_are() -> None:
    counts, edges = diagnostics.histogram(diagnostics.rows_of(rug(), 0.045))
    assert counts.sum() == 256 == counts.max()
    assert edges[counts.argmax()] <= 0.25 <= edges[counts.argmax() + 1]
    mixed = torch.block_diag(torch.cat([pairs(4), torch.zeros(4, 6)], dim=1), torch.eye(10))
    counts, _ = diagnostics.histogram(diagnostics.rows_of(made_of(mixed), 0.1), bins=4)
    assert counts.tolist() == [6, 0, 8, 10]


def test_row_statistics_are_those_of_samples_without_the_diagonal() -> None:
    model, p = rug(64, 0.5, 0.3), 0.3
    with torch.no_grad():
        model.W_out.add_(0.05 * torch.randn(model.W_out.shape, generator=generator(2)))
    rows = diagnostics.rows_of(model, p)
    x = engineered.features(60_000, 64, p, generator(3))
    for row in (0, 17):
        nu = diagnostics.interference(model, x, row)
        assert float(rows.mean[row]) == pytest.approx(float(nu.mean()), abs=4 * float(nu.std()) / 60_000**0.5)
        assert float(rows.variance[row]) == pytest.approx(float(nu.var()), rel=0.03)
        centred = (nu - nu.mean()) / nu.std()
        assert float(rows.skew[row]) == pytest.approx(float(centred.pow(3).mean()), abs=0.06)
        assert float(rows.kurtosis[row]) == pytest.approx(float(centred.pow(4).mean()) - 3, abs=0.15)


def test_the_lyapunov_ratio_has_no_scale_and_falls_with_size() -> None:
    small, large = rug(64, 0.25, 0.045), rug(1024, 0.25, 0.045)
    at = {
        n: float(diagnostics.rows_of(model, 0.045).lyapunov.max())
        for n, model in ((64, small), (1024, large))
    }
    assert at[1024] == pytest.approx(at[64] / 4, rel=0.2)
    with torch.no_grad():
        small.W_out.mul_(7.0)
    assert float(diagnostics.rows_of(small, 0.045).lyapunov.max()) == pytest.approx(at[64], rel=1e-5)


def test_the_third_absolute_moment_is_that_of_samples() -> None:
    x = engineered.features(400, 1000, 0.2, generator(4)).double()
    assert diagnostics.absolute_third(0.2) == pytest.approx(float((x - 0.1).abs().pow(3).mean()), rel=0.01)


def test_the_kurtosis_of_a_rug_is_the_foretold_one() -> None:
    found = diagnostics.diagnose(rug(1024, 0.25, 0.045), 0.045).kurtosis
    assert found == pytest.approx(float(kurtosis(1024, 0.045)), rel=0.1)


def test_the_normality_test_is_calibrated() -> None:
    """Of 200 normal samples about one in twenty is refused at 5 %; the plain test would refuse none."""
    drawn = torch.randn(200, 60, generator=generator(5)).double() * 3 + 1
    p_values = np.array([diagnostics.normality(each, draws=99).p_value for each in drawn])
    assert 2 <= (p_values <= 0.05).sum() <= 22
    assert 60 <= (p_values <= 0.5).sum() <= 140


def test_interference_of_few_partners_is_not_normal() -> None:
    x = engineered.features(1500, 256, 0.2, generator(6))
    smooth = diagnostics.interference(rug(256, 0.5, 0.2), x, 3)
    edgy = diagnostics.interference(made_of(pairs(128)), x, 3)
    assert diagnostics.normality(smooth, draws=199).p_value > 0.01
    assert diagnostics.normality(edgy, draws=199).p_value == 1 / 200


def test_noise_of_a_wide_dense_rug_passes_as_normal_and_that_of_pairs_does_not() -> None:
    """Kurtosis is .02 at n_s 1024 and p = .5, which a thousand values do not show, but 3 where one partner speaks."""
    assert diagnostics.not_normal(rug(1024, 0.5, 0.5), 0.5, rows=64) <= 0.15
    assert diagnostics.not_normal(rug(1024, 0.5, 0.005), 0.005) == 1.0
    assert diagnostics.not_normal(made_of(pairs(128)), 0.2) == 1.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: diagnostics.diagnose(Autoencoder(8, 2), 0.1), "no feature reaches its own output"),
        (lambda: diagnostics.not_normal(Autoencoder(8, 2), 0.1), "no feature reaches its own output"),
        (lambda: diagnostics.normality(torch.ones(20)), "at least 8 that are not all alike"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(call, text: str) -> None:  # noqa: ANN001
    with pytest.raises(UndoProbeError, match=text):
        call()
