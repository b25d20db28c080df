"""Trains a BEGAN on an array of images, with the library alone; a minute on a CPU.

    python examples/train_on_an_array.py

Put your own images, (N, 32, 32, 3) uint8, in the place of the discs. discs.png is a grid of samples.
"""

from pathlib import Path

import numpy as np
import torch

from began.data.batches import open_batches
from began.data.images import grid, write_png
from began.gan.loop import train
from began.gan.sampling import draw_z, generate
from began.gan.training import Training
from began.params import load_params

# Discs of any colour, place and size on cloudy grounds. Flat grounds would leave the game no room: docs/clutter.md.
rng = np.random.default_rng(0)
place = np.stack(np.mgrid[:32, :32], axis=-1)  # (32, 32, 2)
is_disc = np.linalg.norm(place - rng.uniform(12, 20, (2000, 1, 1, 2)), axis=-1) < rng.uniform(6, 11, (2000, 1, 1))
clouds = sum(rng.normal(0, 80 / n, (2000, n, n, 3)).repeat(32 // n, 1).repeat(32 // n, 2) for n in (2, 4, 8, 16, 32))
colours = np.where(is_disc[..., None], *rng.uniform(40, 216, (2, 2000, 1, 1, 3)))
images = (colours + clouds).clip(0, 255).astype(np.uint8)

params = load_params(Path(__file__).parents[1] / "params.yaml")  # γ, λ_k and the quick profile
settings = params.train.model_copy(update={"num_steps": 500, "decay_steps": 500})
params = params.model_copy(update={"train": settings})

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
training = Training(params, image_size=32, device=device)
for record in train(training, open_batches(images, settings.batch_size, params.seed, device), record_every=50):
    if record is not None:
        print(f"step {record.step}: M_global {record.M_global:.3f}, k_t {record.k_t:.3f}")

samples = np.concatenate(list(generate(training.G_ema, draw_z(64, settings.N_h, params.seed))))  # (64, 32, 32, 3)
write_png(Path("discs.png"), grid(samples, columns=8))
