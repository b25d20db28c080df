"""Stage 2: archive of images → HDF5 file of rows."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from began.base.files import replace_file, sha256
from began.base.parallel import num_cores
from began.data.card import CARD_NAME, read_card
from began.data.kinds import left_out_words
from began.data.preparation import write_rows
from began.params import load_params
from pipeline.console.progress_bar import follow

REJECTS_NAME = "rejected.csv"


def preprocess(archive: Path, output: Path, params: Path, workers: int) -> None:
    """Crops and resizes every image of a zip into one HDF5 file of rows.

    Images that cannot be decoded are listed in rejected.csv beside it.
    """
    settings = load_params(params).preprocess
    if not archive.exists():
        raise ValueError(f"{archive}: no such file; `began download` makes it")
    if not archive.is_file():
        raise ValueError(f"{archive}: is {'a folder' if archive.is_dir() else 'no file'}, expected a zip")
    if output.exists() and output.samefile(archive):
        raise ValueError(f"{output}: is the archive itself, expected another name for the HDF5 file")
    if output.name == REJECTS_NAME:
        raise ValueError(f"{output}: is the name of the list of rejects, expected another one for the HDF5 file")
    start = time.monotonic()
    attributes = _source(archive)
    crop = settings.crop
    if crop == "auto":
        crop = "face" if attributes["source"] == "celeba" else "centre"
    with replace_file(output) as temporary:
        work = write_rows(archive, temporary, settings, crop, attributes, workers or num_cores())
        written = follow(work, "preprocess")
        with (
            replace_file(output.with_name(REJECTS_NAME)) as rejects,
            rejects.open("w", encoding="utf-8", newline="") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("name", "reason"))
            table.writerows(written.rejected)
    seconds = time.monotonic() - start
    if written.left_out:
        print(f"preprocess: {archive}: left out: {left_out_words(written.left_out)}")
    print(
        f"preprocess: {written.num_rows:,} images of {settings.image_size}×{settings.image_size} "
        f"({written.num_train:,} to train on), {len(written.rejected):,} rejected, {seconds:.1f} s → {output}"
    )


def _source(archive: Path) -> dict[str, str]:
    """What the card beside `archive` says of it: source, licence, credit. A card of another archive says nothing."""
    card_path = archive.with_name(CARD_NAME)
    if card_path.exists():
        card = read_card(card_path)
        if card.digest == sha256(archive):
            return {"source": card.source, "licence": card.licence, "credit": card.credit}
        print(f"preprocess: {card_path} is of another archive, so {archive} is taken for one of unknown source")
    return {"source": "archive"}


if __name__ == "__main__":
    from pipeline.cli import run

    run("preprocess")
