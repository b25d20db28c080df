"""What programs that train and compare share: images to train on, numbers of samples, grids side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from began.data.batches import open_batches
from began.data.images import grid
from began.data.rows import ImageFile, open_images
from began.evaluation import metrics, neighbours
from began.evaluation.features import load_face_network
from began.gan.loop import train
from began.gan.networks import Generator
from began.gan.sampling import Pixels, draw_z, generate
from began.gan.training import Training
from began.params import Params, load_params
from benchmarks.report import FOLDER

ROOT = FOLDER.parent
IMAGES = ROOT / "data" / "images.h5"
PICTURES = ROOT / "docs" / "images"
NUM_JUDGED = 2_000  # samples, and held-out images: the quick profile's own
NUM_SHOWN = 36
BATCH_SIZE = 100

Numbers = dict[str, float]


def with_train(params: Params, **changes: object) -> Params:
    """`params` with other values in its train section, checked."""
    return params.model_copy(update={"train": params.train.model_validate(params.train.model_dump() | changes)})


def images_and_settings() -> tuple[ImageFile, Params]:
    """The rows that `dvc repro preprocess` left in data/, and params.yaml as it stands."""
    if not IMAGES.is_file():
        raise SystemExit("data/images.h5 is missing: `dvc repro preprocess` makes it")
    return open_images(IMAGES), load_params(ROOT / "params.yaml")


def train_timed(file: ImageFile, params: Params) -> tuple[Training, float]:
    """BEGAN as `params` say, on the CPU to its last step; and the seconds of processor time that the steps took."""
    cpu = torch.device("cpu")
    training = Training(params, file.image_size, cpu)
    batches = open_batches(file.train, params.train.batch_size, params.seed, cpu)
    start = time.process_time()
    for _ in train(training, batches):
        pass
    return training, time.process_time() - start


class Judge:
    """The report's face numbers, of samples against held-out rows."""

    def __init__(self, file: ImageFile, num: int) -> None:
        self._network = load_face_network()
        self._held_out = np.array(file.held_out[:num])
        self._real = self._features(self._held_out)
        self.baseline = self.numbers_of(np.array(file.train[:num]))

    def numbers_of(self, samples: Pixels) -> Numbers:
        """Of samples (N, S, S, 3), as many as there are held-out rows."""
        features = self._features(samples)
        precision, recall = neighbours.precision_recall(features, self._real)
        return {
            "frechet": round(metrics.frechet_distance(features, self._real), 1),
            "coverage": round(neighbours.density_coverage(features, self._real)[1], 3),
            "precision": round(precision, 3),
            "recall": round(recall, 4),
            "diversity": round(metrics.diversity(features, self._real), 3),
            "spread": round(spread(samples) / spread(self._held_out), 3),
        }

    def _features(self, images: Pixels) -> np.ndarray:
        return np.concatenate([self._network.compute(batch) for batch in _batches(images)])


def samples_of(G: Generator, num: int) -> Pixels:
    """`num` samples (N, S, S, 3) of seed 0, for every model."""
    return np.concatenate(list(generate(G, draw_z(num, G.project.in_features, seed=0), BATCH_SIZE)))


def spread(images: Pixels) -> float:
    """Mean over pixels of the standard deviation over images."""
    watched = metrics.PixelSpread()
    for _ in watched.watch(_batches(images)):
        pass
    return watched.value


def side_by_side(grids: Mapping[str, Pixels], path: Path, columns: int) -> None:
    """Writes a picture of each title's first samples, `columns` of them a row of the picture."""
    rows = math.ceil(len(grids) / columns)
    figure = Figure(figsize=(3.1 * columns, 3.4 * rows), dpi=130)
    FigureCanvasAgg(figure)
    for place, (title, samples) in enumerate(grids.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        picture = grid(samples[:NUM_SHOWN], columns=math.isqrt(NUM_SHOWN))
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"→ {path}")


def _batches(images: Pixels) -> Iterator[np.ndarray]:
    return (images[first : first + BATCH_SIZE] for first in range(0, len(images), BATCH_SIZE))
