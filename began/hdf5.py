"""The one definition of the HDF5 schema, its writer and its reader. The only user of h5py.

    images      (N, S, S, 3) uint8, contiguous, never compressed; the first num_train rows train, the rest are held out
    names       (N,) UTF-8: the archive's members that the rows were
    attributes  image_size, num_train, source, digest; credit and licence where the source has them

Contiguous, so that rows can be mapped: 480,000 images a second in random order, against 13,000 through h5py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

_BLOCK_BYTES = 4 * 2**20
_BLOCK_NAMES = 4096
_OLDER_HELD_OUT = 0.1  # of a file that says nothing about held-out rows


@dataclass(frozen=True)
class ImageFile:
    """A data file. `rows` is mapped and read-only: what nobody touches is not read; h5py is closed again."""

    path: Path
    rows: Pixels  # (N, S, S, 3), a numpy.memmap
    image_size: int  # S
    num_train: int
    source: str
    digest: str  # as of `rows_digest`
    licence: str = ""  # of the images, and whom to credit, where the source says so
    credit: str = ""

    @property
    def train(self) -> Pixels:
        """(num_train, S, S, 3)"""
        return self.rows[: self.num_train]

    @property
    def held_out(self) -> Pixels:
        """(N − num_train, S, S, 3), never trained on"""
        return self.rows[self.num_train :]

    @property
    def names(self) -> list[str]:
        """N archive members, read at each call; in a file without names the rows' numbers."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                if "names" not in file:
                    return [str(i) for i in range(len(self.rows))]
                names: list[str] = file["names"].asstr()[:].tolist()
        except Exception as error:
            raise ValueError(f"{self.path}: names cannot be read: {error}") from None
        if len(names) != len(self.rows):
            raise ValueError(f"{self.path}: has {len(names)} names, expected one for each of {len(self.rows)} rows")
        return names


class ImageWriter:
    """Writes a data file row by row, in flat memory.

    Example:
        with ImageWriter(path, image_size=64, max_rows=1000) as writer:
            writer.append(row)  # (S, S, 3) uint8, or several: (n, S, S, 3)
            writer.finish(names, num_train=900, attributes={"source": "orl"})

    `path` is a temporary one (began.files.replace_file): without `finish` it holds nothing of use.
    """

    def __init__(self, path: Path, image_size: int, max_rows: int) -> None:
        self._path = path
        self._image_size = image_size
        self._max_rows = max_rows
        self._offset = _allocate(path, max_rows, image_size)
        self._rows_digest = hashlib.sha256()
        self.num_rows = 0
        # Not through h5py, which is slower, nor mapped, where a full disk would kill the process.
        self._file = path.open("r+b")
        self._file.seek(self._offset)

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, rows: Pixels) -> None:
        """Appends (S, S, 3) or (n, S, S, 3) uint8."""
        S = self._image_size
        rows = np.ascontiguousarray(rows.reshape(-1, S, S, 3))
        assert rows.dtype == np.uint8 and self.num_rows + len(rows) <= self._max_rows
        self._file.write(rows.data)
        self._rows_digest.update(rows.data)
        self.num_rows += len(rows)

    def finish(self, names: Iterable[str], num_train: int, attributes: Mapping[str, str]) -> str:
        """Makes the file whole and returns the digest. `names` yields one for each appended row."""
        assert 0 < num_train < self.num_rows
        self._file.close()
        if self.num_rows < self._max_rows:
            self._shrink()
        digest = _with_shape(self._rows_digest, self.num_rows, self._image_size, num_train)
        numbers: dict[str, Any] = {"image_size": self._image_size, "num_train": num_train, "digest": digest}
        with h5py.File(self._path, "r+") as file:
            for key, value in (numbers | dict(attributes)).items():
                file.attrs[key] = value
            written = file.create_dataset("names", (self.num_rows,), h5py.string_dtype())
            remaining = iter(names)
            for first in range(0, self.num_rows, _BLOCK_NAMES):
                block = list(islice(remaining, min(_BLOCK_NAMES, self.num_rows - first)))
                written[first : first + len(block)] = block
        return digest

    def _shrink(self) -> None:
        """A contiguous data set cannot lose rows, so the rows move to a new one. Only where images were rejected."""
        smaller = self._path.with_name(f"{self._path.name}.smaller")
        try:
            offset = _allocate(smaller, self.num_rows, self._image_size)
            remaining = self.num_rows * self._image_size**2 * 3
            with self._path.open("rb") as old, smaller.open("r+b") as new:
                old.seek(self._offset)
                new.seek(offset)
                while remaining:
                    remaining -= new.write(old.read(min(remaining, _BLOCK_BYTES)))
            smaller.replace(self._path)
        finally:
            smaller.unlink(missing_ok=True)


def open_images(path: Path) -> ImageFile:
    """Opens a data file. Also one of the older layout, where `images` is (N, S·S·3) and attributes may be missing.

    Raises ValueError naming the file and what was expected when it is none.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            return _open(path, file)
    except _UnfitError as error:
        raise ValueError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `began preprocess` makes it") from None
    except Exception as error:  # h5py has many for a damaged file: OSError, RuntimeError, KeyError, ValueError, …
        raise ValueError(f"{path}: is not an HDF5 file, or a damaged one: {' '.join(str(error).split())}") from None


def verify_digest(image_file: ImageFile) -> None:
    """Reads all rows; raises ValueError naming the file when they are not the ones its digest was made of."""
    found = rows_digest(image_file.rows, image_file.num_train)
    if found != image_file.digest:
        raise ValueError(f"{image_file.path}: the rows' digest is {found}, expected {image_file.digest}")


def rows_digest(rows: Pixels, num_train: int) -> str:
    """Hexadecimal SHA-256 of the rows (N, S, S, 3), their shape and `num_train`."""
    digest = hashlib.sha256()
    for block in _blocks(rows):
        digest.update(np.ascontiguousarray(block).data)
    return _with_shape(digest, len(rows), rows.shape[1], num_train)


class _UnfitError(Exception):
    """What is wrong with a file's content."""


def _allocate(path: Path, num_rows: int, image_size: int) -> int:
    """Makes an HDF5 file with room for the rows, unwritten; returns their offset in bytes."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        shape = (num_rows, image_size, image_size, 3)
        offset: int = file.create_dataset("images", shape, np.uint8, dcpl=properties).id.get_offset()
    return offset


def _with_shape(digest: Any, num_rows: int, image_size: int, num_train: int) -> str:
    digest = digest.copy()
    digest.update(f"{num_rows}×{image_size}×{image_size}×3, {num_train}".encode())
    found: str = digest.hexdigest()
    return found


def _blocks(rows: Pixels) -> Iterator[Pixels]:
    num = max(1, _BLOCK_BYTES // (rows.shape[1] ** 2 * 3))
    for first in range(0, len(rows), num):
        yield rows[first : first + num]


def _open(path: Path, file: Any) -> ImageFile:
    if not isinstance(file.get("images", getlink=True), h5py.HardLink) or not isinstance(file["images"], h5py.Dataset):
        raise _UnfitError("has no data set images of its own, expected one of (N, S, S, 3) uint8")
    images = file["images"]
    if images.dtype != np.uint8:
        raise _UnfitError(f"images: {images.dtype}, expected uint8")
    if images.is_virtual or images.external:
        raise _UnfitError("images: refers to other files, expected rows within this one")
    if images.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise _UnfitError("images: chunked, compressed or compact, expected contiguous as `began preprocess` writes it")
    num_rows, *row = images.shape or (0,)
    older = len(row) == 1
    image_size = math.isqrt(math.prod(row) // 3)
    if row not in ([image_size, image_size, 3], [image_size**2 * 3]):
        raise _UnfitError(f"images: {images.shape}, expected (N, S, S, 3)")
    if image_size < 32 or image_size & (image_size - 1):
        raise _UnfitError(f"images: {image_size}×{image_size} pixels, expected a side of 32·2^m: 32, 64, 128, …")
    if num_rows < 2:
        raise _UnfitError(f"images: {num_rows} of them, expected at least 2: one to train on and one held out")
    offset = images.id.get_offset()
    if offset is None or offset + images.nbytes > path.stat().st_size:
        raise _UnfitError("images: the file is shorter than its rows; it is cut short or was never finished")
    default_num_train = num_rows - max(1, round(num_rows * _OLDER_HELD_OUT)) if older else None
    num_train = _attribute(file, "num_train", int, default_num_train)
    if not 0 < num_train < num_rows:
        raise _UnfitError(f"num_train: {num_train}, expected 1 to {num_rows - 1}, of {num_rows} rows")
    stated = _attribute(file, "image_size", int, image_size if older else None)
    if stated != image_size:
        raise _UnfitError(f"image_size: {stated}, expected {image_size}, as the rows have")
    rows: Pixels = np.memmap(path, np.uint8, "r", offset, (num_rows, image_size, image_size, 3))
    return ImageFile(
        path=path,
        rows=rows,
        image_size=image_size,
        num_train=num_train,
        source=_attribute(file, "source", str, "" if older else None),
        digest=_attribute(file, "digest", str, None) if not older else rows_digest(rows, num_train),
        licence=_attribute(file, "licence", str, ""),
        credit=_attribute(file, "credit", str, ""),
    )


def _attribute(file: Any, key: str, kind: type, default: Any) -> Any:
    """`file.attrs[key]`, checked; a `default` of None means that it has to be there."""
    value = file.attrs.get(key, default)
    if value is None:
        raise _UnfitError(f"has no attribute {key}")
    if isinstance(value, np.integer):
        value = int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _UnfitError(f"{key}: {value!r}, expected {'a whole number' if kind is int else 'text'}")
    return value
