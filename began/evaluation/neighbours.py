"""Nearest neighbours among feature vectors: precision, recall, density, coverage, and the nearest row itself.

Distances are Euclidean, in float64, block by block: memory does not grow with the square of the number of rows. No
number depends on the order of rows. A ball is closed: a row at exactly its radius lies within. Where all rows of a set
are equal, its radii are 0 and its balls hold exact copies only, so that precision, recall, density and coverage stay
defined.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 1024  # rows and columns of the part of a distance matrix that exists at once

# Of |x|² + |y|², about the mean: squared distances that differ by less count as equal. |x|² + |y|² − 2x·y is good to
# about 1e-15 of it, and comes out differently in another order.
TOLERANCE = 1e-12


def precision_recall(samples: np.ndarray, real: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Shares of samples (N, d) within the real rows' balls, and of real rows (M, d) within the samples' balls.

    A row's ball reaches to its `k`-th nearest neighbour in its own set. Precision is quality, recall diversity: both
    1 for the same rows twice, and somewhat below for two sets of one distribution. Source: Kynkäänniemi et al. 2019,
    section 2. Raises ValueError with fewer than k + 1 rows in a set.
    """
    _check(samples, real, k)
    centre = _mean(real)
    sample_radii, real_radii = _squared_radii(samples, k, centre), _squared_radii(real, k, centre)
    precise, recalled = np.zeros(len(samples), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, columns, squared in _squared_distances(samples, real, centre, TOLERANCE):
        precise[rows] |= (squared <= real_radii[columns]).any(axis=1)
        recalled[columns] |= (squared <= sample_radii[rows, None]).any(axis=0)
    return float(precise.mean()), float(recalled.mean())


def density_coverage(samples: np.ndarray, real: np.ndarray, k: int = 5) -> tuple[float, float]:
    """How many real balls a sample (N, d) lies in, over `k`; and the share of real rows (M, d) whose ball has a sample.

    A real row's ball reaches to its `k`-th nearest real neighbour. Both stand outliers better than precision and
    recall, which one far row can spoil. For two sets of one distribution density is 1, which it may exceed elsewhere,
    and coverage 1 − 2^−k or so (0.97). Source: Naeem et al. 2020, section 3; their program has open balls, which
    differ only where distances are equal. Raises ValueError with fewer than k + 1 rows in a set.
    """
    _check(samples, real, k)
    centre = _mean(real)
    radii = _squared_radii(real, k, centre)
    inside, covered = 0, np.zeros(len(real), dtype=bool)
    for _, columns, squared in _squared_distances(samples, real, centre, TOLERANCE):
        within = squared <= radii[columns]
        inside += int(within.sum())
        covered[columns] |= within.any(axis=0)
    return inside / (k * len(samples)), float(covered.mean())


def nearest(queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N,) float64 of each query (N, d) to its nearest row (M, d), and the number (N,) of that row.

    Raises ValueError when there is no row.
    """
    _check(queries, rows, 0)
    best = np.full(len(queries), np.inf)
    indices = np.zeros(len(queries), dtype=np.int64)
    for block, columns, squared in _squared_distances(queries, rows, _mean(rows)):
        winners = squared.argmin(axis=1)
        values = squared[np.arange(len(squared)), winners]
        nearer = values < best[block]
        best[block][nearer] = values[nearer]
        indices[block][nearer] = columns.start + winners[nearer]
    # From the difference: exactly 0 for a copy.
    distances = np.empty(len(queries))
    for block in _blocks(len(queries)):
        difference = queries[block].astype(np.float64) - rows[indices[block]]
        distances[block] = np.sqrt((difference * difference).sum(axis=1))
    return distances, indices


def _squared_radii(rows: np.ndarray, k: int, centre: np.ndarray) -> np.ndarray:
    """Squared distance (N,) of each row to its `k`-th nearest other row."""
    nearest_squared = np.full((len(rows), k), np.inf)
    for block, columns, squared in _squared_distances(rows, rows, centre):
        if block == columns:
            np.fill_diagonal(squared, np.inf)
        candidates = np.concatenate([nearest_squared[block], squared], axis=1)
        nearest_squared[block] = np.partition(candidates, k - 1, axis=1)[:, :k]
    radii: np.ndarray = np.maximum(nearest_squared.max(axis=1), 0)
    return radii


def _squared_distances(
    a: np.ndarray, b: np.ndarray, centre: np.ndarray, tolerance: float = 0.0
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Blocks of |x − y|² − tolerance·(|x|² + |y|²) with x, y counted from `centre`: rows of a, rows of b, values."""
    for rows in _blocks(len(a)):
        x = a[rows].astype(np.float64) - centre
        x_squares = (x * x).sum(axis=1)
        for columns in _blocks(len(b)):
            y = b[columns].astype(np.float64) - centre
            squares = x_squares[:, None] + (y * y).sum(axis=1)
            yield rows, columns, (1 - tolerance) * squares - 2 * (x @ y.T)


def _mean(rows: np.ndarray) -> np.ndarray:
    total = sum((rows[block].sum(axis=0, dtype=np.float64) for block in _blocks(len(rows))), np.zeros(rows.shape[1]))
    return np.asarray(total / len(rows))


def _blocks(num: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, num)) for start in range(0, num, BLOCK)]


def _check(a: np.ndarray, b: np.ndarray, k: int) -> None:
    assert a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] and k >= 0, (a.shape, b.shape, k)
    if min(len(a), len(b)) < k + 1:
        raise ValueError(f"{len(a)} and {len(b)} rows, expected at least {k + 1} in each set for {k} neighbours")
