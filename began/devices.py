"""Which device and which precision a run uses."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """`auto` → CUDA where there is one, else the CPU; otherwise the named device. ValueError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: {name!r}, expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name!r} is not there; this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def device_name(device: torch.device) -> str:
    """`cpu`, or the CUDA device with its card's name."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` → bfloat16 where the processor multiplies matrices in it natively, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"
