"""Numbers against closed forms, other implementations and naive loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance

from began import metrics


def gaussian(seed: int, num: int, d: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).standard_normal((num, d))


def standardised(seed: int, num: int, d: int) -> np.ndarray:
    """Rows whose mean is exactly 0 and whose covariance is exactly the identity."""
    rows = gaussian(seed, num, d)
    rows -= rows.mean(axis=0)
    root = scipy.linalg.cholesky(np.cov(rows.T))
    return np.asarray(rows @ np.linalg.inv(root))


def correlated(seed: int, num: int, d: int) -> np.ndarray:
    mixing = np.random.default_rng(seed + 100).standard_normal((d, d))
    return gaussian(seed, num, d) @ mixing + np.arange(d)


def test_frechet_distance_of_known_gaussians_is_the_closed_form() -> None:
    a, b = standardised(0, 400, 5), standardised(1, 300, 5)
    shift = np.array([1.0, -2, 0, 3, 0.5])
    deviations = np.array([0.5, 1, 2, 3, 4])
    # Diagonal covariances: |shift|² + Σ (σ_a − σ_b)².
    expected = (shift**2).sum() + ((1 - deviations) ** 2).sum()
    assert metrics.frechet_distance(a, b * deviations + shift) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_equals_the_formula_with_sqrtm() -> None:
    a, b = correlated(0, 500, 12), correlated(1, 400, 12)
    covariance_a, covariance_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(covariance_a @ covariance_b)
    difference = a.mean(0) - b.mean(0)
    expected = difference @ difference + np.trace(covariance_a + covariance_b - 2 * np.real(root))
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_is_a_symmetric_zero_or_more() -> None:
    a, b = correlated(0, 100, 8), correlated(1, 150, 8)
    assert metrics.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(b, a), rel=1e-10)
    assert 0 <= metrics.frechet_distance(a, a) < 1e-9 * np.trace(np.cov(a.T))
    assert metrics.frechet_distance(a, b) > 0


def test_frechet_distance_stands_fewer_rows_than_dimensions_and_dead_features() -> None:
    a, b = gaussian(0, 10, 64), gaussian(1, 12, 64, mean=1)
    a[:, :7], b[:, :9] = 0, 0
    a_centred, b_centred = a - a.mean(0), b - b.mean(0)
    # tr (Σ_a Σ_b)^½ as the nuclear norm of the small N × M matrix: another route, exact for singular covariances.
    root = np.linalg.svd(a_centred @ b_centred.T, compute_uv=False).sum() / np.sqrt(9 * 11)
    difference = a.mean(0) - b.mean(0)
    expected = difference @ difference + (a_centred**2).sum() / 9 + (b_centred**2).sum() / 11 - 2 * root
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_does_not_depend_on_the_order_of_rows_or_their_precision() -> None:
    a, b = correlated(0, 200, 16), correlated(1, 200, 16)
    shuffled = a[np.random.default_rng(5).permutation(len(a))]
    assert metrics.frechet_distance(shuffled, b) == pytest.approx(metrics.frechet_distance(a, b), rel=1e-10)
    assert metrics.frechet_distance(a.astype(np.float32), b) == pytest.approx(metrics.frechet_distance(a, b), rel=1e-5)


def test_mmd_equals_a_naive_double_loop() -> None:
    a, b = gaussian(0, 9, 4), gaussian(1, 7, 4, mean=0.5)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 4 + 1) ** 3)

    within_a = np.mean([kernel(x, y) for x, y in itertools.permutations(a, 2)])
    within_b = np.mean([kernel(x, y) for x, y in itertools.permutations(b, 2)])
    between = np.mean([kernel(x, y) for x, y in itertools.product(a, b)])
    assert metrics.polynomial_mmd2(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


def test_kid_is_unbiased_where_the_frechet_distance_is_not() -> None:
    few = [metrics.kid(gaussian(i, 40, 8), gaussian(1000 + i, 40, 8), num_subsets=20).mean for i in range(40)]
    assert abs(np.mean(few)) < 3 * np.std(few) / np.sqrt(len(few))
    distance_of_few = metrics.frechet_distance(gaussian(0, 40, 8), gaussian(1, 40, 8))
    distance_of_many = metrics.frechet_distance(gaussian(0, 4000, 8), gaussian(1, 4000, 8))
    assert distance_of_few > 10 * distance_of_many


def test_kid_grows_with_the_shift_and_its_deviation_is_that_of_subsets() -> None:
    real = gaussian(0, 300, 8)
    shifted = [metrics.kid(gaussian(1, 300, 8, mean=m), real, num_subsets=30, subset_size=50) for m in (0, 0.3, 0.6)]
    assert shifted[0].mean < shifted[1].mean < shifted[2].mean
    assert all(result.std > 0 for result in shifted)


def test_kid_is_the_same_for_the_same_rows_in_any_order() -> None:
    a, b = correlated(0, 60, 5), correlated(1, 60, 5)
    shuffled = a[np.random.default_rng(5).permutation(len(a))]
    assert metrics.kid(shuffled, b, num_subsets=10) == metrics.kid(a, b, num_subsets=10)
    assert metrics.kid(a, b, num_subsets=10, seed=1) != metrics.kid(a, b, num_subsets=10)


def test_mean_pairwise_distance_equals_scipy_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 16)
    rows = gaussian(0, 50, 6, mean=1000)
    expected = scipy.spatial.distance.pdist(rows).mean()
    assert metrics.mean_pairwise_distance(rows) == pytest.approx(expected, rel=1e-9)


def test_diversity_is_1_for_the_same_distribution_and_0_for_a_collapse() -> None:
    real = gaussian(0, 500, 6)
    assert metrics.diversity(gaussian(1, 500, 6), real) == pytest.approx(1, abs=0.03)
    assert metrics.diversity(gaussian(1, 500, 6, scale=0.5), real) == pytest.approx(0.5, abs=0.03)
    assert metrics.diversity(np.repeat(real[:1], 500, axis=0), real) == pytest.approx(0, abs=1e-9)


def test_pixel_spread_is_the_mean_standard_deviation_whatever_the_batches() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
    values = set()
    for size in (1, 7, 50):
        spread = metrics.PixelSpread()
        passed = np.concatenate(list(spread.watch(images[i : i + size] for i in range(0, 50, size))))
        assert np.array_equal(passed, images)
        values.add(spread.value)
    assert len(values) == 1
    assert values.pop() == pytest.approx(images.astype(np.float64).std(axis=0).mean(), rel=1e-12)


def test_pixel_spread_of_equal_images_is_exactly_0() -> None:
    spread = metrics.PixelSpread()
    assert len(list(spread.watch([np.full((20, 4, 4, 3), 201, dtype=np.uint8)] * 3))) == 3
    assert spread.value == 0


def test_too_few_rows_are_an_error_that_counts_them() -> None:
    one, many = gaussian(0, 1, 3), gaussian(1, 9, 3)
    with pytest.raises(ValueError, match="1 and 9 rows, expected at least 2"):
        metrics.frechet_distance(one, many)
    with pytest.raises(ValueError, match="9 and 3 rows, expected at least 4"):
        metrics.kid(many, many[:3])
    with pytest.raises(ValueError, match="1 rows, expected at least 2"):
        metrics.mean_pairwise_distance(one)
    with pytest.raises(ValueError, match="no variance"):
        metrics.diversity(many, np.zeros((4, 3)))
    spread = metrics.PixelSpread()
    assert len(list(spread.watch([np.zeros((1, 4, 4, 3), dtype=np.uint8)]))) == 1
    with pytest.raises(ValueError, match="1 images, expected at least 2"):
        assert spread.value
