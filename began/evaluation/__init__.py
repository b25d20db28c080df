"""Numbers on held-out images: features, metrics, neighbours, inversion, attributes."""
