import pytest
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.stitch import KEPT, PENALTIES, fit_stitch


def draw(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def fourth(rows: int) -> torch.Tensor:
    return torch.arange(rows) % 4 == 0


def test_an_affine_map_is_found_again_and_holds_on_new_states() -> None:
    weight, shift = draw(6, 5, 1), draw(1, 5, 2)
    x, new = draw(200, 6, 0), draw(50, 6, 3)
    stitch = fit_stitch(x, x @ weight + shift, fourth(200))
    torch.testing.assert_close(stitch(new), new @ weight + shift, atol=1e-4, rtol=1e-4)
    assert stitch.explained(new, new @ weight + shift) == pytest.approx(1, abs=1e-8)
    assert (stitch.n, stitch.penalty) == (200, min(PENALTIES))


def test_the_fit_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    x, noise = draw(40, 8, 0).double(), draw(40, 3, 1).double()
    y = x[:, :3] + noise
    stitch = fit_stitch(x, y, fourth(40), penalties=[0.1])
    unit = float((x - x.mean(0)).square().mean())
    theirs = Ridge(alpha=0.1 * unit * len(x)).fit(x.numpy(), y.numpy())
    torch.testing.assert_close(stitch(x), torch.from_numpy(theirs.predict(x.numpy())))


def test_noise_asks_for_a_stronger_penalty_and_explains_nothing_new() -> None:
    x, y = draw(40, 20, 0), draw(40, 20, 1)
    stitch = fit_stitch(x, y, fourth(40))
    assert stitch.penalty == max(PENALTIES)
    assert stitch.explained(draw(400, 20, 2), draw(400, 20, 3)) < 0.05


def test_what_the_fit_never_saw_lies_outside_its_span() -> None:
    seen = torch.cat([draw(300, 4, 0), torch.zeros(300, 4)], dim=1)
    unseen = torch.cat([draw(300, 4, 1), draw(300, 4, 2)], dim=1)
    stitch = fit_stitch(seen, seen, fourth(300))
    assert stitch.span.shape == (8, 4)
    assert float(stitch.outside(seen).mean()) < 1 - KEPT
    assert float(stitch.outside(unseen).mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("x", "y", "choose", "text"),
    [
        (draw(9, 3, 0), draw(8, 3, 0), fourth(9), "got 9 and 8 rows"),
        (draw(9, 3, 0), draw(9, 3, 0), torch.zeros(9, dtype=torch.bool), "0 of them to choose"),
        (torch.ones(9, 3), draw(9, 3, 0), fourth(9), "all states are equal here"),
    ],
)
def test_what_no_map_can_be_fitted_to_is_refused(
    x: torch.Tensor, y: torch.Tensor, choose: torch.Tensor, text: str
) -> None:
    with pytest.raises(UndoProbeError, match=text):
        fit_stitch(x, y, choose)


def test_explaining_targets_that_do_not_vary_is_refused() -> None:
    stitch = fit_stitch(draw(9, 3, 0), draw(9, 3, 0), fourth(9))
    with pytest.raises(UndoProbeError, match="no variance to explain"):
        stitch.explained(draw(4, 3, 1), torch.ones(4, 3))
