"""Stage 4: images.h5 and the model folder → numbers, pictures and a page that shows them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from began.base.files import replace_folder
from began.data.rows import ImageFile, open_images, verify_digest
from began.device.devices import resolve_device
from began.evaluation.metrics import rank_correlation
from began.params import load_params
from began.runs.curve import History, mean_M_global, read_distances, read_history
from began.runs.model_folder import Model, read_model
from pipeline.console.progress_bar import follow
from pipeline.console.workspace import downloads_folder, features_folder
from pipeline.report.measurements import Measured, Numbers, Places, measure
from pipeline.report.page import format_number
from pipeline.report.pictures import draw, read_thumbnails
from pipeline.report.report import render
from pipeline.tracking import write

NUMBERS_NAME = "metrics.json"
KEPT = ("history.csv", "distances.csv", "model.json")  # of the model, so that a report says what it is of


def evaluate(
    images: Path, model: Path, report: Path, params: Path, device: str, inception_weights: Path | None
) -> None:
    """Measure a model on held-out images; leaves numbers, pictures and index.html."""
    settings = load_params(params)

    if report.is_dir() and any(report.iterdir()) and not (report / NUMBERS_NAME).is_file():
        raise ValueError(f"{report}: holds other things than a report, expected a new folder or an older report")
    target = resolve_device(device)
    trained = read_model(model)
    file = open_images(images)
    _check_match(trained, file)
    history = read_history(model / "history.csv")
    distances = _read_distances(model / "distances.csv")
    thumbnails = read_thumbnails(model, file.image_size)
    kept = features_folder() / file.digest if file.digest else None
    places = Places(kept, downloads_folder(), inception_weights)
    for network in (trained.G, trained.G_ema, trained.D):
        network.to(target)

    with replace_folder(report) as folder:
        work = folder / "work"  # samples and features may be larger than memory
        work.mkdir()
        follow(verify_digest(file), "check rows", brief=True)
        measured = measure(trained, file, settings, work, places)
        shutil.rmtree(work)
        _add_curve(measured, history, distances)
        warnings = [f"Warning of the training: {text}" for text in trained.description.get("warnings", [])]
        notes = warnings + measured.notes
        pictures = draw(folder, trained, file, history, distances, thumbnails, measured, settings.seed)
        for name in KEPT:
            if (model / name).is_file():
                (folder / name).write_bytes((model / name).read_bytes())
        numbers = measured.numbers
        (folder / NUMBERS_NAME).write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        # The model's own settings, but for how it is measured, which may be another way now.
        evaluated = {name: value for name, value in settings.flat().items() if name.startswith("evaluate.")}
        description = trained.description | {"parameters": trained.description["parameters"] | evaluated}
        page = render(numbers, description, pictures, notes, file.credit, file.licence)
        (folder / "index.html").write_text(page, encoding="utf-8")
    # The run already has M_global as a curve.
    write.log_report(
        trained.digest,
        {name: value for name, value in numbers.items() if value is not None and name != "M_global"},
        report,
    )
    for note in notes:
        print(f"note: {note}")
    print(_summary(numbers))
    print(report / "index.html")


def _summary(numbers: Numbers) -> str:

    real = format_number(numbers["frechet_face_baseline"])
    shown = {
        f"Fréchet distance (real images {real})": "frechet_face",
        "coverage": "coverage_face",
        "diversity": "diversity",
        "M_global": "M_global",
        "its rank correlation with the face distance": "rank_correlation",
    }
    return ", ".join(f"{words} {format_number(numbers[name])}" for words, name in shown.items())


def _check_match(trained: Model, file: ImageFile) -> None:
    """ValueError unless the model was trained on exactly these rows: others hold no held-out rows of its own."""
    size = trained.description["architecture"]["image_size"]
    if size != file.image_size:
        raise ValueError(f"{file.path}: images of size {file.image_size}, expected {size} as {trained.folder} makes")
    digest = trained.description["data"]["digest"]
    if digest != file.digest:
        raise ValueError(
            f"{file.path}: digest {file.digest[:12] or 'none'}…, expected {digest[:12] or 'none'}…, "
            f"which {trained.folder} was trained on; train again or name the other file"
        )


def _read_distances(path: Path) -> History | None:
    """None where none was measured: not asked for, or not possible on the machine that trained."""
    distances = read_distances(path) if path.is_file() else None
    return distances if distances is not None and len(distances["step"]) else None


def _add_curve(measured: Measured, history: History, distances: History | None) -> None:
    """What the run's curve gives: M_global at its end, and how well it told the face distance."""
    correlation = None
    if distances is not None:
        M_global = mean_M_global(history, distances["step"])
        correlation = rank_correlation(M_global, distances["face_distance"])
    if correlation is None:
        measured.notes.append(
            "The rank correlation of M_global with the face distance needs 3 distances, which the training takes every "
            "train.evaluate_every steps."
        )
    measured.numbers |= {"M_global": float(history["M_global"][-1]), "rank_correlation": correlation}


if __name__ == "__main__":
    from pipeline.cli import run

    run("evaluate")
