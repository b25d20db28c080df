"""Feature vectors → numbers. Pure functions in float64; a row is one image.

The order of rows matters to the inception score only. Rows are read block by block: of mapped ones only some blocks are
in memory, however many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special

BLOCK = 1024  # rows that are worked on at once


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance between the Gaussians fitted to features a (N, d) and b (M, d); 0 or more, 0 for equal sets.

    |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2·(Σ_a Σ_b)^½), covariances over N − 1 and M − 1. It is biased: with few rows it is
    larger, so compare it with a real-against-real distance of as many rows. Source: Heusel et al. 2017, eq. 6; with
    Inception features it is called FID. Raises ValueError with fewer than 2 rows in a set.
    """
    _check_sets(a, b)
    mean_a, mean_b = _mean(a), _mean(b)
    root_a, root_b = _root(a, mean_a), _root(b, mean_b)
    # For Σ_a = AᵀA and Σ_b = BᵀB, tr (Σ_a Σ_b)^½ is the sum of the singular values of ABᵀ: real also where Σ is
    # singular (N <= d), unlike the root of the product, which is not symmetric.
    traces = (root_a * root_a).sum() + (root_b * root_b).sum()
    difference = mean_a - mean_b
    distance = difference @ difference + traces - 2 * scipy.linalg.svdvals(root_a @ root_b.T).sum()
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
    order_a, order_b = _order(a), _order(b)
    size = min(subset_size, len(a) // 2, len(b) // 2)
    draw = np.random.default_rng(seed)
    rows_a = np.stack([order_a[draw.choice(len(a), size, replace=False)] for _ in range(num_subsets)])
    rows_b = np.stack([order_b[draw.choice(len(b), size, replace=False)] for _ in range(num_subsets)])
    # All subsets at once where that makes fewer kernels of pairs: subsets then share most of their pairs.
    together = num_subsets if len(a) * len(b) <= num_subsets * size**2 else 1
    groups = [slice(start, start + together) for start in range(0, num_subsets, together)]
    distances = np.concatenate([_mmd2_of_subsets(a, b, rows_a[group], rows_b[group]) for group in groups])
    return Kid(float(distances.mean()), float(distances.std()))


def polynomial_mmd2(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of a (N, d) and b (M, d) with the kernel (x·y/d + 1)³.

    Source: Gretton et al. 2012, eq. 3; kernel of Bińkowski et al. 2018.
    """
    return float(_mmd2_of_subsets(a, b, np.arange(len(a))[None], np.arange(len(b))[None])[0])


def mean_pairwise_distance(a: np.ndarray) -> float:
    """Mean Euclidean distance between two different rows of a (N, d); memory flat in N.

    Raises ValueError with fewer than 2 rows.
    """
    if len(a) < 2:
        raise ValueError(f"{len(a)} rows, expected at least 2 for a distance between rows")
    mean = _mean(a)  # without the common mean, |x|² + |y|² − 2x·y loses fewer digits
    total = 0.0
    for i, x in enumerate(_blocks(a, mean)):
        for j, y in enumerate(_blocks(a, mean)):
            if j > i:
                break  # each pair once
            squared = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
            if i == j:
                np.fill_diagonal(squared, 0)
            total += float(np.sqrt(np.maximum(squared, 0)).sum()) * (1 if i == j else 2)
    return total / (len(a) * (len(a) - 1))


def diversity(samples: np.ndarray, real: np.ndarray) -> float:
    """Mean pairwise distance of samples over that of real rows, both as features (·, d).

    1 when samples differ from one another as much as real images do, 0 when all are one image. It says nothing of
    quality, and a few different images over and over still come near 1; the Fréchet distance sees those.
    Raises ValueError with fewer than 2 rows, or when the real rows are all alike: within a millionth of their length,
    which rounding alone may leave.
    """
    reference = mean_pairwise_distance(real)
    if reference <= 1e-6 * np.linalg.norm(_mean(real)):
        raise ValueError("the real rows have no variance in these features, expected rows that differ")
    return mean_pairwise_distance(samples) / reference


def inception_score(features: np.ndarray, classifier: np.ndarray, num_splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over splits of exp E KL(p(y|x) ‖ p(y)); 1 or more, at most the number of classes.

    p(y|x) is the softmax of features (N, d) @ classifier (d, num_classes). Rows are shuffled, always in the same way,
    and split as torch-fidelity does. Source: Salimans et al. 2016, section 4. It knows no real images, and means
    something only for images of the classes that the classifier learned. Raises ValueError with fewer than
    `num_splits` rows.
    """
    if len(features) < num_splits:
        raise ValueError(f"{len(features)} rows, expected at least {num_splits}: one for each split")
    order = np.random.RandomState(2020).permutation(len(features))
    scores = []
    for i in range(num_splits):
        rows = order[i * len(features) // num_splits : (i + 1) * len(features) // num_splits]
        probabilities, negative_entropy = np.zeros(classifier.shape[1]), 0.0
        for start in range(0, len(rows), BLOCK):
            logits = features[rows[start : start + BLOCK]].astype(np.float64) @ classifier
            log_p = scipy.special.log_softmax(logits, axis=1)
            p = np.exp(log_p)
            probabilities += p.sum(axis=0) / len(rows)
            negative_entropy += float((p * log_p).sum()) / len(rows)
        # E KL(p(y|x) ‖ p(y)) = E Σ p(y|x) log p(y|x) − Σ p(y) log p(y), with 0 log 0 = 0
        scores.append(np.exp(negative_entropy + scipy.special.entr(probabilities).sum()))
    return float(np.mean(scores)), float(np.std(scores))


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's rank correlation of pairs, −1 … 1; equal values share their mean rank.

    Pairs with a value that is not finite are left out. None with fewer than 3 pairs, or when one side never varies.
    """
    pairs = np.stack([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    ranks = [_ranks(values) for values in pairs[:, np.isfinite(pairs).all(axis=0)]]
    if len(ranks[0]) < 3 or any((side == side[0]).all() for side in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


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


def _mean(features: np.ndarray) -> np.ndarray:
    total = sum((rows.sum(axis=0) for rows in _blocks(features)), np.zeros(features.shape[1]))
    return np.asarray(total / len(features))


def _blocks(features: np.ndarray, mean: np.ndarray | float = 0.0) -> Iterator[np.ndarray]:
    """Some rows at a time, as float64 about `mean`."""
    for start in range(0, len(features), BLOCK):
        yield features[start : start + BLOCK].astype(np.float64) - mean


def _root(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """A triangle R (at most d, d) with RᵀR the covariance over N − 1: QR, block by block."""
    triangle = np.zeros((0, features.shape[1]))
    for rows in _blocks(features, mean):
        (triangle,) = scipy.linalg.qr(np.concatenate([triangle, rows]), mode="r", check_finite=False)
        triangle = triangle[: features.shape[1]]
    root: np.ndarray = triangle / np.sqrt(len(features) - 1)
    return root


def _mmd2_of_subsets(a: np.ndarray, b: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray) -> np.ndarray:
    """polynomial_mmd2 (num_subsets,) of the rows whose numbers are rows_a (num_subsets, n) and rows_b (…, m)."""
    n, m = rows_a.shape[1], rows_b.shape[1]
    within_a = _kernel_sums(a, a, rows_a, rows_a, within=True)
    within_b = _kernel_sums(b, b, rows_b, rows_b, within=True)
    between = _kernel_sums(a, b, rows_a, rows_b)
    distances: np.ndarray = within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * between / (n * m)
    return distances


def _kernel_sums(
    a: np.ndarray, b: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray, within: bool = False
) -> np.ndarray:
    """Σ (x·y/d + 1)³ (num_subsets,) over a subset's rows x of a and y of b; `within` one set, x and y differ."""
    (used_a, in_a), (used_b, in_b) = _members(rows_a), _members(rows_b)
    sums = np.zeros(len(rows_a))
    for i in range(0, len(used_a), BLOCK):
        x = a[used_a[i : i + BLOCK]].astype(np.float64)
        for j in range(0, len(used_b), BLOCK):
            y = b[used_b[j : j + BLOCK]].astype(np.float64)
            kernel = x @ y.T / a.shape[1] + 1
            kernel *= kernel * kernel  # kernel ** 3 takes ten times as long
            if within and i == j:
                np.fill_diagonal(kernel, 0)
            sums += ((in_a[:, i : i + BLOCK] @ kernel) * in_b[:, j : j + BLOCK]).sum(axis=1)
    return sums


def _members(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows (num_used,) that any subset has, and which subset has which: (num_subsets, num_used) of 0 and 1."""
    used, positions = np.unique(rows, return_inverse=True)
    has = np.zeros((len(rows), len(used)))
    np.put_along_axis(has, positions.reshape(rows.shape), 1, axis=1)
    return used, has


def _order(features: np.ndarray) -> np.ndarray:
    """Numbers of the rows in an order that depends on their content only."""
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for rows in _blocks(features) for row in rows]
    return np.argsort(np.array(digests, dtype="S16"), kind="stable")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks
