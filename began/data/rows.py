"""The one definition of the HDF5 schema, its writer and its reader. The only user of h5py.

    images      (N, S, S, 3) uint8, contiguous, never compressed; the first num_train rows train, the rest are held out
    names       (N,) UTF-8: the archive's members that the rows were
    attributes  image_size, num_train, source; credit and licence where the source has them; digest (of the rows, their
                shape and num_train), names_digest, attributes_digest (of all other attributes)

Contiguous, so that rows can be mapped: 480,000 images a second in random order, against 13,000 through h5py.

HDF5's C library crashes or hangs on some damaged files, so h5py reads in a process of its own. It says what the file
says of itself; whether that fits is judged here, where the rows are then mapped.
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
from began.data.isolated import CallFailed, Isolated

Pixels = npt.NDArray[np.uint8]

READ_SECONDS = 30.0  # for what h5py reads: the structure, or the names

_ATTRIBUTES = ("image_size", "num_train", "source", "digest", "licence", "credit", "names_digest")
_BLOCK_BYTES = 4 * 2**20
_BLOCK_NAMES = 4096
_NAME_BYTES = 256  # that a name may take, HDF5's own part included
_RESERVED_BYTES = 2**18  # for the rest of what it writes
_MOST_NAME_BYTES = 2**18  # a zip's longest name has 65,535 characters
_MOST_ATTRIBUTE_BYTES = 2**16
_MOST_REASON = 300  # characters


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
        names: list[str] = _ask(self.path, "names", len(self.rows))
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
    structure = _ask(path, "structure")
    try:
        return _open(path, structure["images"], structure["attributes"])
    except _UnfitError as error:
        raise ValueError(f"{path}: {error}") from None
    except (LookupError, TypeError):  # an answer that the reading process never gives
        raise ValueError(f"{path}: is a damaged HDF5 file") from None


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


def _open(path: Path, images: dict[str, Any] | None, attributes: dict[str, Any]) -> ImageFile:
    """From what the file says of itself, none of which is believed before it is checked."""
    if images is None:
        raise _UnfitError("has no data set images of its own, expected one of (N, S, S, 3) uint8")
    if images["dtype"] != "uint8":
        raise _UnfitError(f"images: {images['dtype']}, expected uint8")
    if images["refers"]:
        raise _UnfitError("images: refers to other files, expected rows within this one")
    if not images["contiguous"]:
        raise _UnfitError("images: chunked, compressed or compact, expected contiguous as `began preprocess` writes it")
    shape: list[int] = images["shape"] or [0]
    num_rows, *row = shape
    image_size = row[0] if row else 0
    if row != [image_size, image_size, 3]:
        raise _UnfitError(f"images: {tuple(shape)}, expected (N, S, S, 3)")
    if image_size < 32 or image_size & (image_size - 1):
        raise _UnfitError(f"images: {image_size}×{image_size} pixels, expected a side of 32·2^m: 32, 64, 128, …")
    if num_rows < 2:
        raise _UnfitError(f"images: {num_rows} of them, expected at least 2: one to train on and one held out")
    offset: int | None = images["offset"]
    if offset is None or not 0 <= offset <= path.stat().st_size - math.prod(shape):
        raise _UnfitError("images: the file is shorter than its rows; it is cut short or was never finished")
    num_train: int = _attribute(attributes, "num_train", int)
    if not 0 < num_train < num_rows:
        raise _UnfitError(f"num_train: {num_train}, expected 1 to {num_rows - 1}, of {num_rows} rows")
    stated: int = _attribute(attributes, "image_size", int)
    if stated != image_size:
        raise _UnfitError(f"image_size: {stated}, expected {image_size}, as the rows have")
    source: str = _attribute(attributes, "source", str)
    licence: str = _attribute(attributes, "licence", str, "")
    credit: str = _attribute(attributes, "credit", str, "")
    digest: str = _attribute(attributes, "digest", str)
    expected = _attribute(attributes, "attributes_digest", str)
    if expected != _attributes_digest({key: attributes[key] for key in _ATTRIBUTES if key in attributes}):
        raise _UnfitError("attributes: their digest differs: damaged or changed since `began preprocess` wrote it")
    rows: Pixels = np.memmap(path, np.uint8, "r", offset, (num_rows, image_size, image_size, 3))
    return ImageFile(
        path=path,
        rows=rows,
        image_size=image_size,
        num_train=num_train,
        source=source,
        digest=digest,
        licence=licence,
        credit=credit,
    )


def _attribute(attributes: Mapping[str, Any], key: str, kind: type, default: str | None = None) -> Any:
    """`attributes[key]`, checked; without a `default` it has to be there."""
    value = attributes.get(key, default)
    if value is None:
        raise _UnfitError(f"has no attribute {key}")
    if type(value) is not kind:
        shown = value["other"] if isinstance(value, dict) else repr(value)
        raise _UnfitError(f"{key}: {shown}, expected {'a whole number' if kind is int else 'text'}")
    return value


def _ask(path: Path, what: Literal["structure", "names"], num_rows: int = 0) -> Any:
    """What `_read` finds, as JSON has it. Raises ValueError naming the file."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; `began preprocess` makes it")
    if not path.is_file():
        raise ValueError(f"{path}: is not an HDF5 file but a {'folder' if path.is_dir() else 'device or a pipe'}")
    try:
        answer = json.loads(_isolated_read(json.dumps([str(path.absolute()), what, num_rows]), READ_SECONDS))
    except CallFailed as error:
        raise ValueError(f"{path}: is not an HDF5 file, or a damaged one: reading it {error}") from None
    if "unfit" in answer:
        raise ValueError(f"{path}: {answer['unfit']}")
    return answer["found"]


def _read(request: str) -> bytes:
    """In the other process: [path, what, num_rows] → {"found": …}, or {"unfit": what is wrong with the file}; JSON."""
    path, what, num_rows = json.loads(request)
    try:
        with h5py.File(path, "r", locking=False) as file:
            answer: dict[str, Any] = {"found": _structure(file) if what == "structure" else _names(file, num_rows)}
    except _UnfitError as error:
        answer = {"unfit": str(error)}
    except Exception as error:  # h5py has many for a damaged file: OSError, RuntimeError, KeyError, ValueError, …
        reason = " ".join(str(error).split())[:_MOST_REASON] or type(error).__name__
        answer = {"unfit": f"is not an HDF5 file, or a damaged one: {reason}"}
    return json.dumps(answer).encode()


_isolated_read = Isolated(_read)


def _structure(file: Any) -> dict[str, Any]:
    images = _own_data_set(file, "images")
    return {
        "images": images
        and {
            "dtype": str(images.dtype),
            "shape": images.shape,
            "refers": _refers_elsewhere(images),
            "contiguous": _is_contiguous(images),
            "offset": images.id.get_offset(),
        },
        "attributes": {
            key: _plain(file.attrs, key) for key in (*_ATTRIBUTES, "attributes_digest") if key in file.attrs
        },
    }


def _names(file: Any, num_rows: int) -> list[str]:
    data_set = _own_data_set(file, "names")
    if data_set is None:
        raise _UnfitError("has no data set names of its own, expected one of text")
    text = h5py.check_string_dtype(data_set.dtype)
    if text is None:
        raise _UnfitError(f"names: {data_set.dtype}, expected text")
    if _refers_elsewhere(data_set) or not _is_contiguous(data_set):
        raise _UnfitError("names: chunked, compressed or elsewhere, expected contiguous within this file")
    if data_set.shape != (num_rows,):
        raise _UnfitError(f"names: {data_set.shape}, expected one for each of {num_rows} rows")
    longest, digest = text.length or 0, hashlib.sha256()
    names: list[str] = []
    for first in range(0, num_rows, _BLOCK_NAMES):
        if longest <= _MOST_NAME_BYTES:
            block = data_set.asstr()[first : first + _BLOCK_NAMES].tolist()
            longest = max(len(name) for name in block)
        if longest > _MOST_NAME_BYTES:
            raise _UnfitError(f"names: one has {longest:,} bytes, expected at most {_MOST_NAME_BYTES:,}")
        digest.update(_terminated(block))
        names += block
    if file.attrs.get("names_digest", digest.hexdigest()) != digest.hexdigest():
        raise _UnfitError("names: their digest differs: damaged or changed since `began preprocess` wrote it")
    return names


def _own_data_set(file: Any, name: str) -> Any:
    """The data set that a hard link of this name leads to, or None: other links lead anywhere."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        return None
    return file[name]


def _refers_elsewhere(data_set: Any) -> bool:
    return bool(data_set.is_virtual or data_set.external)


def _is_contiguous(data_set: Any) -> bool:
    return bool(data_set.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS)


def _plain(attributes: Any, key: str) -> int | str | dict[str, str]:
    """An attribute as JSON has it; what is neither a number nor a text is described."""
    if attributes.get_id(key).get_storage_size() > _MOST_ATTRIBUTE_BYTES:
        return {"other": "a large array"}
    value = attributes[key]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, str) and len(value) <= _MOST_ATTRIBUTE_BYTES and _is_utf_8(value):
        return value
    return {"other": " ".join(repr(value)[:_MOST_REASON].split())}


def _is_utf_8(text: str) -> bool:
    """Bytes that are not come as surrogates, which cannot be printed."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
