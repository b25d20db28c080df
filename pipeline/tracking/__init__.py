"""MLflow, and nobody else's business."""
