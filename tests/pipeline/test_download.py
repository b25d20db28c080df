from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from began.base.files import sha256
from began.data.card import read_card
from pipeline.console.workspace import downloads_folder
from tests import REPOSITORY


@pytest.fixture
def params(tmp_path: Path, repository: Path) -> Path:
    """The repository's own settings with 4 portraits."""
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"num_images: \d+", "num_images: 4", text), encoding="utf-8")
    return path


def change(params: Path, key: str, value: str) -> None:
    text, count = re.subn(rf"(?m)^  {key}: \S+", f"  {key}: {value}", params.read_text(encoding="utf-8"))
    assert count == 1
    params.write_text(text, encoding="utf-8")


def download(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As DVC runs it, in a process of its own."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); from pipeline.cli import main; main(sys.argv[2:])"
    return subprocess.run(
        [sys.executable, "-c", program, str(REPOSITORY), "download", *arguments],
        cwd=folder,
        env=os.environ | {"BEGAN_WORKERS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def check_refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    """Exit code 2, one line and no traceback."""
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_download_writes_the_archive_and_its_card(tmp_path: Path, params: Path) -> None:
    done = download(tmp_path)
    assert done.returncode == 0, done.stderr
    raw = tmp_path / "data" / "raw"
    card = read_card(raw / "card.json")
    assert (card.source, card.count, card.digest) == ("portraits", 4, sha256(raw / "images.zip"))
    assert len(zipfile.ZipFile(raw / "images.zip").namelist()) == 4
    assert sorted(path.name for path in raw.iterdir()) == ["card.json", "images.zip"]
    assert "download portraits: 4 of 4 images" in done.stderr
    assert "Johan Melin" in done.stdout


def test_download_with_a_path_and_workers_gives_the_same_bytes(tmp_path: Path, params: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        assert download(tmp_path, f"{name}/a.zip", "--workers", workers).returncode == 0
    assert (tmp_path / "one" / "a.zip").read_bytes() == (tmp_path / "two" / "a.zip").read_bytes()
    assert (tmp_path / "one" / "card.json").read_bytes() == (tmp_path / "two" / "card.json").read_bytes()


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("source", "faces", "download.source"),
        ("source", "url", "download.url"),
        ("url", '"http://me:secret@[bad"', "download.url: is malformed, expected http://"),
        ("source", "celeba", "download.accept_celeba_licence"),
        ("num_images", "0", "download.num_images"),
    ],
)
def test_what_the_settings_have_wrong_is_named(tmp_path: Path, params: Path, key: str, value: str, words: str) -> None:
    change(params, key, value)
    check_refused(download(tmp_path), words)
    assert not list(tmp_path.rglob("*.zip")) and not list(tmp_path.rglob("*.part"))


def test_what_is_left_out_is_told_at_the_end_and_on_the_card(tmp_path: Path, params: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("a.png", "b.png", "c.cr2", "d.txt"):
        (tmp_path / "mine" / name).write_bytes(b"x")
    change(params, "source", "folder")
    change(params, "folder", "mine")
    done = download(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "left out: 1 CR2, 1 of other kinds"
    assert read_card(tmp_path / "data" / "raw" / "card.json").left_out == {"CR2": 1, "of other kinds": 1}
    for i in range(2):
        (tmp_path / "mine" / f"{i}.cr2").write_bytes(b"x")
    check_refused(
        download(tmp_path), "download.folder: mine: takes 2 images and leaves out more: 3 CR2, 1 of other kinds"
    )


def test_a_failed_download_leaves_the_old_archive_alone(tmp_path: Path, params: Path) -> None:
    assert download(tmp_path).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "data" / "raw").iterdir()}
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 not really")
    change(params, "source", "url")
    change(params, "url", (tmp_path / "bad.zip").as_uri())
    check_refused(download(tmp_path), "bad.zip: is not a zip archive")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data" / "raw").iterdir()} == before


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path, params: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_refused(download(tmp_path, "file/images.zip"), "file")
    (tmp_path / "folder.zip").mkdir()
    check_refused(download(tmp_path, "folder.zip"), "folder.zip: is a folder, expected the name of a zip")
    check_refused(download(tmp_path, "card.json"), "is the name of the card")


def test_downloads_are_kept_in_the_main_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc")
    assert downloads_folder() == tmp_path / ".began" / "downloads"
