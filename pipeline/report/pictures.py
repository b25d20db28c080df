"""What a model draws, and how it got there → the report's pictures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from began.base.progress import Progress
from began.data.images import grid, png_bytes, read_png, tiles, webp_bytes, write_png
from began.data.rows import ImageFile
from began.device.threads import thread_pool
from began.evaluation.inversion import embed
from began.gan.sampling import draw_z, generate, interpolate, reconstruct
from began.runs.curve import History
from began.runs.model_folder import Model
from pipeline.console.progress_bar import follow
from pipeline.report import plots
from pipeline.report.measurements import Measured
from pipeline.report.page import Picture

COLUMNS = 8  # of a grid of samples
NUM_TILES = 64
NUM_RECONSTRUCTIONS = 32
NUM_STRIPS = 6
NUM_PAIRS = 4  # of held-out images, and half as many of an image and its mirror image
NUM_STEPS_SHOWN = 6
PIXELS_ACROSS = 1024  # of a grid on the page: small tiles are repeated up to it, so that a browser does not blur them
MOST_PNG = 250_000  # bytes of one picture on the page; larger ones are shown as WebP, and kept beside it as PNG

Thumbnails = dict[int, np.ndarray]  # step → tiles (N, S, S, 3) of the fixed z


def read_thumbnails(model: Path, image_size: int) -> Thumbnails:
    """The grids that the training left; ValueError naming the one that is none."""
    thumbnails = {}
    for path in (model / "samples").glob("*.png"):
        if path.stem.isdecimal():
            picture = read_png(path)
            try:
                thumbnails[int(path.stem)] = tiles(picture, image_size)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    return thumbnails


def draw(
    folder: Path,
    trained: Model,
    file: ImageFile,
    history: History,
    distances: History | None,
    thumbnails: Thumbnails,
    measured: Measured,
    seed: int,
) -> list[Picture]:
    """Writes every picture into `folder`; returns them with their captions, in the page's order."""
    gamma = float(trained.description["parameters"]["gamma"])
    pictures = [
        _samples(folder, trained, seed),
        _curve(
            folder / "convergence.png",
            partial(plots.convergence, history, thumbnails),
            "Convergence",
            "M_global over the steps of the run, the faint line its records and the other their means, and above it "
            "what the generator made of the same six z at each point.",
            "M_global over steps, with samples above the curve",
        ),
    ]
    if distances is not None:
        correlation = measured.numbers["rank_correlation"]
        pictures.append(
            _curve(
                folder / "distances.png",
                partial(plots.distances, history, distances, correlation),
                "Does M_global tell quality?",
                "M_global beside the Fréchet distance in face features, which was measured now and then while the "
                "model trained, on a few hundred samples. A point’s M_global is the mean since the point before; the "
                "faint line has single records. Their rank correlation is 1 when both always agree which of two "
                "moments was better.",
                "M_global and the face distance over steps",
            )
        )
    pictures.append(
        _curve(
            folder / "curves.png",
            partial(plots.curves, history, gamma),
            "Balance",
            "The losses of real and generated images, which k_t keeps at L_fake = γ·L_real; k_t itself; and the "
            "learning rate.",
            "Losses, k_t and learning rate over steps",
        )
    )
    if len(thumbnails) > 1:
        pictures.append(_over_time(folder, thumbnails))
    if (found := measured.attributes) is not None:
        pictures.append(
            _curve(
                folder / "attributes.png",
                partial(plots.attributes, found.samples, found.data),
                "Colours of samples and data",
                "What colours three places of the picture have: its sides, the nose, and the top of the head. A bar is "
                "the share of the samples, in their own mean colour. The grey behind it is the share of the training "
                "images. The numbers say how much of the two histograms is shared; 1 is all.",
                "Histograms of background hue, skin and hair colour, samples in front of the data",
            )
        )
    pictures += [
        _interpolation(folder, trained, seed),
        _real_interpolation(folder, trained, file, seed),
        _neighbours(folder, measured),
        _reconstructions(folder, trained, file),
        _averaging(folder, trained, seed),
    ]
    return pictures


def _grid(path: Path, pixels: np.ndarray, title: str, caption: str) -> Picture:
    """Pixels (N, S, S, 3) as a grid, written to `path` and shown larger."""
    picture = grid(pixels, COLUMNS)
    write_png(path, picture)
    times = max(PIXELS_ACROSS // picture.shape[1], 1)
    shown = picture.repeat(times, axis=0).repeat(times, axis=1)
    while shown.shape[1] > 2 * PIXELS_ACROSS:  # more than any screen shows of it
        quarters = [shown[i::2, j::2].astype(np.uint16) for i in (0, 1) for j in (0, 1)]
        shown = ((sum(quarters[1:], quarters[0]) + 2) // 4).astype(np.uint8)
    image = png_bytes(shown)
    return Picture(title, caption, title, image if len(image) <= MOST_PNG else webp_bytes(shown), is_grid=True)


def _curve(path: Path, draw: Callable[..., bytes], title: str, caption: str, alt: str) -> Picture:
    wide = draw(theme=plots.LIGHT)
    path.write_bytes(wide)
    dark, narrow = draw(theme=plots.DARK), draw(theme=plots.LIGHT, narrow=True)
    return Picture(title, caption, alt, wide, dark, narrow, draw(theme=plots.DARK, narrow=True))


def _samples(folder: Path, trained: Model, seed: int) -> Picture:
    z = draw_z(NUM_TILES, trained.description["architecture"]["N_h"], seed)
    return _grid(
        folder / "samples.png",
        np.concatenate(list(generate(trained.G_ema, z))),
        "Samples",
        f"{NUM_TILES} samples from random z, not picked, after {trained.description['step']:,} steps. The weights are "
        "the average over the last steps.",
    )


def _over_time(folder: Path, thumbnails: Mapping[int, np.ndarray]) -> Picture:
    steps = plots.evenly(sorted(thumbnails), NUM_STEPS_SHOWN)
    words = ", ".join(f"{step:,}" for step in steps[:-1])
    return _grid(
        folder / "over_time.png",
        np.concatenate([thumbnails[step][:COLUMNS] for step in steps]),
        "The same z over time",
        f"A row each after {words} and {steps[-1]:,} steps.",
    )


def _interpolation(folder: Path, trained: Model, seed: int) -> Picture:
    ends = draw_z(2 * NUM_STRIPS, trained.description["architecture"]["N_h"], seed)
    paths = torch.cat([interpolate(ends[2 * i], ends[2 * i + 1], COLUMNS) for i in range(NUM_STRIPS)])
    return _grid(
        folder / "interpolation.png",
        np.concatenate(list(generate(trained.G_ema, paths))),
        "Between samples",
        "Each row walks from one sample to another on the straight line between their z. Every step should be a face.",
    )


def _real_interpolation(folder: Path, trained: Model, file: ImageFile, seed: int) -> Picture:
    """Rows of x_a, the walk from its embedding to that of x_b, x_b."""
    rows = np.array(file.held_out[: 2 * NUM_PAIRS])
    pairs = [(rows[i], rows[i + 1]) for i in range(0, len(rows) - 1, 2)]
    pairs += [(row, row[:, ::-1]) for row in rows[: max(NUM_PAIRS // 2, 1)]]
    ends = np.concatenate([np.stack(pair) for pair in pairs])
    z = follow(_on_one_core(embed(trained.G_ema, ends, seed)), "embedding of held-out images", brief=True)
    paths = torch.cat([interpolate(z[2 * i], z[2 * i + 1], COLUMNS - 2) for i in range(len(pairs))])
    walks = np.concatenate(list(generate(trained.G_ema, paths))).reshape(len(pairs), COLUMNS - 2, *rows.shape[1:])
    strips = [np.stack((a, *walk, b)) for (a, b), walk in zip(pairs, walks, strict=True)]
    return _grid(
        folder / "real_interpolation.png",
        np.concatenate(strips),
        "Between real images",
        "At both ends of a row stand images that the model never saw; between them it walks from the z whose sample "
        "comes nearest to the one, to that of the other. In the last rows the other is the mirror image.",
    )


def _on_one_core(work: Generator[Progress, None, Tensor]) -> Generator[Progress, None, Tensor]:
    """`work` in a thread whose torch uses one core: operations as small as these cost more to share out than to do."""
    with thread_pool(1) as thread:

        def advance() -> tuple[Progress, None] | tuple[None, Tensor]:
            try:
                return next(work), None
            except StopIteration as stop:
                return None, stop.value

        while True:
            progress, result = thread.submit(advance).result()
            if progress is None:
                return cast(Tensor, result)
            yield progress


def _neighbours(folder: Path, measured: Measured) -> Picture:
    rows = []
    for pairs in measured.neighbours:
        blank = np.full((COLUMNS - len(pairs.images), *pairs.images.shape[1:]), 255, dtype=np.uint8)
        rows += [pairs.images, blank, pairs.nearest, blank]
    return _grid(
        folder / "neighbours.png",
        np.concatenate(rows),
        "Nearest training images",
        "First row: of all samples those that come nearest to a training image, which stands below each. Then the "
        "same for images that were never seen: where samples are no nearer than those, nothing is copied.",
    )


def _reconstructions(folder: Path, trained: Model, file: ImageFile) -> Picture:
    originals = np.array(file.held_out[:NUM_RECONSTRUCTIONS])
    rows = []
    for start in range(0, len(originals), COLUMNS):
        part = originals[start : start + COLUMNS]
        blank = np.full((COLUMNS - len(part), *part.shape[1:]), 255, dtype=np.uint8)
        rows += [part, blank, reconstruct(trained.D, part), blank]
    return _grid(
        folder / "reconstructions.png",
        np.concatenate(rows),
        "Reconstructions",
        "Held-out images, and under each row what the discriminator, an auto-encoder, makes of them.",
    )


def _averaging(folder: Path, trained: Model, seed: int) -> Picture:
    z = draw_z(NUM_RECONSTRUCTIONS, trained.description["architecture"]["N_h"], seed)
    averaged, raw = (np.concatenate(list(generate(G, z))) for G in (trained.G_ema, trained.G))
    rows = [row for i in range(0, len(z), COLUMNS) for row in (averaged[i : i + COLUMNS], raw[i : i + COLUMNS])]
    return _grid(
        folder / "averaging.png",
        np.concatenate(rows),
        "With and without averaging",
        "Samples of the averaged weights, and under each row the same z through the weights of the last step alone.",
    )
