"""What only a CUDA device can show: the recorded step, memory, and that the host does not wait. Skipped without one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from began.data.batches import Batches, PinnedBatches, ResidentBatches, open_batches, output_to_pixels
from began.device.cuda_graph import NUM_PLAIN_CALLS, RecordedWork
from began.device.devices import explained_memory
from began.gan.loop import train
from began.gan.training import Training
from began.params import Params, load_params
from tests import REPOSITORY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda")
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"}


def settings(**changes) -> Params:
    params = load_params(REPOSITORY / "params.yaml")
    tiny = {
        "n_filters": 8,
        "N_h": 16,
        "batch_size": 4,
        "num_steps": 12,
        "precision": "float32",
    } | changes
    return params.model_copy(
        update={"gamma": 0.7, "train": params.train.model_validate(params.train.model_dump() | tiny)}
    )


def random_rows(num: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """The same sums in the same order each time, and no shortened mantissas."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def state(training: Training) -> list[torch.Tensor]:
    tensors = [*training.players.parameters(), *training.G_ema.parameters(), training.k_t, training.learning_rate]
    return [t.detach().cpu() for t in tensors]


@pytest.mark.parametrize("kind", [ResidentBatches, PinnedBatches])
@pytest.mark.parametrize("decay", ["cosine", "plateau"])
@pytest.mark.parametrize("changes", [{}, {"mirror": True}, *({"vanishing_residual_steps": n} for n in (6, 100))])
def test_the_recorded_step_trains_what_single_launches_train(kind, decay, changes):
    params = settings(learning_rate_decay=decay, decay_steps=4, **changes)
    recorded, launched = Training(params, 32, CUDA), Training(params, 32, CUDA)
    list(train(recorded, kind(random_rows(), 4, 0, CUDA), record_every=5))
    batches = kind(random_rows(), 4, 0, CUDA)
    batches.seek(0, 12)
    for _ in range(12):
        batches.fetch()
        launched.step(batches.gather())
    for a, b in zip(state(recorded), state(launched), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert torch.equal(recorded.z_generator.get_state(), launched.z_generator.get_state())


@pytest.mark.parametrize("vanishing_residual_steps", [0, 6])
def test_a_run_that_goes_on_from_a_state_equals_one_that_was_never_cut(vanishing_residual_steps):
    """Cut before and after a step is recorded."""
    params = settings(vanishing_residual_steps=vanishing_residual_steps)
    whole = Training(params, 32, CUDA)
    list(train(whole, ResidentBatches(random_rows(), 4, 0, CUDA)))
    for cut in (1, 5, 9, 11):
        first, second = Training(params, 32, CUDA), Training(params, 32, CUDA)
        list(itertools.islice(train(first, ResidentBatches(random_rows(), 4, 0, CUDA)), cut))
        second.load_state_dict(first.state_dict())
        list(train(second, ResidentBatches(random_rows(), 4, 0, CUDA)))
        one, other = whole.state_dict(), second.state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_is_the_same_function_as_on_the_cpu():
    found = []
    for device in (torch.device("cpu"), CUDA):
        training = Training(settings(), 32, device)
        training.k_t.fill_(0.3)
        x, z = (torch.rand(4, *shape, generator=torch.Generator().manual_seed(1)) for shape in ((3, 32, 32), (16,)))
        losses = training._backward(x.to(device) * 2 - 1, z.to(device) * 2 - 1, None)
        found.append([*losses, *(p.grad for p in training.players.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a.cpu() - b.cpu()).abs().max() <= 1e-3 * a.abs().max()  # float32, sums in another order


@pytest.mark.parametrize("kind", [ResidentBatches, PinnedBatches])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_host_does_not_wait_between_records(kind, precision):
    """The profiler's trace of steps, their data included, holds no call that waits for the device."""
    training = Training(settings(precision=precision), 32, CUDA)
    batches = kind(random_rows(), 4, 0, CUDA)
    update = RecordedWork(lambda: training.update(batches.gather()), training.z_generator)

    def steps(num: int) -> None:
        for _ in range(num):
            batches.fetch()
            update()
            training.count()

    batches.seek(0, 100)
    steps(NUM_PLAIN_CALLS + 1)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(20)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    names = [event.name for event in profile.events()]
    launches = [i for i, name in enumerate(names) if name == "cudaGraphLaunch"]
    assert len(launches) == 20
    assert not WAITS & set(names[launches[0] : launches[-1]])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one_trains():
    second = torch.device("cuda:1")
    training = Training(settings(), 32, second)
    (*_, record) = train(training, open_batches(random_rows(), 4, 0, second), record_every=12)
    assert 0 < record.M_global < 10


@pytest.mark.parametrize("kind", [ResidentBatches, PinnedBatches])
def test_the_device_gets_the_rows_of_the_cpu(kind):
    rows = random_rows()
    expected = Batches(rows, 4, 1, torch.device("cpu"))
    batches = kind(rows, 4, 1, CUDA)
    batches.seek(0, 50)
    for step in range(50):
        batches.fetch()
        x = batches.gather()
        assert torch.equal(output_to_pixels(x).cpu(), expected.rows(step))


def test_rows_live_on_the_device_if_they_fit(monkeypatch):
    rows = random_rows()
    assert type(open_batches(rows, 4, 0, CUDA)) is ResidentBatches
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (rows.nbytes, 2 * rows.nbytes))
    assert type(open_batches(rows, 4, 0, CUDA)) is PinnedBatches


def test_too_little_memory_is_one_line_with_the_cards_name_and_memory():
    expected = r"GiB is too small for this; train.batch_size"
    with pytest.raises(ValueError, match=expected), explained_memory(CUDA, "train.batch_size: 16"):
        torch.empty(2**50, device=CUDA)


def test_bfloat16_ends_where_float32_does():
    ends = {}
    for precision in ("float32", "bfloat16"):
        training = Training(settings(precision=precision, num_steps=200, decay_steps=200), 32, CUDA)
        (*_, record) = train(training, open_batches(random_rows(), 4, 0, CUDA), record_every=50)
        ends[precision] = record.M_global
    assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.02)
