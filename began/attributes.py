"""Which of the drawn faces' attributes samples cover: a small classifier that learns them from the card.

The network reads 32×32 pixels, whatever the images' size, and has one softmax for each attribute. Half of what it
learns from is blurred and noisy, as samples are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from began.batches import pixels_to_input
from began.progress import Progress

Pixels = NDArray[np.uint8]
Labels = dict[str, NDArray[np.int64]]
"""Attribute → the index of each image's value, (N,)."""
Shares = dict[str, dict[str, float]]
"""Attribute → value → its share of the images; pairs under "skinColor_hairColor", as "#5c3829 #2c1b18"."""

ATTRIBUTES = ("skinColor", "hairColor", "hairVariant", "rearHairVariant", "beardVariant", "backgroundColor")
PAIR = ("skinColor", "hairColor")
SEEN = 0.1  # of its share of the data that a value's share of the samples reaches when they cover it

SIZE = 32
MOST_ROWS = 8000  # to learn from: more make it slower, not better
BATCH_SIZE = 64
MOST_STEPS = 500
MOST_EPOCHS = 40  # of a few images
LEARNING_RATE = 6e-3
MOST_BLUR = 1.0  # pixels, standard deviation
MOST_NOISE = 0.1  # of pixels in [−1, 1], standard deviation
CLASSIFIED = 250  # images at a time


@dataclass(frozen=True)
class AttributeClassifier:
    """What `learn` returns. `values`: attribute → its values, sorted; `accuracy`: share right on held-out images."""

    network: nn.Module
    values: dict[str, list[str]]
    accuracy: dict[str, float]

    def classify(self, batches: Iterable[Pixels]) -> Labels:
        """Indices into `values` of all images in `batches`, (B, S, S, 3) uint8 each, in order."""
        labels = [_classify(self.network, _shrink(batch), self.values) for batch in batches]
        return {name: np.concatenate([part[name] for part in labels]) for name in self.values}


def learn(
    images: Pixels,
    cards: Sequence[Mapping[str, str]],
    held_out: Pixels,
    held_out_cards: Sequence[Mapping[str, str]],
    seed: int,
) -> Generator[Progress, None, AttributeClassifier]:
    """Trains on `images` (N, S, S, 3) uint8 with a card each, on the CPU; the first MOST_ROWS are enough.

    Attributes that a card lacks are left out. A value that no card of `images` has counts as wrong in the accuracy.
    The same seed gives the same classifier on the same machine; torch's own random numbers are left as they are.
    """
    assert len(images) == len(cards) and len(held_out) == len(held_out_cards)
    images, cards = images[:MOST_ROWS], cards[:MOST_ROWS]
    names = [name for name in ATTRIBUTES if all(name in card for card in (*cards, *held_out_cards))]
    values = {name: sorted({card[name] for card in cards}) for name in names}
    sizes = [len(known) for known in values.values()]
    targets = [torch.from_numpy(indices) for indices in labels_of(cards, values).values()]
    inputs = _shrink(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(sum(sizes))
    draw = torch.Generator().manual_seed(seed)
    num_steps = min(MOST_STEPS, MOST_EPOCHS * -(-len(images) // BATCH_SIZE))
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=num_steps, pct_start=0.15)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(num_steps):
        if step % 20 == 0:
            yield Progress(step, num_steps, "steps")
        while len(order) < BATCH_SIZE:
            order = torch.cat((order, torch.randperm(len(inputs), generator=draw)))
        chosen, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        disturbed = _disturb(inputs[chosen], draw)
        _learn_batch(network, optimizer, disturbed, [target[chosen] for target in targets], sizes)
        schedule.step()
    network.eval().requires_grad_(False)
    yield Progress(num_steps, num_steps, "steps")
    answers = _classify(network, _shrink(held_out), values)
    truth = labels_of(held_out_cards, values)
    accuracy = {name: float((answers[name] == truth[name]).mean()) for name in names}
    return AttributeClassifier(network, values, accuracy)


def labels_of(cards: Sequence[Mapping[str, str]], values: Mapping[str, Sequence[str]]) -> Labels:
    """What the cards themselves say, as indices into `values`; −1 for a value that is not among them."""
    labels = {}
    for name, known in values.items():
        index = {value: i for i, value in enumerate(known)}
        labels[name] = np.array([index.get(card.get(name, ""), -1) for card in cards], dtype=np.int64)
    return labels


def shares(labels: Labels, values: Mapping[str, Sequence[str]]) -> Shares:
    """The share of images with each value, of each attribute and of PAIR's combinations where both are known."""
    found: Shares = {}
    for name, known in values.items():
        counts = np.bincount(labels[name][labels[name] >= 0], minlength=len(known))
        found[name] = {value: count / len(labels[name]) for value, count in zip(known, counts.tolist(), strict=True)}
    if all(name in values for name in PAIR):
        first, second = (labels[name] for name in PAIR)
        found["_".join(PAIR)] = {
            f"{a} {b}": float(((first == i) & (second == j)).mean())
            for i, a in enumerate(values[PAIR[0]])
            for j, b in enumerate(values[PAIR[1]])
        }
    return found


def is_seen(share: float, share_of_data: float) -> bool:
    """Whether the samples cover a value: its share of them is at least a tenth of its share of the data."""
    return share >= SEEN * share_of_data


def attributes_seen(samples: Shares, data: Shares) -> dict[str, float]:
    """ "attributes_seen_" + attribute → the share, 0 to 1, of the values in `data` that the samples cover."""
    numbers = {}
    for name, of_data in data.items():
        present = [value for value, share in of_data.items() if share > 0]
        num_seen = sum(is_seen(samples[name].get(value, 0.0), of_data[value]) for value in present)
        numbers[f"attributes_seen_{name}"] = num_seen / len(present)
    return numbers


def _network(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),  # (B, 32, 16, 16)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, bias=False),  # (B, 32, 8, 8)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 128, bias=False),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, num_outputs),
    )


@torch.enable_grad()
def _learn_batch(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Sequence[Tensor], sizes: list[int]
) -> None:
    """One step on the sum of the attributes' cross entropies."""
    optimizer.zero_grad()
    parts = network(inputs).split(sizes, dim=1)
    losses = [functional.cross_entropy(part, target) for part, target in zip(parts, targets, strict=True)]
    torch.autograd.backward(torch.stack(losses).sum())
    optimizer.step()


def _disturb(inputs: Tensor, draw: torch.Generator) -> Tensor:
    """Blur and noise for the first half of the batch (B, 3, 32, 32), of a strength drawn for each image."""
    half = len(inputs) // 2
    sigma = torch.rand(half, 1, 1, generator=draw) * MOST_BLUR
    places = torch.arange(SIZE)
    blur = torch.exp(-((places - places[:, None]) ** 2) / (2 * sigma.clamp_min(0.05) ** 2))
    blur /= blur.sum(dim=2, keepdim=True)  # (half, 32, 32): each pixel's weights, of an axis
    blurred = torch.einsum("nij,ncjw,nvw->nciv", blur, inputs[:half], blur)
    noise = torch.randn(blurred.shape, generator=draw) * torch.rand(half, 1, 1, 1, generator=draw) * MOST_NOISE
    return torch.cat((blurred + noise, inputs[half:]))


@torch.no_grad()
def _classify(network: nn.Module, inputs: Tensor, values: Mapping[str, Sequence[str]]) -> Labels:
    logits = torch.cat([network(inputs[first : first + CLASSIFIED]) for first in range(0, len(inputs), CLASSIFIED)])
    parts = torch.split(logits, [len(known) for known in values.values()], dim=1)
    return {name: part.argmax(1).numpy() for name, part in zip(values, parts, strict=True)}


def _shrink(images: Pixels) -> Tensor:
    """(N, S, S, 3) uint8 → (N, 3, 32, 32) in [−1, 1], antialiased, some rows at a time."""
    shrunk = torch.empty(len(images), 3, SIZE, SIZE)
    for first in range(0, len(images), CLASSIFIED):
        rows = pixels_to_input(torch.from_numpy(np.array(images[first : first + CLASSIFIED])))
        if rows.shape[2:] != (SIZE, SIZE):
            rows = functional.interpolate(rows, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        shrunk[first : first + CLASSIFIED] = rows
    return shrunk
