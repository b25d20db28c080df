"""One forward and one backward pass that give both players the gradients of their own losses."""

from __future__ import annotations

from concurrent.futures import Executor, wait
from typing import Any

import torch
from torch import Tensor, nn

from began.gan import equations
from began.gan.networks import Discriminator, Generator

SMALLEST_K = 2.0**-64  # replaces k_t = 0 where something is divided by k_t; added to 1, rounding removes it


class Players(nn.Module):
    """G and D; one call gives the losses of both.

    D minimises L_D = L(x) − k_t·L(G(z)), and G minimises L_G = L(G(z)). One backward pass, `(L_real + L_G).backward()`,
    gives each player the gradient of its own loss. Two identity functions make this possible, which scale gradients in
    the backward pass:

    - The first is applied to L(G(z)) and multiplies the gradient by −k_t. So D's parameters get −k_t times the gradient
      of L(G(z)), as in L_D.
    - The second is between G and D and divides the gradient by −k_t. So G gets the gradient of L(G(z)) itself.

    Dividing by k_t = 0 is impossible, so 2^−64 takes its place. As a power of two it multiplies and divides
    floating-point numbers without rounding. It is so small that what it scales is lost when D's gradient of L(x) is
    added.

    As a result x and G(z) are one batch, and a step is one forward and one backward pass through D.
    """

    def __init__(self, G: Generator, D: Discriminator, eta: int) -> None:
        super().__init__()
        self.G = G
        self.D = D
        self.eta = eta

    def forward(self, x: Tensor, z: Tensor, k_t: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S), z (B, N_z) → (L_real, L_G) = (L(x), L(G(z))), scalars. Call backward on their sum.

        Paper: z_D and z_G are two draws; here: one draw for both, as in every public implementation, because both
        gradients stay unbiased and one pass through G is enough.
        """
        k = k_t.clamp(min=SMALLEST_K)
        v = x, scale_gradient(self.G(z, carry), -1 / k)
        losses = equations.reconstruction_loss(torch.cat(v), self.D(v, carry), self.eta)  # (2·B,)
        L_real, L_fake = losses[: len(x)].mean(), losses[len(x) :].mean()
        return L_real, scale_gradient(L_fake, -k)


def backward(
    players: Players, x: Tensor, z: Tensor, k_t: Tensor, carry: Tensor | None, precision: str, halves: Executor | None
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of each player's own loss to its parameters. Returns L(x) and L(G(z)), scalars.

    halves: two threads that take one half of the batch each, or None to take the batch as a whole. Both losses are
    means over images, so the weighted sums over the halves equal those over the whole batch.
    """
    num = len(x)

    def backward_of(x: Tensor, z: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, precision == "bfloat16", cache_enabled=False):
            L_real, L_G = players(x, z, k_t, carry)
        part = len(x) / num
        ((L_real + L_G) * part).backward()
        return torch.stack((L_real, L_G)).detach() * part

    if halves is None:
        losses = backward_of(x, z)
    else:
        both = [halves.submit(backward_of, *half) for half in zip(x.chunk(2), z.chunk(2), strict=True)]
        wait(both)  # for both, even if the first has failed
        first, second = (half.result() for half in both)
        losses = first + second
    return losses[0], losses[1]


class _ScaleGradient(torch.autograd.Function):
    """The identity. Its backward pass multiplies the gradient by `scale`."""

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
    """Returns `tensor` unchanged. In the backward pass its gradient is multiplied by the scalar `scale`."""
    result: Tensor = _ScaleGradient.apply(tensor, scale)  # type: ignore[no-untyped-call]
    return result
