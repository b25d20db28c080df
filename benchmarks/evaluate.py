"""How long evaluate takes, the first time on some images and after that.

    python -m benchmarks.evaluate [--images data/images.h5] [--model data/model]

Both are whole processes, one after the other, with a folder of their own for kept features and MLflow's store, which is
there already, as after training: the first computes the features of the real images, the second finds them. Without
Inception features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("data/images.h5"))
    parser.add_argument("--model", type=Path, default=Path("data/model"))
    arguments = parser.parse_args()
    for path in (arguments.images, arguments.model):
        if not path.exists():
            parser.error(f"{path}: no such file; `make repro` makes it")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        command = [
            sys.executable,
            "-m",
            "pipeline",
            "evaluate",
            str(arguments.images),
            str(arguments.model),
            str(report),
        ]
        environment = os.environ | {"DVC_ROOT": folder}
        make_store = "from pipeline.tracking.write import create_store; create_store()"
        subprocess.run([sys.executable, "-c", make_store], env=environment, check=True)
        for features in ("computed", "kept"):
            start = time.perf_counter()
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            numbers = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
            page = (report / "index.html").stat().st_size
            counts = {name: numbers[f"num_{name}"] for name in ("samples", "held_out", "neighbours")}
            rows.append({"features_of_real_images": features, **counts, "seconds": seconds, "page_mb": page / 1e6})
    write("evaluate", {"images": str(arguments.images), "model": str(arguments.model)}, rows)


if __name__ == "__main__":
    main()
