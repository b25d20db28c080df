"""CelebA: the licence, the mirrors, and the file on one's own disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from began.data.sources import celeba
from tests.data.http_server import PAGE, Place, Served, Server, digest_of, zip_bytes


def test_celeba_needs_the_licence_to_be_accepted(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    with pytest.raises(ValueError, match=r"^download\.accept_celeba_licence: false, expected true.*non-commercial"):
        place.fetch_celeba(data, f"{server.address}/a.zip", accept_celeba_licence=False)
    with pytest.raises(ValueError, match=r"^download\.accept_celeba_licence"):
        place.fetch_celeba(data, celeba_zip="any.zip", accept_celeba_licence=False)
    assert served.asked == []


def test_celeba_tries_each_mirror_and_goes_on_with_what_it_has(server: Server, place: Place) -> None:
    data = zip_bytes()
    server.files["/quota"] = PAGE
    server.files["/small"] = Served(data[:-1])
    server.files["/wrong"] = Served(bytes(reversed(data)))
    server.files["/dies"] = Served(data, drops=[50_000, 0, 0, 0], etag=None)
    server.files["/good"] = Served(data, etag='"other"')
    names = ("quota", "small", "wrong", "dies", "good")
    card = place.fetch_celeba(data, *(f"{server.address}/{name}" for name in names))
    assert place.archive.read_bytes() == data
    assert (card.source, card.count, card.digest) == ("celeba", 3, digest_of(data))
    assert server.files["/good"].asked == ["bytes=50000-"]
    assert place.kept == {celeba.FILE_NAME}
    # Verified once, linked into place, and found again.
    assert place.archive.stat().st_ino == (place.downloads / celeba.FILE_NAME).stat().st_ino
    place.archive.unlink()
    place.fetch_celeba(data, f"{server.address}/nowhere")
    assert place.archive.read_bytes() == data


def test_celeba_names_what_went_wrong_at_every_mirror_on_one_line(server: Server, place: Place) -> None:
    data = zip_bytes()
    server.files["/quota"] = PAGE
    server.files["/small"] = Served(data[:-1])
    server.files["/wrong"] = Served(bytes(reversed(data)))
    with pytest.raises(ValueError) as raised:
        place.fetch_celeba(data, *(f"{server.address}/{name}" for name in ("quota", "small", "wrong", "gone")))
    message = str(raised.value)
    assert "\n" not in message
    problems = ("/quota: is a web page", "/small: has 90,", "/wrong: its SHA-256 is", "/gone: the server answers 404")
    found = [message.index(words) for words in problems]
    assert found == sorted(found)
    assert "download.celeba_zip" in message
    assert place.kept == set()
    assert not place.archive.exists()


def test_celeba_on_disk_is_checked_and_copied(place: Place, tmp_path: Path) -> None:
    data = zip_bytes()
    mine = tmp_path / "mine.zip"
    mine.write_bytes(data)
    assert place.fetch_celeba(data, celeba_zip=str(mine)).count == 3
    assert place.archive.read_bytes() == data
    assert mine.stat().st_nlink == 1
    for wrong, problem in ((data[:-1], "has 90,"), (bytes(reversed(data)), "its SHA-256 is")):
        mine.write_bytes(wrong)
        way_out = r"download\.source: url with .*preprocess\.crop: face$"
        with pytest.raises(ValueError, match=rf"^download\.celeba_zip: .*mine\.zip: {problem}.*{way_out}"):
            place.fetch_celeba(data, celeba_zip=str(mine))
    with pytest.raises(ValueError, match=r"^download\.celeba_zip: .*no such file"):
        place.fetch_celeba(data, celeba_zip=str(tmp_path / "nowhere.zip"))


def test_a_mirror_whose_part_is_short_keeps_the_part_of_another(server: Server, place: Place) -> None:
    """A page of 40 bytes on a server with ranges answers 416 to bytes=50000-: no reason to give up 50,000 bytes."""
    data = zip_bytes()
    server.files["/dies"] = Served(data, drops=[50_000, 0, 0, 0])
    server.files["/page"] = Served(PAGE.data)
    server.files["/good"] = Served(data)
    place.fetch_celeba(data, *(f"{server.address}/{name}" for name in ("dies", "page", "good")))
    assert server.files["/good"].asked == ["bytes=50000-"]
