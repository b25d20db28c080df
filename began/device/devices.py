"""Which device and which precision a run uses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

DEVICES = "auto, cpu, cuda, cuda:N or mps"


def resolve_device(name: str) -> torch.device:
    """`auto` → CUDA where there is one, else the CPU; otherwise the named device. ValueError if it is not there.

    `auto` never takes `mps`, Apple's: nothing has been measured there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name, re.ASCII):
        raise ValueError(f"device: {name!r}, expected {DEVICES}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device: 'mps' is not there; it needs an Apple GPU and macOS")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """`cpu`, or the CUDA device with its card's name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` → bfloat16 where the processor multiplies matrices in it natively, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    if device.type != "cpu":
        return "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


@contextmanager
def explained_memory(device: torch.device, remedy: str) -> Iterator[None]:
    """Turns torch's words about an allocation that failed into a ValueError of one line that ends in `remedy`."""
    try:
        yield
    except RuntimeError as error:
        # What fails last may only follow from it: a recording that was broken off, say.
        if not any(_tells_of_memory(e) for e in (error, error.__context__)):
            raise
        memory = "its memory"
        if device.type == "cuda":
            memory += f" of {torch.cuda.get_device_properties(device).total_memory / 2**30:.1f} GiB"
        raise ValueError(f"{device_name(device)}: {memory} is too small for this; {remedy}") from None


def _tells_of_memory(error: BaseException | None) -> bool:
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
