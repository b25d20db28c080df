"""The commands' options, and their errors translated once. A command's module is imported when it is called."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from began import __version__
from began.base.addresses import without_secrets
from began.pretrained import BEST
from pipeline.console.environment import prepare
from pipeline.console.signals import StoppedError, unwinding

app = typer.Typer(
    name="began",
    help="BEGAN: images in, faces out. Each command is a stage of the pipeline or a use of what it made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"began {__version__}")
        raise typer.Exit


@app.callback()
def began(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """BEGAN: images in, faces out."""


@app.command()
def download(
    archive: Annotated[Path, typer.Argument(help="Zip to write; card.json lies beside it.")] = Path(
        "data/raw/images.zip"
    ),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    workers: Annotated[
        int, typer.Option(min=0, envvar="BEGAN_WORKERS", help="Processes; 0: one per core. Changes no byte.")
    ] = 0,
) -> None:
    """Get the images of download.source: portraits, orl, folder, url or celeba.

    Example: began download data/raw/images.zip --workers 2
    """
    from pipeline.download import download as run

    run(archive, params, workers)


@app.command()
def preprocess(
    archive: Annotated[Path, typer.Argument(help="Zip of images.")] = Path("data/raw/images.zip"),
    output: Annotated[Path, typer.Argument(help="HDF5 file to write.")] = Path("data/images.h5"),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    workers: Annotated[int, typer.Option(min=0, envvar="BEGAN_WORKERS", help="Processes; 0: one for each core.")] = 0,
) -> None:
    """Crops and resizes every image of a zip into one HDF5 file of rows.

    Images that cannot be decoded are listed in rejected.csv beside it.

    Example: began preprocess photos.zip data/images.h5 --workers 4
    """
    from pipeline.preprocess import preprocess as run

    run(archive, output, params, workers)


@app.command()
def train(
    images: Annotated[Path, typer.Argument(help="HDF5 file made by preprocess.")] = Path("data/images.h5"),
    model: Annotated[Path, typer.Argument(help="Folder for the model; replaced when the run is complete.")] = Path(
        "data/model"
    ),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, envvar="BEGAN_CHECKPOINT_SECONDS", help="Between two saved states.")
    ] = 60,
) -> None:
    """Train a BEGAN, with curves and pictures in MLflow. A run that was interrupted goes on.

    Example: began train data/images.h5 data/model --device cpu
    """
    from pipeline.train import train as run

    run(images, model, params, device, checkpoint_seconds)


@app.command()
def evaluate(
    images: Annotated[Path, typer.Argument(help="HDF5 file made by preprocess.")] = Path("data/images.h5"),
    model: Annotated[Path, typer.Argument(help="Model folder made by train.")] = Path("data/model"),
    report: Annotated[Path, typer.Argument(help="Folder for the report; replaced.")] = Path("data/report"),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    inception_weights: Annotated[
        Path | None,
        typer.Option(envvar="BEGAN_INCEPTION_WEIGHTS", help="File of the standard FID's network; fetched otherwise."),
    ] = None,
) -> None:
    """Measure a model on held-out images; leaves numbers, pictures and index.html.

    Example: began evaluate data/images.h5 data/model data/report
    """
    from pipeline.evaluate import evaluate as run

    run(images, model, report, params, device, inception_weights)


@app.command()
def sample(
    num: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many faces.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of z: the same seed gives the same pixels.")] = 0,
    out: Annotated[Path, typer.Option(help=".png: one grid; .npz: an array; no suffix: a folder of PNGs.")] = Path(
        "samples.png"
    ),
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder, a generator.safetensors in one, or the name of weights that ship.",
            show_default=f"data/model where it is, else {BEST}, which ships",
        ),
    ] = None,
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Make faces with the averaged generator.

    Example: began sample --num 64 --seed 1 --out samples.png
    """
    from pipeline.sample import sample as run

    run(num, seed, out, model, device)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write, new or empty.")],
    model: Annotated[Path, typer.Option(help="Model folder that train wrote.")] = Path("data/model"),
) -> None:
    """Copy a model with its weights in half precision, half of the size, to share.

    Every command that takes a model folder takes the copy. Its curves go with it, its pictures do not.

    Example: began export faces
    """
    from pipeline.export import export as run

    run(out, model)


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Model folders, DVC experiments, git revisions, MLflow runs.", metavar="RUN...")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the page; replaced.")] = Path("data/comparison"),
) -> None:
    """Put runs side by side in one page.

    Faces of the same z, curves over each other, numbers in a table, and what differs. A RUN is a model folder, a
    DVC experiment or any git revision, or an MLflow run: its name, id, or the first 8 or more digits of that.

    Example: began compare data/model gamma-0.4-seed-0 1f0c2a9b
    """
    from pipeline.compare import compare as run

    run(runs, out)


@app.command()
def log(
    model: Annotated[Path, typer.Argument(help="Model folder made by train.")] = Path("data/model"),
) -> None:
    """Send a trained model's settings, curves and pictures to MLflow, as far as they are not there yet.

    Example: began log data/model
    """
    from pipeline.log import log as run

    run(model)


@app.command()
def clean(
    params: Annotated[Path, typer.Option(help="Settings; the states of their run are kept.")] = Path("params.yaml"),
    images: Annotated[Path, typer.Option(help="HDF5 file that they are of.")] = Path("data/images.h5"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove the saved states of training, but for those of the present settings and of running processes.

    Shows them first and asks.

    Example: began clean --yes
    """
    from pipeline.clean import clean as run

    run(params, images, yes)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The pages' port on this machine.")] = 5000,
) -> None:
    """Show the runs in MLflow's pages, on this machine only, until Ctrl-C.

    Example: began ui --port 5001
    """
    from pipeline.ui import ui as run

    run(port)


def main(arguments: list[str] | None = None) -> None:
    """Runs `began ARGUMENTS`. What a user gave wrong ends with one line on standard error and exit code 2."""
    prepare()
    try:
        with unwinding():
            app(arguments, prog_name="began")
    except (ValueError, OSError) as error:
        print(f"began: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as stopped:
        print(f"began: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


def _one_line(error: Exception) -> str:
    """Its words, without secrets, and without what would act on a terminal: they may hold a stranger's file names."""
    words = without_secrets(" ".join(str(error).split()), [os.environ.get("MLFLOW_TRACKING_URI", "")])
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)


def run(command: str) -> None:
    """`python -m pipeline.COMMAND …`, as it was called before there was `python -m pipeline COMMAND …`."""
    main([command, *sys.argv[1:]])


if __name__ == "__main__":
    main()
