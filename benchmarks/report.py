"""What every benchmark prints and keeps: a table, and benchmarks/NAME.json with the conditions beside it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from began.base.files import replace_file

FOLDER = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "pillow", "h5py", "mlflow", "onnxruntime")

Row = Mapping[str, str | float | int | None]


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory, and the GPU and its memory where torch is loaded and sees one."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["gpu"] = gpu.name
        found["gpu_memory_gib"] = round(gpu.total_memory / 2**30, 1)
    return found


def versions() -> dict[str, str]:
    """Of Python and of the packages whose speed counts."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def print_table(rows: Sequence[Row]) -> None:
    """One line a row, columns named by the first row's keys."""
    columns = list(rows[0])
    cells = [columns] + [[_shown(row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(name: str, settings: Mapping[str, Any], rows: Sequence[Row]) -> Path:
    """Prints `rows` and writes them with settings, hardware, versions and date to benchmarks/`name`.json."""
    print_table(rows)
    path = FOLDER / f"{name}.json"
    save(path, settings, rows)
    print(f"→ {path}")
    return path


def save(path: Path, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes `rows` with settings, hardware, versions and date to `path`, a JSON file named after the program."""
    document = {
        "benchmark": path.stem,
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "versions": versions(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shown(value: str | float | int | None) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
