"""The encoder, the decoder, and the players made of them: G and D. One rule covers every image size 32·2^m."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 8  # height and width at which the encoder ends and the decoder begins


class Encoder(nn.Module):
    """Images (B, 3, S, S) → embeddings h (B, N_h).

    It begins with a 3×3 convolution from 3 channels to n. Each resolution i = 1 … log2(S) − 2 then has two 3×3
    convolutions with i·n filters. The second has stride 2, except at 8×8. An ELU follows each convolution. The last
    layer is fully connected, without a non-linearity.
    """

    def __init__(self, image_size: int, n_filters: int, N_h: int) -> None:
        super().__init__()
        depth = num_resolutions(image_size)
        self.first = nn.Conv2d(3, n_filters, 3, padding=1)
        self.convolutions = nn.ModuleList()
        channels = n_filters
        for i in range(1, depth + 1):
            stride = 1 if i == depth else 2
            self.convolutions.append(nn.Conv2d(channels, i * n_filters, 3, padding=1))
            self.convolutions.append(nn.Conv2d(i * n_filters, i * n_filters, 3, stride=stride, padding=1))
            channels = i * n_filters
        self.embed = nn.Linear(channels * SMALLEST**2, N_h)
        _initialise(self)

    def forward(self, v: Tensor | tuple[Tensor, ...], carry: Tensor | None = None) -> Tensor:
        # Several batches are joined only after the first convolution, so that no gradient is computed for a batch that
        # needs none.
        x = self.first(v) if isinstance(v, Tensor) else torch.cat([self.first(batch) for batch in v])
        x = F.elu_(x)  # (B, n, S, S)
        for convolution in self.convolutions:
            x = _vanishing_residual(x, F.elu_(convolution(x)), carry)
        h: Tensor = self.embed(x.flatten(1))  # (B, r·n, 8, 8) → (B, N_h)
        return h


class Decoder(nn.Module):
    """Embeddings h (B, N_h) → images (B, 3, S, S). Pixels are not bounded; the data's range is [−1, 1].

    The first layer is fully connected and gives h0 (B, n, 8, 8). Each resolution has two 3×3 convolutions with n
    filters, each followed by an ELU. Between two resolutions there is nearest-neighbour up-sampling. A last 3×3
    convolution goes from n channels to 3. With skip connections, h0 is up-sampled too and concatenated to the channels
    after each up-sampling.
    """

    def __init__(self, image_size: int, n_filters: int, N_h: int, skip_connections: bool) -> None:
        super().__init__()
        self.skip_connections = skip_connections
        self.n_filters = n_filters
        self.project = nn.Linear(N_h, n_filters * SMALLEST**2)
        self.convolutions = nn.ModuleList()
        for i in range(num_resolutions(image_size)):
            channels = 2 * n_filters if skip_connections and i > 0 else n_filters
            self.convolutions.append(nn.Conv2d(channels, n_filters, 3, padding=1))
            self.convolutions.append(nn.Conv2d(n_filters, n_filters, 3, padding=1))
        self.last = nn.Conv2d(n_filters, 3, 3, padding=1)
        _initialise(self)

    def forward(self, h: Tensor, carry: Tensor | None = None) -> Tensor:
        h0 = self.project(h).view(-1, self.n_filters, SMALLEST, SMALLEST)  # (B, n, 8, 8)
        x = h0 = h0.contiguous(memory_format=torch.channels_last)
        for i in range(0, len(self.convolutions), 2):
            first, second = self.convolutions[i], self.convolutions[i + 1]
            if i == 0:
                x = _vanishing_residual(x, F.elu_(first(x)), carry)
            else:
                scale = x.shape[-1] // SMALLEST
                v = torch.cat((x, _upsample(h0, scale)), dim=1) if self.skip_connections else x
                y = F.elu_(upsample_convolve(v, first))  # (B, n, 2·H, 2·W)
                x = y if carry is None or self.skip_connections else _vanishing_residual(_upsample(x, 2), y, carry)
            x = _vanishing_residual(x, F.elu_(second(x)), carry)
        image: Tensor = self.last(x)
        return image


class Generator(Decoder):
    """z (B, N_z) uniform in [−1, 1] → images (B, 3, S, S). It is a decoder with its own weights, and N_z = N_h."""


class Discriminator(nn.Module):
    """The auto-encoder: images v (B, 3, S, S) → their reconstructions D(v), of the same shape.

    A tuple of batches (v, w, …) gives the same result as their concatenation.
    """

    def __init__(self, image_size: int, n_filters: int, N_h: int, skip_connections: bool) -> None:
        super().__init__()
        self.encoder = Encoder(image_size, n_filters, N_h)
        self.decoder = Decoder(image_size, n_filters, N_h, skip_connections)

    def forward(self, v: Tensor | tuple[Tensor, ...], carry: Tensor | None = None) -> Tensor:
        reconstruction: Tensor = self.decoder(self.encoder(v, carry), carry)
        return reconstruction


def num_resolutions(image_size: int) -> int:
    """r = log2(S) − 2, the number of resolutions from S down to 8. Raises ValueError unless S is 32·2^m."""
    if image_size < 32 or image_size & (image_size - 1):
        raise ValueError(f"image_size: {image_size}, expected 32·2^m: 32, 64, 128, 256, …")
    return image_size.bit_length() - 3


def uniform_z(num: int, N_z: int, generator: torch.Generator) -> Tensor:
    """z (num, N_z), uniform in [−1, 1], on the generator's device."""
    return torch.rand(num, N_z, generator=generator, device=generator.device) * 2 - 1


def upsample_convolve(x: Tensor, convolution: nn.Module) -> Tensor:
    """Nearest-neighbour ×2, then a 3×3 convolution with padding 1: x (B, C, H, W) → (B, C', 2·H, 2·W).

    Both together are one transposed convolution of stride 2: neighbours in the up-sampled image are copies of one
    pixel, so their weights add up. It needs 16 products for four output pixels, where the plain form needs 36.
    """
    assert isinstance(convolution, nn.Conv2d)
    folded = _fold(_fold(convolution.weight, 2), 3)  # (C', C, 4, 4)
    return F.conv_transpose2d(x, folded.transpose(0, 1), convolution.bias, stride=2, padding=1)


def _fold(weight: Tensor, axis: int) -> Tensor:
    """Along `axis`, the three weights w0, w1, w2 become four: w2, w1 + w2, w0 + w1, w0."""
    w0, w1, w2 = weight.unbind(axis)
    return torch.stack((w2, w1 + w2, w0 + w1, w0), axis)


def _initialise(network: nn.Module) -> None:
    """Draws weights as Glorot and Bengio (2010) do, uniform with variance 2 / (fan in + fan out); biases are 0.

    Paper: does not say; here: Glorot's, because it is TensorFlow's default, which implementations of that time used.
    PyTorch's default has a third of that variance, so x and z fade from layer to layer. G then begins as the same grey
    image for every z, and most of a short run goes into D's first reconstructions (docs/quick-profile.md).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _upsample(x: Tensor, scale: int) -> Tensor:
    return x if scale == 1 else F.interpolate(x, scale_factor=scale, mode="nearest")


def _vanishing_residual(x: Tensor, y: Tensor, carry: Tensor | None) -> Tensor:
    """carry · x + (1 − carry) · y if x and y have the same shape, else y. carry falls from 1 to 0; None means 0."""
    if carry is None or x.shape != y.shape:
        return y
    return torch.lerp(y, x, carry.to(y.dtype))
