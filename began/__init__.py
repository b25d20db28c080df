"""BEGAN: Boundary Equilibrium Generative Adversarial Networks (Berthelot, Schumm, Metz 2017, arXiv 1703.10717)."""

import os

# Nothing is sent anywhere unasked. The libraries read these when they are loaded, so they are set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

__version__ = "0.1.0"
