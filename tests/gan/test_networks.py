"""Shapes, parameter counts and gradients of the networks; the folded up-sampling against the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from began.gan.networks import Decoder, Discriminator, Generator, upsample_convolve


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("image_size", "n", "N_h", "of_G", "of_D"),
    [(32, 32, 32, 123_939, 533_827), (64, 64, 64, 563_395, 3_495_171), (128, 128, 128, 2_536_067, 21_942_275)],
)
def test_parameter_counts_are_the_papers(image_size, n, N_h, of_G, of_D):
    with torch.device("meta"):
        assert count(Generator(image_size, n, N_h, skip_connections=False)) == of_G
        assert count(Discriminator(image_size, n, N_h, skip_connections=False)) == of_D


@pytest.mark.parametrize("skip_connections", [False, True])
@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_images_keep_their_shape(image_size, skip_connections):
    G = Generator(image_size, 4, 6, skip_connections)
    D = Discriminator(image_size, 4, 6, skip_connections)
    images = G(torch.rand(2, 6) * 2 - 1)
    assert images.shape == (2, 3, image_size, image_size)
    assert D(images).shape == images.shape
    assert D.encoder(images).shape == (2, 6)


@pytest.mark.parametrize("image_size", [16, 48, 0, -32, 33])
def test_other_image_sizes_are_refused(image_size):
    with pytest.raises(ValueError, match=r"image_size: .*expected 32·2\^m"):
        Generator(image_size, 4, 6, False)


def test_channels_grow_linearly_in_the_encoder():
    D = Discriminator(64, 5, 6, False)
    assert [c.out_channels for c in D.encoder.convolutions] == [5, 5, 10, 10, 15, 15, 20, 20]
    assert [c.stride[0] for c in D.encoder.convolutions] == [1, 2, 1, 2, 1, 2, 1, 1]


@pytest.mark.parametrize("carry", [None, 0.4])
@pytest.mark.parametrize("skip_connections", [False, True])
def test_every_parameter_receives_gradient(skip_connections, carry):
    """In artcg/BEGAN's discriminator `layer_3` read `conv_2`: three layers were bypassed."""
    torch.manual_seed(0)
    D = Discriminator(32, 4, 6, skip_connections).double()
    v = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    (D(v, None if carry is None else torch.tensor(carry)) - v).abs().mean().backward()
    for name, parameter in D.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def plain_decoder(decoder: Decoder, h: torch.Tensor, carry: float) -> torch.Tensor:
    """The decoder as the paper words it: up-sample, concatenate, convolve; residuals where the shape is kept."""

    def residual(x, y):
        return carry * x + (1 - carry) * y if x.shape == y.shape else y

    h0 = x = decoder.project(h).view(len(h), -1, 8, 8)
    convolutions = list(decoder.convolutions)
    for i, (first, second) in enumerate(zip(convolutions[::2], convolutions[1::2], strict=True)):
        if i > 0:
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            if decoder.skip_connections:
                scale = x.shape[-1] // 8
                x = torch.cat((x, h0.repeat_interleave(scale, 2).repeat_interleave(scale, 3)), 1)
        x = residual(x, F.elu(first(x)))
        x = residual(x, F.elu(second(x)))
    return decoder.last(x)


@pytest.mark.parametrize("carry", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("skip_connections", [False, True])
def test_folded_decoder_is_the_plain_decoder(skip_connections, carry):
    torch.manual_seed(1)
    decoder = Decoder(64, 3, 5, skip_connections).double()
    h = torch.randn(2, 5, dtype=torch.float64)
    expected = plain_decoder(decoder, h, carry)
    ours = decoder(h, torch.tensor(carry, dtype=torch.float64))
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    if carry == 0:
        torch.testing.assert_close(decoder(h), expected, rtol=1e-10, atol=1e-12)


def test_upsample_convolve_equals_upsampling_then_convolving_borders_included():
    torch.manual_seed(2)
    convolution = nn.Conv2d(3, 4, 3, padding=1).double()
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    expected = convolution(F.interpolate(x, scale_factor=2, mode="nearest"))
    torch.testing.assert_close(upsample_convolve(x, convolution), expected, rtol=1e-10, atol=1e-12)


def test_carry_of_one_skips_the_layers_that_keep_the_shape():
    D = Discriminator(32, 4, 6, False)
    v = torch.rand(1, 3, 32, 32)
    before = D(v, torch.tensor(1.0))
    with torch.no_grad():
        D.encoder.convolutions[-1].weight.mul_(-3)  # 12 → 12 channels at 8×8
    assert torch.equal(D(v, torch.tensor(1.0)), before)
    assert not torch.equal(D(v, torch.tensor(0.5)), before)
