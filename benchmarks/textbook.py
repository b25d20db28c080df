"""The textbook loop of public implementations, to compare with: two phases, plain up-sampling, float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from began.networks import SMALLEST, Decoder, Discriminator, Encoder, Generator


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
    ) -> None:
        """Starts from copies of the weights of `G` and `D`, on their device."""
        device = next(G.parameters()).device
        size = SMALLEST * 2 ** (len(G.convolutions) // 2 - 1)
        architecture = (size, G.n_filters, G.project.in_features, G.skip_connections)
        self.G = PlainDecoder(*architecture).to(device)
        self.D = PlainDiscriminator(*architecture).to(device)
        self.G.load_state_dict(G.state_dict())
        self.D.load_state_dict(D.state_dict())
        self.adam_G = torch.optim.Adam(self.G.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        self.adam_D = torch.optim.Adam(self.D.parameters(), lr=learning_rate, betas=(0.5, 0.999))
        self.gamma, self.lambda_k, self.k_t = gamma, lambda_k, 0.0

    def step(self, x: Tensor) -> float:
        """One update of D, one of G; x (B, 3, S, S) in [−1, 1]. Returns M_global."""
        z = torch.rand(len(x), self.G.project.in_features, device=x.device) * 2 - 1
        fake = self.G(z)
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
