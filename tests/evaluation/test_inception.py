"""The Inception network against torch-fidelity's own extractor, and the ways its weights may come or not.

The real weights need a network; these are random ones, under whose SHA-256 the module is told to expect them.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch

from began.evaluation import inception
from began.evaluation.inception import UnavailableError, inception_score, load_inception_network
from tests.data.http_server import Served, Server, server  # noqa: F401  (a fixture)
from tests.data.test_sources import finish
from tests.evaluation.fidelity import feature_extractor_inceptionv3, metric_isc


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose layers keep the size of what goes through them, in a file like the standard one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(feature_extractor_inceptionv3.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        module = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("random", ["2048"], verbose=False)
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, generator=random)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(module.state_dict(), path)
    return path


@pytest.fixture
def _as_standard(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The random weights are the standard ones."""
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(weights.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.float64)
    return np.clip(scipy.ndimage.gaussian_filter(noise, (0, 3, 3, 0)) * 6 - 600, 0, 255).astype(np.uint8)


@pytest.mark.usefixtures("_as_standard")
def test_features_are_torch_fidelity_s_whatever_the_batches(
    weights: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "i", ["2048"], feature_extractor_weights_path=str(weights)
    )
    (expected,) = extractor(torch.from_numpy(images).permute(0, 3, 1, 2))
    network = finish(load_inception_network(weights, tmp_path))
    assert (network.name, network.label, network.dimensions) == ("inception", "Inception features", 2048)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(inception, "CHUNK", 2)
    features = network.compute(images[::-1])[::-1]
    assert features.shape == (3, 2048) and features.dtype == np.float32 and features.std() > 0.01
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.usefixtures("_as_standard")
def test_the_score_is_torch_fidelity_s(weights: Path, tmp_path: Path) -> None:
    network = finish(load_inception_network(weights, tmp_path))
    features = np.abs(np.random.default_rng(0).standard_normal((50, 2048))).astype(np.float32)
    matrix = torch.load(weights, weights_only=True)["fc.weight"]
    expected = metric_isc.isc_features_to_metric(torch.from_numpy(features).mm(matrix.T))
    assert inception_score(features, network) == pytest.approx(
        (expected["inception_score_mean"], expected["inception_score_std"]), rel=1e-5
    )


@pytest.mark.usefixtures("_as_standard")
def test_weights_are_fetched_once_over_a_connection_that_is_cut(
    weights: Path,
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = server.files["/w.pth"] = Served(weights.read_bytes(), drops=[40_000_000])
    monkeypatch.setattr(inception, "WEIGHTS_URL", f"{server.address}/w.pth")
    monkeypatch.setattr(inception, "PAUSES", (0.0, 0.0))
    for _ in range(2):
        network = finish(load_inception_network(None, tmp_path / "downloads"))
        assert network.classifier.shape == (2048, 1008)
    assert served.asked == [None, "bytes=40000000-"]
    kept = [path for path in (tmp_path / "downloads").iterdir() if path.suffix != ".lock"]
    assert [path.name for path in kept] == [inception.WEIGHTS_NAME]
    kept[0].write_bytes(b"damaged")
    finish(load_inception_network(None, tmp_path / "downloads"))
    assert len(served.asked) == 3 and kept[0].read_bytes() == served.data


@pytest.mark.parametrize(
    ("served", "why"),
    [
        (Served(b"other bytes"), "its SHA-256 is .*, expected 6726825d"),
        (Served(bytes(30), drops=[1] * 9), "3 bytes are kept, run it again"),
        (Served(b"", status=404), "the server answers 404"),
        (Served(b"", status=503), "the server answers 503"),
        (Served(b"<html>", content_type="text/html"), "is a web page"),
    ],
)
def test_a_download_that_fails_is_unavailable_and_leaves_nothing_under_the_final_name(
    server: Server,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    served: Served,
    why: str,
) -> None:
    server.files["/w.pth"] = served
    monkeypatch.setattr(inception, "WEIGHTS_URL", f"{server.address}/w.pth")
    monkeypatch.setattr(inception, "PAUSES", (0.0, 0.0))
    with pytest.raises(UnavailableError, match=why) as caught:
        finish(load_inception_network(None, tmp_path / "downloads"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "downloads" / inception.WEIGHTS_NAME).exists()


def test_no_server_and_no_folder_are_unavailable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(inception, "WEIGHTS_URL", "http://127.0.0.1:9/w.pth")
    monkeypatch.setattr(inception, "PAUSES", ())
    with pytest.raises(UnavailableError, match=r"the weights did not come: .*127\.0\.0\.1:9/w\.pth"):
        finish(load_inception_network(None, tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match=r"the weights did not come: .*file"):
        finish(load_inception_network(None, tmp_path / "file"))


def test_a_given_file_that_is_missing_or_another_is_an_error_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    with pytest.raises(ValueError, match=f"{path}: no such file"):
        finish(load_inception_network(path, tmp_path))
    path.write_bytes(b"other")
    digest = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"{path}: SHA-256 {digest}, expected {inception.WEIGHTS_SHA256}"):
        finish(load_inception_network(path, tmp_path))


def test_nothing_is_unpickled_before_its_digest_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "trap.pth"
    torch.save({"a": Trap()}, path)
    with pytest.raises(ValueError, match=r"trap\.pth: SHA-256"):
        finish(load_inception_network(path, tmp_path))
    assert not (tmp_path / "sprung").exists()
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(Exception):  # noqa: B017  (whatever torch says of such weights)
        finish(load_inception_network(path, tmp_path))
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import surely_not_installed", "No module named 'surely_not_installed'.*pip install 'began\\[fid\\]'"),
        ("raise RuntimeError('operator torchvision::nms\\n  does not exist')", "torchvision::nms does not exist$"),
        ("raise AttributeError", "AttributeError$"),
        ("1 +", "invalid syntax"),
    ],
)
def test_whatever_its_import_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, why: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "torch_fidelity.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnavailableError, match=f"torch-fidelity cannot be imported.*{why}") as caught:
        finish(load_inception_network(None, tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / inception.WEIGHTS_NAME).exists()


def test_without_the_package_the_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # type: ignore[arg-type]
    with pytest.raises(UnavailableError, match=r"pip install 'began\[fid\]'"):
        finish(load_inception_network(None, tmp_path))
