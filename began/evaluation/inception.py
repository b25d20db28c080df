"""The standard Inception network, whose Fréchet distance is *the* FID: torch-fidelity's, an optional package.

Its weights are pickled, so reading them may run what is in them: nothing reads them before their SHA-256 is checked.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from began.base.progress import Progress
from began.base.transfer import Lock, TransferError, transfer
from began.evaluation import metrics
from began.evaluation.features import Network

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_NAME}"
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
DIMENSIONS = 2048

PAUSES = (0.5, 2.0)  # seconds before each new attempt: without a network a report should not wait long
CHUNK = 10  # images at once: at 299×299 their layers need 5 MB each


class UnavailableError(Exception):
    """The standard network is not there; one line says why."""


@dataclass(frozen=True)
class InceptionNetwork(Network):
    """The network with its last layer."""

    classifier: np.ndarray
    """(2048, 1008) float32: features @ classifier are the logits without bias, of which the inception score is made."""


def load_inception_network(weights: Path | None, downloads: Path) -> Generator[Progress, None, InceptionNetwork]:
    """Yields progress and returns the network of Szegedy et al. 2016 as the FID has used it since 2017.

    `weights` is a file of the standard weights; where it is None they are fetched once, 96 MB, and kept in `downloads`.
    Images are resized to 299×299 as TensorFlow 1 did. Raises ValueError naming `weights` when that file is missing or
    another one; UnavailableError when torch-fidelity cannot be imported or the weights do not come.
    """
    if weights is not None:
        content = _read_given(weights)
        extractor = _import_extractor()
    else:
        extractor = _import_extractor()
        content = yield from _fetch(downloads)
    # The very bytes that were checked, whatever becomes of the file.
    module = extractor("inception", ["2048"], feature_extractor_weights_path=io.BytesIO(content))

    def inception_network(images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3, (images.dtype, images.shape)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        with torch.inference_mode():
            features = [module(chunk)[0] for chunk in torch.split(pixels, CHUNK)]
        return torch.cat(features).numpy()

    return InceptionNetwork(
        name="inception",
        label="Inception features",
        dimensions=DIMENSIONS,
        version=WEIGHTS_SHA256[:12],
        compute=inception_network,
        classifier=module.fc.weight.T.numpy(),
    )


def inception_score(features: np.ndarray, network: InceptionNetwork) -> tuple[float, float]:
    """metrics.inception_score of features (N, 2048) that `network` computed."""
    return metrics.inception_score(features, network.classifier)


def _import_extractor() -> Any:
    """torch-fidelity's class. Whatever its import raises is an UnavailableError: torchvision's fails in many ways."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UnavailableError(
            f"torch-fidelity cannot be imported ({_line(error)}); pip install 'began[fid]' installs it"
        ) from None
    except Exception as error:
        raise UnavailableError(f"torch-fidelity cannot be imported: {_line(error)}") from None
    return FeatureExtractorInceptionV3


def _read_given(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected {WEIGHTS_NAME}")
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != WEIGHTS_SHA256:
        raise ValueError(f"{path}: SHA-256 {digest}, expected {WEIGHTS_SHA256} of {WEIGHTS_NAME}")
    return content


def _fetch(downloads: Path) -> Generator[Progress, None, bytes]:
    path = downloads / WEIGHTS_NAME
    try:
        with Lock(path) as lock:
            yield from lock.wait()
            yield from transfer(WEIGHTS_URL, path, sha256=WEIGHTS_SHA256, pauses=PAUSES)
            return _read_given(path)
    except (TransferError, OSError) as error:
        raise UnavailableError(f"the weights did not come: {_line(error)}") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
