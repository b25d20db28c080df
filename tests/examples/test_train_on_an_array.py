from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from began.data.images import read_png
from tests import REPOSITORY


def test_the_example_trains_on_an_array_and_saves_a_grid(tmp_path: Path) -> None:
    example = REPOSITORY / "examples/train_on_an_array.py"
    text = example.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 50 and '"num_steps": 500' in text
    program = text.replace('"num_steps": 500', '"num_steps": 3').replace("__file__", repr(str(example)))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 3: M_global ")
    assert read_png(tmp_path / "discs.png").std() > 0
