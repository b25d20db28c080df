"""What a file is, by its name and its first bytes: an image to take, or what is left out and counted."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

_HEIF_KINDS = ("heic", "heif", "hif")
_READS_HEIF = importlib.util.find_spec("pillow_heif") is not None

IMAGE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("avif", "bmp", "dib", "gif", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pcx", "pgm", "png"),
        *("pnm", "ppm", "sgi", "tga", "tif", "tiff", "webp"),
        *(_HEIF_KINDS if _READS_HEIF else ()),
    )
)

# Pictures that nothing here reads: of cameras, drawing programs, and formats without a decoder.
_OTHER_PICTURES = frozenset(
    f".{kind}"
    for kind in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dng", "erf", "exr", "hdr", "ico", "jxl", "kdc", "mrw", "nef", "nrw"),
        *("orf", "pef", "psd", "raf", "raw", "rw2", "srw", "svg", "x3f", "xcf"),
    )
)
_ARCHIVE_SUFFIXES = frozenset(f".{kind}" for kind in ("7z", "bz2", "gz", "rar", "tar", "tgz", "xz", "zip", "zst"))
_PIECE = re.compile(
    r"\.(7z|gz|rar|tar|tgz|zip|zst)(\.\d{2,3}|[._-]part[._-]?\w+|[._-]?a[a-z])$"
    r"|\.part\d+(\.(rar|zip|7z))?$|\.[zr]\d\d$",
    re.IGNORECASE,
)
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"8BPS", b"\0\0\0\x0cjP  ")
_PICTURE_BRANDS = frozenset((b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1"))
HEAD_BYTES = 16  # that tell a picture

# Why something is left out. No name of a file stands among them: the card may be published.
_HEIC = "HEIC"
_NO_SUFFIX = "without a picture's suffix"
_PACKED = "packed in an archive"
_IN_PIECES = "packed in a split archive"
LINKED = "linked from elsewhere"
BROKEN_LINK = "linked to nothing"
NO_FILE = "no regular file"
_HIDDEN = "hidden"
_OTHER = "of other kinds"
_WAYS_OUT = {
    _HEIC: "pip install -e '.[heif]' reads them",
    _NO_SUFFIX: "rename them",
    _PACKED: "unpack them",
    _IN_PIECES: "join the pieces and unpack them",
    LINKED: "cp -rL copies what links lead to",
    BROKEN_LINK: "dvc pull brings what DVC keeps",
}


def is_image_name(name: str) -> bool:
    """Whether a file of this name (with folders before it, separated by "/") is meant as an image.

    Hidden files and folders and macOS's `__MACOSX` shadows of every file are not.
    """
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not _is_hidden(path)


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


class LeftOut:
    """What stands beside the images that are taken, counted by reason."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str, read_head: Callable[[], bytes]) -> None:
        """Counts a file for which `is_image_name` is false; `read_head` returns its first bytes, where they matter."""
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if _is_hidden(path):
            shadow = path.name.startswith("._") or "__MACOSX" in path.parts
            if suffix in IMAGE_SUFFIXES and not shadow:
                self.counts[_HIDDEN] += 1
        elif suffix[1:] in _HEIF_KINDS:
            self.counts[_HEIC] += 1
        elif suffix in _OTHER_PICTURES:
            self.counts[suffix[1:].upper()] += 1
        elif is_piece(name):
            self.counts[_IN_PIECES] += 1
        elif suffix in _ARCHIVE_SUFFIXES:
            self.counts[_PACKED] += 1
        else:
            self.counts[_NO_SUFFIX if _is_picture(read_head()) else _OTHER] += 1

    def check(self, where: str, num_taken: int) -> None:
        """Raises ValueError beginning with `where` when more was left out than `num_taken`; other files do not count.

        Whoever keeps captions beside pictures means them; whoever keeps six links beside two pictures means eight.
        """
        if sum(self.counts.values()) - self.counts[_OTHER] - self.counts[_HIDDEN] > num_taken:
            raise ValueError(f"{where}: takes {num_taken:,} images and leaves out more: {left_out_words(self.counts)}")


def left_out_words(counts: Mapping[str, int]) -> str:
    """The counts of LeftOut on one line, the largest first, each with the way out where there is one."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(
        f"{count:,} {reason}" + (f" ({_WAYS_OUT[reason]})" if reason in _WAYS_OUT else "") for reason, count in ordered
    )


def is_piece(name: str) -> bool:
    """Whether a file of this name is one piece of a split archive: .zip.001, .z01, .part1.rar, .7z.002, .tar.gz.aa."""
    return _PIECE.search(name) is not None


def _is_picture(head: bytes) -> bool:
    return (
        head.startswith(_PICTURE_STARTS)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and head[6:10] == bytes(4))
        or (head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS)
    )
