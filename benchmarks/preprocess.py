"""Rate of preprocess against bare Pillow decoding, and its memory at 10,000 and 40,000 images.

    python -m benchmarks.preprocess [--quick]

The rate: preprocess from the archive to the finished file, over reading the same members and decoding them at full size
(`PIL.Image.open(…).load()`), thrown away at once, by as many processes of the same pool. Pairs are interleaved, the
median of their ratios counts. Start-up of the processes is in both. Memory: peak of the sum of RssAnon over all
processes. Train's memory is a row of read_batches.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from began.base.parallel import num_cores, ordered_map
from began.data.archives import ImageArchive, write_member
from began.data.preparation import write_rows
from began.params import DownloadParams, PreprocessParams
from benchmarks.memory import peak_rss_anon
from benchmarks.report import print_table, write

NUM_PICTURES = 200  # different ones; an archive repeats them
NUM_IMAGES = 4000
NUM_PHOTOGRAPHS = 1000
NUM_PAIRS = 3
TASK_IMAGES = 64


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Shapes of all sizes and some noise: as JPEG of quality 88 about the bytes of CelebA's (7 kB at 178×218)."""
    picture = np.zeros((height, width, 3))
    for num in (3, 6, 12, 24, 48):
        cells = rng.normal(0, 60 / num**0.5, (num * height // width + 2, num, 3)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(cells[..., channel]).resize((width, height), Image.Resampling.BICUBIC))
            for channel in range(3)
        ]
        picture += np.stack(layers, axis=2)
    picture += 128 + rng.normal(0, 2, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def jpegs(num: int, width: int, height: int) -> list[bytes]:
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(num):
        buffer = io.BytesIO()
        photograph(rng, width, height).save(buffer, "JPEG", quality=88)
        encoded.append(buffer.getvalue())
    return encoded


def portraits(num: int, folder: Path) -> list[bytes]:
    from began.data.sources import fetch

    archive = folder / "drawn.zip"
    source = DownloadParams(
        source="portraits",
        num_images=num,
        clutter=1,
        folder="",
        url=None,
        sha256=None,
        accept_celeba_licence=False,
        celeba_zip=None,
    )
    for _ in fetch(source, archive, folder, num_cores()):
        pass
    with ImageArchive(archive) as images:
        return [images.read(entry) for entry in images.entries()]


def make_archive(path: Path, pictures: list[bytes], num_images: int, suffix: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for i, data in zip(range(num_images), itertools.cycle(pictures), strict=False):
            write_member(file, f"{i:06}.{suffix}", data)
    return path


def decode_all(archive: Path, workers: int) -> None:
    with ImageArchive(archive) as images:
        entries = images.entries()
    tasks = [(archive, entries[i : i + TASK_IMAGES]) for i in range(0, len(entries), TASK_IMAGES)]
    for _ in ordered_map(decode_some, tasks, workers):
        pass


def decode_some(task: tuple[Path, list[int]]) -> None:
    path, entries = task
    with ImageArchive(path) as images:
        for entry in entries:
            Image.open(io.BytesIO(images.read(entry))).load()


def preprocess_all(archive: Path, output: Path, image_size: int, crop: str, workers: int) -> None:
    settings = PreprocessParams(image_size=image_size, crop=crop, max_images=None, max_rejected=0, held_out=0.1)
    for _ in write_rows(archive, output, settings, crop, {"source": "benchmark"}, workers):
        pass


def seconds_of(function: Callable[..., None], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, and no JSON: shows that it works")
    quick = parser.parse_args().quick
    workers, scale = num_cores(), 10 if quick else 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        aligned = jpegs(NUM_PICTURES, 178, 218)
        kinds = [
            ("drawn portraits, JPEG 128×128", portraits(NUM_PICTURES, folder), "jpg", NUM_IMAGES, [(32, "centre")]),
            ("like CelebA, JPEG 178×218", aligned, "jpg", NUM_IMAGES, [(32, "face"), (64, "face"), (128, "face")]),
            ("photographs, JPEG 1024×768", jpegs(20, 1024, 768), "jpg", NUM_PHOTOGRAPHS, [(64, "centre")]),
        ]
        rows = []
        for name, pictures, suffix, num_images, uses in kinds:
            archive = make_archive(folder / "images.zip", pictures, num_images // scale, suffix)
            for image_size, crop in uses:
                rows.append(
                    row(f"{name} → {image_size}, {crop}", num_images // scale)
                    | rates(archive, folder / "images.h5", num_images // scale, image_size, crop, workers)
                )
        for num_images in (10_000, 40_000):
            archive = make_archive(folder / "images.zip", aligned, num_images // scale, "jpg")
            peak = peak_rss_anon(preprocess_all, archive, folder / "images.h5", 32, "face", workers)
            rows.append(
                row("memory of preprocess → 32, face", num_images // scale) | {"peak_rss_anon_mib": peak / 2**20}
            )
    if quick:
        print_table(rows)
    else:
        write("preprocess", {"workers": workers, "pairs": NUM_PAIRS, "num_pictures": NUM_PICTURES}, rows)


def row(what: str, num_images: int) -> dict[str, str | float | int | None]:
    measured = ("decoding_per_second", "preprocess_per_second", "ratio", "peak_rss_anon_mib")
    return {"what": what, "num_images": num_images} | dict.fromkeys(measured)


def rates(archive: Path, output: Path, num_images: int, image_size: int, crop: str, workers: int) -> dict[str, float]:
    bare, ours = [], []
    for _ in range(NUM_PAIRS):
        bare.append(seconds_of(decode_all, archive, workers))
        ours.append(seconds_of(preprocess_all, archive, output, image_size, crop, workers))
    return {
        "decoding_per_second": num_images / statistics.median(bare),
        "preprocess_per_second": num_images / statistics.median(ours),
        "ratio": statistics.median(b / o for b, o in zip(bare, ours, strict=True)),
    }


if __name__ == "__main__":
    main()
