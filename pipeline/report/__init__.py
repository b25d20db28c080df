"""Numbers, plots, pictures and pages, of one run and of several."""
