"""The terminal and the process: progress bar, signals, environment, workspace."""
