"""Stage 1: a source of images → one archive and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def download(
    archive: Annotated[Path, typer.Argument(help="Zip to write; card.json lies beside it.")] = Path(
        "data/raw/images.zip"
    ),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    workers: Annotated[
        int, typer.Option(min=0, envvar="BEGAN_WORKERS", help="Processes; 0: one per core. Changes no byte.")
    ] = 0,
) -> None:
    """Get the images of download.source: portraits, orl, folder, url or celeba.

    Example: began download data/raw/images.zip --workers 2
    """
    from began.params import load_params

    settings = load_params(params).download

    from began.archives import left_out_words
    from began.card import CARD_NAME, write_card
    from began.files import replace_file
    from began.parallel import num_cores
    from began.sources import fetch
    from pipeline.progress import follow
    from pipeline.workspace import downloads_folder

    if archive.is_dir():
        raise ValueError(f"{archive}: is a folder, expected the name of a zip to write")
    if archive.name == CARD_NAME:
        raise ValueError(f"{archive}: is the name of the card, expected another one for the archive")
    with replace_file(archive.with_name(CARD_NAME)) as card_path, replace_file(archive) as archive_path:
        work = fetch(settings, archive_path, downloads_folder(), workers or num_cores())
        card = follow(work, f"download {settings.source}")
        write_card(card, card_path)
    print(f"{archive}: {card.count:,} images from {card.source}. {card.credit}. Licence: {card.licence}")
    if card.left_out:
        print(f"left out: {left_out_words(card.left_out)}")


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("download")
