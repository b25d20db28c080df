"""The textbook loop of public implementations, to compare with: two phases, plain up-sampling, float32.

On CUDA its convolutions run in TF32, which is torch's default for float32.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from began.data.batches import output_to_pixels
from began.gan.networks import SMALLEST, Decoder, Discriminator, Encoder, Generator
from began.gan.sampling import Pixels
from began.params import Params


class PlainDecoder(Decoder):
    """The same parameters and function as Decoder; up-samples first and convolves then, as the paper words it."""

    def forward(self, h: Tensor, carry: Tensor | None = None) -> Tensor:
        assert carry is None
        h0 = x = self.project(h).view(-1, self.n_filters, SMALLEST, SMALLEST)
        for i in range(0, len(self.convolutions), 2):
            if i > 0:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
                if self.skip_connections:
                    x = torch.cat((x, F.interpolate(h0, size=x.shape[-2:], mode="nearest")), dim=1)
            x = F.elu(self.convolutions[i](x))
            x = F.elu(self.convolutions[i + 1](x))
        image: Tensor = self.last(x)
        return image


class PlainDiscriminator(nn.Module):
    def __init__(self, image_size: int, n_filters: int, N_h: int, skip_connections: bool) -> None:
        super().__init__()
        self.encoder = Encoder(image_size, n_filters, N_h)
        self.decoder = PlainDecoder(image_size, n_filters, N_h, skip_connections)

    def forward(self, v: Tensor) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(v))
        return reconstruction


class TextbookTraining:
    """Each player in turn, each with its own pass through D and its own Adam; k_t and M_global on the host."""

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        gamma: float = 0.5,
        lambda_k: float = 0.001,
        learning_rate: float = 1e-4,
        normal_z: bool = False,
    ) -> None:
        """Starts from copies of the weights of `G` and `D`, on their device.

        normal_z: z is normal, not uniform.
        """
        device = next(G.parameters()).device
        size = SMALLEST * 2 ** (len(G.convolutions) // 2 - 1)
        architecture = (size, G.n_filters, G.project.in_features, G.skip_connections)
        self.G = PlainDecoder(*architecture).to(device)
        self.D = PlainDiscriminator(*architecture).to(device)
        self.G.load_state_dict(G.state_dict())
        self.D.load_state_dict(D.state_dict())
        self.normal_z = normal_z
        self.adam_G = torch.optim.Adam(self.G.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        self.adam_D = torch.optim.Adam(self.D.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        self.gamma, self.lambda_k, self.k_t = gamma, lambda_k, 0.0

    def step(self, x: Tensor) -> float:
        """One update of D, one of G; x (B, 3, S, S) in [−1, 1]. Returns M_global."""
        fake = self.G(self._draw_z(len(x)))
        self.adam_D.zero_grad()
        L_real = (x - self.D(x)).abs().mean()
        L_fake = (fake.detach() - self.D(fake.detach())).abs().mean()
        (L_real - self.k_t * L_fake).backward()
        self.adam_D.step()
        self.adam_G.zero_grad()
        L_G = (fake - self.D(fake)).abs().mean()
        L_G.backward()
        self.adam_G.step()
        balance = (self.gamma * L_real - L_G).item()
        self.k_t = min(max(self.k_t + self.lambda_k * balance, 0.0), 1.0)
        return L_real.item() + abs(balance)

    @torch.no_grad()
    def samples(self, num: int, batch_size: int = 100) -> Pixels:
        """(num, S, S, 3) uint8, of the generator as it is: the textbook averages nothing."""
        z = (self._draw_z(min(batch_size, num - first)) for first in range(0, num, batch_size))
        return np.concatenate([output_to_pixels(self.G(batch)).cpu().numpy() for batch in z])

    def _draw_z(self, num: int) -> Tensor:
        N_z, device = self.G.project.in_features, self.G.project.weight.device
        return torch.randn(num, N_z, device=device) if self.normal_z else torch.rand(num, N_z, device=device) * 2 - 1


def new_players(params: Params, image_size: int, pytorch_weights: bool) -> tuple[Generator, Discriminator]:
    """G and D of the size in `params`, drawn from its seed: with PyTorch's initial weights, or with ours."""
    torch.manual_seed(params.seed)
    train = params.train
    architecture = (image_size, train.n_filters, train.N_h, train.skip_connections)
    players = Generator(*architecture), Discriminator(*architecture)
    if pytorch_weights:
        for player in players:
            reset_to_pytorch(player)
    return players


def reset_to_pytorch(network: nn.Module) -> None:
    """The initial weights that PyTorch gives: uniform with variance 1 / (3 · fan in), biases too."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
