from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from began.base.files import sha256
from began.data.card import read_card
from pipeline.cli import main
from pipeline.console.workspace import downloads_folder


@pytest.fixture
def params(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository's own settings with 4 portraits, in the current folder."""
    monkeypatch.chdir(tmp_path)
    text = (repository / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(re.sub(r"num_images: \d+", "num_images: 4", text), encoding="utf-8")
    return path


def change(params: Path, key: str, value: str) -> None:
    text, count = re.subn(rf"(?m)^  {key}: \S+", f"  {key}: {value}", params.read_text(encoding="utf-8"))
    assert count == 1
    params.write_text(text, encoding="utf-8")


def download(*arguments: str, workers: int = 1) -> object:
    """Its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["download", *arguments, "--workers", str(workers)])
    return ended.value.code


def test_download_writes_the_archive_and_its_card(
    tmp_path: Path, params: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert download() == 0
    raw = tmp_path / "data" / "raw"
    card = read_card(raw / "card.json")
    assert (card.source, card.count, card.digest) == ("portraits", 4, sha256(raw / "images.zip"))
    assert len(zipfile.ZipFile(raw / "images.zip").namelist()) == 4
    assert sorted(path.name for path in raw.iterdir()) == ["card.json", "images.zip"]
    out, err = capfd.readouterr()
    assert "download portraits: 4 of 4 images" in err
    assert "Johan Melin" in out


def test_download_with_a_path_and_workers_gives_the_same_bytes(params: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        assert download(f"{name}/a.zip", workers=workers) == 0
    assert Path("one/a.zip").read_bytes() == Path("two/a.zip").read_bytes()
    assert Path("one/card.json").read_bytes() == Path("two/card.json").read_bytes()


def test_what_is_left_out_is_told_at_the_end_and_on_the_card(params: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    for name in ("a.png", "b.png", "c.cr2", "d.txt"):
        Path("mine", name).write_bytes(b"x")
    change(params, "source", "folder")
    change(params, "folder", "mine")
    assert download() == 0
    assert capfd.readouterr().out.splitlines()[-1] == "left out: 1 CR2, 1 of other kinds"
    assert read_card(Path("data/raw/card.json")).left_out == {"CR2": 1, "of other kinds": 1}
    for i in range(2):
        Path("mine", f"{i}.cr2").write_bytes(b"x")
    assert download() == 2
    expected = "began: download.folder: mine: takes 2 images and leaves out more: 3 CR2, 1 of other kinds\n"
    assert capfd.readouterr().err == expected


def test_a_failed_download_leaves_the_old_archive_alone(tmp_path: Path, params: Path) -> None:
    assert download() == 0
    before = {path.name: path.read_bytes() for path in Path("data/raw").iterdir()}
    Path("bad.zip").write_bytes(b"PK\x03\x04 not really")
    change(params, "source", "url")
    change(params, "url", (tmp_path / "bad.zip").as_uri())
    assert download() == 2
    assert {path.name: path.read_bytes() for path in Path("data/raw").iterdir()} == before


def test_downloads_are_kept_in_the_main_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc")
    assert downloads_folder() == tmp_path / ".began" / "downloads"
