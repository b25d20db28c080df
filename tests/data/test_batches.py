"""Order and content of the batches."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from began.data.batches import (
    MOST_PLANNED,
    Batches,
    PinnedBatches,
    ResidentBatches,
    open_batches,
    output_to_pixels,
    pixels_to_input,
)

CPU = torch.device("cpu")


def numbered_rows(num: int) -> np.ndarray:
    """Row i is filled with the value i."""
    return np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 32, 32, 3)).copy()


def test_an_epoch_holds_every_row_once_also_across_batches():
    batches = Batches(numbered_rows(10), batch_size=4, seed=3, device=CPU)
    seen = np.concatenate([batches.indices(step) for step in range(5)])  # two epochs of 10
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_a_batch_depends_on_seed_and_step_alone():
    rows = numbered_rows(50)
    straight = Batches(rows, 8, seed=1, device=CPU)
    orders = [straight.indices(step) for step in range(30)]
    jumping = Batches(rows, 8, seed=1, device=CPU)
    for step in (29, 3, 17, 0):
        assert np.array_equal(jumping.indices(step), orders[step])
    assert not np.array_equal(Batches(rows, 8, seed=2, device=CPU).indices(0), orders[0])


def test_a_batch_holds_the_rows_it_names():
    batches = Batches(numbered_rows(50), 8, seed=1, device=CPU)
    assert np.array_equal(batches.rows(4)[:, 0, 0, 0].numpy(), batches.indices(4))


@pytest.mark.parametrize("kind", [Batches, ResidentBatches, PinnedBatches])
def test_the_device_gets_the_batches_in_order_wherever_the_rows_live(kind):
    rows = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    expected = Batches(rows, 8, seed=1, device=CPU)
    batches = kind(rows, 8, seed=1, device=CPU)
    for first, num in ((0, 3), (3, 9), (12, 2), (5, 4)):  # on and on, then back
        batches.seek(first, num)
        for step in range(first, first + num):
            batches.fetch()
            x = batches.gather()
            assert x.shape == (8, 3, 32, 32) and x.dtype == torch.float32
            assert x.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(output_to_pixels(x), expected.rows(step)), (first, step)


@pytest.mark.parametrize("kind", [ResidentBatches, PinnedBatches])
def test_what_a_graph_would_hold_stays_where_it_is(kind):
    """A replayed graph reads the same memory each time: no seek may move it, however long its plan is."""
    batches = kind(numbered_rows(50), 8, seed=1, device=CPU)

    def addresses():
        return {name: value.data_ptr() for name, value in vars(batches).items() if isinstance(value, torch.Tensor)}

    batches.seek(0, 2)
    batches.fetch()
    first = addresses()
    for step, num in ((1, 10), (11, 1), (0, MOST_PLANNED)):
        batches.seek(step, num)
        batches.fetch()
        batches.gather()
        assert addresses().items() >= {k: v for k, v in first.items() if k != "_batch"}.items()


def test_a_cpu_reads_the_rows_where_they_are_mapped():
    rows = numbered_rows(20)
    batches = open_batches(rows, 4, 0, CPU)
    assert type(batches) is Batches
    rows[:] = 7  # seen through: nothing was copied
    assert batches.rows(0).eq(7).all()


def test_pixels_are_centred_on_zero():
    """carpedm20/BEGAN-tensorflow#3: not centring hurts."""
    x = pixels_to_input(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    assert x.flatten().tolist() == [-1, 1]


def test_pixels_survive_the_way_to_the_networks_and_back():
    rows = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    assert torch.equal(output_to_pixels(pixels_to_input(rows)), rows)


def test_outputs_beyond_the_range_are_clipped():
    pixels = output_to_pixels(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2))
    assert pixels.flatten().tolist() == [0, 255]


def test_a_batch_larger_than_the_rows_is_refused():
    with pytest.raises(ValueError, match="batch_size: 16, expected at most the 10 training rows"):
        Batches(numbered_rows(10), 16, seed=0, device=CPU)


def test_only_the_rows_of_a_batch_are_read(tmp_path):
    """artcg/BEGAN held the whole data set in memory as float16: 12 GB for 60,000 images."""
    path = tmp_path / "rows"
    path.write_bytes(bytes(100 * 32 * 32 * 3))
    rows = np.memmap(path, dtype=np.uint8, mode="r", shape=(100, 32, 32, 3))
    tracemalloc.start()
    batches = Batches(rows, 5, seed=0, device=CPU)
    batches.rows(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 32 * 32 * 3  # a fifth of the rows: the batch and its indices
