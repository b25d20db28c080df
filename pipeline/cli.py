"""The Typer app: registers the commands and translates their errors once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from pipeline.download import download
from pipeline.evaluate import evaluate
from pipeline.log import log
from pipeline.preprocess import preprocess
from pipeline.sample import sample
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
for command in (download, preprocess, train, evaluate, sample, log, ui):
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
    try:
        with _sigterm_unwinds():
            app(arguments, prog_name="began")
    except (ValueError, OSError) as error:
        print(f"began: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("began: interrupted", file=sys.stderr)
        sys.exit(130)
    except _Terminated:
        print("began: terminated", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)


class _Terminated(BaseException):
    """SIGTERM. No KeyboardInterrupt: Typer takes that for Ctrl-C."""


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises _Terminated inside, so that half-written outputs are removed and MLflow's run is ended."""
    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        yield
        return
    older = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, older)


def _terminate(kind: int, frame: FrameType | None) -> None:
    signal.signal(kind, signal.SIG_IGN)  # a second one would cut the clearing up short
    raise _Terminated


def run_stage(name: str) -> None:
    """`python -m pipeline.NAME ARGUMENTS` is `began NAME ARGUMENTS`: DVC runs the code of its own workspace so."""
    main([name, *sys.argv[1:]])
