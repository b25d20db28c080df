"""Archive → rows: order, split, rejects, determinism, memory; through the stage and its command."""

from __future__ import annotations

import csv
import hashlib
import io
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from began.base.progress import Progress
from began.data.card import CARD_NAME, Card, write_card
from began.data.images import decode_image
from began.data.preparation import write_rows
from began.data.rows import open_images, verify_digest
from began.params import PreprocessParams
from pipeline.cli import main
from pipeline.preprocess import REJECTS_NAME, preprocess
from tests import REPOSITORY

T = TypeVar("T")


def encoded(i: int, width: int = 40, height: int = 36, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def archive_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


MEMBERS = {f"faces/{i:03}.png": encoded(i) for i in range(150)}
ROW_ORDER = sorted(MEMBERS, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def params_with(path: Path, **changed: object) -> Path:
    """The repository's params.yaml with other values in the quick profile's preprocess section."""
    text = REPOSITORY.joinpath("params.yaml").read_text(encoding="utf-8")
    before, quick = text.split("  quick:", 1)
    for key, value in changed.items():
        line = next(line for line in quick.splitlines() if line.strip().startswith(f"{key}:"))
        quick = quick.replace(line, f"      {key}: {value}", 1)
    path.write_text(before + "  quick:" + quick, encoding="utf-8")
    return path


def run(tmp_path: Path, archive: Path, workers: int = 1, **changed: object) -> Path:
    output = tmp_path / "data" / "images.h5"
    preprocess(archive, output, params_with(tmp_path / "params.yaml", **changed), workers)
    return output


def rejects(output: Path) -> list[list[str]]:
    with output.with_name(REJECTS_NAME).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def settings(**changed: object) -> PreprocessParams:
    values = {"image_size": 32, "crop": "auto", "max_images": None, "max_rejected": 0.01, "held_out": 0.2}
    return PreprocessParams.model_validate(values | changed)


def finish(work: Generator[Progress, None, T]) -> tuple[list[Progress], T]:
    shown = []
    while True:
        try:
            shown.append(next(work))
        except StopIteration as stop:
            return shown, stop.value


def test_every_image_becomes_a_row_in_the_order_of_its_names_digest(tmp_path: Path) -> None:
    output = run(tmp_path, archive_of(tmp_path / "images.zip", MEMBERS))
    image_file = open_images(output)
    assert image_file.names == ROW_ORDER
    for name, row in zip(image_file.names, image_file.rows, strict=True):
        assert np.array_equal(row, decode_image(MEMBERS[name], 32, "centre"))
    assert rejects(output) == [["name", "reason"]]
    verify_digest(image_file)


def test_same_bytes_for_any_number_of_workers_and_any_order(tmp_path: Path) -> None:
    members = MEMBERS | {"broken.jpg": b"no image"}
    shuffled = {name: members[name] for name in sorted(members, key=lambda name: name[::-1])}
    one = run(tmp_path / "a", archive_of(tmp_path / "a" / "images.zip", members), workers=1)
    two = run(tmp_path / "b", archive_of(tmp_path / "b" / "images.zip", shuffled), workers=2)
    assert one.read_bytes() == two.read_bytes()
    assert rejects(one) == rejects(two) == [["name", "reason"], ["broken.jpg", "is not an image of a known format"]]


def test_held_out_rows_are_the_share_asked_for_and_from_all_folders(tmp_path: Path) -> None:
    members = {f"{folder}/{i}.png": encoded(i) for folder in "abcde" for i in range(40)}
    archive = archive_of(tmp_path / "images.zip", members)
    image_file = open_images(run(tmp_path, archive, held_out=0.25))
    assert len(image_file.held_out) == 50
    assert {name.split("/")[0] for name in image_file.names[150:]} == set("abcde")


@pytest.mark.parametrize(("num", "held_out", "num_train"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.2, 2), (10, 0.05, 9)])
def test_both_sides_of_the_split_have_a_row(tmp_path: Path, num: int, held_out: float, num_train: int) -> None:
    archive = archive_of(tmp_path / "images.zip", {f"{i}.png": encoded(i) for i in range(num)})
    image_file = open_images(run(tmp_path, archive, held_out=held_out))
    assert (image_file.num_train, len(image_file.rows)) == (num_train, num)


def test_max_images_takes_the_first_of_the_row_order(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "images.zip", MEMBERS)
    assert open_images(run(tmp_path, archive, max_images=70)).names == ROW_ORDER[:70]


def test_rejects_are_listed_with_their_reason_and_leave_no_gap(tmp_path: Path) -> None:
    jpeg = encoded(1, 178, 218, "JPEG")
    bad = {"page.jpg": b"<html>", "half.jpg": jpeg[: len(jpeg) // 2], "empty, or not.png": b""}
    output = run(tmp_path, archive_of(tmp_path / "images.zip", MEMBERS | bad), max_rejected=0.02)
    listed = dict(rejects(output)[1:])
    assert listed.keys() == bad.keys()
    assert "truncated" in listed["half.jpg"] and "not an image" in listed["page.jpg"]
    image_file = open_images(output)
    assert image_file.names == ROW_ORDER
    assert np.array_equal(image_file.rows[-1], decode_image(MEMBERS[ROW_ORDER[-1]], 32, "centre"))


def test_heic_is_decoded_in_workers_too(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    reds = (20, 120, 220)
    pictures = []
    for red in reds:
        stream = io.BytesIO()
        pillow_heif.from_pillow(Image.new("RGB", (32, 32), (red, 90, 90))).save(stream, quality=95)
        pictures.append(stream.getvalue())
    members = {f"{i}.heic": pictures[i % 3] for i in range(70)}  # more than one task
    output = run(tmp_path, archive_of(tmp_path / "images.zip", members), workers=2)
    assert rejects(output) == [["name", "reason"]]
    image_file = open_images(output)
    for name, row in zip(image_file.names, image_file.rows, strict=True):
        assert abs(row[..., 0].astype(int) - reds[int(name.split(".")[0]) % 3]).max() <= 4


def test_what_an_archive_holds_beside_its_images_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = archive_of(tmp_path / "images.zip", MEMBERS | {"a.cr2": b"x", "b.cr2": b"x", "notes.txt": b"x"})
    run(tmp_path, archive)
    assert "images.zip: left out: 2 CR2, 1 of other kinds\n" in capsys.readouterr().out
    archive = archive_of(tmp_path / "few.zip", {"a.png": MEMBERS["faces/000.png"], "a.cr2": b"x", "b.cr2": b"x"})
    with pytest.raises(ValueError, match=r"few\.zip: takes 1 images and leaves out more: 2 CR2$"):
        run(tmp_path, archive)


def test_a_member_whose_checksum_is_wrong_is_a_reject(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "images.zip", MEMBERS)
    data = bytearray(archive.read_bytes())
    data[data.index(MEMBERS["faces/007.png"]) + 500] ^= 1
    archive.write_bytes(data)
    assert rejects(run(tmp_path, archive))[1:] == [["faces/007.png", "is damaged: its checksum differs"]]


def test_too_many_rejects_stop_with_the_first_ones_named(tmp_path: Path) -> None:
    bad = {f"bad{i}.jpg": b"no image" for i in range(5)}
    archive = archive_of(tmp_path / "images.zip", MEMBERS | bad)
    with pytest.raises(ValueError, match=r"cannot be decoded, more than preprocess.max_rejected 0.01") as error:
        run(tmp_path, archive, workers=2)
    assert str(archive) in str(error.value) and "bad" in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "data").iterdir())


def test_an_earlier_output_survives_a_failure(tmp_path: Path) -> None:
    output = run(tmp_path, archive_of(tmp_path / "images.zip", MEMBERS))
    before = output.read_bytes()
    with pytest.raises(ValueError, match="not a zip"):
        (tmp_path / "page.zip").write_text("<html>quota exceeded</html>")
        run(tmp_path, tmp_path / "page.zip")
    assert output.read_bytes() == before


def card(archive: Path, source: str) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    write_card(Card(source, 4, "some licence", "somebody", digest), archive.with_name(CARD_NAME))


@pytest.mark.parametrize(("source", "crop"), [("celeba", "face"), ("folder", "centre")])
def test_crop_auto_is_the_face_for_celeba_only(tmp_path: Path, source: str, crop: str) -> None:
    members = {f"{i}.jpg": encoded(i, 178, 218, "JPEG") for i in range(4)}
    archive = archive_of(tmp_path / "images.zip", members)
    card(archive, source)
    image_file = open_images(run(tmp_path, archive))
    assert image_file.source == source
    for name, row in zip(image_file.names, image_file.rows, strict=True):
        assert np.array_equal(row, decode_image(members[name], 32, crop))


def test_licence_and_credit_travel_with_the_rows(tmp_path: Path) -> None:
    import h5py

    archive = archive_of(tmp_path / "images.zip", MEMBERS)
    card(archive, "orl")
    with h5py.File(run(tmp_path, archive)) as file:
        assert (file.attrs["licence"], file.attrs["credit"]) == ("some licence", "somebody")


def test_a_card_of_another_archive_is_not_believed(tmp_path: Path) -> None:
    card(archive_of(tmp_path / "images.zip", MEMBERS), "celeba")
    other = archive_of(tmp_path / "other.zip", {f"{i}.png": encoded(i) for i in range(3)})
    assert open_images(run(tmp_path, other)).source == "archive"


def test_progress_counts_every_image(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "images.zip", MEMBERS)
    shown, written = finish(write_rows(archive, tmp_path / "rows", settings(), "centre", {"source": "x"}, 1))
    assert [progress.done for progress in shown] == [0, 64, 128, 150]
    assert all(progress.total == 150 for progress in shown)
    assert (written.num_rows, written.num_train, written.rejected) == (150, 120, [])
    assert written.digest == open_images(tmp_path / "rows").digest


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """artcg/BEGAN's prepare_celeba.py held every image before it wrote the first."""
    data = encoded(0, 64, 64, "JPEG")
    peaks = []
    for num in (200, 1200):
        archive = archive_of(tmp_path / f"{num}.zip", {f"{i}.jpg": data for i in range(num)})
        work = write_rows(archive, tmp_path / "rows", settings(image_size=64), "centre", {"source": "x"}, 1)
        tracemalloc.start()
        finish(work)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    rows_bytes = 1000 * 64 * 64 * 3
    assert peaks[1] - peaks[0] < 0.05 * rows_bytes


def test_the_command_ends_with_one_line_of_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = archive_of(tmp_path / "images.zip", MEMBERS)
    output = tmp_path / "images.h5"
    params = params_with(tmp_path / "params.yaml")
    with pytest.raises(SystemExit) as exit_:
        main(["preprocess", str(archive), str(output), "--params", str(params), "--workers", "1"])
    assert exit_.value.code == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("preprocess: 150 images of 32×32 (120 to train on), 0 rej")
    )


def test_workers_import_neither_torch_nor_h5py() -> None:
    code = (
        "import sys; import began.data.decoding;"
        "print([m for m in ('torch', 'h5py', 'mlflow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
