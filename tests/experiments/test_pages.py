"""The standard GAN that BEGAN is compared with: its gradients, its size, its tuning."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from began.gan.networks import Discriminator, Encoder, Generator, uniform_z
from began.params import Params, load_params
from benchmarks.faces import with_train
from experiments.standard_gan import (
    GRID,
    R1_INTERVAL,
    VARIANTS,
    Settings,
    StandardGan,
    Variant,
    best_settings,
    num_parameters,
    widened_n,
)


@pytest.fixture(scope="module")
def params(repository: Path) -> Params:
    return load_params(repository / "params.yaml")


def plain_logits(D: Encoder, v: Tensor) -> Tensor:
    """D(v) without anything in place."""
    v = F.elu(D.first(v))
    for convolution in D.convolutions:
        v = F.elu(convolution(v))
    logits: Tensor = D.embed(v.flatten(1))
    return logits


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.title)
def test_a_step_leaves_the_gradients_of_binary_cross_entropy(params: Params, variant: Variant) -> None:
    tiny = with_train(params, n_filters=3, N_h=4, precision="float32")
    gan = StandardGan(tiny, 32, variant, Settings(1e-3, 0.5))
    G, D = copy.deepcopy(gan.G), copy.deepcopy(gan.D)
    z = uniform_z(6, 4, gan.z_generator.clone_state())
    x = torch.rand(6, 3, 32, 32) * 2 - 1

    real = x.clone().requires_grad_()
    logits = plain_logits(D, torch.cat((real, G(z).detach())))
    labels = torch.tensor([[1.0]] * 6 + [[0.0]] * 6)
    loss = 2 * F.binary_cross_entropy_with_logits(logits, labels)
    (slope,) = torch.autograd.grad(logits[:6].sum(), real, create_graph=True)
    loss = loss + variant.gamma_R1 / 2 * R1_INTERVAL * slope.flatten(1).norm(dim=1).square().mean()
    of_D = torch.autograd.grad(loss, list(D.parameters()))

    gan.step(x, learning_rate=1e-3)

    labels = torch.ones(6, 1)
    loss = F.binary_cross_entropy_with_logits(plain_logits(gan.D, G(z)), labels)  # of D after its update
    of_G = torch.autograd.grad(loss, list(G.parameters()))
    for player, expected in ((gan.D, of_D), (gan.G, of_G)):
        for parameter, gradient in zip(player.parameters(), expected, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("image_size", "n_filters"), [(32, 24), (64, 24), (64, 64), (128, 16)])
def test_a_gan_has_as_many_parameters_as_began(params: Params, image_size: int, n_filters: int) -> None:
    settings = with_train(params, n_filters=n_filters, N_h=64)
    architecture = (image_size, n_filters, 64, settings.train.skip_connections)
    with torch.device("meta"):
        of_G = num_parameters(Generator(*architecture))
        began = of_G + num_parameters(Discriminator(*architecture))
        gan = of_G + num_parameters(Encoder(image_size, widened_n(settings, image_size), 1))
    assert gan == pytest.approx(began, rel=0.05)


def test_each_gan_takes_the_settings_of_its_own_lowest_distance() -> None:
    one, other = VARIANTS
    lowest = {one: Settings(2e-4, 0.0), other: Settings(5e-4, 0.0)}
    rows: list[dict[str, str | float | int | None]] = [
        {
            "run": "tuning",
            "what": variant.title,
            "seed": 0,
            "learning_rate": settings.learning_rate,
            "beta_1": settings.beta_1,
            "frechet": 10.0 if settings == best else 30.0,
        }
        for variant, best in lowest.items()
        for settings in GRID
    ]
    assert best_settings(rows) == lowest
    assert best_settings(rows[:-1]) == {one: lowest[one]}  # the other's grid was cut short
