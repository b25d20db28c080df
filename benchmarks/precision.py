"""What bfloat16 costs in quality: M_global after training in bfloat16 and in float32.

    python -m benchmarks.precision [--images data/images.h5] [--device cpu|cuda] [--steps 2000] [--quick]

Both start from one seed: the same weights, the same rows in the same order, the same z. float32 is trained from two
further seeds as well, to show how far M_global differs between runs anyway. Settings are those of params.yaml, its
learning rate falling over --steps. M_global and the losses are means over the last tenth of the steps, k_t is the last
one. Without --images portraits are drawn. A processor without bfloat16 emulates it slowly: --n-filters 8 --batch-size 4
keeps that short, and the rows say so.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from began.base.parallel import num_cores
from began.data.batches import open_batches
from began.data.rows import ImageFile, open_images
from began.device.devices import resolve_device, resolve_precision
from began.gan.loop import train
from began.gan.training import Training
from began.params import Params, load_params
from benchmarks.preprocess import portraits, preprocess_all
from benchmarks.report import FOLDER, Row, print_table, write

NUM_PORTRAITS = 2000
RUNS = (("float32", 0), ("bfloat16", 0), ("float32", 1), ("float32", 2))  # precision, seed


def draw_images(folder: Path, num_images: int, image_size: int) -> Path:
    """A data file of portraits in `folder`."""
    portraits(num_images, folder)
    preprocess_all(folder / "drawn.zip", folder / "images.h5", image_size, "centre", num_cores())
    return folder / "images.h5"


def measure(params: Params, file: ImageFile, device: torch.device, precision: str, seed: int) -> Row:
    """One row of the table, its ratio left open."""
    changes = {"seed": seed, "train": params.train.model_copy(update={"precision": precision})}
    training = Training(params.model_copy(update=changes), file.image_size, device)
    batches = open_batches(file.train, params.train.batch_size, seed, device)
    for record in train(training, batches, record_every=params.train.num_steps // 10):
        if record is not None:
            print(f"{precision}, seed {seed}: step {record.step:,}, M_global {record.M_global:.5f}", flush=True)
    native = precision == "float32" or resolve_precision("auto", device) == "bfloat16"
    return {
        "precision": precision,
        "native": "yes" if native else "no",
        "seed": seed,
        "M_global": record.M_global,
        "L_real": record.L_real,
        "L_fake": record.L_fake,
        "k_t": record.k_t,
    }


def main() -> None:
    params = load_params(FOLDER.parent / "params.yaml")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="HDF5 file made by preprocess; portraits where it is left out")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=2000, help="a multiple of 10")
    parser.add_argument("--n-filters", type=int, default=params.train.n_filters)
    parser.add_argument("--N-h", type=int, default=params.train.N_h)
    parser.add_argument("--batch-size", type=int, default=params.train.batch_size)
    parser.add_argument("--quick", action="store_true", help="20 narrow steps, and no JSON: shows that it works")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.n_filters, arguments.batch_size = 20, 4, 4
    if arguments.steps < 10 or arguments.steps % 10:
        parser.error(f"--steps: {arguments.steps}, expected a multiple of 10")
    changes = {
        "n_filters": arguments.n_filters,
        "N_h": arguments.N_h,
        "batch_size": arguments.batch_size,
        "num_steps": arguments.steps,
        "decay_steps": arguments.steps,
    }
    params = params.model_copy(update={"train": params.train.model_copy(update=changes)})
    try:
        device = resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory() as temporary:
        num_images = 100 if arguments.quick else NUM_PORTRAITS
        path = arguments.images or draw_images(Path(temporary), num_images, params.preprocess.image_size)
        file = open_images(path)
        rows = [measure(params, file, device, precision, seed) for precision, seed in RUNS]
    rows = [{**row, "ratio": row["M_global"] / rows[0]["M_global"]} for row in rows]
    if arguments.quick:
        print_table(rows)
    else:
        source = file.source if arguments.images else "portraits"
        data = {"source": source, "num_train": len(file.train), "image_size": file.image_size}
        device_settings = {"device": device.type, "num_threads": torch.get_num_threads()}
        write("precision", {**data, **device_settings, **params.train.model_dump(exclude={"precision"})}, rows)


if __name__ == "__main__":
    main()
