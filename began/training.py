"""One step for both players, and train(): an iterator that yields what happened."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from began import equilibrium
from began.batches import Batches
from began.devices import resolve_precision
from began.networks import Discriminator, Generator, uniform_z
from began.params import Params
from began.seeds import derive_seed

CURVE = ("step", "M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")


@dataclass(frozen=True)
class Record:
    """One point of the curve, after `step` steps.

    M_global and the losses are means over the steps since the last record; k_t and the learning rate are those the
    next step will use.
    """

    step: int
    M_global: float
    L_real: float
    L_fake: float
    L_D: float
    L_G: float
    k_t: float
    learning_rate: float
    images_per_second: float


class Players(nn.Module):
    """G and D, and both players' losses in one call.

    One backward for both. With L_D = L(x) − k_t·L(G(z)) and L_G = L(G(z)), the sum L(x) + L(G(z)) has the right
    gradient everywhere but in one place: D's parameters should receive −k_t times what L(G(z)) sends them. So the
    fake half sees D's parameters through an identity whose backward multiplies by −k_t. It scales only what reaches
    the parameters; what reaches G(z), through D(v) and v, stays ∂L_G/∂G(z). A single
    `(L_real + L_fake).backward()` then leaves ∂L_D/∂θ_D on D and ∂L_G/∂θ_G on G.
    """

    def __init__(self, G: Generator, D: Discriminator, eta: int) -> None:
        super().__init__()
        self.G = G
        self.D = D
        self.eta = eta

    def forward(self, x: Tensor, z: Tensor, k_t: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S), z (B, N_z) → (L(x), L(G(z))), scalars, to be summed for backward.

        Paper: z_D and z_G are two draws; here: one draw for both, as in every public implementation, because both
        gradients stay unbiased and one pass of G is enough.
        """
        fake = self.G(z, carry)
        theta_D = {name: equilibrium.scale_gradient(p, -k_t) for name, p in self.D.named_parameters()}
        L_real = equilibrium.reconstruction_loss(x, self.D(x, carry), self.eta)
        L_fake = equilibrium.reconstruction_loss(fake, functional_call(self.D, theta_D, (fake, carry)), self.eta)
        return L_real, L_fake


class Training:
    """The whole state of a run: networks, averaged generator, optimizer, k_t, learning rate, z stream, step.

    Everything a step reads or writes lives on the device, so that no step waits for the host.
    """

    def __init__(self, params: Params, image_size: int, device: torch.device) -> None:
        self.params = params
        self.device = device
        self.precision = resolve_precision(params.train.precision, device)
        train = params.train
        torch.manual_seed(derive_seed(params.seed, "weights"))
        architecture = (image_size, train.n_filters, train.N_h, train.skip_connections)
        G = Generator(*architecture)
        D = Discriminator(*architecture)
        self.players = Players(G, D, train.eta).to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.G_ema = copy.deepcopy(self.players.G).requires_grad_(False)
        self.z_generator = torch.Generator(device).manual_seed(derive_seed(params.seed, "training z"))
        self.learning_rate = torch.tensor(train.learning_rate, device=device)
        self.optimizer = torch.optim.Adam(
            self.players.parameters(), lr=self.learning_rate, betas=(train.beta_1, train.beta_2), fused=True
        )
        self.num_done = 0
        self.step_count = torch.zeros((), device=device)
        self.k_t = torch.zeros((), device=device)
        self.sums = torch.zeros(4, device=device)  # of M_global, L_real, L_fake, L_D since the last record
        self.window_sum = torch.zeros((), device=device)  # of M_global since the last decision on the plateau
        self.window_best = torch.full((), torch.inf, device=device)

    def step(self, x: Tensor) -> None:
        """One update of both players on x (B, 3, S, S) in [−1, 1]."""
        train, gamma = self.params.train, self.params.gamma
        z = uniform_z(len(x), train.N_h, self.z_generator)
        carry = None
        if self.num_done < train.vanishing_residual_steps:
            carry = 1 - self.step_count / train.vanishing_residual_steps
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            L_real, L_fake = self.players(x, z, self.k_t, carry)
        self.optimizer.zero_grad(set_to_none=True)
        (L_real + L_fake).backward()
        self.optimizer.step()
        with torch.no_grad():
            L_D = equilibrium.discriminator_loss(L_real, L_fake, self.k_t)
            M_global = equilibrium.convergence(L_real, L_fake, gamma)
            self.k_t.copy_(equilibrium.next_k_t(self.k_t, L_real, L_fake, gamma, self.params.lambda_k))
            self.sums += torch.stack((M_global, L_real, L_fake, L_D))
            self.window_sum += M_global
            self.step_count += 1
            self.num_done += 1
            self._average()
            self._decay()

    def _average(self) -> None:
        """G_ema ← G_ema + (1 − decay)·(G − G_ema); shorter at first, so that the initial weights are soon forgotten."""
        decay = torch.clamp((1 + self.step_count) / (10 + self.step_count), max=self.params.train.ema_decay)
        averages, raw = list(self.G_ema.parameters()), list(self.players.G.parameters())
        differences = torch._foreach_sub(raw, averages)
        torch._foreach_mul_(differences, 1 - decay)
        torch._foreach_add_(averages, differences)

    def _decay(self) -> None:
        train = self.params.train
        start, floor = train.learning_rate, train.learning_rate_floor
        if train.learning_rate_decay == "cosine":
            phase = (self.step_count / train.decay_steps).clamp(max=1) * torch.pi
            self.learning_rate.copy_(floor + (start - floor) * (1 + torch.cos(phase)) / 2)
        elif self.num_done % train.decay_steps == 0:
            # Paper: halved "when the measure of convergence stalls"; here: when its mean over a window is not below
            # the best window's, and never under the floor, because without one late collapses were seen.
            mean = self.window_sum / train.decay_steps
            halved = (self.learning_rate / 2).clamp(min=floor)
            self.learning_rate.copy_(torch.where(mean < self.window_best, self.learning_rate, halved))
            self.window_best.copy_(torch.minimum(mean, self.window_best))
            self.window_sum.zero_()

    def read_record(self, num_steps: int, images_per_second: float) -> Record:
        """The point of the curve over the last `num_steps` steps; here the host waits for the device."""
        M_global, L_real, L_fake, L_D = (self.sums / num_steps).tolist()
        self.sums.zero_()
        return Record(
            step=self.num_done,
            M_global=M_global,
            L_real=L_real,
            L_fake=L_fake,
            L_D=L_D,
            L_G=L_fake,
            k_t=self.k_t.item(),
            learning_rate=self.learning_rate.item(),
            images_per_second=images_per_second,
        )


def train(training: Training, batches: Batches, record_every: int) -> Iterator[Record]:
    """Trains to `params.train.num_steps`; yields every `record_every` steps and at the end.

    Raises ValueError when a loss is no longer finite, at the record that shows it.
    """
    settings = training.params.train
    last_step, last_time = training.num_done, time.perf_counter()
    while training.num_done < settings.num_steps:
        training.step(batches[training.num_done])
        step = training.num_done
        if step % record_every == 0 or step == settings.num_steps:
            if training.device.type == "cuda":
                torch.cuda.synchronize(training.device)
            now = time.perf_counter()
            num_images = (step - last_step) * settings.batch_size
            record = training.read_record(step - last_step, num_images / (now - last_time))
            if not np.isfinite(record.M_global):
                raise ValueError(
                    f"M_global is {record.M_global} after step {step}: training diverged; "
                    f"train.learning_rate: {settings.learning_rate}, expected a lower one"
                )
            yield record
            last_step, last_time = step, time.perf_counter()
