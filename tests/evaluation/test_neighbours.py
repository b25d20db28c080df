"""Precision, recall, density, coverage and nearest rows against torch-fidelity, naive loops and known answers."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from began.evaluation import neighbours
from began.evaluation.neighbours import density_coverage, nearest, precision_recall
from tests.evaluation.fidelity import metric_prc


def gaussian(seed: int, num: int, d: int, mean: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).standard_normal((num, d))


@pytest.fixture(params=[7, 1024])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks with an odd last one, and a single one."""
    monkeypatch.setattr(neighbours, "BLOCK", request.param)


def naive_radii(rows: np.ndarray, k: int) -> list[float]:
    return [
        sorted(float(np.linalg.norm(row - other)) for j, other in enumerate(rows) if j != i)[k - 1]
        for i, row in enumerate(rows)
    ]


def naive_precision_recall(samples: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    def share(points: np.ndarray, centres: np.ndarray) -> float:
        radii = naive_radii(centres, k)
        within = [any(np.linalg.norm(point - c) <= r for c, r in zip(centres, radii, strict=True)) for point in points]
        return float(np.mean(within))

    return share(samples, real), share(real, samples)


def naive_density_coverage(samples: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    radii = naive_radii(real, k)
    within = np.array(
        [[np.linalg.norm(s - r) <= radius for s in samples] for r, radius in zip(real, radii, strict=True)]
    )
    return within.sum() / (k * len(samples)), float(within.any(axis=1).mean())


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.5), (0.5, 2.0)])
def test_precision_and_recall_equal_torch_fidelity_s(shift: float, scale: float) -> None:
    samples, real = gaussian(0, 150, 8, shift, scale), gaussian(1, 120, 8)
    for k in (1, 3, 5):
        expected = metric_prc.prc_features_to_metric(
            torch.from_numpy(samples), torch.from_numpy(real), prc_neighborhood=k, verbose=False
        )
        ours = precision_recall(samples, real, k)
        assert ours == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("num_samples", "num_real", "k"), [(30, 40, 1), (40, 30, 3), (25, 25, 5)])
def test_all_four_equal_naive_loops(num_samples: int, num_real: int, k: int) -> None:
    samples, real = gaussian(0, num_samples, 4, 0.4), gaussian(1, num_real, 4)
    assert precision_recall(samples, real, k) == pytest.approx(naive_precision_recall(samples, real, k), rel=1e-12)
    assert density_coverage(samples, real, k) == pytest.approx(naive_density_coverage(samples, real, k), rel=1e-12)


@pytest.mark.usefixtures("block")
def test_nearest_equals_a_naive_loop() -> None:
    queries, rows = gaussian(0, 40, 5, mean=100), gaussian(1, 60, 5, mean=100)
    queries[3] = rows[41]
    distances, indices = nearest(queries, rows)
    table = np.array([[np.linalg.norm(q - r) for r in rows] for q in queries])
    assert np.array_equal(indices, table.argmin(axis=1))
    np.testing.assert_allclose(distances, table.min(axis=1), rtol=1e-12)
    assert distances[3] == 0 and indices[3] == 41


def test_numbers_depend_neither_on_the_order_of_rows_nor_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = gaussian(0, 90, 16, 0.2).astype(np.float32)
    real = gaussian(1, 100, 16).astype(np.float32)
    samples[:20] = real[:20]  # equal distances, which rounding could tell apart
    real[50:60] = real[40:50]
    expected = precision_recall(samples, real), density_coverage(samples, real)
    distances, indices = nearest(samples, real)
    order = np.random.default_rng(2).permutation(100)
    order_of_samples = np.random.default_rng(3).permutation(90)
    for size in (1024, 32, 9):
        monkeypatch.setattr(neighbours, "BLOCK", size)
        shuffled, shuffled_samples = real[order], samples[order_of_samples]
        assert (precision_recall(shuffled_samples, shuffled), density_coverage(shuffled_samples, shuffled)) == expected
        again, found = nearest(shuffled_samples, shuffled)
        np.testing.assert_allclose(again, distances[order_of_samples], rtol=1e-12)
        assert np.array_equal(shuffled[found], real[indices[order_of_samples]])


def test_equal_sets_have_precision_recall_and_coverage_1() -> None:
    rows = gaussian(0, 200, 16).astype(np.float32)
    assert precision_recall(rows, rows[::-1]) == (1.0, 1.0)
    density, coverage = density_coverage(rows, rows[::-1], k=5)
    assert coverage == 1 and density == pytest.approx(6 / 5)  # each ball holds its 5 neighbours and its own centre


def test_far_sets_have_none_of_the_four() -> None:
    samples, real = gaussian(0, 60, 8, mean=100), gaussian(1, 60, 8)
    assert precision_recall(samples, real) == (0.0, 0.0)
    assert density_coverage(samples, real) == (0.0, 0.0)


def test_two_sets_of_one_distribution_have_density_1_and_the_coverage_of_the_paper() -> None:
    density, coverage = density_coverage(gaussian(0, 3000, 4), gaussian(1, 3000, 4), k=5)
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.015)


def test_half_of_two_modes_keeps_precision_and_halves_recall_and_coverage() -> None:
    real = np.concatenate([gaussian(0, 300, 4), gaussian(1, 300, 4, mean=50)])
    samples = gaussian(2, 600, 4)
    precision, recall = precision_recall(samples, real)
    _, coverage = density_coverage(samples, real)
    assert precision > 0.9
    assert 0.4 < recall <= 0.5 and 0.4 < coverage <= 0.5


@pytest.mark.parametrize("row", [np.zeros(6), np.arange(6.0) / 7 + 1000])
def test_equal_real_rows_have_balls_of_exact_copies_only(row: np.ndarray) -> None:
    real = np.tile(row, (20, 1))
    copies, half = np.tile(row, (12, 1)), np.tile(row, (12, 1))
    half[:6] += 1e-3
    assert precision_recall(copies, real) == (1.0, 1.0)
    assert density_coverage(copies, real) == (20 / 5, 1.0)
    assert precision_recall(half, real)[0] == 0.5
    assert density_coverage(half, real) == (20 / 5 / 2, 1.0)
    other = half[:6]
    assert precision_recall(other, real) == (0.0, 0.0)
    assert density_coverage(other, real) == (0.0, 0.0)
    distances, _ = nearest(half, real)
    np.testing.assert_allclose(distances, [np.sqrt(6) * 1e-3] * 6 + [0] * 6, rtol=1e-9)


def test_rows_fewer_than_dimensions_are_as_good_as_any() -> None:
    samples, real = gaussian(0, 12, 300, 0.1), gaussian(1, 12, 300)
    assert precision_recall(samples, real, 3) == pytest.approx(naive_precision_recall(samples, real, 3))
    assert density_coverage(samples, real, 5) == pytest.approx(naive_density_coverage(samples, real, 5))


def test_too_few_rows_are_an_error_that_says_how_many_it_takes() -> None:
    few, many = gaussian(0, 3, 4), gaussian(1, 9, 4)
    for samples, real in ((few, many), (many, few)):
        with pytest.raises(ValueError, match=r"3 .*rows, expected at least 4 in each set for 3 neighbours"):
            precision_recall(samples, real)
    with pytest.raises(ValueError, match="9 and 3 rows, expected at least 6 in each set for 5 neighbours"):
        density_coverage(many, few)
    with pytest.raises(ValueError, match="9 and 0 rows, expected at least 1"):
        nearest(many, few[:0])


def test_memory_does_not_grow_with_the_square_of_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    rows = gaussian(0, 2000, 4)
    tracemalloc.start()
    try:
        for work in (precision_recall, density_coverage, nearest):
            work(rows[::2], rows[1::2])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2e6, peak  # a matrix of 1000 × 1000 is 8e6


def test_float32_rows_give_the_numbers_of_float64_ones() -> None:
    samples, real = gaussian(0, 80, 6).astype(np.float32), gaussian(1, 80, 6).astype(np.float32)
    for work in (precision_recall, density_coverage):
        assert work(samples, real) == work(samples.astype(np.float64), real.astype(np.float64))
