"""Work on a CUDA device that is launched once, recorded, and from then on replayed as one graph."""

from __future__ import annotations

from collections.abc import Callable

import torch

NUM_PLAIN_CALLS = 3  # they run as they are: libraries choose their kernels and the optimizer makes its state


class RecordedWork:
    """`work()`, at each call.

    The first calls do run it; then one is recorded, and each call after that sends the whole of it to the device at
    once. So `work` must do the same operations on the same memory each time, must not wait for the device, and what it
    does on the host is done no more. `random` is the generator it draws from, whose stream goes on through replays.
    """

    def __init__(self, work: Callable[[], None], random: torch.Generator) -> None:
        self._work = work
        self._random = random
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream(random.device)  # type: ignore[no-untyped-call]

    def __call__(self) -> None:
        with torch.cuda.device(self._random.device):
            if self._num_calls < NUM_PLAIN_CALLS:
                self._num_calls += 1
                self._run()
            else:
                self._graph = self._graph or self._record()
                self._graph.replay()

    def _run(self) -> None:
        # On the stream that will record, so that all memory is found there.
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            self._work()
        here.wait_stream(self._stream)

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._random)
        # Other threads may fill pinned memory meanwhile, which is no part of the recording.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._work()
        return graph
