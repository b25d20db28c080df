"""Entry points: one function per DVC stage or command; paths, files, progress and reporting."""
