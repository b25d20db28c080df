from __future__ import annotations

import io
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from began.data import archives
from began.data.archives import ImageArchive, write_member
from began.data.kinds import is_image_name, is_piece


def read_all(path: Path) -> dict[str, bytes]:
    with ImageArchive(path) as images:
        return {images.name(entry): images.read(entry) for entry in images.entries()}


def image_members(path: Path) -> list[str]:
    with ImageArchive(path) as images:
        return [images.name(entry) for entry in images.entries()]


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_what_zipfile_wrote(tmp_path: Path, method: int) -> None:
    random_bytes = random.Random(0).randbytes
    members = {f"d/{i:03}.png": random_bytes(i * 37) + bytes(i) for i in range(100)} | {
        "é/ü.JPG": b"x",
        "empty.gif": b"",
    }
    assert read_all(make_zip(tmp_path / "a.zip", members, method)) == members


def test_reads_archives_with_a_comment_and_with_bytes_before_them(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": b"1", "b.png": b"22"})
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"c" * 1000
    path.write_bytes(b"#!program" * 100 + path.read_bytes())
    assert read_all(path) == {"a.png": b"1", "b.png": b"22"}


@pytest.mark.parametrize("limit", ["ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT"])
def test_reads_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    """By size, and by count with all sizes in 32 bits, as CelebA with its 202,599 members."""
    monkeypatch.setattr(zipfile, limit, 5)
    members = {f"{i}.png": bytes([i]) * 300 for i in range(6)}
    path = make_zip(tmp_path / "a.zip", members)
    assert b"PK\x06\x06" in path.read_bytes()
    monkeypatch.undo()
    assert read_all(path) == members


def test_memory_does_not_grow_with_the_count(tmp_path: Path) -> None:
    with ImageArchive(make_zip(tmp_path / "a.zip", {f"{i}.png": b"" for i in range(2000)})) as images:
        entries = images.entries()
    assert len(entries) * entries.itemsize == 2000 * 8


def test_only_images_that_are_not_hidden_are_members(tmp_path: Path) -> None:
    names = [
        "a.PNG",
        "b/c.jpeg",
        "./d.webp",
        "readme.txt",
        "__MACOSX/a.png",
        ".a.png",
        ".git/a.png",
        "b/._c.jpeg",
        "png",
    ]
    path = make_zip(tmp_path / "a.zip", dict.fromkeys(names, b"x"))
    assert image_members(path) == ["a.PNG", "b/c.jpeg", "./d.webp"]
    assert not is_image_name("a.png/b.txt")


@pytest.mark.parametrize(
    "name, problem",
    [
        *((name, "leaves the archive's folder") for name in ("../a.png", "a/../../b.png", "/etc/a.png", "C:/a.png")),
        ("c:a.png", "leaves the archive's folder"),
        ("..\\a.png", "has a backslash in its name"),
        ("a\\b.png", "has a backslash in its name"),
    ],
)
def test_a_member_that_escapes_condemns_a_zip(tmp_path: Path, name: str, problem: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": b"x", name: b"x"})
    with pytest.raises(ValueError, match=rf"a\.zip: member .* {problem}"):
        image_members(path)


@pytest.mark.parametrize("name", ["a.png", "readme.txt"])
def test_a_link_condemns_a_zip(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match=f"member '{name}' is a link"):
        image_members(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 10**6)
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": bytes(300_000) for i in range(20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="refused as a bomb"):
        image_members(path)


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 100)
    path = make_zip(tmp_path / "a.zip", {f"{i}.txt": b"" for i in range(101)})
    with pytest.raises(ValueError, match="more than 100 members"):
        image_members(path)


def test_a_member_that_lies_about_its_size_is_read_no_further(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    struct.pack_into("<L", data, entry + 24, 10)
    path.write_bytes(data)
    with ImageArchive(path) as images, pytest.raises(ValueError, match=r"a\.zip: member 'a.png' is damaged"):
        images.read(images.entries()[0])


def test_a_member_larger_than_any_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 100)
    with ImageArchive(make_zip(tmp_path / "a.zip", {"a.png": bytes(100), "b.png": bytes(101)})) as images:
        small, large = images.entries()
        assert len(images.read(small)) == 100
        with pytest.raises(ValueError, match=r"member 'b\.png' has 101 bytes, expected at most 100"):
            images.read(large)


def test_damage_is_noticed_and_named(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": b"abcdefgh" * 10, "b.png": b"fine"})
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.write_bytes(data)
    with ImageArchive(path) as images:
        damaged, fine = images.entries()
        assert images.read(fine) == b"fine"
        with pytest.raises(ValueError, match=r"a\.zip: member 'a.png' is damaged: its checksum differs"):
            images.read(damaged)


@pytest.mark.parametrize("flag, method, word", [(1, 0, "encrypted"), (0, 12, "compressed by another method")])
def test_members_that_cannot_be_read_are_refused_early(tmp_path: Path, flag: int, method: int, word: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    struct.pack_into("<2H", data, data.index(b"PK\x01\x02") + 8, flag, method)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=word):
        image_members(path)


@pytest.mark.parametrize("data", [b"", b"not a zip at all", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_zip_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip: is not a zip archive"):
        image_members(path)


def test_any_damage_ends_in_a_value_error(tmp_path: Path) -> None:
    """Bytes flipped and files cut at random: a stranger's archive never gets another exception out."""
    generator = random.Random(0)
    members = {f"{i}.png": generator.randbytes(50) for i in range(5)}
    whole = make_zip(tmp_path / "a.zip", members, zipfile.ZIP_DEFLATED).read_bytes()
    path = tmp_path / "b.zip"
    num_refused = 0
    for _ in range(500):
        data = bytearray(whole[: generator.choice([len(whole), generator.randrange(len(whole))])])
        for _ in range(3):
            if data:
                data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            read_all(path)
        except ValueError as error:
            num_refused += 1
            assert "b.zip" in str(error)
    assert num_refused > 400


def test_written_members_have_no_date(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            write_member(file, "a.png", b"data")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "a.zip").infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


def test_a_tar_stream_is_not_a_zip(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    with pytest.raises(ValueError, match="is not a zip"):
        image_members(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "name", ["a.zip", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.tgz", "a.2024.zip", "v1.001.zip", "a.r5"]
)
def test_a_whole_archive_is_no_piece(name: str) -> None:
    assert not is_piece(name)


@pytest.mark.parametrize("disk", [1, 2, 300])
def test_the_last_piece_of_a_split_zip_is_named(tmp_path: Path, disk: int) -> None:
    """`zip -s` leaves a.z01, a.z02, … and a.zip, whose end says which disk it is."""
    path = make_zip(tmp_path / "a.zip", {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, data.index(b"PK\x05\x06") + 4, disk)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.zip: is the last piece of a split archive; join the pieces: zip -s 0"):
        image_members(path)
    first = tmp_path / "a.zip.001"
    first.write_bytes(bytes(data[:20]))
    with pytest.raises(
        ValueError, match=r"a\.zip\.001: is not a zip archive, or is cut short \(one piece of a split arc"
    ):
        image_members(first)
