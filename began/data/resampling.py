"""Resizing: Lanczos as two matrix products, with the same pixels on every machine."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_BAND = 8  # output pixels whose Lanczos windows are multiplied together


def resample(pixels: Pixels, start: tuple[float, float], length: tuple[float, float], image_size: int) -> Pixels:
    """The box of `length` (x, y) at `start` in (h, w, 1 or 3) → (S, S, 3), by Lanczos with antialiasing.

    PIL's own resize takes three times as long, longer than decoding. Here both directions are matrix products. Weights
    and what is kept between the directions (eighths of a level) have so few bits that float32 adds them without
    rounding: the result depends neither on the order in which BLAS adds nor on its threads.
    """
    height, width, channels = pixels.shape
    S = image_size
    if (height, width) == (S, S) == length:
        return pixels if channels == 3 else np.repeat(pixels, 3, axis=2)
    rows = pixels.reshape(height, width * channels).astype(np.float32)
    rows_resized = np.empty((S, width * channels), dtype=np.float32)
    for outputs, inputs, weights in _bands(height, start[1], length[1], S, 1, 2**15, 8):
        np.matmul(weights, rows[inputs], out=rows_resized[outputs])
    np.rint(rows_resized, out=rows_resized)
    resized = np.empty((S, S * channels), dtype=np.float32)
    for outputs, inputs, weights in _bands(width, start[0], length[0], S, channels, 2**11, 1 / 8):
        np.matmul(rows_resized[:, inputs], weights.T, out=resized[:, outputs])
    np.rint(resized, out=resized)
    np.clip(resized, 0, 255, out=resized)
    image = resized.astype(np.uint8).reshape(S, S, channels)
    return image if channels == 3 else np.repeat(image, 3, axis=2)


@lru_cache(maxsize=32)
def _bands(
    num_in: int, start: float, length: float, num_out: int, channels: int, one: int, gain: float
) -> list[tuple[slice, slice, npt.NDArray[np.float32]]]:
    """Lanczos weights of one direction, cut into bands because most of the whole matrix is zero.

    Output pixels `outputs` are `weights` @ input pixels `inputs`, interleaved where there are several channels. Weights
    are multiples of `gain` / `one`, both powers of two, and a row's sum is `gain` exactly.
    """
    scale = length / num_out
    width = max(scale, 1.0)  # of one lobe; a kernel below one input pixel would miss some of them
    centres = start + (np.arange(num_out) + 0.5) * scale
    distances = (np.arange(num_in) + 0.5 - centres[:, None]) / width
    exact = np.where(np.abs(distances) < 3, np.sinc(distances) * np.sinc(distances / 3), 0)
    weights = np.rint(exact / exact.sum(axis=1, keepdims=True) * one)
    rows = np.arange(num_out)
    weights[rows, weights.argmax(axis=1)] += one - weights.sum(axis=1)  # a plain area keeps its value
    bands = []
    for first in range(0, num_out, _BAND):
        part = weights[first : first + _BAND]
        used = np.flatnonzero(part.any(axis=0))
        low, high = int(used[0]), int(used[-1]) + 1
        matrix = (np.kron(part[:, low:high], np.eye(channels)) / one * gain).astype(np.float32)
        outputs = slice(first * channels, (first + len(part)) * channels)
        bands.append((outputs, slice(low * channels, high * channels), matrix))
    return bands
