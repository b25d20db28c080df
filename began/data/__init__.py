"""Images on their way in: sources, archives, the card, pixels, rows in HDF5, batches."""
