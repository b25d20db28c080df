"""`python -m pipeline COMMAND …` is `began COMMAND …`: DVC runs the code of its own workspace so."""

from pipeline.cli import main

main()
