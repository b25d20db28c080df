"""The source `url` against a real HTTP server on loopback."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from began.base import transfer
from began.data.sources import url
from tests import REPOSITORY
from tests.data.http_server import NO_PAUSES, PAGE, Place, Served, Server, digest_of, zip_bytes
from tests.data.test_sources import finish, image_members, settings


def tar_of_three() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    return stream.getvalue()


# A whole file


def test_a_zip_arrives_as_it_is(server: Server, place: Place) -> None:
    data = zip_bytes()
    server.files["/a.zip"] = Served(data)
    card = place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert (card.count, card.digest) == (3, digest_of(data))
    assert place.kept == set()


def test_a_file_with_a_digest_is_kept_and_not_asked_for_again(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    for _ in range(2):
        place.fetch_url(f"{server.address}/a.zip", digest_of(data))
        place.archive.unlink()  # as DVC does before a rerun
    assert served.asked == [None]
    assert place.kept == {digest_of(data)}


def test_a_kept_file_that_was_damaged_is_fetched_again(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / digest_of(data)).write_bytes(data[:-1] + b"?")
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [None]


def test_a_file_url_is_copied_never_linked(tmp_path: Path, place: Place) -> None:
    source = tmp_path / "my faces.zip"
    source.write_bytes(zip_bytes())
    place.fetch_url(source.as_uri(), digest_of(zip_bytes()))
    assert place.archive.read_bytes() == zip_bytes()
    assert source.stat().st_nlink == 1
    with pytest.raises(ValueError, match=r"my faces.zip: its SHA-256 is .*, expected 0000"):
        place.fetch_url(source.as_uri(), "0" * 64)


def test_a_file_without_a_length_arrives(server: Server, place: Place) -> None:
    server.files["/a.zip"] = Served(zip_bytes(), length=False)
    assert place.fetch_url(f"{server.address}/a.zip").count == 3


# Resuming


def test_a_dropped_connection_is_taken_up_where_it_ended(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000, 20_000])
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked == [None, "bytes=40000-", "bytes=60000-"]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000], ranges=False)
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked == [None, "bytes=40000-"]


def test_a_later_run_goes_on_with_the_part(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000, 0, 0, 0])
    with pytest.raises(ValueError, match=r"/a\.zip: .*; 40,000 bytes are kept, run it again to go on"):
        place.fetch_url(f"{server.address}/a.zip")
    assert not place.archive.exists()
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked[-1] == "bytes=40000-"


def test_a_changed_file_is_not_glued_to_the_old_part(server: Server, place: Place) -> None:
    old, new = zip_bytes(3), zip_bytes(4)
    server.files["/a.zip"] = Served(old, drops=[40_000, 0, 0, 0])
    with pytest.raises(ValueError, match="are kept"):
        place.fetch_url(f"{server.address}/a.zip")
    served = server.files["/a.zip"] = Served(new, etag='"2"')
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == new
    assert served.asked == ["bytes=40000-"]


def test_without_digest_and_etag_a_part_is_not_trusted(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000], etag=None)
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked == [None, None]


def test_a_whole_part_is_only_checked(server: Server, place: Place) -> None:
    """Killed between the last byte and the renaming: the server answers 416."""
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / f"{digest_of(data)}.part").write_bytes(data)
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [f"bytes={len(data)}-"]


def test_a_part_longer_than_the_file_starts_anew(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / f"{digest_of(data)}.part").write_bytes(data + b"more")
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [f"bytes={len(data) + 4}-", None]


def test_a_part_with_wrong_bytes_costs_one_more_download_not_the_address(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / f"{digest_of(data)}.part").write_bytes(b"?" * 1000)
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == ["bytes=1000-", None]


def test_a_part_survives_the_process(server: Server, place: Place) -> None:
    """SIGKILL in the pause after a dropped connection; the next run asks only for the rest."""
    data = zip_bytes(image_bytes=2_000_000)
    served = server.files["/a.zip"] = Served(data, drops=[4_000_000])
    program = (
        "import sys; from pathlib import Path\n"
        "from began.base.transfer import transfer\n"
        "Path(sys.argv[2]).parent.mkdir()\n"
        "for progress in transfer(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], pauses=(60,)):\n"
        "    if 'trying again' in progress.note: print(progress.done, flush=True)\n"
    )
    kept = place.downloads / digest_of(data)
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"{server.address}/a.zip", str(kept), digest_of(data)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"4000000\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [None, "bytes=4000000-"]


# What is refused


def test_a_wrong_digest_leaves_nothing(server: Server, place: Place) -> None:
    server.files["/a.zip"] = Served(zip_bytes())
    with pytest.raises(ValueError, match=r"/a\.zip: its SHA-256 is [0-9a-f]{64}, expected 0000"):
        place.fetch_url(f"{server.address}/a.zip", "0" * 64)
    assert place.kept == set()
    assert not place.archive.exists()


@pytest.mark.parametrize("content_type", ["text/html", "application/zip"])
def test_a_page_is_recognised_and_costs_no_part(server: Server, place: Place, content_type: str) -> None:
    data = zip_bytes()
    server.files["/a.zip"] = Served(PAGE.data, content_type=content_type, etag=None, ranges=False)
    place.downloads.mkdir()
    part = place.downloads / f"{digest_of(data)}.part"
    part.write_bytes(data[:1000])
    with pytest.raises(ValueError, match=r"/a\.zip: is a web page, not an archive"):
        place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert part.read_bytes() == data[:1000]


def test_an_answer_of_failure_is_named(server: Server, place: Place) -> None:
    with pytest.raises(ValueError, match=r"/nowhere\.zip: the server answers 404 Not Found"):
        place.fetch_url(f"{server.address}/nowhere.zip")
    busy = server.files["/a.zip"] = Served(b"later", status=503)
    with pytest.raises(ValueError, match=r"/a\.zip: the server answers 503"):
        place.fetch_url(f"{server.address}/a.zip")
    assert len(busy.asked) == 1 + len(NO_PAUSES)


def test_a_server_that_is_not_there_is_named_on_one_short_line(server: Server, place: Place) -> None:
    server.close()
    with pytest.raises(ValueError, match=r"/a\.zip: .*Connection refused$") as raised:
        place.fetch_url(f"{server.address}/a.zip")
    assert len(str(raised.value)) < 150 and "\n" not in str(raised.value)


def test_redirects_are_followed_but_not_for_ever_and_not_to_files(server: Server, place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes())
    server.files["/a.zip"] = Served(zip_bytes())
    server.files["/there"] = Served(b"", redirect="/a.zip")
    server.files["/round"] = Served(b"", redirect="/round")
    server.files["/file"] = Served(b"", redirect=(tmp_path / "a.zip").as_uri())
    assert place.fetch_url(f"{server.address}/there").count == 3
    with pytest.raises(ValueError, match=r"/round: .*redirects"):
        place.fetch_url(f"{server.address}/round")
    assert len(server.files["/round"].asked) <= transfer.MAX_REDIRECTS + 1
    with pytest.raises(ValueError, match="/file: "):
        place.fetch_url(f"{server.address}/file")


def test_other_addresses_are_refused(place: Place) -> None:
    for address in ("ftp://host/a.zip", "a.zip", "http:///a.zip", "file://host/a.zip", "file:///nowhere/a.zip", ""):
        with pytest.raises(ValueError, match=r"^download\.url: "):
            place.fetch_url(address)


def test_no_address_is_refused(place: Place) -> None:
    with pytest.raises(ValueError, match=r"^download\.url: is null"):
        finish(url.fetch(settings(source="url"), place.archive, place.downloads, 1))


def test_passwords_and_keys_stay_out_of_messages_and_cards(server: Server, place: Place) -> None:
    server.files["/a.zip"] = Served(zip_bytes())
    secret = server.address.replace("http://", "http://me:secret@") + "/a.zip?key=secret"
    assert "secret" not in place.fetch_url(secret).credit
    server.files["/a.zip"] = Served(b"not an archive")
    with pytest.raises(ValueError) as raised:
        place.fetch_url(secret)
    assert "secret" not in str(raised.value)
    shown: list[str] = []
    with socket.socket() as silent, pytest.raises(ValueError) as raised:
        silent.bind(("127.0.0.1", 0))
        gone = settings(source="url", url=f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}/a.zip?key=secret")
        for progress in url.fetch(gone, place.archive, place.downloads, 1, (0,)):
            shown.append(progress.note)
    assert "secret" not in str([raised.value, *shown])


def test_an_archive_without_images_is_refused(server: Server, place: Place) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("readme.txt", "x")
    server.files["/a.zip"] = Served(stream.getvalue())
    with pytest.raises(ValueError, match=r"/a\.zip: the archive holds no image"):
        place.fetch_url(f"{server.address}/a.zip")


def test_two_processes_download_once(server: Server, place: Place) -> None:
    """Two queued experiments start at the same time: the second waits, then finds the file."""
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    program = (
        "import sys; from pathlib import Path\n"
        "from began.base.transfer import Lock, transfer\n"
        "with Lock(Path(sys.argv[2])) as lock:\n"
        "    list(lock.wait())\n"
        "    list(transfer(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3]))\n"
    )
    arguments = [f"{server.address}/a.zip", str(place.downloads / "a"), digest_of(data)]
    root = REPOSITORY
    processes = [subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=root) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert served.asked == [None]
    assert (place.downloads / "a").read_bytes() == data


def test_a_file_without_a_digest_is_not_taken_from_under_another_run(server: Server, tmp_path: Path) -> None:
    served = server.files["/a.tar"] = Served(tar_of_three())
    download = settings(source="url", url=f"{server.address}/a.tar", sha256=None)
    first, second = (url.fetch(download, tmp_path / name, tmp_path / "downloads", 1) for name in ("1.zip", "2.zip"))
    while next(first).note != "tar to zip":
        pass
    assert next(second).note.startswith("waiting for another process")
    assert finish(first).digest == finish(second).digest
    assert image_members(tmp_path / "1.zip") == image_members(tmp_path / "2.zip") == ["0.png", "1.png", "2.png"]
    assert served.asked == [None, None]


def test_an_archive_of_another_kind_is_named(place: Place, tmp_path: Path) -> None:
    for start, kind in ((b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"PK\x07\x08PK", "the first piece of a split zip")):
        (tmp_path / "a.zip").write_bytes(start + bytes(1000))
        with pytest.raises(ValueError, match=rf"a\.zip: is {kind}, expected a zip or a tar"):
            place.fetch_url((tmp_path / "a.zip").as_uri())


def test_any_name_in_a_file_address_is_one_encoded_or_as_written(place: Place, tmp_path: Path) -> None:
    for name in ("a b.zip", "a%2Fb.zip", "a#b.zip", "a?b.zip", "Ü, (1)&x=y.zip", "100%.zip"):
        (tmp_path / name).write_bytes(zip_bytes())
        for address in ((tmp_path / name).as_uri(), f"file://{tmp_path}/{name}", f"file://localhost{tmp_path}/{name}"):
            assert place.fetch_url(address).count == 3
