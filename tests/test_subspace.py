import pytest
import torch

from undo_probe.errors import UndoProbeError
from undo_probe.subspace import Subspace


def test_removing_a_subspace_is_idempotent_and_leaves_the_argument() -> None:
    space = Subspace.random(16, 3, seed=0)
    rows = torch.randn(5, 7, 16)
    before = rows.clone()
    once = space.remove(rows)
    torch.testing.assert_close(space.remove(once), once)
    assert torch.equal(rows, before)
    assert space.share(once).max() < 1e-9 < space.share(rows).max()


def test_the_seed_alone_decides_a_random_subspace() -> None:
    a, b, c = (Subspace.random(8, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(a.basis, b.basis)
    assert not torch.equal(a.basis, c.basis)


def test_a_direction_is_a_subspace_of_dimension_one() -> None:
    vector = torch.tensor([3.0, 0.0, 4.0])
    space = Subspace.from_vectors(vector, hook="blocks.0.hook_resid_post", evidence={"n": 3})
    torch.testing.assert_close(space.direction, vector / 5)
    assert (space.k, space.d_model, space.evidence) == (1, 3, {"n": 3})
    with pytest.raises(UndoProbeError, match="no single direction"):
        _ = Subspace.random(3, 2, 0).direction


def test_a_component_set_to_the_mean_is_the_means() -> None:
    mean = torch.tensor([1.0, 2.0, 3.0])
    space = Subspace.from_vectors(torch.tensor([0.0, 0.0, 1.0]), mean=mean)
    kept = space.remove(torch.tensor([[5.0, 6.0, 7.0]]), to_mean=True)
    torch.testing.assert_close(kept, torch.tensor([[5.0, 6.0, 3.0]]))
    with pytest.raises(UndoProbeError, match="has no mean"):
        Subspace.random(3, 1, 0).remove(torch.ones(1, 3), to_mean=True)


def test_half_precision_is_projected_in_float32() -> None:
    space = Subspace.random(64, 1, seed=0)
    rows = (1000 * torch.randn(20, 64)).bfloat16()
    removed = space.remove(rows)
    assert removed.dtype == torch.bfloat16
    assert space.share(removed.float()).max() < 1e-4


def test_moving_gives_a_new_subspace() -> None:
    space = Subspace.from_vectors(torch.eye(4)[:, :2], mean=torch.ones(4))
    moved = space.to("cpu")
    assert moved is not space
    assert torch.equal(moved.basis, space.basis) and moved.mean is not None


def test_a_basis_that_is_not_orthonormal_is_refused() -> None:
    with pytest.raises(UndoProbeError, match="from_vectors"):
        Subspace(torch.ones(4, 1))
    with pytest.raises(UndoProbeError, match="the mean has 3 entries, the basis 4"):
        Subspace(torch.eye(4)[:, :1], mean=torch.zeros(3))
