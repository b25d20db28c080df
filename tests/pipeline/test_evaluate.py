"""The evaluate stage on real files: a tiny model, trained by the train stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
import yaml

from began.data.images import read_png, tiles
from began.data.rows import ImageWriter, open_images
from began.evaluation import attributes, metrics, neighbours
from began.evaluation.features import load_face_network
from began.gan import sampling
from began.runs.model_folder import read_model, write_description
from pipeline.cli import main
from pipeline.report.find_runs import read_runs
from pipeline.tracking.read import open_records
from pipeline.tracking.store import store_uri
from tests.evaluation.test_inception import _as_standard, weights  # noqa: F401  (fixtures)
from tests.pipeline.browser import check

NUM_TRAIN, NUM_HELD_OUT = 48, 20
WITH_BASELINE = (
    *("frechet_face", "kid_face", "precision_face", "recall_face", "density_face", "coverage_face"),
    *("nearest_training_face", "diversity", "spread"),
)


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code in (0, None)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("began:")] == lines[-1:]  # progress may stand before it
    return lines[-1]


def write_images(
    path: Path, num_train: int, num_held_out: int, image_size: int = 32, seed: int = 0, source: str = "folder"
) -> None:
    shape = (num_train + num_held_out, image_size, image_size, 3)
    noise = np.random.default_rng(seed).integers(0, 256, shape).astype(np.float64)
    rows = np.clip(scipy.ndimage.gaussian_filter(noise, (0, 3, 3, 0)) * 5 - 500, 0, 255).astype(np.uint8)
    described = {"source": source, "licence": "CC0", "credit": "A <b>painter</b>"}
    with ImageWriter(path, image_size, len(rows)) as writer:
        writer.append(rows)
        writer.finish([f"{i}.png" for i in range(len(rows))], num_train, described)


def write_params(path: Path, repository: Path, num_samples: int) -> None:
    params = yaml.safe_load((repository / "params.yaml").read_text(encoding="utf-8"))
    params["gamma"] = 0.9
    quick = params["profiles"]["quick"]
    quick["train"] |= {
        "n_filters": 2,
        "N_h": 4,
        "batch_size": 4,
        "num_steps": 8,
        "precision": "float32",
    }
    quick["train"]["evaluate_every"] = 2
    quick["evaluate"]["num_samples"] = num_samples
    path.write_text(yaml.safe_dump(params), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Path]:
    """A folder with params.yaml, images.h5, model/ and report/, and the MLflow store that saw them made."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_params(folder / "params.yaml", repository, num_samples=30)
        write_images(folder / "images.h5", NUM_TRAIN, NUM_HELD_OUT)
        settings = ("--params", str(folder / "params.yaml"))
        run("train", str(folder / "images.h5"), str(folder / "model"), *settings)
        run("evaluate", str(folder / "images.h5"), str(folder / "model"), str(folder / "report"), *settings)
        yield folder


@pytest.fixture(autouse=True)
def _one_store(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(made))  # making another costs seconds


@pytest.fixture
def numbers(made: Path) -> dict[str, float | None]:
    read: dict[str, float | None] = json.loads((made / "report" / "metrics.json").read_text(encoding="utf-8"))
    return read


def arguments_of(made: Path, report: Path) -> tuple[str, ...]:
    return (
        *("evaluate", str(made / "images.h5"), str(made / "model"), str(report)),
        *("--params", str(made / "params.yaml"), "--device", "cpu"),
    )


def test_the_report_is_whole(made: Path) -> None:
    assert {path.name for path in (made / "report").iterdir()} == {
        *("metrics.json", "index.html", "history.csv", "distances.csv", "model.json", "samples.png", "averaging.png"),
        *("reconstructions.png", "interpolation.png", "real_interpolation.png", "neighbours.png", "over_time.png"),
        *("convergence.png", "distances.png", "curves.png"),
    }
    for name in ("history.csv", "distances.csv", "model.json"):
        assert (made / "report" / name).read_bytes() == (made / "model" / name).read_bytes()


def test_every_number_is_there_and_finite(numbers: dict[str, float]) -> None:
    assert set(numbers) == {
        *(f"{name}{suffix}" for name in WITH_BASELINE for suffix in ("", "_baseline")),
        *("kid_face_std", "kid_face_baseline_std"),
        *("reconstruction_loss_held_out", "reconstruction_loss_train", "reconstruction_gap"),
        *("M_global", "rank_correlation", "num_samples", "num_held_out", "num_train", "num_neighbours"),
    }
    assert all(np.isfinite(value) for value in numbers.values())
    counts = ("num_samples", "num_held_out", "num_train", "num_neighbours")
    assert [numbers[name] for name in counts] == [30, NUM_HELD_OUT, 30, NUM_TRAIN]


def test_numbers_are_those_of_the_functions_on_the_same_images(made: Path, numbers: dict[str, float]) -> None:
    trained, file = read_model(made / "model"), open_images(made / "images.h5")
    samples = np.concatenate(list(sampling.generate(trained.G_ema, sampling.draw_z(30, 4, seed=0))))
    real, fake, train = (_features(images) for images in (file.held_out, samples, file.train))
    assert numbers["frechet_face"] == pytest.approx(metrics.frechet_distance(fake, real), rel=1e-6)
    assert numbers["kid_face"] == pytest.approx(metrics.kid(fake, real).mean, rel=1e-6)
    assert numbers["diversity"] == pytest.approx(metrics.diversity(fake, real), rel=1e-6)
    precision_recall = (numbers["precision_face"], numbers["recall_face"])
    assert precision_recall == pytest.approx(neighbours.precision_recall(fake, real))
    assert (numbers["density_face"], numbers["coverage_face"]) == pytest.approx(neighbours.density_coverage(fake, real))
    to_train = np.linalg.norm(fake[:, None].astype(float) - train[None], axis=2).min(axis=1)
    assert numbers["nearest_training_face"] == pytest.approx(np.median(to_train), rel=1e-5)
    spread = samples.astype(float).std(axis=0).mean() / np.array(file.held_out, dtype=float).std(axis=0).mean()
    assert numbers["spread"] == pytest.approx(spread, rel=1e-6)
    with torch.no_grad():
        v = torch.from_numpy(np.array(file.held_out)).permute(0, 3, 1, 2) / 127.5 - 1
        loss = (v - trained.D(v)).abs().mean().item()
    assert numbers["reconstruction_loss_held_out"] == pytest.approx(loss, rel=1e-4)


def _features(images: np.ndarray) -> np.ndarray:
    return load_face_network().compute(np.array(images))


def test_samples_are_the_ones_training_watched(made: Path) -> None:
    watched = read_png(max((made / "model" / "samples").iterdir()))
    shown = read_png(made / "report" / "samples.png")
    assert shown.shape == (8 * 32, 8 * 32, 3)
    assert np.abs(shown.astype(int) - watched).max() <= 1


def test_interpolation_starts_and_ends_at_samples(made: Path) -> None:
    samples = tiles(read_png(made / "report" / "samples.png"), 32)
    strips = tiles(read_png(made / "report" / "interpolation.png"), 32).reshape(6, 8, 32, 32, 3)
    assert np.abs(strips[:, [0, -1]].reshape(-1, 32, 32, 3).astype(int) - samples[:12]).max() <= 1


def test_reconstructions_stand_under_held_out_images(made: Path) -> None:
    file, trained = open_images(made / "images.h5"), read_model(made / "model")
    rows = tiles(read_png(made / "report" / "reconstructions.png"), 32).reshape(6, 8, 32, 32, 3)
    originals, below = rows[::2].reshape(-1, 32, 32, 3), rows[1::2].reshape(-1, 32, 32, 3)
    assert np.array_equal(originals[:NUM_HELD_OUT], file.held_out)
    assert (originals[NUM_HELD_OUT:] == 255).all()
    expected = sampling.reconstruct(trained.D, np.array(file.held_out)).astype(int)
    assert np.abs(below[:NUM_HELD_OUT] - expected).max() <= 1


def test_neighbours_stand_under_the_images_they_are_nearest_to(made: Path) -> None:
    check_neighbours(made / "report", open_images(made / "images.h5").train)


def test_a_model_that_saw_mirrored_images_is_compared_with_them_too(made: Path, tmp_path: Path) -> None:
    """Else a copy of a mirrored training image would pass for a new one."""
    shutil.copytree(made / "model", tmp_path / "model")
    description = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    description["parameters"] |= {"train.mirror": True}
    write_description(tmp_path / "model", description)
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[2] = str(tmp_path / "model")
    run(*arguments)
    train = np.array(open_images(made / "images.h5").train)
    mirrored = train[:, :, ::-1]
    turned = check_neighbours(tmp_path / "report", np.concatenate((train, mirrored))) >= NUM_TRAIN
    assert 0 < turned.sum() < turned.size
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    before = json.loads((made / "report" / "metrics.json").read_text(encoding="utf-8"))
    assert numbers["num_neighbours"] == 2 * NUM_TRAIN
    assert "saw mirrored images too" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert numbers["nearest_training_face"] < before["nearest_training_face"]
    assert numbers["coverage_face_baseline"] == before["coverage_face_baseline"]


def check_neighbours(report: Path, train: np.ndarray) -> np.ndarray:
    """Which rows (2, 8) of `train` stand under samples and held-out images; each has to be the nearest."""
    rows = tiles(read_png(report / "neighbours.png"), 32).reshape(2, 2, 8, 32, 32, 3)
    found = []
    for images, below in rows:
        distances = np.linalg.norm(_features(images)[:, None].astype(float) - _features(train)[None], axis=2)
        found.append(distances.argmin(axis=1))
        assert np.array_equal(below, train[found[-1]])
        assert (np.diff(distances.min(axis=1)) > -1e-4).all()  # the nearest pair first
    return np.array(found)


def test_walks_between_real_images_stand_between_them(made: Path) -> None:
    rows = tiles(read_png(made / "report" / "real_interpolation.png"), 32).reshape(6, 8, 32, 32, 3)
    held_out = open_images(made / "images.h5").held_out
    assert np.array_equal(rows[:4, [0, 7]].reshape(-1, 32, 32, 3), held_out[:8])
    assert np.array_equal(rows[4:, 0], held_out[:2]) and np.array_equal(rows[4:, 7], held_out[:2, :, ::-1])
    assert not np.array_equal(rows[:, 1], rows[:, 6])


def test_the_rank_correlation_is_that_of_the_curve_and_the_distances(made: Path, numbers: dict[str, float]) -> None:
    distances = np.genfromtxt(made / "model" / "distances.csv", delimiter=",", names=True)
    history = np.genfromtxt(made / "model" / "history.csv", delimiter=",", names=True)
    assert distances["step"].tolist() == [2, 4, 6, 8]
    assert history["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    M_global = history["M_global"].reshape(4, 2).mean(axis=1)  # over the steps since the distance before
    expected = scipy.stats.spearmanr(M_global, distances["face_distance"]).statistic
    assert numbers["rank_correlation"] == pytest.approx(expected)


def test_real_rows_are_the_same_for_every_seed_and_measured_once(made: Path) -> None:
    (folder,) = (made / ".began" / "features").iterdir()
    names = [path.name for path in folder.glob("*.npy")]
    mirrored = [name for name in names if "-mirrored-" in name]
    assert len(mirrored) <= 1  # one test asks for them
    assert len(names) - len(mirrored) == 2  # of held-out and of training images, after several evaluations


def test_the_page_is_right_in_a_browser(made: Path) -> None:
    check(made / "report" / "index.html")


def test_without_the_standard_network_the_report_says_so(made: Path, tmp_path: Path) -> None:
    assert "The standard FID is not measured" in (made / "report" / "index.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("_as_standard")
def test_the_standard_network_is_measured_where_its_weights_are_given(
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: Path,  # noqa: F811
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), repository, num_samples=12)
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("inception: false", "inception: true"), encoding="utf-8")
    write_images(Path("images.h5"), 12, 12)
    run("train", "images.h5", "model")
    run("evaluate", "images.h5", "model", "report", "--inception-weights", str(weights))
    numbers = json.loads(Path("report/metrics.json").read_text(encoding="utf-8"))
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage"):
        assert numbers[f"{name}_inception"] is not None and numbers[f"{name}_inception_baseline"] is not None
    assert numbers["inception_score"] >= 1  # of source `folder`: its images may be of several classes
    page = Path("report/index.html").read_text(encoding="utf-8")
    assert "FID" in page and "is not measured" not in page


def test_wrong_weights_of_the_standard_network_are_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (made / "params.yaml").read_text(encoding="utf-8").replace("inception: false", "inception: true")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "weights.pth").write_bytes(b"other")
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[arguments.index("--params") + 1] = str(tmp_path / "params.yaml")
    message = error_of(capsys, *arguments, "--inception-weights", str(tmp_path / "weights.pth"))
    assert "weights.pth: SHA-256" in message and not (tmp_path / "report").exists()


def test_of_drawn_portraits_the_colours_are_measured_too(made: Path, tmp_path: Path, numbers: dict[str, float]) -> None:
    write_images(tmp_path / "images.h5", NUM_TRAIN, NUM_HELD_OUT, source="portraits")
    run("evaluate", str(tmp_path / "images.h5"), *arguments_of(made, tmp_path / "report")[2:])
    more = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    names = {f"attributes_overlap_{name}" for name in attributes.ATTRIBUTES}
    assert more.keys() - numbers.keys() == names | {f"{name}_baseline" for name in names}
    file = open_images(tmp_path / "images.h5")
    train, held_out = (attributes.read([rows])["hair"] for rows in (file.train, file.held_out))
    assert more["attributes_overlap_hair_baseline"] == pytest.approx(attributes.overlap("hair", held_out, train))
    assert 0 <= more["attributes_overlap_hair"] <= 1
    assert (tmp_path / "report" / "attributes.png").is_file()
    assert "Colours of samples and data" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_a_place_for_features_that_cannot_be_written_is_said_and_done_without(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("pipeline.evaluate.features_folder", lambda: tmp_path / "file")
    run(*arguments_of(made, tmp_path / "report"))
    assert "Features of real images are not kept" in capsys.readouterr().out
    again, before = ((folder / "report" / "metrics.json").read_text() for folder in (tmp_path, made))
    assert again == before


def test_a_report_is_not_taken_for_a_model(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, report, params = (str(made / name) for name in ("images.h5", "report", "params.yaml"))
    assert "holds other things than a model" in error_of(capsys, "train", images, report, "--params", params)
    assert "no such run" in error_of(capsys, "compare", report)


def test_the_same_seed_gives_the_same_report(made: Path, tmp_path: Path) -> None:
    run(*arguments_of(made, tmp_path / "again"))
    for path in (made / "report").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_only_pictures_named_by_their_step_are_shown(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "model", tmp_path / "model")
    (tmp_path / "model" / "samples" / "x.png").touch()
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[2] = str(tmp_path / "model")
    run(*arguments)
    name = "convergence.png"
    assert (tmp_path / "report" / name).read_bytes() == (made / "report" / name).read_bytes()


def test_warnings_of_the_training_come_first(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    write_description(path.parent, json.loads(path.read_text(encoding="utf-8")) | {"warnings": ["k_t stood at <1>"]})
    report = str(tmp_path / "report")
    run("evaluate", str(made / "images.h5"), str(path.parent), report, "--params", str(made / "params.yaml"))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: Warning of the training: k_t stood at <1>"
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert page.index("Warning of the training: k_t stood at &lt;1&gt;") < page.index('<p class="note">30 held-out')


def test_the_mlflow_run_gets_numbers_and_pages_and_keeps_its_curve(made: Path, numbers: dict[str, float]) -> None:
    import mlflow

    digest = read_model(made / "model").digest
    client = mlflow.MlflowClient(store_uri())
    experiment = client.get_experiment_by_name("began")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id], f"tags.model_digest = '{digest}'")
    assert found.data.metrics["frechet_face"] == pytest.approx(numbers["frechet_face"])
    assert "report/index.html" in {file.path for file in client.list_artifacts(found.info.run_id, "report")}
    assert found.data.metrics["M_global"] == pytest.approx(numbers["M_global"], rel=1e-6)
    assert min(point.step for point in client.get_metric_history(found.info.run_id, "M_global")) > 0


def test_fewer_images_than_asked_for_are_used_and_said(
    made: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(tmp_path / "params.yaml", repository, num_samples=1000)
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[arguments.index("--params") + 1] = str(tmp_path / "params.yaml")
    run(*arguments)
    numbers = json.loads((tmp_path / "report" / "metrics.json").read_text(encoding="utf-8"))
    counts = (numbers["num_samples"], numbers["num_held_out"], numbers["num_train"])
    assert counts == (NUM_TRAIN, NUM_HELD_OUT, NUM_TRAIN)
    note = "1,000 held-out images were asked for (evaluate.num_samples) and there are 20"
    assert note in capsys.readouterr().out
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert note in page and "1,000 samples were asked for and 48 are measured" in page


def test_a_single_held_out_image_leaves_dashes_and_no_nan(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), repository, num_samples=10)
    write_images(Path("images.h5"), 4, 1)
    run("train", "images.h5", "model")
    run("evaluate", "images.h5", "model", "report")
    text = Path("report/metrics.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    numbers = json.loads(text)
    for name in ("frechet_face", "kid_face", "precision_face", "coverage_face", "diversity", "spread"):
        assert numbers[name] is None
    assert numbers["reconstruction_loss_held_out"] > 0 and numbers["nearest_training_face"] > 0
    assert "A dash marks a number" in Path("report/index.html").read_text(encoding="utf-8")


def test_rows_the_model_was_not_trained_on_are_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "other.h5", NUM_TRAIN, NUM_HELD_OUT, seed=1)
    write_images(tmp_path / "larger.h5", 4, 2, image_size=64)
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[1] = str(tmp_path / "other.h5")
    message = error_of(capsys, *arguments)
    assert "other.h5: digest" in message and "was trained on" in message
    arguments[1] = str(tmp_path / "larger.h5")
    assert "larger.h5: images of size 64, expected 32" in error_of(capsys, *arguments)
    assert not (tmp_path / "report").exists()


def test_a_failed_evaluation_leaves_the_old_report(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(made / "model", tmp_path / "model")
    shutil.copytree(made / "report", tmp_path / "report")
    last = max((tmp_path / "model" / "samples").iterdir())
    last.unlink()  # a new file: the copy may share nothing with the first
    last.write_bytes(b"not a picture")
    write_description(tmp_path / "model", json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8")))
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[2] = str(tmp_path / "model")
    assert f"{last}: cannot be read as PNG" in error_of(capsys, *arguments)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "report"}
    for path in (made / "report").iterdir():
        assert (tmp_path / "report" / path.name).read_bytes() == path.read_bytes()


def test_a_model_without_its_curve_or_weights_is_named(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[2] = str(tmp_path / "nothing")
    assert "nothing/model.json: no such file" in error_of(capsys, *arguments)
    shutil.copytree(made / "model", tmp_path / "model")
    arguments[2] = str(tmp_path / "model")
    (tmp_path / "model" / "history.csv").unlink()
    assert "history.csv: no such file" in error_of(capsys, *arguments)


def test_an_earlier_evaluation_leaves_no_number_behind(
    made: Path, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's metrics in MLflow keep what a later evaluation could not measure; its report does not."""
    write_params(tmp_path / "params.yaml", repository, num_samples=3)
    arguments = list(arguments_of(made, tmp_path / "report"))
    arguments[arguments.index("--params") + 1] = str(tmp_path / "params.yaml")
    run(*arguments)
    digest = read_model(made / "model").digest
    records = open_records()
    assert records is not None
    recorded = records.of_model(digest)
    assert recorded is not None and "precision_face" in recorded.metrics
    (found,) = read_runs([recorded.run_id])
    assert found.numbers["num_samples"] == 3
    assert found.numbers["precision_face"] is None and found.numbers["frechet_face"] is not None
