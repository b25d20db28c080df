"""Threads that share a batch, and what malloc keeps between steps."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import torch

from began.base.parallel import cores

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> None:
    """From now on glibc keeps what this process frees, for its next allocations. Nothing happens with another libc.

    Each training step allocates and frees the same activations. By default glibc gives blocks of their size back to the
    system and gets them anew page by page, over two thousand a step at 32×32.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc allows


def thread_pool(num: int, cores_each: int = 1) -> ThreadPoolExecutor:
    """`num` threads of this process; what each gives to torch runs on `cores_each` cores.

    Torch's own threads meet after every operation, and one that is late holds up all. These meet when asked to. What
    torch gives to threads that start later, unless they ask for more, is `cores_each` as well.
    """

    own = cores()

    def enter() -> None:
        if own:
            with suppress(OSError):  # forbidden, or the cores have been taken away since
                os.sched_setaffinity(0, own)
        torch.set_num_threads(cores_each)
        torch.get_num_threads()  # makes it final for this thread

    return ThreadPoolExecutor(num, initializer=enter)
