"""Feature vectors → numbers. Pure functions in float64; a row is one image, and the order of rows never matters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.linalg

BLOCK = 1024  # rows of a distance matrix that exist at once


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to features a (N, d) and b (M, d); 0 or more, 0 for equal sets.

    |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2·(Σ_a Σ_b)^½), covariances over N − 1 and M − 1. It is biased: with few rows it is
    larger, so compare it with a real-against-real distance of as many rows. Source: Heusel et al. 2017, eq. 6; with
    Inception features it is called FID. Raises ValueError with fewer than 2 rows in a set.
    """
    _check_sets(a, b)
    mean_a, covariance_a = _moments(a)
    mean_b, covariance_b = _moments(b)
    # tr (Σ_a Σ_b)^½ is the sum of the singular values of Σ_a^½ Σ_b^½: real also where Σ is singular (N <= d), unlike
    # the root of the product, which is not symmetric.
    roots = scipy.linalg.svdvals(_root(covariance_a) @ _root(covariance_b))
    difference = mean_a - mean_b
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2 * roots.sum()
    return max(float(distance), 0.0)


@dataclass(frozen=True)
class Kid:
    """Mean and standard deviation of the kernel distance over subsets."""

    mean: float
    std: float


def kid(a: np.ndarray, b: np.ndarray, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """Kernel distance between features a (N, d) and b (M, d): unbiased MMD² with the kernel (x·y/d + 1)³.

    The mean over `num_subsets` random subsets, without replacement, of `subset_size` rows of each set, or of half the
    smaller set where that is less; may be slightly below 0 for equal distributions. Unlike the Fréchet distance it
    does not grow as rows get fewer. Source: Bińkowski et al. 2018, section 4. Raises ValueError with fewer than 4 rows
    in a set, of which no subset of 2 and a different one could be drawn.
    """
    _check_sets(a, b, least=4)
    # Subsets of sorted rows: the same rows in another order give the same number.
    a, b = _sorted(a), _sorted(b)
    size = min(subset_size, len(a) // 2, len(b) // 2)
    draw = np.random.default_rng(seed)
    distances = np.array(
        [
            polynomial_mmd2(a[draw.choice(len(a), size, replace=False)], b[draw.choice(len(b), size, replace=False)])
            for _ in range(num_subsets)
        ]
    )
    return Kid(float(distances.mean()), float(distances.std()))


def polynomial_mmd2(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of a (N, d) and b (M, d) with the kernel (x·y/d + 1)³.

    Source: Gretton et al. 2012, eq. 3; kernel of Bińkowski et al. 2018.
    """
    within_a = _kernel_sum(a, a) - (((a * a).sum(1) / a.shape[1] + 1) ** 3).sum()
    within_b = _kernel_sum(b, b) - (((b * b).sum(1) / b.shape[1] + 1) ** 3).sum()
    n, m = len(a), len(b)
    return float(within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * _kernel_sum(a, b) / (n * m))


def mean_pairwise_distance(a: np.ndarray) -> float:
    """Mean Euclidean distance between two different rows of a (N, d); memory flat in N.

    Raises ValueError with fewer than 2 rows.
    """
    if len(a) < 2:
        raise ValueError(f"{len(a)} rows, expected at least 2 for a distance between rows")
    # Without the common mean, |x|² + |y|² − 2x·y loses fewer digits.
    a = a - a.mean(axis=0)
    squares = (a * a).sum(axis=1)
    total = 0.0
    for start in range(0, len(a), BLOCK):
        block = slice(start, start + BLOCK)
        squared = squares[block, None] + squares[None] - 2 * a[block] @ a.T
        rows = np.arange(len(squared))
        squared[rows, start + rows] = 0
        total += float(np.sqrt(np.maximum(squared, 0)).sum())
    return total / (len(a) * (len(a) - 1))


def diversity(samples: np.ndarray, real: np.ndarray) -> float:
    """Mean pairwise distance of samples over that of real rows, both as features (·, d).

    1 when samples differ from one another as much as real images do, 0 when all are one image. It says nothing of
    quality, and a few different images over and over still come near 1; the Fréchet distance sees those.
    Raises ValueError with fewer than 2 rows, or when the real rows are all alike.
    """
    reference = mean_pairwise_distance(real)
    if reference == 0:
        raise ValueError("the real rows have no variance in these features, expected rows that differ")
    return mean_pairwise_distance(samples) / reference


class PixelSpread:
    """Mean over pixels and channels of the standard deviation over images, 0 … 127.5, gathered batch by batch.

    The ratio of samples' to real images' is the report's `spread`. It sees what colours a whole image (a background
    that never changes), which the features of a face network may overlook.
    """

    def __init__(self) -> None:
        self._num = 0
        self._sum: np.ndarray | None = None
        self._sum_of_squares: np.ndarray | None = None

    def watch(self, batches: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
        """Passes batches (B, S, S, 3) uint8 on and counts them."""
        for batch in batches:
            wide = batch.astype(np.uint64)  # exact, so that batch size and order change no bit
            self._num += len(batch)
            self._sum = wide.sum(axis=0) + (0 if self._sum is None else self._sum)
            self._sum_of_squares = (wide * wide).sum(axis=0) + (
                0 if self._sum_of_squares is None else self._sum_of_squares
            )
            yield batch

    @property
    def value(self) -> float:
        """Of all batches that passed. Raises ValueError with fewer than 2 images."""
        if self._num < 2 or self._sum is None or self._sum_of_squares is None:
            raise ValueError(f"{self._num} images, expected at least 2 for a spread")
        # n·Σx² − (Σx)² is exact in integers, and never below 0.
        scaled_variance = self._num * self._sum_of_squares - self._sum * self._sum
        return float(np.sqrt(scaled_variance.astype(np.float64)).mean() / self._num)


def _check_sets(a: np.ndarray, b: np.ndarray, least: int = 2) -> None:
    assert a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1], (a.shape, b.shape)
    if min(len(a), len(b)) < least:
        raise ValueError(f"{len(a)} and {len(b)} rows, expected at least {least} in each set")


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features = features.astype(np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semi-definite matrix; eigenvalues that rounding left below 0 count as 0."""
    values, vectors = scipy.linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    kernel = a @ b.T / a.shape[1] + 1
    return float(np.vdot(kernel * kernel, kernel))  # kernel ** 3 takes ten times as long


def _sorted(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    sorted_rows: np.ndarray = features[np.lexsort(features.T[::-1])]
    return sorted_rows
