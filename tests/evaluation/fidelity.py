"""torch-fidelity, also beside a CPU build of torch: torchvision's wheel then lacks two operators that nobody calls.

Tests import it from here, so that it finds them.
"""

from __future__ import annotations

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # operator torchvision::nms does not exist
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    _operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        _operators.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")

from torch_fidelity import (
    feature_extractor_inceptionv3,
    metric_fid,
    metric_isc,
    metric_kid,
    metric_prc,
)

__all__ = ["feature_extractor_inceptionv3", "metric_fid", "metric_isc", "metric_kid", "metric_prc"]
