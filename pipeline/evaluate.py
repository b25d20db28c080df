"""Stage 4: images.h5 and the model folder → numbers, pictures and a page that shows them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    import numpy as np

    from began.checkpoint import Model
    from began.hdf5 import ImageFile
    from began.networks import Discriminator
    from began.progress import Progress
    from pipeline.page import Picture
    from pipeline.plots import History

COLUMNS = 8  # of a grid of samples
NUM_TILES = 64
NUM_RECONSTRUCTIONS = 32
NUM_STRIPS = 6
BATCH_SIZE = 50
NUMBERS_NAME = "metrics.json"
PIXELS_ACROSS = 1024  # of a grid on the page: small tiles are repeated up to it, so that a browser does not blur them

Numbers = dict[str, float | None]
Thumbnails = dict[int, "np.ndarray"]  # step → tiles (N, S, S, 3) of the fixed z


def evaluate(
    images: Annotated[Path, typer.Argument(help="HDF5 file made by preprocess.")] = Path("data/images.h5"),
    model: Annotated[Path, typer.Argument(help="Model folder made by train.")] = Path("data/model"),
    report: Annotated[Path, typer.Argument(help="Folder for the report; replaced.")] = Path("data/report"),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure a model on held-out images; leaves numbers, pictures and index.html.

    Example: began evaluate data/images.h5 data/model data/report
    """
    from began.params import load_params

    settings = load_params(params)

    from began.checkpoint import read_model
    from began.devices import resolve_device
    from began.files import replace_folder
    from began.hdf5 import open_images, verify_digest
    from pipeline import tracking
    from pipeline.plots import read_history
    from pipeline.progress import follow
    from pipeline.report import render

    if report.is_dir() and any(report.iterdir()) and not (report / NUMBERS_NAME).is_file():
        raise ValueError(f"{report}: holds other things than a report, expected a new folder or an older report")
    target = resolve_device(device)
    trained = read_model(model)
    file = open_images(images)
    _check_match(trained, file)
    history = read_history(model / "history.csv")
    thumbnails = _read_thumbnails(model, file.image_size)
    for network in (trained.G, trained.G_ema, trained.D):
        network.to(target)

    with replace_folder(report) as folder:
        follow(verify_digest(file), "check rows", brief=True)
        numbers = _measure(trained, file, settings.evaluate.num_samples, settings.seed)
        numbers["M_global"] = float(history["M_global"][-1])
        warnings = [f"Warning of the training: {text}" for text in trained.description.get("warnings", [])]
        notes = warnings + _notes(numbers, settings.evaluate.num_samples, file)
        pictures = _draw(folder, trained, file, history, thumbnails, settings.seed)
        (folder / "history.csv").write_bytes((model / "history.csv").read_bytes())
        (folder / NUMBERS_NAME).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        page = render(numbers, trained.description, pictures, notes, file.credit, file.licence)
        (folder / "index.html").write_text(page, encoding="utf-8")
    # The run already has M_global as a curve.
    tracking.log_report(
        trained.digest,
        {name: value for name, value in numbers.items() if value is not None and name != "M_global"},
        report,
    )
    for note in notes:
        print(f"note: {note}")
    print(
        f"Fréchet distance {_show(numbers['frechet_face'])} (real images {_show(numbers['frechet_face_baseline'])}), "
        f"diversity {_show(numbers['diversity'])}, "
        f"reconstruction loss {_show(numbers['reconstruction_loss_held_out'])}, "
        f"M_global {_show(numbers['M_global'])}"
    )
    print(report / "index.html")


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


def _measure(trained: Model, file: ImageFile, num_samples: int, seed: int) -> Numbers:
    """All numbers of the report but M_global; None where there are too few rows for one.

    Samples, held-out rows and training rows are as many as `num_samples` says, or as there are. There are never more
    samples than training rows, which take their place in the baseline: both then have the same bias.
    """
    from began import features, metrics
    from began.sampling import draw_z, generate
    from pipeline.progress import follow

    held_out = _choose(len(file.held_out), num_samples, seed)
    train = _choose(len(file.train), num_samples, seed)
    num_samples = min(num_samples, len(train))
    N_h, eta = trained.description["architecture"]["N_h"], trained.description["parameters"]["train.eta"]
    z = draw_z(num_samples, N_h, seed)
    sets = {
        "held-out images": (len(held_out), _batches(file.held_out, held_out)),
        "training images": (len(train), _batches(file.train, train)),
        "samples": (num_samples, generate(trained.G_ema, z, BATCH_SIZE)),
    }
    network = features.NETWORKS["face"]()
    vectors: dict[str, np.ndarray] = {}
    spreads: dict[str, metrics.PixelSpread] = {}
    for name, (total, batches) in sets.items():
        spreads[name] = metrics.PixelSpread()
        vectors[name] = follow(features.extract(network, spreads[name].watch(batches), total), f"features of {name}")
    real, other, fake = (vectors[name] for name in sets)
    numbers: Numbers = {}
    enough = min(len(real), len(other), len(fake))
    for name, candidates in (("", fake), ("_baseline", other)):
        numbers[f"frechet_face{name}"] = metrics.frechet_distance(candidates, real) if enough >= 2 else None
        kid = metrics.kid(candidates, real, seed=seed) if enough >= 4 else None
        numbers[f"kid_face{name}"] = kid.mean if kid else None
        numbers[f"kid_face{name}_std"] = kid.std if kid else None
    pixels = {name: spread.value if enough >= 2 else 0.0 for name, spread in spreads.items()}
    varied = enough >= 2 and metrics.mean_pairwise_distance(real) > 0 and pixels["held-out images"] > 0
    for name, key in (("", "samples"), ("_baseline", "training images")):
        numbers[f"diversity{name}"] = metrics.diversity(vectors[key], real) if varied else None
        numbers[f"spread{name}"] = pixels[key] / pixels["held-out images"] if varied else None
    for name, rows, chosen in (("held_out", file.held_out, held_out), ("train", file.train, train)):
        losses = _reconstruction_loss(trained.D, _batches(rows, chosen), len(chosen), eta)
        numbers[f"reconstruction_loss_{name}"] = follow(losses, f"reconstruction loss, {name.replace('_', ' ')}")
    return numbers | {"num_samples": num_samples, "num_held_out": len(held_out), "num_train": len(train)}


def _choose(num_rows: int, wanted: int, seed: int) -> np.ndarray:
    """Indices of `wanted` different rows, or of all, ascending; the same for the same seed."""
    import numpy as np

    return np.sort(np.random.default_rng(seed).permutation(num_rows)[:wanted])


def _batches(rows: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), BATCH_SIZE):
        yield rows[chosen[start : start + BATCH_SIZE]]


def _reconstruction_loss(
    D: Discriminator, batches: Iterable[np.ndarray], total: int, eta: int
) -> Generator[Progress, None, float]:
    from began.progress import Progress
    from began.sampling import reconstruction_loss

    done, loss = 0, 0.0
    yield Progress(0, total)
    for batch in batches:
        loss += reconstruction_loss(D, batch, eta) * len(batch)
        done += len(batch)
        yield Progress(done, total)
    return loss / done


def _notes(numbers: Numbers, wanted: int, file: ImageFile) -> list[str]:
    """What the counts or the rows kept from being as asked for."""
    held_out, train = int(numbers["num_held_out"] or 0), int(numbers["num_train"] or 0)
    notes = []
    if held_out < wanted:
        notes.append(
            f"{wanted:,} held-out images were asked for (evaluate.num_samples) and there are {held_out:,}: all are "
            "used. Distances over fewer images are larger: compare them with the real images’ only."
        )
    if train < wanted:
        notes.append(
            f"{wanted:,} samples were asked for and {train:,} are measured: as many as there are training images, "
            "which take their place in the real-against-real baseline."
        )
    if any(value is None for value in numbers.values()):
        notes.append(
            "A dash marks a number that these images cannot give: distances need at least 2 held-out images, "
            "KID at least 4, and ratios need held-out images that differ."
        )
    return notes


def _read_thumbnails(model: Path, image_size: int) -> Thumbnails:
    """The grids that the training left; ValueError naming the one that is none."""
    from began.images import read_png, tiles

    thumbnails = {}
    for path in (model / "samples").glob("*.png"):
        if path.stem.isdecimal():
            picture = read_png(path)
            try:
                thumbnails[int(path.stem)] = tiles(picture, image_size)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    return thumbnails


def _draw(
    folder: Path, trained: Model, file: ImageFile, history: History, thumbnails: Thumbnails, seed: int
) -> list[Picture]:
    """Writes every picture into `folder`; returns them with their captions, in the page's order."""
    import numpy as np
    import torch

    from began.images import grid, png_bytes, write_png
    from began.sampling import draw_z, generate, interpolate, reconstruct
    from pipeline import plots
    from pipeline.page import Picture

    N_h = trained.description["architecture"]["N_h"]
    gamma = float(trained.description["parameters"]["gamma"])

    def grid_picture(name: str, pixels: np.ndarray, columns: int, title: str, caption: str) -> Picture:
        picture = grid(pixels, columns)
        write_png(folder / name, picture)
        times = max(PIXELS_ACROSS // picture.shape[1], 1)
        larger = picture.repeat(times, axis=0).repeat(times, axis=1)
        return Picture(title, caption, title, png_bytes(larger), is_grid=True)

    def curve_picture(name: str, draw: Callable[..., bytes], title: str, caption: str, alt: str) -> Picture:
        wide = draw(theme=plots.LIGHT)
        (folder / name).write_bytes(wide)
        dark, narrow = draw(theme=plots.DARK), draw(theme=plots.LIGHT, narrow=True)
        return Picture(title, caption, alt, wide, dark, narrow, draw(theme=plots.DARK, narrow=True))

    z = draw_z(NUM_TILES, N_h, seed)
    samples = np.concatenate(list(generate(trained.G_ema, z)))
    raw = np.concatenate(list(generate(trained.G, z)))
    ends = z[: 2 * NUM_STRIPS]
    paths = torch.cat([interpolate(ends[2 * i], ends[2 * i + 1], COLUMNS) for i in range(NUM_STRIPS)])
    strips = np.concatenate(list(generate(trained.G_ema, paths)))
    originals = np.array(file.held_out[:NUM_RECONSTRUCTIONS])
    rows = []
    for start in range(0, len(originals), COLUMNS):
        part = originals[start : start + COLUMNS]
        blank = np.full((COLUMNS - len(part), *part.shape[1:]), 255, dtype=np.uint8)
        rows += [part, blank, reconstruct(trained.D, part), blank]
    steps = f"{trained.description['step']:,}"
    return [
        grid_picture(
            "samples.png",
            samples,
            COLUMNS,
            "Samples",
            f"{NUM_TILES} samples from random z, not picked, after {steps} steps. The weights are the average over the "
            "last steps.",
        ),
        curve_picture(
            "convergence.png",
            partial(plots.convergence, history, thumbnails),
            "Convergence",
            "M_global over the steps of the run, and above it what the generator made of the same six z at each point.",
            "M_global over steps, with samples above the curve",
        ),
        curve_picture(
            "curves.png",
            partial(plots.curves, history, gamma),
            "Balance",
            "The losses of real and generated images, which k_t keeps at L_fake = γ·L_real; k_t itself; and the "
            "learning rate.",
            "Losses, k_t and learning rate over steps",
        ),
        grid_picture(
            "interpolation.png",
            strips,
            COLUMNS,
            "Interpolation",
            "Each row walks from one sample to another on the straight line between their z. Every step should be a "
            "face.",
        ),
        grid_picture(
            "reconstructions.png",
            np.concatenate(rows),
            COLUMNS,
            "Reconstructions",
            "Held-out images, and under each row what the discriminator, an auto-encoder, makes of them.",
        ),
        grid_picture(
            "samples_raw.png",
            raw,
            COLUMNS,
            "Without averaging",
            "The same z through the weights of the last step alone.",
        ),
    ]


def _show(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("evaluate")
