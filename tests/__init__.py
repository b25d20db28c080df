"""A package, since torch-fidelity installs one of this name that would stand before a folder without this file."""
