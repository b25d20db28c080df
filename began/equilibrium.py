"""The equations of the paper (Berthelot et al. 2017, sections 3.2 to 3.4), and nothing else.

Symbols: x real images, v any images, z noise, G generator, D discriminator (an auto-encoder), k_t the control
variable, λ_k (`lambda_k`) its gain, γ (`gamma`) the diversity ratio. Losses and k_t are scalar tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST_K = 2.0**-64  # stands for k_t = 0 where something is divided by it; beside 1 it is lost in any rounding


def reconstruction_loss(v: Tensor, D_v: Tensor, eta: int) -> Tensor:
    """L(v) = |v − D(v)|^η of each image, (B,): the mean over channels, height and width; L of a batch is their mean.

    The gradient flows through both. Networks that ran in bfloat16 are compared in float32: a mean over many pixels
    needs the digits.
    """
    at_least_float32 = torch.promote_types(v.dtype, torch.float32)
    difference = (v.to(at_least_float32) - D_v.to(at_least_float32)).abs()
    return (difference if eta == 1 else difference.square()).mean(dim=(1, 2, 3))


def discriminator_loss(L_real: Tensor, L_fake: Tensor, k_t: Tensor) -> Tensor:
    """L_D = L(x) − k_t · L(G(z))."""
    return L_real - k_t * L_fake


def next_k_t(k_t: Tensor, L_real: Tensor, L_fake: Tensor, gamma: float, lambda_k: float) -> Tensor:
    """k_{t+1} = clip(k_t + λ_k · (γ · L(x) − L(G(z))), 0, 1); k_0 = 0."""
    return (k_t + lambda_k * (gamma * L_real - L_fake)).clamp(0, 1)


def convergence(L_real: Tensor, L_fake: Tensor, gamma: float) -> Tensor:
    """M_global = L(x) + |γ · L(x) − L(G(z))|."""
    return L_real + (gamma * L_real - L_fake).abs()


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose backward multiplies by `scale`."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        gradient = gradients[0]
        both = torch.promote_types(gradient.dtype, scale.dtype)  # a scale in bfloat16 would have three digits
        return (gradient.to(both) * scale.to(both)).to(gradient.dtype), None


def scale_gradient(tensor: Tensor, scale: Tensor) -> Tensor:
    """Returns `tensor` itself; the gradient that comes back to it is multiplied by the scalar `scale`."""
    result: Tensor = _ScaleGradient.apply(tensor, scale)  # type: ignore[no-untyped-call]
    return result
