"""The standard GAN that BEGAN is compared with: its losses against PyTorch's own, its size against BEGAN's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from began.params import load_params
from began.training import Training
from experiments.standard_gan import StandardGAN, best, discriminator_loss, generator_loss, num_parameters_of

PARAMS = load_params(Path(__file__).parents[1] / "params.yaml")


def test_losses_are_cross_entropies_of_the_right_labels() -> None:
    real, fake = torch.randn(2, 9, 1, dtype=torch.float64, requires_grad=True)
    ones, zeros = torch.ones_like(real), torch.zeros_like(real)
    wanted = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, zeros)
    torch.testing.assert_close(discriminator_loss(real, fake), wanted)
    torch.testing.assert_close(generator_loss(fake), F.binary_cross_entropy_with_logits(fake, ones))


def test_both_players_have_as_many_parameters_as_began_and_g_is_the_same() -> None:
    began = Training(PARAMS, 32, torch.device("cpu")).players
    gan = StandardGAN(PARAMS, 32, learning_rate=1e-3, beta_1=0.5, r1=1.0)
    both = num_parameters_of(gan.G) + num_parameters_of(gan.D)
    assert both == pytest.approx(num_parameters_of(began), rel=0.05)
    for name, tensor in began.G.state_dict().items():
        assert torch.equal(gan.G.state_dict()[name], tensor), name


def test_a_step_moves_each_player_down_its_own_loss() -> None:
    gan = StandardGAN(PARAMS, 32, learning_rate=1e-4, beta_1=0.0, r1=1.0)
    x = torch.rand(8, 3, 32, 32) * 2 - 1
    z = torch.rand(8, PARAMS.train.N_h) * 2 - 1
    fake = gan.G(z).detach()
    before = discriminator_loss(gan.D(x), gan.D(fake))
    for _ in range(5):
        gan.step(x)
    assert discriminator_loss(gan.D(x), gan.D(fake)) < before
    assert generator_loss(gan.D(gan.G(z))) < generator_loss(gan.D(fake))
    assert not torch.equal(next(gan.G_ema.parameters()), next(gan.G.parameters()))


def test_the_best_settings_are_those_of_the_least_distance_of_their_kind() -> None:
    rows = [
        {"learning_rate": rate, "beta_1": 0.5, "r1": r1, "frechet": frechet}
        for rate, r1, frechet in ((1e-4, 0.0, 90.0), (2e-4, 0.0, 80.0), (5e-4, 1.0, 70.0))
    ]
    assert best(rows, r1=False)["learning_rate"] == 2e-4
    assert best(rows, r1=True)["learning_rate"] == 5e-4
    with pytest.raises(ValueError, match="--tune"):
        best([], r1=True)
