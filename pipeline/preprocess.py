"""Stage preprocess: archive of images → HDF5 file of rows."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from array import array

    from began.archives import ImageArchive
    from began.images import Crop, Pixels
    from began.params import PreprocessParams
    from began.progress import Progress

REJECTS_NAME = "rejected.csv"

_TASK_BYTES = 2**20  # of rows that a worker hands over at once
_TASK_IMAGES = 64
_NAMED_REJECTS = 3  # in the error's one line


def preprocess(
    archive: Annotated[Path, typer.Argument(help="Zip of images.")] = Path("data/raw/images.zip"),
    output: Annotated[Path, typer.Argument(help="HDF5 file to write.")] = Path("data/images.h5"),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    workers: Annotated[int, typer.Option(min=0, envvar="BEGAN_WORKERS", help="Processes; 0: one for each core.")] = 0,
) -> None:
    """Crops and resizes every image of a zip into one HDF5 file of rows.

    Images that cannot be decoded are listed in rejected.csv beside it.

    Example: began preprocess photos.zip data/images.h5 --workers 4
    """
    import csv
    import time

    from began.archives import left_out_words
    from began.files import replace_file
    from began.parallel import num_cores
    from began.params import load_params
    from pipeline.progress import follow

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


@dataclass(frozen=True)
class Written:
    """What `write_rows` made of an archive."""

    num_rows: int
    num_train: int
    rejected: list[tuple[str, str]]  # name, reason
    digest: str
    left_out: dict[str, int]  # reason, number: of what else the archive holds


def write_rows(
    archive: Path,
    output: Path,
    settings: PreprocessParams,
    crop: Crop,
    attributes: dict[str, str],
    workers: int,
) -> Generator[Progress, None, Written]:
    """Writes the images of `archive` as rows of the HDF5 file `output`, in flat memory.

    Rows stand in the order of their names' SHA-256, so that neither the archive's order nor its folders decide which
    are held out; the first `max_images` of that order are taken. Raises ValueError naming the archive when it holds
    too few images or more that is left out, or when more than `max_rejected` of them cannot be decoded.
    """
    from began.archives import ImageArchive, left_out_words
    from began.hdf5 import ImageWriter
    from began.parallel import ordered_map
    from began.progress import Progress

    with ImageArchive(archive) as images:
        entries = _in_row_order(images)
        if entries:
            images.left_out.check(str(archive), len(entries))
        entries = entries[: settings.max_images]
        num_images = len(entries)
        if num_images < 2:
            limit = f" (preprocess.max_images is {settings.max_images})" if settings.max_images == 1 else ""
            others = f"; left out: {left_out_words(images.left_out.counts)}" if images.left_out.counts else ""
            raise ValueError(f"{archive}: {num_images} images to take{limit}, expected at least 2{others}")
        num_per_task = max(1, min(_TASK_IMAGES, _TASK_BYTES // (settings.image_size**2 * 3)))
        tasks = (
            _Task(archive, entries[i : i + num_per_task], settings.image_size, crop)
            for i in range(0, num_images, num_per_task)
        )
        rejected: dict[int, str] = {}  # index of the entry → reason
        done = 0
        yield Progress(0, num_images)
        with _one_blas_thread_in_children(), ImageWriter(output, settings.image_size, num_images) as writer:
            for num, rows, reasons in ordered_map(_decode, tasks, workers):
                writer.append(rows)
                rejected |= {done + i: reason for i, reason in reasons.items()}
                done += num
                note = f"{len(rejected):,} rejected" if rejected else ""
                yield Progress(done, num_images, note=note)
                if len(rejected) > settings.max_rejected * num_images:
                    break  # what is left can change nothing
            named = [(images.name(entries[i]), reason) for i, reason in rejected.items()]
            first = "; ".join(f"{name}: {reason}" for name, reason in named[:_NAMED_REJECTS])
            if len(rejected) > settings.max_rejected * num_images:
                tried = f"{num_images:,}" if done == num_images else f"the first {done:,} of {num_images:,}"
                raise ValueError(
                    f"{archive}: {len(rejected):,} of {tried} images cannot be decoded, more than "
                    f"preprocess.max_rejected {settings.max_rejected:g} allows. First: {first}"
                )
            if writer.num_rows < 2:
                raise ValueError(
                    f"{archive}: {writer.num_rows} images can be decoded, expected at least 2. First: {first}"
                )
            num_train = max(1, writer.num_rows - max(1, round(writer.num_rows * settings.held_out)))
            kept = (images.name(entry) for i, entry in enumerate(entries) if i not in rejected)
            digest = writer.finish(kept, num_train, attributes)
            return Written(writer.num_rows, num_train, named, digest, dict(images.left_out.counts))


@dataclass(frozen=True)
class _Task:
    """Some images for a worker."""

    archive: Path
    entries: array[int]
    image_size: int
    crop: Crop


def _decode(task: _Task) -> tuple[int, Pixels, dict[int, str]]:
    """Number of images; the rows (n, S, S, 3) of those that could be decoded; index → reason of the others."""
    import numpy as np

    from began.archives import ImageArchive
    from began.images import decode_image

    S = task.image_size
    rows = np.empty((len(task.entries), S, S, 3), dtype=np.uint8)
    reasons: dict[int, str] = {}
    with ImageArchive(task.archive) as images:
        for i, entry in enumerate(task.entries):
            try:
                rows[i - len(reasons)] = decode_image(images.read(entry), S, task.crop)
            except ValueError as error:
                reasons[i] = str(error).removeprefix(f"{task.archive}: member {images.name(entry)!r} ")
    return len(task.entries), rows[: len(rows) - len(reasons)], reasons


def _in_row_order(images: ImageArchive) -> array[int]:
    """The archive's entries, sorted by the SHA-256 of their names."""
    import hashlib
    from array import array

    import numpy as np

    entries = images.entries()
    digests = bytearray()
    for entry in entries:
        digests += hashlib.sha256(images.name(entry).encode()).digest()
    keys = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)
    order = np.lexsort(keys.T[::-1])
    twice = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]).all(axis=1))
    if len(twice):
        raise ValueError(f"{images.path}: member {images.name(entries[order[twice[0]]])!r} stands twice in it")
    return array("Q", np.frombuffer(entries, dtype=np.uint64)[order].tobytes())


def _source(archive: Path) -> dict[str, str]:
    """What the card beside `archive` says of it: source, licence, credit. A card of another archive says nothing."""
    from began.card import CARD_NAME, read_card
    from began.files import sha256

    card_path = archive.with_name(CARD_NAME)
    if card_path.exists():
        card = read_card(card_path)
        if card.digest == sha256(archive):
            return {"source": card.source, "licence": card.licence, "credit": card.credit}
        print(f"preprocess: {card_path} is of another archive, so {archive} is taken for one of unknown source")
    return {"source": "archive"}


@contextmanager
def _one_blas_thread_in_children() -> Iterator[None]:
    """Each worker has a core. NumPy reads this once, when a child imports it."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("preprocess")
