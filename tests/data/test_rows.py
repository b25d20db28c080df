"""The data file's schema: what the writer writes, h5py and the reader read; what is not of it is refused by name."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from began.data.rows import ImageWriter, open_images, verify_digest

ROWS = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
NAMES = [f"é/{i}.png" for i in range(10)]
ATTRIBUTES = {"source": "orl", "licence": "none", "credit": "AT&T Laboratories Cambridge"}


def write(path: Path, rows: np.ndarray = ROWS, max_rows: int | None = None, num_train: int = 8) -> Path:
    with ImageWriter(path, rows.shape[1], max_rows or len(rows)) as writer:
        writer.append(rows[:3])
        writer.append(rows[3])
        writer.append(rows[4:])
        writer.finish((name for name in NAMES), num_train, ATTRIBUTES)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    image_file = open_images(write(tmp_path / "images.h5"))
    assert np.array_equal(image_file.rows, ROWS)
    assert np.array_equal(image_file.train, ROWS[:8]) and np.array_equal(image_file.held_out, ROWS[8:])
    assert (image_file.image_size, image_file.num_train, image_file.source) == (32, 8, "orl")
    assert image_file.names == NAMES


def test_h5py_reads_the_schema_of_the_design(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "images.h5")) as file:
        images = file["images"]
        assert images.shape == (10, 32, 32, 3) and images.dtype == np.uint8
        assert images.chunks is None and images.compression is None and not images.external
        assert np.array_equal(images[:], ROWS)
        assert file["names"].asstr()[:].tolist() == NAMES
        assert set(file) == {"images", "names"}
        digests = {key: file.attrs[key] for key in ("digest", "names_digest", "attributes_digest")}
        assert dict(file.attrs) == {"image_size": 32, "num_train": 8} | ATTRIBUTES | digests
        assert digests["names_digest"] == hashlib.sha256("".join(f"{name}\0" for name in NAMES).encode()).hexdigest()


def test_rows_are_mapped_read_only(tmp_path: Path) -> None:
    rows = open_images(write(tmp_path / "images.h5")).rows
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0


def test_rows_of_rejected_images_leave_no_gap_and_no_trace(tmp_path: Path) -> None:
    exact, roomy = write(tmp_path / "exact.h5"), write(tmp_path / "roomy.h5", max_rows=1000)
    assert exact.read_bytes() == roomy.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"exact.h5", "roomy.h5"}


def test_digest_is_of_rows_shape_and_split(tmp_path: Path) -> None:
    image_file = open_images(write(tmp_path / "images.h5"))
    assert image_file.digest == hashlib.sha256(ROWS.tobytes() + "10×32×32×3, 8".encode()).hexdigest()
    assert [p.done for p in verify_digest(image_file)] == [0, 10]


def test_changed_rows_are_found_by_the_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "images.h5")
    with h5py.File(path, "r+") as file:
        file["images"][5, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"images\.h5: the rows' digest"):
        list(verify_digest(open_images(path)))


def change(path: Path, edit: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def replaced(**options: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file["images"]
        file.create_dataset("images", **({"data": ROWS} | options))

    return edit


def external(file: h5py.File) -> None:
    rows = file["images"][:]
    (Path(file.filename).parent / "rows").write_bytes(rows.tobytes())
    del file["images"]
    file.create_dataset("images", rows.shape, np.uint8, external=[("rows", 0, rows.nbytes)])


def virtual(file: h5py.File) -> None:
    shape = file["images"].shape
    del file["images"]
    layout = h5py.VirtualLayout(shape, np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "images", shape)
    file.create_virtual_dataset("images", layout)


def link(file: h5py.File) -> None:
    del file["images"]
    file["images"] = h5py.ExternalLink("/etc/passwd", "images")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda file: file.__delitem__("images"), "has no data set images of its own"),
        (link, "has no data set images of its own"),
        (external, "has no data set images of its own"),
        (virtual, "has no data set images of its own"),
        (replaced(compression="gzip"), "expected contiguous"),
        (replaced(data=None, shape=(10, 32, 32, 3), dtype=np.uint8), "never finished"),
        (replaced(data=ROWS.astype(np.float32)), "float32, expected uint8"),
        (replaced(data=ROWS[..., 0]), re.escape("(10, 32, 32), expected (N, S, S, 3)")),
        (replaced(data=np.zeros((10, 48, 48, 3), np.uint8)), re.escape("48×48 pixels, expected a side of 32·2^m")),
        (replaced(data=ROWS[:1]), "1 of them, expected at least 2"),
        (replaced(data=ROWS[:6]), "attributes: are of other images than these 6 of 32×32"),
        (lambda file: file.attrs.__setitem__("num_train", 7), "attributes: their digest differs"),
        (lambda file: file.attrs.__delitem__("credit"), "attributes: their digest differs"),
    ],
)
def test_a_file_of_another_schema_is_refused(tmp_path: Path, edit: Callable[[h5py.File], None], expected: str) -> None:
    path = change(write(tmp_path / "images.h5"), edit)
    with pytest.raises(ValueError, match=expected) as error:
        open_images(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def names_replaced(**options: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file["names"]
        file.create_dataset("names", **({"data": NAMES, "dtype": h5py.string_dtype()} | options))

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda file: file.__delitem__("names"), "has no data set names of its own"),
        (names_replaced(data=np.arange(10), dtype=np.int64), "is not an HDF5 file, or a damaged one: "),
        (names_replaced(data=["other", *NAMES[1:]]), "names: their digest differs"),
    ],
)
def test_names_that_are_not_the_files_own_texts_are_refused(
    tmp_path: Path, edit: Callable[[h5py.File], None], expected: str
) -> None:
    path = change(write(tmp_path / "images.h5"), edit)
    image_file = open_images(path)  # training needs no names
    with pytest.raises(ValueError, match=expected) as error:
        _ = image_file.names
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "images.h5")
    with pytest.raises(ValueError, match=r"images\.h5: is not an HDF5 file but a device or a pipe"):
        open_images(tmp_path / "images.h5")


def test_reading_that_takes_too_long_is_ended_and_the_next_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "images.h5")
    monkeypatch.setattr("began.data.rows.READ_SECONDS", 0.0)
    with pytest.raises(ValueError, match=r"images\.h5: .*reading it took longer than 0 s"):
        open_images(path)
    monkeypatch.undo()
    assert open_images(path).names == NAMES


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "images.h5").read_bytes()
    cut = tmp_path / "cut.h5"
    for num_bytes in [0, 100, len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:num_bytes])
        with pytest.raises(ValueError, match=r"cut\.h5: "):
            open_images(cut)


def test_an_absent_file_a_folder_and_a_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("images")
    (tmp_path / "folder.h5").mkdir()
    for name in ("absent.h5", "text.h5", "folder.h5"):
        with pytest.raises(ValueError, match=name):
            open_images(tmp_path / name)


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL], ids=["no such call", "refused", "invalid"])
def test_where_room_cannot_be_allocated_it_is_written(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        assert number is not None
        raise OSError(number, os.strerror(number))

    allocated = write(tmp_path / "allocated.h5").read_bytes()
    if number is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)  # as on macOS
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert write(tmp_path / "written.h5").read_bytes() == allocated


def test_a_full_disk_is_not_taken_for_a_system_that_cannot_allocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "images.h5")
