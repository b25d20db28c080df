"""One step against a textbook step, the schedules, and the iterator."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import platform
import resource

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from began.base.seeds import derive_seed
from began.data.batches import Batches, PinnedBatches, ResidentBatches
from began.gan.divergence import DivergedError
from began.gan.loop import MOST_STEPS_A_RECORD, record_interval, train
from began.gan.networks import Discriminator, Generator, uniform_z
from began.gan.sampling import draw_z
from began.gan.step import Players, scale_gradient
from began.gan.training import Record, Training
from began.params import Params, load_params
from benchmarks.train_step import cases, gflop_per_image
from tests import REPOSITORY

CPU = torch.device("cpu")
PARAMS = REPOSITORY / "params.yaml"


def settings(gamma: float = 0.7, lambda_k: float = 0.01, seed: int = 0, **changes) -> Params:
    """params.yaml's quick profile, made tiny and slow; `changes` go to its train section."""
    params = load_params(PARAMS)
    tiny = {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 6, "precision": "float32"}
    slow = {"learning_rate": 4e-4, "learning_rate_floor": 4e-5}
    return params.model_copy(
        update={
            "gamma": gamma,
            "lambda_k": lambda_k,
            "seed": seed,
            "train": params.train.model_validate(params.train.model_dump() | tiny | slow | changes),
        }
    )


def with_batches(training: Training, rows: np.ndarray) -> tuple[Training, Batches]:
    return training, Batches(rows, training.params.train.batch_size, training.params.seed, CPU)


def random_rows(num: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("k_t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("eta", [1, 2])
@pytest.mark.parametrize("skip_connections", [False, True])
@pytest.mark.parametrize("carry", [None, 0.4])
def test_one_backward_leaves_both_players_gradients(k_t, eta, skip_connections, carry):
    """Against two separate gradient computations of the paper's losses, in float64.

    carpedm20/BEGAN-pytorch's single `(d_loss + g_loss).backward()` leaked L_G's gradient into D.
    """
    torch.manual_seed(0)
    G = Generator(32, 3, 5, skip_connections).double()
    D = Discriminator(32, 3, 5, skip_connections).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64) * 2 - 1
    z = torch.rand(4, 5, dtype=torch.float64) * 2 - 1
    k = torch.tensor(k_t, dtype=torch.float64)
    c = None if carry is None else torch.tensor(carry, dtype=torch.float64)

    def L(v):
        return ((v - D(v, c)).abs() ** eta).mean()

    fake = G(z, c)
    of_D = torch.autograd.grad(L(x) - k * L(fake.detach()), list(D.parameters()))
    of_G = torch.autograd.grad(L(fake), list(G.parameters()))

    L_real, L_G = Players(G, D, eta)(x, z, k, c)
    assert L_real.item() == pytest.approx(L(x).item(), rel=1e-12)
    assert L_G.item() == pytest.approx(L(fake).item(), rel=1e-12)
    (L_real + L_G).backward()
    for expected, parameter in zip((*of_D, *of_G), (*D.parameters(), *G.parameters()), strict=True):
        scale = expected.abs().max()
        assert (parameter.grad - expected).abs().max() <= 1e-10 * scale + 1e-16


def test_generator_loss_leaves_no_gradient_in_discriminator():
    """At k_t = 0 the discriminator must not feel the fake half: what is left is far below the rounding of the real."""
    torch.manual_seed(0)
    G, D = Generator(32, 3, 5, True), Discriminator(32, 3, 5, True)
    x, z = torch.rand(2, 3, 32, 32), torch.rand(2, 5)
    _, L_G = Players(G, D, 1)(x, z, torch.tensor(0.0), None)
    L_G.backward()
    assert all(p.grad.abs().max() < 1e-18 for p in D.parameters())
    assert all(p.grad.abs().max() > 0 for p in G.parameters())


def test_steps_equal_a_textbook_loop():
    """Five steps against two separate losses, two Adams, and k_t, M_global and the decay in plain Python."""
    params = settings(gamma=0.6, lambda_k=0.3, num_steps=5, decay_steps=5)
    training = Training(params, 32, CPU)
    G, D = copy.deepcopy(training.players.G), copy.deepcopy(training.players.D)
    betas = (params.train.beta_1, params.train.beta_2)
    adams = [torch.optim.Adam(m.parameters(), params.train.learning_rate, betas) for m in (G, D)]
    z_generator = torch.Generator().manual_seed(derive_seed(params.seed, "training z"))
    k_t = 0.0
    for t in range(5):
        x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(t)) * 2 - 1
        z = torch.rand(4, 8, generator=z_generator) * 2 - 1
        fake = G(z)
        L_real = (x - D(x)).abs().mean()
        L_fake_D = (fake.detach() - D(fake.detach())).abs().mean()
        L_fake_G = (fake - D(fake)).abs().mean()
        D_gradients = torch.autograd.grad(L_real - k_t * L_fake_D, list(D.parameters()))
        G_gradients = torch.autograd.grad(L_fake_G, list(G.parameters()))
        for module, gradients, adam in ((G, G_gradients, adams[0]), (D, D_gradients, adams[1])):
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                parameter.grad = gradient
            adam.step()
        training.step(x)
        record = training.read_record(0.0)
        training.end_record()
        assert record.M_global == pytest.approx(L_real.item() + abs(0.6 * L_real.item() - L_fake_D.item()), rel=1e-5)
        assert record.L_D == pytest.approx(L_real.item() - k_t * L_fake_D.item(), rel=1e-5)
        k_t = min(max(k_t + 0.3 * (0.6 * L_real.item() - L_fake_D.item()), 0.0), 1.0)
        assert record.k_t == pytest.approx(k_t, abs=1e-6)
        start, floor = params.train.learning_rate, params.train.learning_rate_floor
        rate = floor + (start - floor) * (1 + np.cos(np.pi * (t + 1) / 5)) / 2
        assert record.learning_rate == pytest.approx(rate, rel=1e-5)
        for adam in adams:
            adam.param_groups[0]["lr"] = rate
    assert k_t > 0
    for expected, ours in ((G, training.players.G), (D, training.players.D)):
        for a, b in zip(expected.parameters(), ours.parameters(), strict=True):
            # Adam divides by the gradient's size, so rounding of the smallest gradients shows at the rate's scale.
            torch.testing.assert_close(a, b, rtol=1e-3, atol=params.train.learning_rate / 50)


def test_plateau_halves_the_rate_when_M_global_stalls_and_keeps_the_floor():
    params = settings(
        learning_rate=1e-3, learning_rate_floor=3e-4, learning_rate_decay="plateau", decay_steps=2, num_steps=100
    )
    training = Training(params, 32, CPU)
    rates = []
    for mean in (0.5, 0.4, 0.45, 0.41, 0.42):  # falls, falls, stalls, stalls, stalls
        training.num_done += 1
        training.window_sum.fill_(2 * mean)
        training.count()  # of every second step
        rates.append(training.learning_rate.item())
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 3e-4, 3e-4])


def test_the_optimizer_uses_the_decayed_rate():
    training = Training(settings(), 32, CPU)
    training.learning_rate.zero_()
    before = [p.clone() for p in training.players.parameters()]
    training.step(torch.rand(4, 3, 32, 32))
    for a, b in zip(before, training.players.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_averaged_generator_follows_its_definition():
    training = Training(settings(ema_decay=0.9), 32, CPU)
    expected = [p.double().clone() for p in training.G_ema.parameters()]
    for t in range(3):
        training.step(torch.rand(4, 3, 32, 32))
        decay = min(0.9, (2 + t) / (11 + t))
        expected = [
            decay * e + (1 - decay) * p.detach().double()
            for e, p in zip(expected, training.players.G.parameters(), strict=True)
        ]
    for e, p in zip(expected, training.G_ema.parameters(), strict=True):
        torch.testing.assert_close(p.double(), e, rtol=1e-5, atol=1e-7)


def test_carry_vanishes_after_its_steps():
    """With the residuals over, the step must be the plain one: no trace of carry."""
    training = Training(settings(vanishing_residual_steps=2), 32, CPU)
    seen = []
    forward = training.players.forward
    training.players.forward = lambda x, z, k_t, carry: seen.append(carry) or forward(x, z, k_t, carry)
    for _ in range(4):
        training.step(torch.rand(4, 3, 32, 32))
    assert [None if c is None else c.item() for c in seen] == [1.0, 0.5, None, None]


@pytest.mark.parametrize("decay", ["cosine", "plateau"])
def test_the_same_seed_trains_the_same_weights_and_another_seed_others(decay):
    def weights(seed: int):
        training = Training(settings(seed=seed, learning_rate_decay=decay), 32, CPU)
        list(train(*with_batches(training, random_rows()), record_every=2))
        return torch.cat([p.flatten() for p in training.players.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_records_do_not_change_what_is_trained():
    def weights(record_every: int):
        training = Training(settings(), 32, CPU)
        list(train(*with_batches(training, random_rows()), record_every))
        return torch.cat([p.flatten() for p in training.players.parameters()])

    assert torch.equal(weights(1), weights(6))


def test_train_yields_records_at_the_interval_and_at_the_end():
    training = Training(settings(num_steps=7), 32, CPU)
    yielded = list(train(*with_batches(training, random_rows()), record_every=3))
    assert len(yielded) == 7  # one a step, so that there is a place to stop at
    records = [record for record in yielded if record is not None]
    assert [record.step for record in records] == [3, 6, 7]
    assert all(isinstance(record, Record) and record.images_per_second > 0 for record in records)


def test_training_lowers_the_loss():
    rows = np.tile(np.linspace(0, 255, 32, dtype=np.uint8)[None, :, None, None], (8, 1, 32, 3))
    params = settings(num_steps=60, learning_rate=2e-3, decay_steps=60)
    records = [r for r in train(*with_batches(Training(params, 32, CPU), rows), record_every=10) if r]
    assert records[-1].L_real < records[0].L_real / 2


def test_each_early_step_has_a_record_and_later_ones_are_a_32nd_of_the_run_apart_at_most():
    steps = [step for step in range(1, 100_001) if step % record_interval(step) == 0]
    assert steps[:64] == list(range(1, 65))
    assert all(b - a <= max(1, a / 32) for a, b in itertools.pairwise(steps))
    assert steps[-1] - steps[-2] == MOST_STEPS_A_RECORD


@pytest.mark.parametrize("decay", ["cosine", "plateau"])
@pytest.mark.parametrize("vanishing_residual_steps", [0, 70])
def test_a_run_that_goes_on_from_a_state_equals_one_that_was_never_cut(decay, vanishing_residual_steps):
    """Regression of predecessors, whose checkpoints omit k_t, the optimizer's state and the learning rate."""

    def begin(num_steps: int = 80):
        params = settings(
            num_steps=num_steps,
            learning_rate_decay=decay,
            decay_steps=9,
            vanishing_residual_steps=vanishing_residual_steps,
            gamma=1.0,
            lambda_k=0.1,
        )
        return with_batches(Training(params, 32, CPU), random_rows())

    def numbers(records):
        return [dataclasses.replace(record, images_per_second=0) for record in records if record]

    whole, batches = begin()
    expected = numbers(train(whole, batches))
    assert any(0 < record.k_t for record in expected)
    for cut in (1, 33, 67, 70):  # 67 lies between two records
        first, batches = begin()
        records = list(itertools.islice(train(first, batches), cut))
        second, batches = begin()
        second.load_state_dict(first.state_dict())
        records += train(second, batches)
        assert numbers(records) == expected
        assert same_state(second, whole)

    # … and so does one that had come to its end, at a step without a record.
    shorter, batches = begin(num_steps=67)
    records = list(train(shorter, batches))
    assert records[-1].step == 67
    longer, batches = begin()
    longer.load_state_dict(shorter.state_dict())
    regular = {record.step for record in expected}
    records = [*(record for record in records if record is None or record.step in regular), *train(longer, batches)]
    assert numbers(records) == expected
    assert same_state(longer, whole)


def test_mirror_turns_half_of_the_images_over_and_leaves_the_rest():
    training = Training(settings(mirror=True, batch_size=64), 32, CPU)
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []
    training._backward = lambda x, z, carry: seen.append(x) or (x.mean(),) * 2
    training.optimizer.step = lambda: None
    for _ in range(4):
        training.update(x)
    turned = torch.stack([(batch == x.flip(3)).flatten(1).all(1) for batch in seen])
    left = torch.stack([(batch == x).flatten(1).all(1) for batch in seen])
    assert (turned ^ left).all()
    assert 90 < turned.sum() < 166  # of 256; drawn anew for each batch
    assert not torch.equal(turned[0], turned[1])


def same_state(a: Training, b: Training) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_holds_every_tensor_that_a_step_changes():
    """Found by looking, not by a list: every tensor that hangs on a Training, and the optimizer's."""
    training, batches = with_batches(Training(settings(), 32, CPU), random_rows())
    list(train(training, batches))
    held = [value for value in vars(training).values() if isinstance(value, torch.Tensor)]
    held += [*training.players.state_dict().values(), *training.G_ema.state_dict().values()]
    held += [tensor for state in training.optimizer.state.values() for tensor in state.values()]
    assert {t.data_ptr() for t in held} == {t.data_ptr() for t in training._tensors().values()}
    assert len(training.optimizer.state) == len(list(training.players.parameters()))


def test_a_state_of_other_networks_is_refused():
    state = Training(settings(n_filters=8), 32, CPU).state_dict()
    with pytest.raises(ValueError, match=r"G\.project\.weight: \(512, 8\), expected \(256, 8\)"):
        Training(settings(), 32, CPU).load_state_dict(state)
    del state["k_t"]
    with pytest.raises(ValueError, match="k_t: expected"):
        Training(settings(n_filters=8), 32, CPU).load_state_dict(state)


@pytest.mark.parametrize("decay", ["cosine", "plateau"])
def test_a_rewound_run_keeps_its_lower_learning_rate(decay):
    params = settings(num_steps=80, learning_rate_decay=decay, decay_steps=5, learning_rate_floor=1e-4)
    rates = []
    for num_rewinds in (0, 2):
        training, batches = with_batches(Training(params, 32, CPU), random_rows())
        training.num_rewinds = num_rewinds
        training.learning_rate *= 0.5**num_rewinds
        rates.append([record.learning_rate for record in train(training, batches) if record])
    if decay == "cosine":
        assert rates[1] == [rate / 4 for rate in rates[0]]
    assert rates[1][0] == pytest.approx(rates[0][0] / 4)
    assert min(rates[1]) == pytest.approx(1e-4 / 4)  # the floor goes down with it


def test_steps_with_k_t_at_a_bound_are_counted_after_the_first(monkeypatch):
    monkeypatch.setattr("began.gan.training.K_T_GRACE_STEPS", 3)
    training = Training(settings(lambda_k=0.0), 32, CPU)  # k_t stays at 0
    counted = []
    for k_t in (0, 0, 0, 0, 0, 0.5, 0, 1, 1):
        training.k_t.fill_(k_t)
        training.step(torch.rand(4, 3, 32, 32))
        counted.append(int(training.steps_at_bound))
    assert counted == [0, 0, 0, 1, 2, 0, 1, 2, 3]
    training.k_t.fill_(0.5)
    training.step(torch.rand(4, 3, 32, 32))
    assert training.read_record(0.0).steps_at_bound == 3  # also when it ended between two records


def test_a_state_of_another_kind_of_device_goes_on_with_another_z():
    """A CUDA generator's state has 16 bytes, a CPU's 5,056."""
    training, batches = with_batches(Training(settings(), 32, CPU), random_rows())
    list(train(training, batches))
    state = training.state_dict() | {"z_generator": torch.zeros(16, dtype=torch.uint8)}
    found = []
    for _ in range(2):
        other = Training(settings(), 32, CPU)
        other.load_state_dict(state)
        found.append(uniform_z(4, 8, other.z_generator))
    assert torch.equal(*found)
    assert not torch.equal(found[0], uniform_z(4, 8, Training(settings(), 32, CPU).z_generator))


def test_a_loss_that_is_not_finite_stops_the_run():
    training = Training(settings(), 32, CPU)
    with torch.no_grad():
        training.players.D.decoder.last.bias.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"M_global is nan after step 1.*learning_rate"):
        list(train(*with_batches(training, random_rows()), record_every=1))


class Recording(TorchDispatchMode):
    """What a CUDA graph does, on any device: keeps operations and the memory they used; replays them blindly."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                if any(value.alias_info is not None for value in func._schema.returns):
                    continue  # the same memory: changed in place, or a view
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


@pytest.mark.parametrize("decay", ["cosine", "plateau"])
@pytest.mark.parametrize(("vanishing_residual_steps", "mirror"), [(0, False), (100, True)])
@pytest.mark.parametrize("kind", [ResidentBatches, PinnedBatches])
def test_a_recorded_step_replays_as_the_next_steps(decay, vanishing_residual_steps, mirror, kind):
    """Nothing in a step may be fixed by the host: not k_t, the learning rate, the carry, z, nor the batch."""
    params = settings(
        gamma=1.0,
        learning_rate=0.01,  # so high that M_global stalls
        learning_rate_decay=decay,
        decay_steps=2,
        vanishing_residual_steps=vanishing_residual_steps,
        mirror=mirror,
        num_steps=8,
    )
    launched, recorded = (after_eight_steps(params, kind, is_recorded) for is_recorded in (False, True))
    assert launched.k_t > 0 and launched.learning_rate < params.train.learning_rate
    assert same_state(launched, recorded)


def after_eight_steps(params: Params, kind: type[Batches], is_recorded: bool) -> Training:
    """is_recorded: the fourth step is recorded, and those after it replay it."""
    training = Training(params, 32, CPU)
    batches = kind(random_rows(), params.train.batch_size, params.seed, CPU)
    batches.seek(0, 8)
    recording = None
    for step in range(8):
        batches.fetch()
        if recording is not None:
            recording.replay()
        elif is_recorded and step == 3:
            with Recording() as recording:
                training.update(batches.gather())
        else:
            training.update(batches.gather())
        training.count()
    return training


@pytest.mark.parametrize("skip_connections", [False, True])
def test_no_step_waits_for_the_host_or_brings_a_constant(skip_connections):
    """PyTorch-GAN called `.item()` on every step. A constant made on the host would have to be copied, with a wait."""
    params = settings(skip_connections=skip_connections, vanishing_residual_steps=100)
    training = Training(params, 32, CPU)
    batches = ResidentBatches(random_rows(), params.train.batch_size, 0, CPU)
    batches.seek(0, 4)
    for _ in range(3):
        with Recording() as recording:
            training.update(batches.gather())
    names = {str(func).split(".")[1] for func, *_ in recording.calls}
    assert {"convolution", "convolution_backward", "_fused_adam_"} <= names
    assert not names & {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "lift_fresh", "_to_cpu"}


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_two_threads_with_half_a_batch_each_leave_the_losses_and_gradients_of_the_whole(two_cores):
    """With the settings of params.yaml as they are, in float64, where only the order of the sums may show.

    A loss that compares the images of a batch with one another once depended on how many threads shared it.
    """
    params = load_params(PARAMS)
    num, N_h = params.train.batch_size, params.train.N_h
    x, z = torch.rand(num, 3, 32, 32).double() * 2 - 1, torch.rand(num, N_h).double() * 2 - 1
    found = []
    for split in (False, True):
        training = Training(params, 32, CPU)
        assert training.halves is not None
        if not split:
            training.halves = None
        training.players.double()
        training.k_t.fill_(0.3)
        losses = training._backward(x, z, None)
        found.append([*losses, *(p.grad for p in training.players.parameters())])
    for whole, halves in zip(*found, strict=True):
        assert (whole - halves).abs().max() <= 1e-12 * whole.abs().max()


def test_two_threads_train_the_same_bits_each_time(two_cores):
    def weights():
        training = Training(settings(batch_size=8, num_steps=10), 32, CPU)
        list(train(*with_batches(training, random_rows()), record_every=5))
        return torch.cat([p.flatten() for p in training.players.parameters()])

    assert torch.equal(weights(), weights())


def test_a_failure_of_one_half_reaches_the_caller_and_leaves_nothing_running(two_cores):
    training = Training(settings(batch_size=8), 32, CPU)
    forward, started = training.players.forward, []

    def fail_the_first(x, z, k_t, carry):
        started.append(None)
        if z.data_ptr() == whole_z.data_ptr():
            raise RuntimeError("of the first half")
        return forward(x, z, k_t, carry)

    training.players.forward = fail_the_first
    whole_z = uniform_z(8, 8, training.z_generator)
    with pytest.raises(RuntimeError, match="of the first half"):
        training._backward(torch.rand(8, 3, 32, 32), whole_z, None)
    assert len(started) == 2
    assert all(p.grad is not None for p in training.players.parameters())  # the other half is done, not under way


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6])
def test_any_batch_size_trains(two_cores, batch_size):
    """Torch's convolution of one small image fails with weights that are channels last."""
    training = Training(settings(batch_size=batch_size, num_steps=2), 32, CPU)
    records = list(train(*with_batches(training, random_rows()), record_every=1))
    assert all(0 < record.M_global < 10 for record in records)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc's allocator is left as it is")
def test_a_step_reuses_the_memory_of_the_step_before(two_cores):
    """Left to itself, glibc asks the system for some two thousand pages a step, and zeroed memory is slow."""
    training, batches = with_batches(Training(load_params(PARAMS), 32, CPU), random_rows(64))
    steps = train(training, batches)
    for _ in range(8):
        next(steps)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        next(steps)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 8 * 500


def test_bfloat16_ends_where_float32_does():
    """The short form of benchmarks/precision.py. Two seeds differ by 1 % here, the two precisions by 0.02 %."""
    ends = {}
    for precision in ("float32", "bfloat16"):
        params = settings(precision=precision, num_steps=50, decay_steps=50)
        (*_, ends[precision]) = train(*with_batches(Training(params, 32, CPU), random_rows()), record_every=50)
    assert ends["bfloat16"].M_global != ends["float32"].M_global  # it did run
    assert ends["bfloat16"].M_global == pytest.approx(ends["float32"].M_global, rel=2e-3)
    assert ends["bfloat16"].k_t == pytest.approx(ends["float32"].k_t, rel=2e-2)


def test_weights_stay_float32_in_bfloat16():
    training = Training(settings(precision="bfloat16"), 32, CPU)
    training.step(torch.rand(4, 3, 32, 32))
    assert {p.dtype for p in training.players.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in training.players.parameters()} == {torch.float32}


def test_scale_gradient_touches_parameters_only():
    """What reaches G(z) through the scaled half is not scaled."""
    D = Discriminator(32, 3, 5, False)
    v = torch.rand(1, 3, 32, 32, requires_grad=True)
    plain = torch.autograd.grad((v - D(v)).abs().mean(), v)[0]
    theta = {name: scale_gradient(p, torch.tensor(-0.5)) for name, p in D.named_parameters()}
    scaled = torch.autograd.grad((v - torch.func.functional_call(D, theta, (v,))).abs().mean(), v)[0]
    torch.testing.assert_close(scaled, plain)


def test_weights_training_z_and_samples_share_no_random_numbers():
    """With one seed for all, z of sample i was row i of the generator's first layer, times a constant."""
    training = Training(settings(n_filters=8, N_h=32), 32, CPU)
    first_layer = training.players.G.project.weight.detach()
    samples = draw_z(200, 32, seed=training.params.seed)
    trained_on = uniform_z(200, 32, training.z_generator)
    for a, b in itertools.combinations((first_layer[:200], samples, trained_on), 2):
        correlation = torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]
        assert correlation.abs() < 0.06  # 6,400 independent pairs: a standard deviation of 0.0125
    assert not (samples[:, None] == trained_on[None]).all(dim=2).any()


def test_a_step_passes_both_halves_through_the_discriminator_at_once_and_backward_once(monkeypatch):
    """PyTorch-GAN ran two backward passes, and the fake half twice through D."""
    training = Training(settings(), 32, CPU)
    passes, backwards = [], []
    training.players.D.decoder.register_forward_hook(lambda *_: passes.append(1))
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self, **_: backwards.append(1) or backward(self))
    training.step(torch.rand(4, 3, 32, 32))
    assert (len(passes), len(backwards)) == (1, 1)


@pytest.mark.parametrize(
    ("size", "most", "textbook"), [("32×32", 0.69, 1.132), ("64×64", 10.81, 17.946), ("128×128", 171, 284.6)]
)
def test_a_step_spends_three_fifths_of_the_textbook_loops_arithmetic(size, most, textbook):
    """By PyTorch's flop counter, for the sizes of the paper's parameter counts."""
    (case,) = (case for case in cases("cpu") if (case.size, case.way, case.busy) == (size, "halves", False))
    gflop = gflop_per_image(case)
    assert gflop["ours"] <= most
    assert gflop["textbook"] == pytest.approx(textbook, rel=1e-3)
