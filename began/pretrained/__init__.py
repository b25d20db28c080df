"""Weights that ship: model folders in half precision, by name. Each has a model card beside it, README.md."""

from __future__ import annotations

from pathlib import Path

BEST = "portraits64"  # what `began sample` takes where nothing has been trained

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Of all that ship, sorted."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model.json"))


def folder_of(name: str) -> Path | None:
    """The model folder of that name; None where none ships."""
    return _FOLDER / name if name in names() else None
