"""Memory of the report's features and numbers at 5,000 and at 20,000 images.

    python -m benchmarks.features [--quick]

Made-up images, drawn as they are read; one half of them is compared with the other. Memory: peak of RssAnon of a
process that does nothing else; features lie in a mapped file, which is the page cache's.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from began.evaluation import metrics, neighbours
from began.evaluation.features import extract, load_face_network
from benchmarks.memory import peak_rss_anon
from benchmarks.report import Row, print_table, write

IMAGE_SIZE = 32
BATCH_SIZE = 50
NUMS = (5_000, 20_000)


def made_up(num: int) -> Iterator[np.ndarray]:
    """Batches of different images in colour, 4×4 patches that make a picture: no two alike."""
    draw = np.random.default_rng(0)
    for start in range(0, num, BATCH_SIZE):
        patches = draw.integers(0, 256, (min(BATCH_SIZE, num - start), 4, 4, 3), dtype=np.uint8)
        yield patches.repeat(IMAGE_SIZE // 4, axis=1).repeat(IMAGE_SIZE // 4, axis=2)


def compute(path: Path, num: int) -> None:
    for _ in extract(load_face_network(), made_up(num), num, path):
        pass


def halves(path: Path) -> tuple[np.ndarray, np.ndarray]:
    features = np.load(path, mmap_mode="r")
    return features[: len(features) // 2], features[len(features) // 2 :]


def frechet(path: Path, num: int) -> None:
    metrics.frechet_distance(*halves(path))


def kid(path: Path, num: int) -> None:
    metrics.kid(*halves(path))


def diversity(path: Path, num: int) -> None:
    metrics.diversity(*halves(path))


def precision_recall(path: Path, num: int) -> None:
    neighbours.precision_recall(*halves(path))


def density_coverage(path: Path, num: int) -> None:
    neighbours.density_coverage(*halves(path))


def nearest(path: Path, num: int) -> None:
    neighbours.nearest(*halves(path))


# The first makes the file that the others read.
WORK: tuple[tuple[str, Callable[[Path, int], None]], ...] = (
    ("face features into a mapped file", compute),
    ("Fréchet distance", frechet),
    ("KID", kid),
    ("diversity", diversity),
    ("precision and recall", precision_recall),
    ("density and coverage", density_coverage),
    ("nearest row", nearest),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, and no JSON: shows that it works")
    quick = parser.parse_args().quick
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for num in NUMS:
            num_images = num // 10 if quick else num
            path = Path(temporary) / f"{num_images}.npy"
            for what, work in WORK:
                peak = peak_rss_anon(work, path, num_images)
                rows.append({"what": what, "num_images": num_images, "peak_rss_anon_mib": peak / 2**20})
    if quick:
        print_table(rows)
    else:
        write("features", {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "block": metrics.BLOCK}, rows)


if __name__ == "__main__":
    main()
