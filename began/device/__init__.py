"""Which device, precision and threads; CUDA graphs."""
