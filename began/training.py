"""One step for both players, and train(): an iterator that yields what happened."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn

from began import equilibrium
from began.batches import MOST_PLANNED, Batches
from began.cuda_graph import RecordedWork
from began.devices import resolve_precision
from began.divergence import K_T_GRACE_STEPS, DivergedError
from began.networks import Discriminator, Generator, uniform_z
from began.parallel import keep_freed_memory, thread_pool
from began.params import Params
from began.seeds import derive_seed

MOST_STEPS_A_RECORD = 256
CURVE = ("step", "M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")


@dataclass(frozen=True)
class Record:
    """One point of the curve, after `step` steps.

    M_global and the losses are means over the steps since the last record; k_t and the learning rate are those the
    next step will use. `steps_at_bound` is not drawn: the longest time, in steps, for which k_t has been 0 or 1 without
    a break, not counting the first K_T_GRACE_STEPS.
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
        """L_G = L(G(z)): the curve has a column of the paper's name for it too."""
        return self.L_fake


def record_interval(step: int) -> int:
    """A record is due after each step that this number divides: a power of two, a 32nd to a 64th of the run so far.

    It depends on the step alone, so that a run that goes on beyond its end has the points of one that was longer from
    the start.
    """
    return min(1 << max(0, step.bit_length() - 6), MOST_STEPS_A_RECORD)


class Players(nn.Module):
    """G and D, and both players' losses in one call.

    D minimises L_D = L(x) − k_t·L(G(z)), G minimises L_G = L(G(z)). One backward pass, `(L_real + L_G).backward()`,
    gives each player the gradient of its own loss, because two identities scale gradients on their way back. The first
    follows L(G(z)) and multiplies by −k_t: what D's parameters get is −k_t times the gradient of L(G(z)), as in L_D.
    The second stands between G and D and divides by −k_t again: what G gets is the gradient of L(G(z)) itself.

    k_t = 0 cannot be divided by. 2^−64 takes its place: a power of two, by which floating-point numbers are multiplied
    and divided without rounding, and so small that D's gradient of L(x) does not change by adding what it scales.

    So x and G(z) are one batch, and a step is one forward and one backward pass through D.
    """

    def __init__(self, G: Generator, D: Discriminator, eta: int) -> None:
        super().__init__()
        self.G = G
        self.D = D
        self.eta = eta

    def forward(self, x: Tensor, z: Tensor, k_t: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, 3, S, S), z (B, N_z) → (L_real, L_G) = (L(x), L(G(z))), scalars, whose sum is made for backward.

        Paper: z_D and z_G are two draws; here: one draw for both, as in every public implementation, because both
        gradients stay unbiased and one pass through G is enough.
        """
        k = k_t.clamp(min=equilibrium.SMALLEST_K)
        v = x, equilibrium.scale_gradient(self.G(z, carry), -1 / k)
        losses = equilibrium.reconstruction_loss(torch.cat(v), self.D(v, carry), self.eta)  # (2·B,)
        L_real, L_fake = losses[: len(x)].mean(), losses[len(x) :].mean()
        return L_real, equilibrium.scale_gradient(L_fake, -k)


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
        self.players = Players(Generator(*architecture), Discriminator(*architecture), train.eta).to(device)
        if train.batch_size > 1:  # torch's convolution of a single small image fails with them
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
        self.step_count = torch.zeros((), device=device)  # num_done, for what a CUDA graph computes from it
        self.k_t = torch.zeros((), device=device)
        self.sums = torch.zeros(4, device=device)  # of M_global, L_real, L_fake, L_D since the last record
        self.window_sum = torch.zeros((), device=device)  # of M_global since the last decision on the plateau
        self.window_best = torch.full((), torch.inf, device=device)
        self.steps_at_bound = torch.zeros((), device=device)  # how long k_t has been 0 or 1 now
        self.most_at_bound = torch.zeros((), device=device)
        # None: the batch as a whole.
        self.halves = _two_threads(train.batch_size) if device.type == "cpu" else None
        if device.type == "cpu":
            keep_freed_memory()
        if device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions too

    def step(self, x: Tensor) -> None:
        """One update of both players on x (B, 3, S, S) in [−1, 1]."""
        self.update(x)
        self.count()

    def update(self, x: Tensor) -> None:
        """The device's part of a step: the same operations on the same memory each time, so that a graph can hold it.

        They change once, where the residuals have vanished.
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
                self._follow_cosine()

    def count(self) -> None:
        """The host's part of a step: what it decides now and then, from the number of steps alone."""
        self.num_done += 1
        train = self.params.train
        if train.learning_rate_decay == "plateau" and self.num_done % train.decay_steps == 0:
            self._halve_on_plateau()

    def _backward(self, x: Tensor, z: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor]:
        """Leaves both players' gradients; returns L(x) and L(G(z)).

        Both losses are means over images, so that halves of a batch give the sums that the whole gives.
        """
        num = len(x)

        def backward(x: Tensor, z: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bfloat16", cache_enabled=False):
                L_real, L_G = self.players(x, z, self.k_t, carry)
            part = len(x) / num
            ((L_real + L_G) * part).backward()
            return torch.stack((L_real, L_G)).detach() * part

        if self.halves is None:
            losses = backward(x, z)
        else:
            both = [self.halves.submit(backward, *half) for half in zip(x.chunk(2), z.chunk(2), strict=True)]
            wait(both)  # also for the second where the first has failed
            first, second = (half.result() for half in both)
            losses = first + second
        return losses[0], losses[1]

    def _balance(self, L_real: Tensor, L_fake: Tensor) -> None:
        """The next k_t, and what the curve says of this step."""
        gamma = self.params.gamma
        L_D = equilibrium.discriminator_loss(L_real, L_fake, self.k_t)
        M_global = equilibrium.convergence(L_real, L_fake, gamma)
        self.k_t.copy_(equilibrium.next_k_t(self.k_t, L_real, L_fake, gamma, self.params.lambda_k))
        self.sums += torch.stack((M_global, L_real, L_fake, L_D))
        self.window_sum += M_global
        at_bound = ((self.k_t <= 0) | (self.k_t >= 1)) & (self.step_count > K_T_GRACE_STEPS)
        self.steps_at_bound.copy_((self.steps_at_bound + 1) * at_bound)
        self.most_at_bound.copy_(torch.maximum(self.most_at_bound, self.steps_at_bound))

    def _average(self) -> None:
        """G_ema ← G_ema + (1 − decay)·(G − G_ema); shorter at first, so that the initial weights are soon forgotten.

        Paper: samples of G itself; here: of this average too, which leaves out what single steps do to G.
        """
        decay = torch.clamp((1 + self.step_count) / (10 + self.step_count), max=self.params.train.ema_decay)
        averages: list[Tensor] = list(self.G_ema.parameters())
        raw: list[Tensor] = list(self.players.G.parameters())
        differences = torch._foreach_sub(raw, averages)
        torch._foreach_mul_(differences, 1 - decay)
        torch._foreach_add_(averages, differences)

    def _follow_cosine(self) -> None:
        """From `learning_rate` to `learning_rate_floor` over `decay_steps`."""
        train = self.params.train
        start, end = train.learning_rate, train.learning_rate_floor
        phase = (self.step_count / train.decay_steps).clamp(max=1) * torch.pi
        self.learning_rate.copy_((end + (start - end) * (1 + torch.cos(phase)) / 2) * 0.5**self.num_rewinds)

    def _halve_on_plateau(self) -> None:
        # Paper: halved "when the measure of convergence stalls"; here: when its mean over a window is not below
        # the best window's, and never under the floor, because without one late collapses were seen.
        mean = self.window_sum / self.params.train.decay_steps
        floor = self.params.train.learning_rate_floor * 0.5**self.num_rewinds
        halved = (self.learning_rate / 2).clamp(min=floor)
        self.learning_rate.copy_(torch.where(mean < self.window_best, self.learning_rate, halved))
        self.window_best.copy_(torch.minimum(mean, self.window_best))
        self.window_sum.zero_()

    def read_record(self, images_per_second: float) -> Record:
        """The point of the curve over the steps since the last record; here the host waits for the device.

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
        """The next record begins here."""
        self.num_recorded = self.num_done
        self.sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Copies, on the CPU, of everything that the next steps depend on. Here the host waits for the device.

        But for the settings, and the order of the rows, which is a function of seed and step.
        """
        tensors = self._tensors() | {name: torch.tensor(getattr(self, name)) for name in self._COUNTS}
        tensors["z_generator"] = self.z_generator.get_state()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        return {name: tensor.contiguous() for name, tensor in copies.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave, for the same settings. ValueError naming a tensor that does not fit.

        On another kind of device the stream of z cannot go on: it begins anew, from seed and step.
        """
        if missing := {"z_generator", *self._COUNTS} - tensors.keys():
            raise ValueError(f"{min(missing)}: is missing")
        for parameter in self.players.parameters():
            if tensors["num_done"] > 0 and not self.optimizer.state[parameter]:  # made by its first step otherwise
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
            tensor.detach().copy_(tensors[name])  # into its memory, in its layout
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


def train(training: Training, batches: Batches, record_every: int | None = None) -> Iterator[Record | None]:
    """Trains to `params.train.num_steps`; yields after each step: a record where one is due and at the end, else None.

    Records are due where `record_interval` says, or every `record_every` steps. Between them the host does not wait
    for the device, except to record a graph: at the start, and where the residuals have vanished. Whatever is done
    between two steps, for example saving a state and loading it, changes no number. The record at the end closes no
    interval, so that a state taken then goes on as if there had been no end.

    Raises DivergedError when a loss is no longer finite, at the record that shows it.
    """
    settings = training.params.train
    step = last_step = planned = training.num_done
    last_time = time.perf_counter()
    update = _update_of(training, batches)
    while step < settings.num_steps:
        if step == planned:
            planned = min(step + MOST_PLANNED, settings.num_steps)
            batches.seek(step, planned - step)
        batches.fetch()
        update()
        training.count()
        step = training.num_done
        if step == settings.vanishing_residual_steps:
            update = _update_of(training, batches)
        is_due = step % (record_every or record_interval(step)) == 0
        if not is_due and step < settings.num_steps:
            yield None
            continue
        if training.device.type == "cuda":
            torch.cuda.synchronize(training.device)
        num_images = (step - last_step) * settings.batch_size
        record = training.read_record(num_images / (time.perf_counter() - last_time))
        if is_due:
            training.end_record()
        yield record
        last_step, last_time = step, time.perf_counter()


def _update_of(training: Training, batches: Batches) -> Callable[[], None]:
    """One update on the next of `batches`; on CUDA it is recorded soon and then replayed."""

    def update() -> None:
        training.update(batches.gather())

    return RecordedWork(update, training.z_generator) if training.device.type == "cuda" else update


def _two_threads(batch_size: int) -> ThreadPoolExecutor | None:
    """For each half of a batch a thread with half of the cores; None where that cannot be.

    Two, because a sum of two gradients is the same in either order. As fast as one thread with all cores where nothing
    else runs, and much faster beside another process: benchmarks/train_step.py.
    """
    cores = torch.get_num_threads()
    return thread_pool(2, cores // 2) if cores % 2 == 0 and batch_size % 2 == 0 and batch_size > 2 else None
