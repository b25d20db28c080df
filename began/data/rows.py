"""The one definition of the HDF5 schema, its writer and its reader. The only user of h5py.

    images      (N, S, S, 3) uint8, contiguous, never compressed; the first num_train rows train, the rest are held out
    names       (N,) UTF-8: the archive's members that the rows were
    attributes  image_size, num_train, source; credit and licence where the source has them; digest (of the rows, their
                shape and num_train), names_digest, attributes_digest (of all other attributes)

Contiguous, so that rows can be mapped: 480,000 images a second in random order, against 13,000 through h5py.

HDF5's C library crashes or hangs on some damaged files, so h5py reads in a process of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from began.base.progress import Progress
from began.data.isolated import CallFailed, call_isolated

Pixels = npt.NDArray[np.uint8]

READ_SECONDS = 60.0  # for what h5py reads: the structure, or the names

_ATTRIBUTES = ("image_size", "num_train", "source", "digest", "licence", "credit", "names_digest")
_BLOCK_BYTES = 4 * 2**20
_BLOCK_NAMES = 4096
_NAME_BYTES = 256  # that a name may take, HDF5's own part included
_RESERVED_BYTES = 2**18  # for the rest of what it writes
_MAX_REASON = 300  # characters


@dataclass(frozen=True)
class ImageFile:
    """A data file. `rows` is mapped and read-only: what nobody touches is not read; h5py is closed again."""

    path: Path
    rows: Pixels  # (N, S, S, 3), a numpy.memmap
    image_size: int  # S
    num_train: int
    source: str
    digest: str  # hexadecimal SHA-256 of the rows, their shape and num_train
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
        """N archive members, read at each call."""
        names: list[str] = _ask(self.path, "names")
        return names


class ImageWriter:
    """Writes a data file row by row, in flat memory.

    Example:
        with ImageWriter(path, image_size=64, max_rows=1000) as writer:
            writer.append(row)  # (S, S, 3) uint8, or several: (n, S, S, 3)
            writer.finish(names, num_train=900, attributes={"source": "orl"})

    `path` is a temporary one (began.base.files.replace_file): without `finish` it holds nothing of use.
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
        names_digest = hashlib.sha256()
        _reserve(self._path, self.num_rows * _NAME_BYTES)
        with h5py.File(self._path, "r+") as file:  # which cuts off what it does not need
            written = file.create_dataset("names", (self.num_rows,), h5py.string_dtype())
            remaining = iter(names)
            for first in range(0, self.num_rows, _BLOCK_NAMES):
                block = list(islice(remaining, min(_BLOCK_NAMES, self.num_rows - first)))
                written[first : first + len(block)] = block
                names_digest.update(_terminated(block))
            numbers: dict[str, int | str] = {"image_size": self._image_size, "num_train": num_train, "digest": digest}
            described: dict[str, int | str] = numbers | dict(attributes) | {"names_digest": names_digest.hexdigest()}
            assert described.keys() <= set(_ATTRIBUTES)
            for key, value in (described | {"attributes_digest": _attributes_digest(described)}).items():
                file.attrs[key] = value
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
    """Opens a data file. Raises ValueError naming the file and what was expected when it is none."""
    found = _ask(path, "rows")
    rows: Pixels = np.memmap(path, np.uint8, "r", found.pop("offset"), tuple(found.pop("shape")))
    return ImageFile(path=path, rows=rows, **found)


def verify_digest(image_file: ImageFile) -> Generator[Progress, None, None]:
    """Reads all rows; raises ValueError naming the file when they are not the ones its digest was made of."""
    rows, digest, done = image_file.rows, hashlib.sha256(), 0
    yield Progress(0, len(rows))
    for block in _blocks(rows):
        digest.update(np.ascontiguousarray(block).data)
        done += len(block)
        yield Progress(done, len(rows))
    found = _with_shape(digest, len(rows), image_file.image_size, image_file.num_train)
    if found != image_file.digest:
        raise ValueError(
            f"{image_file.path}: the rows' digest is {found}, expected {image_file.digest}: "
            "damaged or changed since `began preprocess` wrote it"
        )


class _UnfitError(Exception):
    """What is wrong with a file's content."""


def _allocate(path: Path, num_rows: int, image_size: int) -> int:
    """Makes an HDF5 file with room for the rows, unwritten; returns their offset in bytes."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    path.touch()
    _reserve(path, 0)
    with h5py.File(path, "w") as file:
        shape = (num_rows, image_size, image_size, 3)
        offset: int = file.create_dataset("images", shape, np.uint8, dcpl=properties).id.get_offset()
    return offset


def _reserve(path: Path, num_bytes: int) -> None:
    """Room at the file's end for HDF5's library, which can crash where a disk is full; OSError if there is none.

    Some systems (macOS) and some file systems cannot allocate: there the room is written.
    """
    num_bytes += _RESERVED_BYTES
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        try:
            os.posix_fallocate(file.fileno(), end, num_bytes)
            return
        except AttributeError:
            pass
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
                raise
        for first in range(0, num_bytes, _BLOCK_BYTES):
            file.write(bytes(min(_BLOCK_BYTES, num_bytes - first)))
        file.flush()
        os.fsync(file.fileno())  # some systems find only here that there is no room


def _with_shape(digest: Any, num_rows: int, image_size: int, num_train: int) -> str:
    digest = digest.copy()
    digest.update(f"{num_rows}×{image_size}×{image_size}×3, {num_train}".encode())
    found: str = digest.hexdigest()
    return found


def _blocks(rows: Pixels) -> Iterator[Pixels]:
    num = max(1, _BLOCK_BYTES // (rows.shape[1] ** 2 * 3))
    for first in range(0, len(rows), num):
        yield rows[first : first + num]


def _terminated(names: list[str]) -> bytes:
    return b"".join(name.encode() + b"\0" for name in names)


def _attributes_digest(attributes: Mapping[str, int | str]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()


def _ask(path: Path, what: Literal["rows", "names"]) -> Any:
    """What `_read` finds, as JSON has it. Raises ValueError naming the file."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; `began preprocess` makes it")
    if not path.is_file():
        raise ValueError(f"{path}: is not an HDF5 file but a {'folder' if path.is_dir() else 'device or a pipe'}")
    try:
        answer = json.loads(call_isolated(_read, json.dumps([str(path.absolute()), what]), READ_SECONDS))
    except CallFailed as error:
        raise ValueError(f"{path}: is not an HDF5 file, or a damaged one: reading it {error}") from None
    if "unfit" in answer:
        raise ValueError(f"{path}: {answer['unfit']}")
    return answer["found"]


def _read(request: str) -> bytes:
    """In the other process: [path, what] → {"found": …}, or {"unfit": what is wrong with the file}; JSON."""
    path, what = json.loads(request)
    try:
        with h5py.File(path, "r", locking=False) as file:
            answer: dict[str, Any] = {"found": _read_structure(file) if what == "rows" else _read_names(file)}
    except _UnfitError as error:
        answer = {"unfit": str(error)}
    except Exception as error:  # h5py has many for a damaged file: OSError, RuntimeError, KeyError, ValueError, …
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        answer = {"unfit": f"is not an HDF5 file, or a damaged one: {reason}"}
    return json.dumps(answer).encode()


def _read_structure(file: Any) -> dict[str, Any]:
    """The fields of ImageFile, but where the rows are instead of the rows: `offset` and `shape`."""
    images = _own_data_set(file, "images")
    if images.dtype != np.uint8:
        raise _UnfitError(f"images: {images.dtype}, expected uint8")
    num_rows, *row = shape = images.shape or (0,)
    S = row[0] if row else 0
    if row != [S, S, 3]:
        raise _UnfitError(f"images: {shape}, expected (N, S, S, 3)")
    if S < 32 or S & (S - 1):
        raise _UnfitError(f"images: {S}×{S} pixels, expected a side of 32·2^m: 32, 64, 128, …")
    if num_rows < 2:
        raise _UnfitError(f"images: {num_rows} of them, expected at least 2: one to train on and one held out")
    offset = images.id.get_offset()
    if offset is None:
        raise _UnfitError(
            "images: chunked, compressed or never finished, expected contiguous as `began preprocess` writes it"
        )
    if offset + math.prod(shape) > Path(file.filename).stat().st_size:
        raise _UnfitError("images: the file is shorter than its rows; it is cut short")
    found: dict[str, Any] = {key: _plain(file.attrs[key]) for key in _ATTRIBUTES if key in file.attrs}
    if file.attrs.get("attributes_digest") != _attributes_digest(found):
        raise _UnfitError("attributes: their digest differs: damaged or changed since `began preprocess` wrote it")
    if found["image_size"] != S or not 0 < found["num_train"] < num_rows:
        raise _UnfitError(f"attributes: are of other images than these {num_rows} of {S}×{S}")
    del found["names_digest"]
    return found | {"offset": offset, "shape": shape}


def _read_names(file: Any) -> list[str]:
    names: list[str] = _own_data_set(file, "names").asstr()[:].tolist()
    if file.attrs["names_digest"] != hashlib.sha256(_terminated(names)).hexdigest():
        raise _UnfitError("names: their digest differs: damaged or changed since `began preprocess` wrote it")
    return names


def _own_data_set(file: Any, name: str) -> Any:
    """The data set of this name. No link and no virtual or external one: they lead to other files."""
    if isinstance(file.get(name, getlink=True), h5py.HardLink):
        data_set = file[name]
        if isinstance(data_set, h5py.Dataset) and not data_set.is_virtual and not data_set.external:
            return data_set
    raise _UnfitError(f"has no data set {name} of its own, within this file")


def _plain(value: Any) -> int | str:
    """An attribute as JSON has it."""
    return int(value) if isinstance(value, np.integer) else str(value)
