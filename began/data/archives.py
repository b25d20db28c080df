"""Zip archives from strangers: which members are images, and how much of them is ever read.

Nothing is unpacked to disk by its own name. Still a member that would leave its folder, a link or a bomb condemns the
whole archive: who made it did not mean to hand over images.

Python's zipfile holds some 650 bytes per member for as long as an archive is open. Here a member is the position of its
entry in the archive's table of contents, 8 bytes, so that memory stays flat whatever the count.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from began.data.kinds import HEAD_BYTES, LeftOut, is_image_name, is_piece

# Chosen so that CelebA (202,599 members, 1.4 GB, ratio 1.0) and sets several times its size pass with room.
MAX_MEMBERS = 2_000_000
MAX_MEMBER_BYTES = 128 * 2**20  # one encoded image: a bare 40-megapixel RGB bitmap
MAX_TOTAL_BYTES = 500 * 10**9
MAX_RATIO = 100  # of a whole archive: encoded images do not shrink, flat bitmaps up to some 50 times, bombs 1,000 times
ALWAYS_ALLOWED_BYTES = 10**9  # a small archive of flat bitmaps may have any ratio


def check_name(name: str, archive: Path) -> None:
    """Raises ValueError when a member's name is not a plain relative path with "/" between its parts."""
    if problem := name_problem(name):
        raise ValueError(f"{archive}: member {name!r} {problem}; refused")


def name_problem(name: str) -> str | None:
    """What keeps `name` from being a plain relative path with "/" between its parts, on every system."""
    drive = name[:1].isascii() and name[:1].isalpha() and name[1:2] == ":"
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        return "leaves the archive's folder"
    if drive:
        return f"leaves the archive's folder where {name[:2]} is a drive"
    return "has a backslash in its name" if "\\" in name else None


def check_total(num_members: int, total_bytes: int, archive: Path, archive_bytes: int) -> None:
    """Raises ValueError when `num_members` with `total_bytes` decompressed are more than an image archive has."""
    if num_members > MAX_MEMBERS:
        raise ValueError(f"{archive}: has more than {MAX_MEMBERS:,} members; refused")
    max_bytes = min(MAX_TOTAL_BYTES, max(ALWAYS_ALLOWED_BYTES, MAX_RATIO * archive_bytes))
    if total_bytes > max_bytes:
        raise ValueError(
            f"{archive}: its {archive_bytes:,} bytes unpack to {total_bytes:,} or more, "
            f"expected at most {max_bytes:,}; refused as a bomb"
        )


@dataclass(frozen=True)
class _Entry:
    """One entry of the table of contents."""

    name: str
    flags: int
    method: int
    crc32: int
    compressed_bytes: int
    file_bytes: int
    header_position: int
    mode: int
    num_bytes: int  # of the entry itself


class ImageArchive:
    """The images in a zip, read one at a time by the position of their entry.

    Opening reads the end of the file only. ValueError names the archive when it is not a zip. One process, one thread:
    each worker opens its own.

    Example:
        with ImageArchive(path) as archive:
            for entry in archive.entries():
                data = archive.read(entry)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left_out = LeftOut()
        self._file = path.open("rb")
        try:
            self._size = self._file.seek(0, 2)
            self._read_end()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ImageArchive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def entries(self) -> array[int]:
        """Entries of the images, in the archive's order, after every member was found harmless.

        What else it holds is counted in `left_out`.
        Raises ValueError naming the archive (and the member) when a member escapes, is a link or is encrypted, or when
        count, size or ratio are beyond this module's bounds.
        """
        images = array("Q")
        self.left_out = LeftOut()
        position, num_members, total_bytes = self._directory, 0, 0
        while position < self._directory_end:
            entry = self._entry(position)
            num_members += 1
            total_bytes += entry.file_bytes
            check_total(num_members, total_bytes, self.path, self._size)
            check_name(entry.name, self.path)
            if stat.S_IFMT(entry.mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{self.path}: member {entry.name!r} is a link or a device; refused")
            if entry.name.endswith("/"):
                pass
            elif not is_image_name(entry.name):
                self.left_out.add(entry.name, partial(self._head, entry))
            else:
                if entry.flags & 0x1:
                    raise ValueError(f"{self.path}: member {entry.name!r} is encrypted; expected a plain archive")
                if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{self.path}: member {entry.name!r} is compressed by another method than deflate")
                images.append(position)
            position += entry.num_bytes
        return images

    def name(self, entry: int) -> str:
        """The member's name, folders separated by "/"."""
        return self._entry(entry).name

    def read(self, entry: int) -> bytes:
        """The member's whole content, at most MAX_MEMBER_BYTES.

        Raises ValueError naming archive and member when it is larger or damaged.
        """
        found = self._entry(entry)
        label = f"{self.path}: member {found.name!r}"
        if max(found.file_bytes, found.compressed_bytes) > MAX_MEMBER_BYTES:
            raise ValueError(f"{label} has {found.file_bytes:,} bytes, expected at most {MAX_MEMBER_BYTES:,}")
        self._file.seek(found.header_position)
        header = self._file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{label} is damaged: no header where the table of contents has it")
        self._file.seek(sum(struct.unpack_from("<2H", header, 26)), 1)
        data = self._file.read(found.compressed_bytes)
        if found.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, found.file_bytes + 1)
            except zlib.error as error:
                raise ValueError(f"{label} is damaged: {error}") from None
        if len(data) != found.file_bytes or zlib.crc32(data) != found.crc32:
            raise ValueError(f"{label} is damaged: its checksum differs")
        return data

    def _head(self, entry: _Entry) -> bytes:
        """The first bytes of a member, none where it cannot be read."""
        try:
            self._file.seek(entry.header_position)
            self._file.seek(sum(struct.unpack_from("<2H", self._file.read(30), 26)), 1)
            data = self._file.read(min(entry.compressed_bytes, 512))
            if entry.method == zipfile.ZIP_DEFLATED:
                return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, HEAD_BYTES)
            return data[:HEAD_BYTES]
        except (OSError, ValueError, OverflowError, struct.error, zlib.error):
            return b""

    def _read_end(self) -> None:
        """Finds the table of contents: APPNOTE 4.3.16, and 4.3.14 and 4.3.15 for zip64."""
        tail_position = max(0, self._size - 22 - 65_535)
        self._file.seek(tail_position)
        tail = self._file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            piece = " (one piece of a split archive: join the pieces)" if is_piece(self.path.name) else ""
            raise ValueError(f"{self.path}: is not a zip archive, or is cut short{piece}")
        disk, num_bytes, position = struct.unpack_from("<H6x2L", tail, end + 4)
        if disk not in (0, 0xFFFF):
            raise ValueError(
                f"{self.path}: is the last piece of a split archive; join the pieces: zip -s 0 NAME.zip --out WHOLE.zip"
            )
        directory_end = tail_position + end
        # Above 65,535 members zip64 has a second end before this one, with or without need.
        self._file.seek(max(0, directory_end - 20))
        if self._file.read(4) == b"PK\x06\x07":
            directory_end -= 20 + 56
            self._file.seek(max(0, directory_end))
            wide_end = self._file.read(56)
            if wide_end[:4] != b"PK\x06\x06":
                raise self._damaged()
            num_bytes, position = struct.unpack_from("<2Q", wide_end, 40)
        # Bytes before the archive (a self-extracting one has a program there) shift all positions in it.
        self._shift = directory_end - num_bytes - position
        self._directory, self._directory_end = directory_end - num_bytes, directory_end
        if self._shift < 0 or self._directory < 0:
            raise self._damaged()

    def _entry(self, position: int) -> _Entry:
        """APPNOTE 4.3.12, with the zip64 sizes of 4.5.3."""
        self._file.seek(position)
        fixed = self._file.read(46)
        if len(fixed) < 46 or fixed[:4] != b"PK\x01\x02":
            raise self._damaged()
        flags, method, _, _, crc32, compressed_bytes, file_bytes, num_name, num_extra, num_comment = struct.unpack_from(
            "<4H3L3H", fixed, 8
        )
        attributes, header_position = struct.unpack_from("<2L", fixed, 38)
        variable = self._file.read(num_name + num_extra)
        if len(variable) < num_name + num_extra:
            raise self._damaged()
        wide = _zip64_numbers(variable[num_name:])
        try:
            file_bytes, compressed_bytes, header_position = (
                next(wide) if number == 0xFFFFFFFF else number
                for number in (file_bytes, compressed_bytes, header_position)
            )
        except (RuntimeError, struct.error):
            raise self._damaged() from None
        return _Entry(
            name=variable[:num_name].decode("utf-8" if flags & 0x800 else "cp437", "replace"),
            flags=flags,
            method=method,
            crc32=crc32,
            compressed_bytes=compressed_bytes,
            file_bytes=file_bytes,
            header_position=header_position + self._shift,
            mode=attributes >> 16,
            num_bytes=46 + num_name + num_extra + num_comment,
        )

    def _damaged(self) -> ValueError:
        return ValueError(f"{self.path}: is not a zip archive, or a damaged one")


def _zip64_numbers(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers of the extra field with header 1, in their order."""
    position = 0
    while position + 4 <= len(extra):
        kind, num_bytes = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            for i in range(num_bytes // 8):
                yield struct.unpack_from("<Q", extra, position + 4 + 8 * i)[0]
            return
        position += 4 + num_bytes


def write_member(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Appends a file without a date, uncompressed (images do not shrink): same names and data, same archive."""
    info = zipfile.ZipInfo(name)  # of 1980-01-01
    info.create_system = 3  # Unix, on every platform
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(info, data)
