"""One step for both players, and train(): an iterator that yields what happened."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from math import cos, isfinite, pi

import torch
from torch import Tensor, nn

from began import equilibrium, flow
from began.batches import MOST_PLANNED, Batches, pixels_to_input
from began.cuda_graph import RecordedWork
from began.devices import resolve_precision
from began.divergence import K_T_WARM_UP, LOST_FACTOR, LOST_WINDOW, DivergedError
from began.energy import energy_distance
from began.networks import Discriminator, Generator, uniform_z
from began.parallel import thread_pool
from began.params import Params
from began.seeds import derive_seed

MOST_STEPS_A_RECORD = 256
Losses = Callable[..., tuple[Tensor, Tensor, Tensor]]
NUM_EMBEDDED = 2**16  # embeddings at most that G's start is fitted to: 16 MiB at N_h 64
CURVE = ("step", "M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")


@dataclass(frozen=True)
class Record:
    """One point of the curve, after `step` steps.

    M_global and the losses are means over the steps since the last record; k_t and the learning rate are those the
    next step will use. `steps_at_bound`, which is not drawn: for how many steps on end k_t has been 0 or 1 at most,
    after K_T_WARM_UP.
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
    steps_at_bound: int = 0


def record_interval(step: int) -> int:
    """Steps from `step` to the next record: 1 at first, then a power of two that is a 32nd to a 64th of the run so far.

    step: since G began. Of it alone, so that a run that goes on beyond its end has the points of one that was longer
    from the start.
    """
    return min(1 << max(0, step.bit_length() - 6), MOST_STEPS_A_RECORD)


class Players(nn.Module):
    """G and D, and both players' losses in one call.

    One backward for both, `(L_real + L_G).backward()`. Behind L_G an identity multiplies its gradient by −k, k = k_t,
    so that D gets that of L_D = L(x) − k·L_G. The fake half brings −k·∂L_G/∂G(z) to the border between D and G,
    through D(v) and v alike; there an identity divides it by −k, and what goes on into G is ∂L_G/∂G(z). For k_t = 0
    stands k = 2^−64, which is lost in the rounding of D's gradient and divides without any. So x and G(z) are one
    batch, and a step is one pass of D over both and one back.

    Paper: L_G = L(G(z)); here: L_G = L(G(z)) + λ_e·E where `lambda_e` asks for it. E is the energy distance between
    the encoder's features of x and of G(z), at each of their 8×8 places and of h as a whole.
    """

    def __init__(self, G: Generator, D: Discriminator, eta: int, lambda_e: float = 0.0) -> None:
        super().__init__()
        self.G = G
        self.D = D
        self.eta = eta
        self.lambda_e = lambda_e

    def forward(self, x: Tensor, z: Tensor, k_t: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, 3, S, S), z (B, N_z) → (L(x), L(G(z)), L_G), scalars; the first and the last to be summed for backward.

        Paper: z_D and z_G are two draws; here: one draw for both, as in every public implementation, because both
        gradients stay unbiased and one pass of G is enough.
        """
        k = k_t.clamp(min=equilibrium.SMALLEST_K)
        v = x, equilibrium.scale_gradient(self.G(z, carry), -1 / k)
        features = self.D.encoder.features(v, carry)
        h = self.D.encoder.embed(features.flatten(1))
        losses = equilibrium.reconstruction_loss(torch.cat(v), self.D.decoder(h, carry), self.eta)  # (2·B,)
        L_real, L_fake = losses[: len(x)].mean(), losses[len(x) :].mean()
        L_G = L_fake
        if self.lambda_e:
            L_G = L_fake + self.lambda_e * _energy_of_halves(features, h)
        return L_real, L_fake.detach(), equilibrium.scale_gradient(L_G, -k)

    def warm_up(self, x: Tensor, noise: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """D alone, as k_0 = 0 has it in the paper's first step: (L(x), 0, 0).

        noise (B, N_h), in standard deviations of h over these B images, is added to h: what lies between the embeddings
        of images is then reconstructed too, as in an auto-encoder of constant variance (Ghosh et al. 2020). Over few
        images that deviation is a little less than over many: 0.90 of it for the 8 that a thread has of a batch of 16,
        0.95 for all 16.
        """
        h = self.D.encoder(x, carry)
        h = h + noise * h.detach().std(dim=0, correction=0)
        L_real = equilibrium.reconstruction_loss(x, self.D.decoder(h, carry), self.eta).mean()
        return L_real, torch.zeros_like(L_real), torch.zeros_like(L_real)


def _energy_of_halves(features: Tensor, h: Tensor) -> Tensor:
    """E of features (2·B, C, 8, 8) and h (2·B, N_h), whose first halves are those of x, and the others of G(z)."""
    of_x, of_fake = features.flatten(2).permute(2, 0, 1).chunk(2, dim=1)  # (64, B, C) each
    h_x, h_fake = h[None].chunk(2, dim=1)  # (1, B, N_h) each
    return energy_distance(of_fake, of_x) + energy_distance(h_fake, h_x) / 3


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
        G = Generator(*architecture, has_flow=train.flow_steps > 0)
        D = Discriminator(*architecture)
        self.players = Players(G, D, train.eta, train.lambda_e).to(device)
        if train.batch_size > 1:  # torch's convolution of a single small image fails with them
            self.players.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if G.flow is not None:
            G.flow.requires_grad_(False)  # but while it learns, alone: the game would take from it what it knows
        self.G_ema = copy.deepcopy(self.players.G).requires_grad_(False)
        self.z_generator = torch.Generator(device).manual_seed(derive_seed(params.seed, "training z"))
        first_rate = train.warm_up_learning_rate if train.warm_up_steps else train.learning_rate
        self.learning_rate = torch.tensor(first_rate, device=device)
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
        self.step_count = torch.zeros((), device=device)  # steps in which D learned: all but those of G's flow
        self.k_t = torch.zeros((), device=device)
        self.sums = torch.zeros(5, device=device)  # of M_global, L_real, L_fake, L_G, L_D since the last record
        # Of M_global since the last decision on the plateau; of L(x) while D learns alone.
        self.window_sum = torch.zeros((), device=device)
        self.window_best = torch.full((), torch.inf, device=device)
        self.steps_at_bound = torch.zeros((), device=device)  # how long k_t has been 0 or 1 now
        self.most_at_bound = torch.zeros((), device=device)
        # None: the batch as a whole.
        self.halves = _two_threads(train.batch_size) if device.type == "cpu" else None
        if device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions too

    def step(self, x: Tensor) -> None:
        """One update of both players on x (B, 3, S, S) in [−1, 1]."""
        self.update(x)
        self.count()

    def update(self, x: Tensor) -> None:
        """The device's part of a step: the same operations on the same memory each time, so that a graph can hold it.

        But they change where G starts, and where the residuals have vanished.
        """
        train = self.params.train
        if train.mirror:
            mirrored = torch.rand(len(x), 1, 1, 1, generator=self.z_generator, device=self.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        carry = self._carry()
        self.optimizer.zero_grad(set_to_none=True)
        if self.num_done < train.warm_up_steps:
            noise = torch.randn(len(x), train.N_h, generator=self.z_generator, device=self.device)
            noise *= train.warm_up_noise * (1 - self.step_count / train.warm_up_steps)  # to 0, where G starts
            L_real, L_fake, L_G = self._backward(x, noise, carry, self.players.warm_up)
        else:
            z = uniform_z(len(x), train.N_h, self.z_generator)
            L_real, L_fake, L_G = self._backward(x, z, carry, partial(self.players, k_t=self.k_t))
        self.optimizer.step()
        with torch.no_grad():
            self.step_count += 1
            if self.num_done < train.warm_up_steps:
                self.sums[1] += L_real
                self.window_sum += L_real
                self._follow_cosine(train.warm_up_learning_rate, train.learning_rate, train.warm_up_steps)
            else:
                self._balance(L_real, L_fake, L_G)
                self._average()
                if train.learning_rate_decay == "cosine":
                    self._follow_cosine(train.learning_rate, train.learning_rate_floor, train.decay_steps)

    def update_flow(self, w: Tensor) -> None:
        """The device's part of a step of G's flow alone, on the embeddings w (N, N_h) that `start_G` gave.

        `set_rate_of_flow` comes before it, and is no part of what a graph holds.
        """
        assert self.players.G.flow is not None
        chosen = torch.randint(len(w), (flow.BATCH_SIZE,), generator=self.z_generator, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.players.G.flow.loss(w[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.sums[1] += loss.detach()

    def set_rate_of_flow(self) -> None:
        """The learning rate of the next step of G's flow."""
        train = self.params.train
        done = (self.num_done - train.warm_up_steps) / train.flow_steps
        self.learning_rate.fill_(flow.LEARNING_RATE * (1 + cos(pi * done)) / 2 * 0.5**self.num_rewinds)

    @property
    def num_learned(self) -> int:
        """Steps in which D learned, `step_count` on the host."""
        train = self.params.train
        return self.num_done - min(max(0, self.num_done - train.warm_up_steps), train.flow_steps)

    def _carry(self) -> Tensor | None:
        num_steps = self.params.train.vanishing_residual_steps
        return 1 - self.step_count / num_steps if self.num_learned < num_steps else None

    def _balance(self, L_real: Tensor, L_fake: Tensor, L_G: Tensor) -> None:
        """The next k_t, and what the curve says of this step."""
        train, gamma = self.params.train, self.params.gamma
        L_D = equilibrium.discriminator_loss(L_real, L_G, self.k_t)
        M_global = equilibrium.convergence(L_real, L_fake, gamma)
        self.k_t.copy_(equilibrium.next_k_t(self.k_t, L_real, L_fake, gamma, self.params.lambda_k))
        self.sums += torch.stack((M_global, L_real, L_fake, L_G, L_D))
        self.window_sum += M_global
        at_bound = ((self.k_t <= 0) | (self.k_t >= 1)) & (self.step_count > train.warm_up_steps + K_T_WARM_UP)
        self.steps_at_bound.copy_((self.steps_at_bound + 1) * at_bound)
        self.most_at_bound.copy_(torch.maximum(self.most_at_bound, self.steps_at_bound))

    def count(self) -> None:
        """The host's part of a step: what it decides now and then, from the number of steps alone."""
        self.num_done += 1
        train = self.params.train
        num_played = self.num_done - train.game_start
        if train.learning_rate_decay == "plateau" and num_played > 0 and num_played % train.decay_steps == 0:
            self._halve_on_plateau()

    def check_alone(self) -> None:
        """DivergedError when the loss of who learns alone has not been finite; here the host waits for the device.

        Also when L(x), over LOST_WINDOW steps of D alone, is more than LOST_FACTOR times what it was at its best: D
        does not come back from there, and nothing else would tell before the game.
        """
        alone = self.num_done <= self.params.train.warm_up_steps
        if not isfinite(self.sums[1].item()):
            what = "L(x)" if alone else "the likelihood of G's flow"
            raise DivergedError(self._diverged(f"{what} is not finite"))
        if alone and self.num_done % LOST_WINDOW == 0:
            mean, best = self.window_sum.item() / LOST_WINDOW, self.window_best.item()
            if mean > LOST_FACTOR * best:
                words = self._diverged(f"L(x) rose from {best:.3g} to {mean:.3g}")
                # It may have begun in the window before, late enough to be a small part of its mean.
                raise DivergedError(words, good_until=self.num_done - 2 * LOST_WINDOW)
            self.window_best.fill_(min(mean, best))
            self.window_sum.zero_()

    def start_G(self, batches: Iterable[Tensor]) -> Tensor:
        """The end of the warm-up: G begins as D's decoder, fitted to the embeddings of rows (B, S, S, 3) uint8.

        Returns what G's flow has to learn, w (N, N_h). To do this again before G has taken a step changes nothing.
        """
        D = self.players.D
        with torch.no_grad():
            carry = self._carry()
            x = (pixels_to_input(rows.to(self.device)) for rows in batches)
            both_ways = ((v, v.flip(3)) if self.params.train.mirror else (v,) for v in x)
            h = torch.cat([D.encoder(v, carry) for ways in both_ways for v in ways])
        if not h.isfinite().all():
            raise DivergedError(self._diverged("an embedding is not finite"))
        if self.players.G.flow is not None:
            h = flow.disturbed(h, NUM_EMBEDDED, derive_seed(self.params.seed, "flow"))
        again = self.num_done > self.params.train.warm_up_steps
        w = self.players.G.start_as(D.decoder, h, again)
        self.start_game()
        return w

    def start_game(self) -> None:
        """From here on both play: G's average, the rate and the curve begin."""
        self.G_ema.load_state_dict(self.players.G.state_dict())
        self.learning_rate.fill_(self.params.train.learning_rate * 0.5**self.num_rewinds)
        self.window_sum.zero_()
        self.window_best.fill_(torch.inf)
        self.end_record()

    def _backward(self, x: Tensor, z: Tensor, carry: Tensor | None, losses_of: Losses) -> tuple[Tensor, Tensor, Tensor]:
        """Leaves both players' gradients; returns L_real, L_fake and L_G."""
        num = len(x)

        def backward(x: Tensor, z: Tensor) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, self.precision == "bfloat16", cache_enabled=False):
                L_real, L_fake, L_G = losses_of(x, z, carry=carry)
            part = len(x) / num
            ((L_real + L_G) * part).backward()  # type: ignore[no-untyped-call]
            return torch.stack((L_real, L_fake, L_G)).detach() * part

        if self.halves is None:
            losses = backward(x, z)
        else:
            both = [self.halves.submit(backward, *half) for half in zip(x.chunk(2), z.chunk(2), strict=True)]
            wait(both)  # also for the second where the first has failed
            first, second = (half.result() for half in both)
            losses = first + second
        return losses[0], losses[1], losses[2]

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

    def _follow_cosine(self, start: float, end: float, num_steps: int) -> None:
        """From `start` to `end` over `num_steps`, of the warm-up or of what comes after it."""
        warm_up_steps = self.params.train.warm_up_steps
        done = self.step_count - (0 if self.num_done < warm_up_steps else warm_up_steps)
        phase = (done / num_steps).clamp(max=1) * torch.pi
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
        M_global, L_real, L_fake, L_G, L_D = (self.sums / num_steps).tolist()
        if not isfinite(M_global):
            raise DivergedError(self._diverged(f"M_global is {M_global}"))
        return Record(
            step=self.num_done,
            M_global=M_global,
            L_real=L_real,
            L_fake=L_fake,
            L_D=L_D,
            L_G=L_G,
            k_t=self.k_t.item(),
            learning_rate=self.learning_rate.item(),
            images_per_second=images_per_second,
            steps_at_bound=int(self.most_at_bound.item()),
        )

    def _diverged(self, what: str) -> str:
        train = self.params.train
        key, wish = "learning_rate", "a lower one"
        if self.num_done <= train.warm_up_steps:
            key = "warm_up_learning_rate"
        elif self.num_done <= train.game_start:
            key, wish = "flow_steps", "0: no flow"
        return (
            f"{what} after step {self.num_done}: training diverged; train.{key}: {getattr(train, key)}, "
            f"expected {wish} (or train.on_divergence: rewind)"
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
        for name, parameter in self.players.named_parameters():
            train = self.params.train
            first = train.warm_up_steps if name.startswith("G.flow.") else train.game_start if name[0] == "G" else 0
            if tensors["num_done"] > first and not self.optimizer.state[parameter]:  # made by its first step otherwise
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
    for the device, but to record a graph, at the start, where the residuals have vanished, and where the flow and the
    game begin, and to judge a D that learns alone. Whatever is done between two steps, a state that is saved and
    loaded, say, changes no number. The record at the end closes no interval, so that a state taken then goes on as if
    there had been no end.

    The first record is of the first step that both play: after the warm-up, whose end starts G, and G's flow.

    Raises DivergedError when a loss is no longer finite, at the record that shows it, and from `check_alone`.
    """
    settings = training.params.train
    last_step, last_time = training.num_done, time.perf_counter()
    update = _update_of(training, batches)
    while training.num_done < settings.num_steps:
        step = training.num_done
        if step < settings.game_start:
            for _ in _warm_up(training, batches, update):
                yield None
            for _ in _fit_flow(training, batches):
                yield None
            last_step, last_time = training.num_done, time.perf_counter()
            update = _update_of(training, batches)
            continue
        num_played = step - settings.game_start
        interval = record_every or record_interval(num_played)
        due = step - num_played % interval + interval
        stop = min(due, settings.num_steps, step + MOST_PLANNED)
        batches.seek(step, stop - step)
        while training.num_done < stop:
            batches.fetch()
            update()
            training.count()
            if training.num_learned == settings.vanishing_residual_steps:
                update = _update_of(training, batches)
            if training.num_done < min(due, settings.num_steps):
                yield None
        if stop < min(due, settings.num_steps):
            continue
        if training.device.type == "cuda":
            torch.cuda.synchronize(training.device)
        num_images = (stop - last_step) * settings.batch_size
        record = training.read_record(num_images / (time.perf_counter() - last_time))
        if stop == due:
            training.end_record()
        yield record
        last_step, last_time = stop, time.perf_counter()


def _warm_up(training: Training, batches: Batches, update: Callable[[], None]) -> Iterator[None]:
    """D alone, to the end of the warm-up, where G starts; yields after each step."""
    end = training.params.train.warm_up_steps
    while training.num_done < end:
        step = training.num_done
        stop = min(end, step + MOST_PLANNED)
        batches.seek(step, stop - step)
        while training.num_done < stop:
            batches.fetch()
            update()
            training.count()
            if training.num_done == training.params.train.vanishing_residual_steps:
                update = _update_of(training, batches)
            if training.num_done % LOST_WINDOW == 0 or training.num_done == end:
                training.check_alone()
            if training.num_done == end and not training.params.train.flow_steps:
                training.start_G(_embedded(batches))
            yield None


def _fit_flow(training: Training, batches: Batches) -> Iterator[None]:
    """G's flow alone, from the end of the warm-up until both play; yields after each step."""
    end = training.params.train.game_start
    if training.num_done == end:
        return
    of_G = training.players.G.flow
    assert of_G is not None
    update = _recorded(partial(training.update_flow, training.start_G(_embedded(batches))), training)
    of_G.requires_grad_(True)
    try:
        while training.num_done < end:
            training.set_rate_of_flow()
            update()
            training.count()
            if training.num_done % MOST_PLANNED == 0 or training.num_done == end:
                training.check_alone()
            if training.num_done == end:
                training.start_game()
            yield None
    finally:
        of_G.requires_grad_(False)


def _embedded(batches: Batches) -> Iterator[Tensor]:
    """The rows that G's start is fitted to, none of them twice: whole batches of the first epoch."""
    num = min(NUM_EMBEDDED, batches.num_rows) // batches.batch_size
    return (batches.rows(step) for step in range(num))


def _update_of(training: Training, batches: Batches) -> Callable[[], None]:
    """One update on the next of `batches`."""

    def update() -> None:
        training.update(batches.gather())

    return _recorded(update, training)


def _recorded(update: Callable[[], None], training: Training) -> Callable[[], None]:
    """`update`; on CUDA it is recorded soon and then replayed."""
    return RecordedWork(update, training.z_generator) if training.device.type == "cuda" else update


def _two_threads(batch_size: int) -> ThreadPoolExecutor | None:
    """For each half of a batch a thread with half of the cores; None where that cannot be.

    Two, because a sum of two gradients is the same in either order. As fast as one thread with all cores where nothing
    else runs, and much faster beside another process: benchmarks/train_step.py.
    """
    cores = torch.get_num_threads()
    return thread_pool(2, cores // 2) if cores % 2 == 0 and batch_size % 2 == 0 and batch_size > 2 else None
