"""Numbers against closed forms, other implementations and naive loops."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats
import torch

from began.evaluation import metrics
from tests.evaluation.fidelity import metric_fid, metric_isc, metric_kid


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


@pytest.mark.parametrize(("num", "d"), [(500, 12), (300, 64), (40, 64)])
def test_frechet_distance_equals_torch_fidelity_s(num: int, d: int) -> None:
    a, b = correlated(0, num, d), correlated(1, num + 10, d)
    statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(rows)) for rows in (a, b)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    # With fewer rows than dimensions, torch-fidelity's roots of eigenvalues near 0 are good to half the digits.
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9 if num > d else 1e-5)


def test_frechet_distance_of_many_rows_nears_that_of_the_distributions() -> None:
    deviations, shift = np.array([0.5, 1, 2]), np.array([1.0, 0, -1])
    a, b = gaussian(0, 200_000, 3), gaussian(1, 200_000, 3) * deviations + shift
    assert metrics.frechet_distance(a, b) == pytest.approx((shift**2).sum() + ((1 - deviations) ** 2).sum(), rel=0.01)


def test_sets_without_variance_have_a_distance_and_no_nan() -> None:
    zeros, ones = np.zeros((5, 3)), np.ones((6, 3))
    assert metrics.frechet_distance(zeros, zeros) == 0
    assert metrics.frechet_distance(zeros, ones) == pytest.approx(3)
    assert metrics.frechet_distance(zeros, standardised(0, 50, 3)) == pytest.approx(3)
    assert metrics.kid(zeros, zeros[:4]).mean == 0
    assert metrics.kid(zeros, ones) == metrics.Kid(8 + 1 - 2, 0)


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


def test_mmd_equals_torch_fidelity_s() -> None:
    a, b = correlated(0, 90, 16), correlated(1, 90, 16)
    expected = metric_kid.kernel_mmd(a, b)
    assert metrics.polynomial_mmd2(a, b) == pytest.approx(expected, rel=1e-10)
    whole = metric_kid.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=1, kid_subset_size=90, verbose=False
    )
    assert metrics.polynomial_mmd2(a, b) == pytest.approx(whole["kernel_inception_distance_mean"], rel=1e-10)


def test_kid_over_random_subsets_agrees_with_torch_fidelity_s() -> None:
    a, b = gaussian(0, 400, 8, mean=0.5), gaussian(1, 400, 8)
    ours = metrics.kid(a, b, num_subsets=300, subset_size=50)
    theirs = metric_kid.kid_features_to_metric(
        torch.from_numpy(a), torch.from_numpy(b), kid_subsets=300, kid_subset_size=50, verbose=False
    )
    error = ours.std / np.sqrt(300)
    assert abs(ours.mean - theirs["kernel_inception_distance_mean"]) < 5 * error
    assert ours.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.2)


def test_kid_is_unbiased_where_the_frechet_distance_is_not() -> None:
    few = [metrics.kid(gaussian(i, 40, 8), gaussian(1000 + i, 40, 8), num_subsets=20).mean for i in range(40)]
    assert abs(np.mean(few)) < 3 * np.std(few) / np.sqrt(len(few))
    distance_of_few = metrics.frechet_distance(gaussian(0, 40, 8), gaussian(1, 40, 8))
    distance_of_many = metrics.frechet_distance(gaussian(0, 4000, 8), gaussian(1, 4000, 8))
    assert distance_of_few > 10 * distance_of_many


@pytest.mark.parametrize(("num", "size"), [(60, 20), (300, 20)])
def test_kid_is_the_mean_over_its_subsets_whether_they_share_their_kernels_or_not(
    num: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = correlated(0, num, 6), correlated(1, num, 6)
    subsets: list[tuple[np.ndarray, np.ndarray]] = []
    whole = metrics._mmd2_of_subsets

    def noting(a: np.ndarray, b: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
        subsets.extend(zip(rows_a, rows_b, strict=True))
        return whole(a, b, rows_a, rows_b)

    monkeypatch.setattr(metrics, "_mmd2_of_subsets", noting)
    monkeypatch.setattr(metrics, "BLOCK", 32)
    result = metrics.kid(a, b, num_subsets=30, subset_size=size)
    assert len(subsets) == 30
    assert all(len(set(rows)) == size for pair in subsets for rows in pair)
    expected = [metric_kid.kernel_mmd(a[rows_a], b[rows_b]) for rows_a, rows_b in subsets]
    assert (result.mean, result.std) == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-9)


def test_kid_grows_with_the_shift_and_its_deviation_is_that_of_subsets() -> None:
    real = gaussian(0, 300, 8)
    shifted = [metrics.kid(gaussian(1, 300, 8, mean=m), real, num_subsets=30, subset_size=50) for m in (0, 0.3, 0.6)]
    assert shifted[0].mean < shifted[1].mean < shifted[2].mean
    assert all(result.std > 0 for result in shifted)


def test_kid_is_the_same_for_the_same_rows_in_any_order() -> None:
    a, b = correlated(0, 60, 5), correlated(1, 60, 5)
    shuffled = a[np.random.default_rng(5).permutation(len(a))]
    first, again = metrics.kid(a, b, num_subsets=10), metrics.kid(shuffled, b, num_subsets=10)
    assert (again.mean, again.std) == pytest.approx((first.mean, first.std), rel=1e-12)
    assert metrics.kid(a, b, num_subsets=10, seed=1).mean != pytest.approx(first.mean, rel=1e-3)


def test_mean_pairwise_distance_equals_scipy_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 16)
    rows = gaussian(0, 50, 6, mean=1000)
    expected = scipy.spatial.distance.pdist(rows).mean()
    assert metrics.mean_pairwise_distance(rows) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("size", [1024, 16])
def test_numbers_of_mapped_float32_rows_are_those_of_float64_rows_in_one_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    wide = [correlated(seed, 70, 5).astype(np.float32).astype(np.float64) for seed in (0, 1)]
    mapped = []
    for i, rows in enumerate(wide):
        np.save(tmp_path / f"{i}.npy", rows.astype(np.float32))
        mapped.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    classifier = gaussian(2, 5, 7)

    def numbers(a: np.ndarray, b: np.ndarray) -> list[float]:
        kid = metrics.kid(a, b, num_subsets=5)
        score = metrics.inception_score(a, classifier, 3)
        return [metrics.frechet_distance(a, b), kid.mean, kid.std, metrics.diversity(a, b), *score]

    expected = numbers(*wide)
    monkeypatch.setattr(metrics, "BLOCK", size)
    assert numbers(*mapped) == pytest.approx(expected, rel=1e-9)


def test_memory_of_the_numbers_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.lib.format.open_memmap(tmp_path / "a.npy", mode="w+", dtype=np.float32, shape=(60_000, 16))
    for start in range(0, len(rows), 10_000):
        rows[start : start + 10_000] = rng.standard_normal((10_000, 16))
    tracemalloc.start()
    try:
        peaks = []
        for num in (15_000, 60_000):
            tracemalloc.reset_peak()
            metrics.frechet_distance(rows[:num], rows[-num:])
            metrics.diversity(rows[: num // 10], rows[-(num // 10) :])
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


@pytest.mark.parametrize("num", [47, 200])
def test_inception_score_equals_torch_fidelity_s(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, classifier = gaussian(0, num, 12), gaussian(1, 12, 30)
    logits = torch.from_numpy(features @ classifier)
    for block in (1024, 3):
        monkeypatch.setattr(metrics, "BLOCK", block)
        expected = metric_isc.isc_features_to_metric(logits)
        mean, std = metrics.inception_score(features, classifier)
        assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-10)
        assert std == pytest.approx(expected["inception_score_std"], rel=1e-8)


def test_inception_score_of_sure_and_of_unsure_answers_is_the_number_of_classes_and_1() -> None:
    sure = np.tile(np.eye(4), (50, 1))
    assert metrics.inception_score(sure, 1000 * np.eye(4), num_splits=1) == (pytest.approx(4), 0)
    assert metrics.inception_score(sure, np.zeros((4, 4))) == (pytest.approx(1), pytest.approx(0, abs=1e-12))


def test_rank_correlation_equals_scipy_s_with_ties_too() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        a = draw.integers(0, 6, 30).astype(float)
        b = a + draw.normal(0, 3, 30).round()
        assert metrics.rank_correlation(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, rel=1e-12)
    assert metrics.rank_correlation([1, 2, 3], [10.0, 100, 1000]) == pytest.approx(1)
    assert metrics.rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_rank_correlation_is_none_where_nothing_can_be_ranked() -> None:
    assert metrics.rank_correlation([], []) is None
    assert metrics.rank_correlation([1, 2], [1, 2]) is None
    assert metrics.rank_correlation([1, 2, 3], [5, 5, 5]) is None
    assert metrics.rank_correlation([1, 2, 3, np.nan], [np.inf, 2, 3, 4]) is None
    assert metrics.rank_correlation([4, 1, 2, 3], [np.nan, 1, 2, 3]) == pytest.approx(1)


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
    with pytest.raises(ValueError, match="no variance"):
        metrics.diversity(many, np.tile(np.arange(3) / 7 + 100, (9, 1)))
    with pytest.raises(ValueError, match="9 rows, expected at least 10"):
        metrics.inception_score(many, np.ones((3, 2)))
    spread = metrics.PixelSpread()
    assert len(list(spread.watch([np.zeros((1, 4, 4, 3), dtype=np.uint8)]))) == 1
    with pytest.raises(ValueError, match="1 images, expected at least 2"):
        assert spread.value
