"""Stage 1: a source of images → one archive and its card."""

from __future__ import annotations

from pathlib import Path

from began.base.files import replace_file
from began.base.parallel import num_cores
from began.data.card import CARD_NAME, write_card
from began.data.kinds import left_out_words
from began.data.sources import fetch
from began.params import load_params
from pipeline.console.progress_bar import follow
from pipeline.console.workspace import downloads_folder


def download(archive: Path, params: Path, workers: int) -> None:
    """Get the images of download.source: portraits, orl, folder, url or celeba."""
    settings = load_params(params).download

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
    from pipeline.cli import run

    run("download")
