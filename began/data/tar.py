"""A tar becomes a zip: read once from front to end, nothing unpacked to disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Generator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from began.base.progress import Progress
from began.data.archives import MAX_MEMBER_BYTES, check_name, check_total, write_member
from began.data.kinds import HEAD_BYTES, LeftOut, is_image_name

_CHUNK_BYTES = 2**20
_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


def zip_from_tar(source: Path, archive: Path) -> Generator[Progress, None, tuple[int, LeftOut]]:
    """Writes the images in `source` (a tar; plain, gzip, bzip2 or xz) as the zip `archive`.

    Returns their number, and what was left out.

    Raises ValueError naming `source` when it is no tar, is damaged, or has a member that escapes, is no regular file
    or is beyond the bounds of began.data.archives.
    """
    try:
        with source.open("rb") as raw, _decompressed(raw) as plain:
            guarded = _Guarded(plain, source)
            with (
                tarfile.open(fileobj=cast(IO[bytes], guarded), mode="r:") as tar,
                zipfile.ZipFile(archive, "w") as file,
            ):
                copied = yield from _copy(tar, file, raw, source)
            guarded.finish()
            return copied
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, RecursionError) as error:
        raise ValueError(f"{source}: is not a tar archive, or a damaged one ({' '.join(str(error).split())})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        # bz2 has no error of its own
        raise ValueError(f"{source}: is not a tar archive, or a damaged one ({error})") from None


def _copy(
    tar: tarfile.TarFile, file: zipfile.ZipFile, raw: IO[bytes], source: Path
) -> Generator[Progress, None, tuple[int, LeftOut]]:
    source_bytes = source.stat().st_size
    num_members, num_images, total_bytes = 0, 0, 0
    left_out = LeftOut()
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all it has seen
        num_members += 1
        total_bytes += member.size
        check_total(num_members, total_bytes, source, source_bytes)
        check_name(member.name, source)
        if not (member.isdir() or (member.isreg() and not member.issparse())):
            raise ValueError(f"{source}: member {member.name!r} is a link or no regular file; refused")
        # Bytes that are not UTF-8 come as surrogates, which no zip can hold.
        name = str(PurePosixPath(member.name)).encode(errors="surrogateescape").decode(errors="replace")
        if member.isdir():
            continue
        if not is_image_name(name):
            left_out.add(name, partial(_head, tar, member))
            continue
        if member.size > MAX_MEMBER_BYTES:
            raise ValueError(
                f"{source}: member {member.name!r} has {member.size:,} bytes, expected at most {MAX_MEMBER_BYTES:,}"
            )
        if name in file.NameToInfo:
            raise ValueError(f"{source}: member {member.name!r} stands twice")
        content = tar.extractfile(member)
        assert content is not None
        data = content.read()
        if len(data) != member.size:
            raise ValueError(f"{source}: is cut short at {member.name!r}")
        write_member(file, name, data)
        num_images += 1
        yield Progress(raw.tell(), source_bytes, "bytes", "tar to zip")
    return num_images, left_out


def _head(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    return content.read(HEAD_BYTES) if content is not None else b""


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(6)
    raw.seek(0)
    for magic, open_compressed in _COMPRESSIONS.items():
        if start.startswith(magic):
            return cast(IO[bytes], open_compressed(raw, "rb"))
    return raw


class _Guarded:
    """A stream that only goes forward, never past the bound on decompressed bytes and never far at once.

    tarfile believes the sizes it reads: a header of an extended kind may claim gigabytes, and a negative size sends it
    back to where it was, for ever.
    """

    def __init__(self, stream: IO[bytes], source: Path) -> None:
        self._stream = stream
        self._source = source
        self._source_bytes = source.stat().st_size
        self._last = b""

    def finish(self) -> None:
        """Raises when the tar did not end with its mark, and reads on: a compression's checksum comes last.

        To tarfile a member's damaged header, and the end of the file, are the end of the tar.
        """
        if self._last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("it is cut short, or a header is damaged")
        while self.read(_CHUNK_BYTES):
            pass

    def read(self, num_bytes: int = -1) -> bytes:
        if not 0 <= num_bytes <= MAX_MEMBER_BYTES + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header claims {num_bytes:,} bytes")
        check_total(0, self._stream.tell() + num_bytes, self._source, self._source_bytes)
        self._last = self._stream.read(num_bytes)
        return self._last

    def seek(self, position: int) -> int:
        if position < self._stream.tell():
            raise tarfile.ReadError("a header points backwards")
        return self._stream.seek(position)

    def tell(self) -> int:
        return self._stream.tell()
