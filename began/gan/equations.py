"""The equations of the paper (Berthelot et al. 2017, sections 3.2 to 3.4), and nothing else.

In the paper's symbols, x are real images, v are any images, z is noise, G is the generator, and D is the discriminator,
which is an auto-encoder. k_t is the control variable, λ_k (`lambda_k`) is its gain, and γ (`gamma`) is the diversity
ratio. Unless a docstring says otherwise, losses and k_t are scalar tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruction_loss(v: Tensor, D_v: Tensor, eta: int) -> Tensor:
    """L(v) = |v − D(v)|^η of each image, (B,), as a mean over channels, height and width. L of a batch is their mean.

    The gradient flows through both `v` and `D_v`. If they are in bfloat16 they are compared in float32, because a mean
    over many pixels needs its digits.
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
