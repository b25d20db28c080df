"""The Typer app: registers the commands and translates their errors once."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pipeline.clean import clean
from pipeline.compare import compare
from pipeline.download import download
from pipeline.environment import prepare
from pipeline.evaluate import evaluate
from pipeline.export import export
from pipeline.log import log
from pipeline.preprocess import preprocess
from pipeline.sample import sample
from pipeline.signals import StoppedError, unwinding
from pipeline.train import train
from pipeline.ui import ui

app = typer.Typer(
    name="began",
    help="BEGAN: images in, faces out. Each command is a stage of the pipeline or a use of what it made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (download, preprocess, train, evaluate, sample, export, compare, log, clean, ui):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from began import __version__

        print(f"began {__version__}")
        raise typer.Exit


@app.callback()
def began(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """BEGAN: images in, faces out."""


def main(arguments: list[str] | None = None) -> None:
    """Runs `began ARGUMENTS`. What a user gave wrong ends with one line on standard error and exit code 2."""
    prepare()
    try:
        with unwinding():
            app(arguments, prog_name="began")
    except (ValueError, OSError) as error:
        print(f"began: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except StoppedError as stopped:
        print(f"began: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


def _one_line(error: Exception) -> str:
    """Its words, without secrets, and without what would act on a terminal: they may hold a stranger's file names."""
    from began.addresses import without_secrets

    words = without_secrets(" ".join(str(error).split()), [os.environ.get("MLFLOW_TRACKING_URI", "")])
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)


def run_stage(name: str) -> None:
    """`python -m pipeline.NAME ARGUMENTS` is `began NAME ARGUMENTS`: DVC runs the code of its own workspace so."""
    main([name, *sys.argv[1:]])


if __name__ == "__main__":
    main()
