"""All that a run carries from step to step, and the update that each step makes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from began.base.seeds import derive_seed
from began.device.devices import resolve_precision
from began.device.threads import keep_freed_memory, thread_pool
from began.gan import equations
from began.gan.divergence import K_T_GRACE_STEPS, DivergedError
from began.gan.networks import Discriminator, Generator, uniform_z
from began.gan.schedule import cosine, plateau
from began.gan.step import Players, backward
from began.params import Params


@dataclass(frozen=True)
class Record:
    """One point of the curve, after `step` steps.

    M_global and the losses are means over the steps since the last record. k_t and the learning rate are those that the
    next step will use. `steps_at_bound` is not drawn: it is the largest number of steps on end for which k_t has been 0
    or 1, without the first K_T_GRACE_STEPS.
    """

    step: int
    M_global: float
    L_real: float
    L_fake: float
    L_D: float
    k_t: float
    learning_rate: float
    images_per_second: float
    steps_at_bound: int = 0

    @property
    def L_G(self) -> float:
        """L_G = L(G(z)) is L_fake. The curve has a column with the paper's name too."""
        return self.L_fake


class Training:
    """The whole state of a run: networks, averaged generator, optimizer, k_t, learning rate, stream of z, step.

    Everything that a step reads or writes is on the device, so no step waits for the host.
    """

    def __init__(self, params: Params, image_size: int, device: torch.device) -> None:
        self.params = params
        self.device = device
        self.precision = resolve_precision(params.train.precision, device)
        train = params.train
        torch.manual_seed(derive_seed(params.seed, "weights"))
        architecture = (image_size, train.n_filters, train.N_h, train.skip_connections)
        self.players = Players(Generator(*architecture), Discriminator(*architecture), train.eta).to(device)
        if train.batch_size > 1:  # torch's convolution fails on a single small image in channels_last
            self.players.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.G_ema = copy.deepcopy(self.players.G).requires_grad_(False)
        self.z_generator = torch.Generator(device).manual_seed(derive_seed(params.seed, "training z"))
        self.learning_rate = torch.tensor(train.learning_rate, device=device)
        self.optimizer = torch.optim.Adam(
            self.players.parameters(),
            lr=self.learning_rate,
            betas=(train.beta_1, train.beta_2),
            fused=True,
            capturable=device.type == "cuda",
        )
        self.num_done = 0
        self.num_recorded = 0  # the step of the last record
        self.num_rewinds = 0
        self.step_count = torch.zeros((), device=device)  # num_done on the device, where a CUDA graph can read it
        self.k_t = torch.zeros((), device=device)
        self.sums = torch.zeros(4, device=device)  # of M_global, L_real, L_fake, L_D since the last record
        self.window_sum = torch.zeros((), device=device)  # of M_global since `plateau` last decided
        self.window_best = torch.full((), torch.inf, device=device)
        self.steps_at_bound = torch.zeros((), device=device)  # for how many steps on end k_t has been 0 or 1
        self.most_at_bound = torch.zeros((), device=device)
        # None means that the batch is taken as a whole.
        self.halves = _two_threads(train.batch_size) if device.type == "cpu" else None
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions too

    def step(self, x: Tensor) -> None:
        """Makes one update of both players on x (B, 3, S, S) in [−1, 1]."""
        self.update(x)
        self.count()

    def update(self, x: Tensor) -> None:
        """The device's part of a step. It does the same operations on the same memory each time, as a CUDA graph needs.

        The operations change once, when the residuals have vanished.
        """
        train = self.params.train
        if train.mirror:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=self.z_generator, device=self.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        z = uniform_z(len(x), train.N_h, self.z_generator)
        num_residual = train.vanishing_residual_steps
        carry = 1 - self.step_count / num_residual if self.num_done < num_residual else None
        self.optimizer.zero_grad(set_to_none=True)
        L_real, L_fake = self._backward(x, z, carry)
        self.optimizer.step()
        with torch.no_grad():
            self.step_count += 1
            self._balance(L_real, L_fake)
            self._average()
            if train.learning_rate_decay == "cosine":
                self.learning_rate.copy_(cosine(train, self.step_count) * 0.5**self.num_rewinds)

    def count(self) -> None:
        """The host's part of a step: it counts, and lets `plateau` set the learning rate every `decay_steps` steps."""
        self.num_done += 1
        train = self.params.train
        if train.learning_rate_decay == "plateau" and self.num_done % train.decay_steps == 0:
            mean = self.window_sum / train.decay_steps
            self.learning_rate.copy_(plateau(train, self.learning_rate, mean, self.window_best, 0.5**self.num_rewinds))
            self.window_best.copy_(torch.minimum(mean, self.window_best))
            self.window_sum.zero_()

    def _backward(self, x: Tensor, z: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        return backward(self.players, x, z, self.k_t, carry, self.precision, self.halves)

    def _balance(self, L_real: Tensor, L_fake: Tensor) -> None:
        """Sets the next k_t, and adds this step's losses to the sums of the next record."""
        gamma = self.params.gamma
        L_D = equations.discriminator_loss(L_real, L_fake, self.k_t)
        M_global = equations.convergence(L_real, L_fake, gamma)
        self.k_t.copy_(equations.next_k_t(self.k_t, L_real, L_fake, gamma, self.params.lambda_k))
        self.sums += torch.stack((M_global, L_real, L_fake, L_D))
        self.window_sum += M_global
        at_bound = ((self.k_t <= 0) | (self.k_t >= 1)) & (self.step_count > K_T_GRACE_STEPS)
        self.steps_at_bound.copy_((self.steps_at_bound + 1) * at_bound)
        self.most_at_bound.copy_(torch.maximum(self.most_at_bound, self.steps_at_bound))

    def _average(self) -> None:
        """G_ema ← G_ema + (1 − decay)·(G − G_ema).

        decay is smaller at first, so that the average soon forgets the initial weights.

        Paper: samples of G itself; here: samples of this average, because it leaves out what single steps do to G.
        """
        decay = torch.clamp((1 + self.step_count) / (10 + self.step_count), max=self.params.train.ema_decay)
        averages: list[Tensor] = list(self.G_ema.parameters())
        raw: list[Tensor] = list(self.players.G.parameters())
        differences = torch._foreach_sub(raw, averages)
        torch._foreach_mul_(differences, 1 - decay)
        torch._foreach_add_(averages, differences)

    def read_record(self, images_per_second: float) -> Record:
        """Returns the record of the steps since the last record. The host waits for the device here.

        Raises DivergedError when a loss is not finite.
        """
        num_steps = self.num_done - self.num_recorded
        M_global, L_real, L_fake, L_D = (self.sums / num_steps).tolist()
        if not isfinite(M_global):
            raise DivergedError(
                f"M_global is {M_global} after step {self.num_done}: training diverged; train.learning_rate: "
                f"{self.params.train.learning_rate}, expected a lower one (or train.on_divergence: rewind)"
            )
        return Record(
            step=self.num_done,
            M_global=M_global,
            L_real=L_real,
            L_fake=L_fake,
            L_D=L_D,
            k_t=self.k_t.item(),
            learning_rate=self.learning_rate.item(),
            images_per_second=images_per_second,
            steps_at_bound=int(self.most_at_bound.item()),
        )

    def end_record(self) -> None:
        """Begins the next record: it resets the sums."""
        self.num_recorded = self.num_done
        self.sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies, on the CPU, of all that the next steps depend on. The host waits for the device here.

        The settings are not in it, nor is the order of the rows, which is a function of seed and step.
        """
        tensors = self._tensors() | {name: torch.tensor(getattr(self, name)) for name in self._COUNTS}
        tensors["z_generator"] = self.z_generator.get_state()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return {name: tensor.contiguous() for name, tensor in copies.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Loads what `state_dict` gave for the same settings. Raises ValueError naming a tensor that does not fit.

        On another kind of device the stream of z cannot go on. It begins anew there, from seed and step.
        """
        if missing := {"z_generator", *self._COUNTS} - tensors.keys():
            raise ValueError(f"{min(missing)}: is missing")
        for parameter in self.players.parameters():
            if tensors["num_done"] > 0 and not self.optimizer.state[parameter]:  # else its first step makes it
                self.optimizer.state[parameter] = {
                    "step": torch.zeros((), device=self.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        own = self._tensors()
        wanted = own.keys() | {"z_generator", *self._COUNTS}
        if wanted != tensors.keys():
            raise ValueError(f"{min(wanted ^ tensors.keys())}: expected the tensors of a training of these settings")
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise ValueError(f"{name}: {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}")
            tensor.detach().copy_(tensors[name])  # into the same memory, in its layout
        for name in self._COUNTS:
            setattr(self, name, int(tensors[name]))
        if tensors["z_generator"].shape == self.z_generator.get_state().shape:
            self.z_generator.set_state(tensors["z_generator"])
        else:
            self.z_generator.manual_seed((derive_seed(self.params.seed, "training z") + self.num_done) % 2**63)

    _COUNTS = ("num_done", "num_recorded", "num_rewinds")

    def _tensors(self) -> dict[str, Tensor]:
        optimizer = {
            f"optimizer.{name}.{key}": tensor
            for name, parameter in self.players.named_parameters()
            for key, tensor in self.optimizer.state.get(parameter, {}).items()
        }
        scalars = ("k_t", "learning_rate", "step_count", "sums", "window_sum", "window_best")
        counts = ("steps_at_bound", "most_at_bound")
        return {
            **self.players.state_dict(),
            **{f"G_ema.{name}": tensor for name, tensor in self.G_ema.state_dict().items()},
            **optimizer,
            **{name: getattr(self, name) for name in scalars + counts},
        }


def _two_threads(batch_size: int) -> ThreadPoolExecutor | None:
    """Two threads, each with half of the cores, for the two halves of a batch. None if cores or batch cannot be halved.

    There are two because a sum of two gradients is the same in either order. They are as fast as one thread with all
    cores if nothing else runs, and much faster beside another process (benchmarks/train_step.py).
    """
    cores = torch.get_num_threads()
    return thread_pool(2, cores // 2) if cores % 2 == 0 and batch_size % 2 == 0 and batch_size > 2 else None
