"""Faces from a trained model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from began.base.files import replace_file, replace_folder
from began.data.images import grid, png_bytes, write_png
from began.device.devices import resolve_device
from began.gan.sampling import draw_z, generate
from began.pretrained import BEST, folder_of, names
from began.runs.model_folder import read_generator
from pipeline.console.workspace import is_new_or_empty

TRAINED = Path("data/model")


def sample(num: int, seed: int, out: Path, model: str | None, device: str) -> None:
    """Make faces with the averaged generator."""
    if out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"--out: {str(out)!r}, expected a name that ends in .png or .npz, or one without a suffix")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out: {str(out)!r}: the folder {str(out.parent)!r} does not exist")
    if out.suffix == "" and not is_new_or_empty(out):
        raise ValueError(f"--out: {str(out)!r}: expected a new or an empty folder")
    found = _find(model)

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
    from pipeline.cli import run

    run("sample")
