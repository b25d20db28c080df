"""Faces from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from began.pretrained import BEST, folder_of, names

TRAINED = Path("data/model")
MOST = 1_000_000  # 3 GB as an array at 32×32, 12 at 64×64; another seed gives the next million


def sample(
    num: Annotated[int, typer.Option(min=1, max=MOST, help="How many faces.")] = 64,
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
    from pipeline.workspace import is_new_or_empty

    if out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"--out: {str(out)!r}, expected a name that ends in .png or .npz, or one without a suffix")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: {str(out)!r}: the folder {str(out.parent)!r} does not exist")
    if out.suffix == "" and not is_new_or_empty(out):
        raise ValueError(f"--out: {str(out)!r}: expected a new or an empty folder")
    found = _find(model)
    import math

    import numpy as np

    from began.checkpoint import read_generator
    from began.devices import resolve_device
    from began.files import replace_file, replace_folder
    from began.images import grid, png_bytes, write_png
    from began.sampling import draw_z, generate

    G = read_generator(found).to(resolve_device(device))
    batches = generate(G, draw_z(num, G.project.in_features, seed))
    if out.suffix == "":
        with replace_folder(out) as folder:
            digits = len(str(num - 1))
            names = (folder / f"{i:0{digits}}.png" for i in range(num))
            for images in batches:
                for image in images:
                    next(names).write_bytes(png_bytes(image))
        print(f"{num} faces in {out}{'/'}")
        return
    images = np.concatenate(list(batches))
    if out.suffix == ".npz":
        with replace_file(out) as temporary, temporary.open("wb") as file:
            np.savez(file, images=images)
    else:
        write_png(out, grid(images, columns=math.ceil(math.sqrt(num))))
    print(f"{num} faces in {out}")


def _find(model: str | None) -> Path:
    """The folder or file that `--model` means; ValueError where there is none."""
    if model is not None:
        shipped = folder_of(model)
        found = shipped if shipped is not None and not Path(model).exists() else Path(model)
        if not found.exists():
            ready = ", ".join(names())
            raise ValueError(f"--model: {model}: no trained model there; `make repro` trains one, ready is {ready}")
        return found
    if TRAINED.exists():
        return TRAINED
    shipped = folder_of(BEST)
    assert shipped is not None
    print(f"No {TRAINED} yet: the faces are of {BEST}, the weights that ship. `make repro` trains your own.")
    return shipped


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("sample")
