import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from undo_probe import linalg
from undo_probe.errors import UndoProbeError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(d, d, seed=seed))[0]


def test_a_basis_is_orthonormal_and_spans_the_vectors() -> None:
    vectors = draw(12, 4) * torch.tensor([1e-6, 1.0, 1e3, 1.0])
    basis = linalg.orthonormal_basis(vectors)
    torch.testing.assert_close(basis.T @ basis, torch.eye(4, dtype=torch.float64))
    assert linalg.project_out(vectors.T / vectors.norm(dim=0)[:, None], basis).norm() < 1e-12
    assert torch.cosine_similarity(basis[:, 0], vectors[:, 0], dim=0) > 1 - 1e-12


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        (torch.ones(5, 2), "span only 1 dimensions"),
        (torch.zeros(5, 1), "zero vector"),
        (torch.full((5, 1), torch.nan), "NaN"),
        (torch.eye(3)[:, [0, 1, 2, 0]], "between 1 and 3"),
    ],
)
def test_what_spans_no_subspace_is_refused(vectors: Tensor, text: str) -> None:
    with pytest.raises(UndoProbeError, match=text):
        linalg.orthonormal_basis(vectors)


def test_projecting_out_is_idempotent_and_changes_at_most_k_dimensions() -> None:
    rows, basis = draw(40, 10), linalg.orthonormal_basis(draw(10, 3, seed=1))
    once = linalg.project_out(rows, basis)
    torch.testing.assert_close(linalg.project_out(once, basis), once)
    assert torch.linalg.matrix_rank(rows - once) == 3
    assert (rows @ basis).abs().max() > 0.1
    assert (once @ basis).abs().max() < 1e-12


def test_projection_shares_of_complements_add_to_one() -> None:
    rows, full = draw(30, 6), rotation(6)
    inside, outside = (linalg.projection_share(rows, part) for part in (full[:, :2], full[:, 2:]))
    torch.testing.assert_close(inside + outside, torch.ones(30, dtype=torch.float64))
    assert linalg.projection_share(torch.zeros(1, 6), torch.eye(6)[:, :1]).item() == 0


def test_the_covariance_of_a_wide_space_is_whole_though_half_of_it_is_summed() -> None:
    """Wider than two panels, in batches and merged."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 2 * linalg.PANEL + 30, generator=draw, dtype=torch.float64) + 3
    seen, other = (linalg.StreamedPCA(rows.shape[1]) for _ in range(2))
    for batch in rows[:60].split(25):
        seen.update(batch)
    found = seen.merge(other.update(rows[60:])).covariance()
    np.testing.assert_allclose(found, np.cov(rows.numpy().T), rtol=1e-9, atol=1e-12)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(seen.covariance(), found, rtol=0, atol=0)  # asking changes nothing


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), offset=st.sampled_from([0.0, 1e4]))
@settings(max_examples=20, deadline=None)
def test_streamed_moments_equal_those_of_all_rows_at_once(sizes: list[int], offset: float) -> None:
    rows = draw(sum(sizes) + 2, 5) + torch.tensor([offset, 0, 0, 0, 0], dtype=torch.float64)
    one, other = linalg.StreamedPCA(5), linalg.StreamedPCA(5)
    for index, batch in enumerate(rows.split([*sizes, 2])):
        (one if index % 2 else other).update(batch)
    merged = one.merge(other)
    torch.testing.assert_close(merged.mean, rows.mean(0))
    torch.testing.assert_close(merged.covariance(), torch.cov(rows.T), rtol=1e-9, atol=1e-9)


def test_principal_components_equal_numpys_singular_vectors() -> None:
    rows = draw(60, 8) @ draw(8, 8, seed=2) + 3
    pca = linalg.StreamedPCA(8).update(rows[:25]).update(rows[25:]).components(3)
    _, values, right = np.linalg.svd((rows - rows.mean(0)).numpy(), full_matrices=False)
    np.testing.assert_allclose(pca.variances.numpy(), values[:3] ** 2 / 59)
    np.testing.assert_allclose(np.abs(right[:3] @ pca.basis.numpy()), np.eye(3), atol=1e-9)
    assert pca.variances.sum() < pca.total_variance


def test_the_mean_direction_joins_only_if_it_adds_something() -> None:
    rows = draw(50, 6)
    rows[:, 5] = 7.0
    pca = linalg.StreamedPCA(6).update(rows).components(2)
    joined = pca.basis_with_mean()
    assert joined.shape == (6, 3)
    assert linalg.projection_share(rows.mean(0), joined[:, :1]) > 1 - 1e-9
    flat = linalg.StreamedPCA(6).update(torch.cat([rows[:, :5], 0 * rows[:, :1]], dim=1)).components(5)
    assert flat.basis_with_mean().shape == (6, 5)
    with pytest.raises(UndoProbeError, match="have 5"):
        linalg.StreamedPCA(6).update(rows).components(6)


def test_principal_angles_agree_with_scipy_and_keep_tiny_angles() -> None:
    a, b = (linalg.orthonormal_basis(draw(9, k, seed=k)) for k in (3, 2))
    expected = np.sort(scipy.linalg.subspace_angles(a.numpy(), b.numpy()))
    np.testing.assert_allclose(linalg.principal_angles(a, b).numpy(), expected, atol=1e-12)
    tilt = torch.tensor([[1.0], [1e-11], [0.0]], dtype=torch.float64)
    axis = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    assert linalg.principal_angles(axis, tilt).item() == pytest.approx(1e-11)


def test_cka_and_procrustes_ignore_rotation_and_scale_while_cosines_move() -> None:
    x = draw(200, 10)
    y = 3 * x @ rotation(10) + 5
    assert linalg.linear_cka(x, y) == pytest.approx(1)
    assert linalg.linear_cka(x, y, debiased=False) == pytest.approx(1)
    assert linalg.procrustes_distance(x, y) == pytest.approx(0, abs=1e-9)
    assert torch.cosine_similarity(x, y, dim=1).abs().mean() < 0.7


def test_only_the_debiased_cka_of_independent_data_is_near_zero() -> None:
    values = [
        [linalg.linear_cka(draw(90, 60, seed=2 * s), draw(90, 60, seed=2 * s + 1), d) for d in (True, False)]
        for s in range(20)
    ]
    debiased, biased = np.mean(values, axis=0)
    assert abs(debiased) < 0.02
    assert biased > 0.35


def test_debiased_cka_equals_the_published_gram_matrix_form() -> None:
    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        # Song et al. 2012, equation 5
        n, one = len(k), np.ones(len(k))
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        total = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    x, y = (draw(30, 7) + 2).numpy(), draw(30, 5, seed=1).numpy()
    y[:, :3] += x[:, :3]
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert linalg.linear_cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected)


def test_cka_with_a_group_left_out_equals_cka_on_the_other_rows() -> None:
    x, y = draw(40, 6), draw(40, 4, seed=1)
    y = y + x[:, :4]
    groups = np.random.default_rng(0).integers(0, 7, 40)
    direct = [linalg.linear_cka(x[groups != g], y[groups != g]) for g in range(7)]
    np.testing.assert_allclose(linalg.cka_without_groups(x, y, groups), direct)


def test_procrustes_is_symmetric_bounded_and_grows_with_noise() -> None:
    x = draw(100, 6)
    distances = [linalg.procrustes_distance(x, x + s * draw(100, 6, seed=1)) for s in (0, 0.3, 1, 30)]
    assert distances == sorted(distances)
    assert 0 <= distances[0] < 1e-9 and distances[-1] < 2
    y = draw(100, 6, seed=2)
    assert linalg.procrustes_distance(x, y) == pytest.approx(linalg.procrustes_distance(y, x))


def test_comparing_what_cannot_be_compared_says_why() -> None:
    with pytest.raises(UndoProbeError, match="got 10 and 9"):
        linalg.linear_cka(draw(10, 3), draw(9, 3))
    with pytest.raises(UndoProbeError, match="all rows of one side are equal"):
        linalg.procrustes_distance(draw(10, 3), torch.ones(10, 3))
