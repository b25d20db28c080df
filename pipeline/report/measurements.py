"""A trained model → its numbers, and the rows that the pictures show beside them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from began.base.files import DiskFullError
from began.base.progress import Progress
from began.data.rows import ImageFile
from began.evaluation import attributes, feature_cache, features, inception, metrics, neighbours
from began.evaluation.attributes import Colours
from began.evaluation.features import Network
from began.gan import sampling
from began.gan.networks import Discriminator
from began.params import Params
from began.runs.model_folder import Model
from pipeline.console.progress_bar import follow

Numbers = dict[str, float | None]
T = TypeVar("T")

BATCH_SIZE = 50
MOST_NEIGHBOURS = 20_000  # training rows among which the nearest is sought
NUM_SHOWN = 8  # pairs of nearest neighbours
IMAGENET_LIKE = ("folder", "url")  # sources whose images may be of several classes; faces are none of ImageNet's


@dataclass(frozen=True)
class Places:
    """What outlives an evaluation, or comes from elsewhere."""

    features: Path | None  # folder of those of real rows; None for a file without a digest, which cannot be told
    downloads: Path  # folder of the Inception weights
    inception_weights: Path | None  # a file that is given


@dataclass(frozen=True)
class Neighbours:
    """Images (N, S, S, 3) and the training image nearest to each: of all such pairs the nearest."""

    images: np.ndarray
    nearest: np.ndarray


@dataclass(frozen=True)
class Attributes:
    """The colours that samples and training images have at known places."""

    samples: Colours
    data: Colours


@dataclass
class Measured:
    """What was measured, and what a reader of it must know."""

    numbers: Numbers = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    neighbours: list[Neighbours] = field(default_factory=list)  # of samples, and of held-out images
    attributes: Attributes | None = None


def measure(trained: Model, file: ImageFile, params: Params, work: Path, places: Places) -> Measured:
    """All numbers of the report that come from images.

    Samples, held-out rows and the training rows of the baseline are as many as `evaluate.num_samples` says, or as there
    are. There are never more samples than training rows, which take their place in the baseline: both then have the
    same bias. The real rows are the same for every model of the file. work: a folder for big temporary files.
    """
    measurement = _Measurement(trained, file, params, work, places)
    measurement.note_counts()
    measurement.measure_face_features()
    measurement.measure_pixels()
    measurement.measure_reconstructions()
    if params.evaluate.inception:
        measurement.measure_inception_features()
    else:
        key = f"profiles.{params.profile}.evaluate.inception"
        measurement.measured.notes.append(f"The standard FID is not measured; {key}: true asks for it.")
    if file.source == "portraits":
        measurement.measure_attributes()
    measurement.note_dashes()
    return measurement.measured


class _Measurement:
    """One model on its images."""

    def __init__(self, trained: Model, file: ImageFile, params: Params, work: Path, places: Places) -> None:
        self.measured = Measured()
        self._trained = trained
        self._file = file
        self._wanted = params.evaluate.num_samples
        self._seed = params.seed
        self._work = work
        self._places = places
        self._kept = places.features or work / "features"
        self._dashes: set[str] = set()  # why numbers are missing
        self._both_sides = trained.description["parameters"].get("train.mirror", False)
        self._held_out = _choose(len(file.held_out), self._wanted)
        self._train = _choose(len(file.train), max(self._wanted, MOST_NEIGHBOURS))
        self._num_samples = min(self._wanted, len(self._train))
        self._samples = self._draw_samples()

    def note_counts(self) -> None:
        """How many images the numbers are of, and where that is not as asked for."""
        held_out, train = len(self._held_out), self._num_samples
        self.measured.numbers |= {
            "num_samples": train,
            "num_held_out": held_out,
            "num_train": train,
            "num_neighbours": len(self._train) * (2 if self._both_sides else 1),
        }
        if held_out < self._wanted:
            self.measured.notes.append(
                f"{self._wanted:,} held-out images were asked for (evaluate.num_samples) and there are {held_out:,}: "
                "all are used. Distances over fewer images are larger: compare them with the real images’ only."
            )
        if train < self._wanted:
            self.measured.notes.append(
                f"{self._wanted:,} samples were asked for and {train:,} are measured: as many as there are training "
                "images, which take their place in the real-against-real baseline."
            )

    def measure_face_features(self) -> None:
        """Distances, diversity, and how near samples come to training images, mirrored ones too where it saw those."""
        network = features.load_face_network()
        fake, real, training = self._features(network, len(self._train))
        baseline = training[: self._num_samples]
        self._compare("face", fake, real, baseline)
        for suffix, candidates in (("", fake), ("_baseline", baseline)):
            self.measured.numbers[f"diversity{suffix}"] = self._ask(metrics.diversity, candidates, real)
        if self._both_sides:
            mirrored = self._of_real(network, "mirrored-training", self._file.train, self._train, mirror=True)
            training = np.concatenate((training, mirrored))
            self.measured.notes.append(
                "The model saw mirrored images too: the nearest training image is sought among both sides of each."
            )
        for suffix, images, chosen, queries in (
            ("", self._samples, np.arange(self._num_samples), fake),
            ("_baseline", self._file.held_out, self._held_out, real),
        ):
            distances, nearest = neighbours.nearest(queries, training)
            self.measured.numbers[f"nearest_training_face{suffix}"] = float(np.median(distances))
            shown = np.argsort(distances, kind="stable")[:NUM_SHOWN]
            mirror, row = np.divmod(nearest[shown], len(self._train))
            theirs = np.array(self._file.train[self._train[row]])
            theirs[mirror == 1] = theirs[mirror == 1, :, ::-1]
            self.measured.neighbours.append(Neighbours(np.array(images[chosen[shown]]), theirs))

    def measure_inception_features(self) -> None:
        """The standard numbers; where their network cannot be had, a note that says why."""
        try:
            loading = inception.load_inception_network(self._places.inception_weights, self._places.downloads)
            network = follow(loading, "Inception weights", brief=True)
        except inception.UnavailableError as error:
            self.measured.notes.append(f"The standard FID is not measured: {error}")
            return
        fake, real, training = self._features(network, self._num_samples)
        self._compare("inception", fake, real, training)
        if self._file.source in IMAGENET_LIKE:
            for suffix, vectors in (("", fake), ("_baseline", training)):
                score = self._ask(inception.inception_score, vectors, network)
                self.measured.numbers[f"inception_score{suffix}"] = score and score[0]
                self.measured.numbers[f"inception_score{suffix}_std"] = score and score[1]

    def measure_pixels(self) -> None:
        """How much pixels differ from image to image."""
        spread = self._ask(_spread, self._file.held_out, self._held_out)
        if spread == 0:
            self._dashes.add("the held-out images do not differ")
        for suffix, images, chosen in (
            ("", self._samples, np.arange(self._num_samples)),
            ("_baseline", self._file.train, self._train[: self._num_samples]),
        ):
            own = self._ask(_spread, images, chosen)
            self.measured.numbers[f"spread{suffix}"] = own / spread if spread and own is not None else None

    def measure_reconstructions(self) -> None:
        """L(x) of D on images it saw, and on as many that it did not."""
        eta = self._trained.description["parameters"]["train.eta"]
        losses = {}
        for name, images, chosen in (
            ("held_out", self._file.held_out, self._held_out),
            ("train", self._file.train, self._train[: len(self._held_out)]),
        ):
            loss = _reconstruction_loss(self._trained.D, _batches(images, chosen), len(chosen), eta)
            losses[name] = follow(loss, f"reconstruction loss, {name.replace('_', ' ')}", brief=True)
            self.measured.numbers[f"reconstruction_loss_{name}"] = losses[name]
        if losses["train"] == 0:
            self._dashes.add("training images are reconstructed without a loss")
        self.measured.numbers["reconstruction_gap"] = losses["held_out"] / losses["train"] if losses["train"] else None

    def measure_attributes(self) -> None:
        """How much the histograms of colours at known places share with those of the training images."""
        data = attributes.read(_batches(self._file.train, self._train))
        samples = attributes.read(_batches(self._samples, np.arange(self._num_samples)))
        held_out = attributes.read(_batches(self._file.held_out, self._held_out))
        for name in attributes.ATTRIBUTES:
            for suffix, found in (("", samples), ("_baseline", held_out)):
                shared = attributes.overlap(name, found[name], data[name])
                self.measured.numbers[f"attributes_overlap_{name}{suffix}"] = shared
        self.measured.attributes = Attributes(samples, data)

    def note_dashes(self) -> None:
        """Why numbers are missing."""
        if self._dashes:
            reasons = "; ".join(sorted(self._dashes))
            self.measured.notes.append(f"A dash marks a number that these images cannot give: {reasons}.")

    def _draw_samples(self) -> np.ndarray:
        """Samples (N, S, S, 3) of the averaged generator, in a mapped file."""
        architecture = self._trained.description["architecture"]
        size = architecture["image_size"]
        path = self._work / "samples.npy"
        z = sampling.draw_z(self._num_samples, architecture["N_h"], self._seed)

        def draw() -> Generator[Progress, None, None]:
            done = 0
            header = {"descr": "|u1", "fortran_order": False, "shape": (self._num_samples, size, size, 3)}
            # Written, not mapped: a full disk is then an error and no crash.
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for batch in sampling.generate(self._trained.G_ema, z, BATCH_SIZE):
                    file.write(batch.tobytes())
                    done += len(batch)
                    yield Progress(done, self._num_samples)

        follow(draw(), "samples", brief=True)
        samples: np.ndarray = np.lib.format.open_memmap(path, "r")
        return samples

    def _features(self, network: Network, num_train: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of samples, held-out rows and `num_train` training rows."""

        real = self._of_real(network, "held-out", self._file.held_out, self._held_out)
        training = self._of_real(network, "training", self._file.train, self._train[:num_train])
        batches = _batches(self._samples, np.arange(self._num_samples))
        path = self._work / f"{network.name}.npy"
        extracted = features.extract(network, batches, self._num_samples, path)
        return follow(extracted, f"{network.label} of samples", brief=True), real, training

    def _of_real(
        self, network: Network, name: str, images: np.ndarray, chosen: np.ndarray, mirror: bool = False
    ) -> np.ndarray:
        """Of rows, or of their mirror images."""

        def kept(folder: Path) -> np.ndarray:
            rows = _batches(images, chosen)
            batches = (np.ascontiguousarray(batch[:, :, ::-1]) for batch in rows) if mirror else rows
            work = feature_cache.kept(folder, network, name, batches, len(chosen))
            return follow(work, f"{network.label} of {name} images", brief=True)

        try:
            return kept(self._kept)
        except DiskFullError:
            raise
        except OSError as error:  # a place that may not be written to
            self.measured.notes.append(f"Features of real images are not kept: {error}")
            self._kept = self._work / "features"
            return kept(self._kept)

    def _compare(self, name: str, fake: np.ndarray, real: np.ndarray, baseline: np.ndarray) -> None:
        """Distances between distributions: of samples to held-out images, and of training images in their place."""
        for suffix, candidates in ((f"_{name}", fake), (f"_{name}_baseline", baseline)):
            kid = self._ask(metrics.kid, candidates, real)
            precision_recall = self._ask(neighbours.precision_recall, candidates, real)
            density_coverage = self._ask(neighbours.density_coverage, candidates, real)
            self.measured.numbers |= {
                f"frechet{suffix}": self._ask(metrics.frechet_distance, candidates, real),
                f"kid{suffix}": kid.mean if kid else None,
                f"kid{suffix}_std": kid.std if kid else None,
                f"precision{suffix}": precision_recall and precision_recall[0],
                f"recall{suffix}": precision_recall and precision_recall[1],
                f"density{suffix}": density_coverage and density_coverage[0],
                f"coverage{suffix}": density_coverage and density_coverage[1],
            }

    def _ask(self, function: Callable[..., T], *arguments: object) -> T | None:
        """What `function` returns; None, and its reason noted, where it has not the rows for a number."""
        try:
            return function(*arguments)
        except ValueError as error:
            self._dashes.add(str(error))
            return None


def _choose(num_rows: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` different rows, or of all; fewer are the first of more."""
    return np.random.default_rng(0).permutation(num_rows)[:wanted]


def _batches(images: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), BATCH_SIZE):
        yield images[chosen[start : start + BATCH_SIZE]]


def _spread(images: np.ndarray, chosen: np.ndarray) -> float:
    spread = metrics.PixelSpread()
    for _ in spread.watch(_batches(images, chosen)):
        pass
    return spread.value


def _reconstruction_loss(
    D: Discriminator, batches: Iterable[np.ndarray], total: int, eta: int
) -> Generator[Progress, None, float]:
    done, loss = 0, 0.0
    yield Progress(0, total)
    for batch in batches:
        loss += sampling.reconstruction_loss(D, batch, eta) * len(batch)
        done += len(batch)
        yield Progress(done, total)
    return loss / done
