"""A package, since torch-fidelity installs one of this name that would stand before a folder without this file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def hide_mlflow(patch: pytest.MonkeyPatch) -> None:
    """From now on it is as if MLflow were not installed, also where it was imported before."""
    for name in ("pipeline.tracking.client", "pipeline.tracking.stored"):
        patch.delitem(sys.modules, name, raising=False)
        patch.delattr(name, raising=False)
    patch.setitem(sys.modules, "mlflow", None)
