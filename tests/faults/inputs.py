"""What bad inputs are made of: a folder with good files, and ways to spoil them."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save

from began.data.images import png_bytes
from began.runs.model_folder import _digest, write_description
from pipeline.cli import main
from tests import REPOSITORY, hide_mlflow
from tests.data.http_server import Served, Server

SETTINGS = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
NUM_IMAGES = 10

Prepare = Callable[["Place"], object]


def tiny_settings() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(SETTINGS)
    tiny = {
        "n_filters": 2,
        "N_h": 4,
        "batch_size": 4,
        "num_steps": 4,
        "decay_steps": 4,
        "precision": "float32",
    }
    document["gamma"] = 0.9
    document["profiles"]["quick"]["train"] |= tiny
    document["profiles"]["quick"]["evaluate"]["num_samples"] = 4
    return document


def run(*arguments: str) -> object:
    """`began ARGUMENTS` in this process → its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def picture(seed: int = 0, size: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or Image.fromarray(picture())).save(stream, kind, **options)
    return stream.getvalue()


PNG = png_bytes(picture())


def make_good_files(folder: Path) -> None:
    """params.yaml, images.zip, images.h5 and model/, as the stages make them; nothing goes to MLflow."""
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_settings()), encoding="utf-8")
    members = {f"{i}.png": png_bytes(picture(i)) for i in range(NUM_IMAGES)}
    (folder / "images.zip").write_bytes(zip_bytes(members))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        hide_mlflow(patch)
        for name in ("BEGAN_WORKERS", "BEGAN_DEVICE", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        assert run("preprocess", "images.zip", "images.h5", "--workers", "1") == 0
        assert run("train", "images.h5", "model", "--device", "cpu") == 0


class Place:
    """The folder a case runs in: params.yaml of tiny settings, and the other good files where they are asked for."""

    def __init__(self, folder: Path, good: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        self._good = good
        self._servers: list[Server] = []
        shutil.copy(good / "params.yaml", folder)

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def images(self) -> Path:
        """images.h5 as preprocess made it."""
        return Path(shutil.copy(self._good / "images.h5", self.folder))

    def model(self) -> Path:
        """model/ as train made it, and its images.h5."""
        self.images()
        return Path(shutil.copytree(self._good / "model", self.folder / "model", dirs_exist_ok=True))

    def set(self, key: str, value: object) -> None:
        """Sets a key of params.yaml by its dotted name; `...` takes it away."""
        path = self.folder / "params.yaml"
        document = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)  # the Python one takes 30 ms
        *parents, last = full_name(key).split(".")
        section = document
        for parent in parents:
            section = section[parent]
        if value is ...:
            del section[last]
        else:
            section[last] = value
        path.write_text(yaml.dump(document, Dumper=yaml.CSafeDumper), encoding="utf-8")

    def serve(self, **files: Served) -> str:
        """Serves /NAME on loopback; returns the address."""
        server = Server()
        self._servers.append(server)
        server.files |= {f"/{name}": served for name, served in files.items()}
        return server.address

    def close(self) -> None:
        for server in self._servers:
            server.close()


def full_name(key: str) -> str:
    """As messages have it: with the profile before its sections."""
    return f"profiles.quick.{key}" if key.split(".", maxsplit=1)[0] in ("preprocess", "train", "evaluate") else key


def nothing(place: Place) -> None:
    pass


def both(*steps: Prepare) -> Prepare:
    return lambda place: [step(place) for step in steps]


def setting(key: str, value: object) -> Prepare:
    return lambda place: place.set(key, value)


def environment(name: str, value: str) -> Prepare:
    return lambda place: place.patch.setenv(name, value)


def edited(old: str, new: str) -> Prepare:
    """The repository's own params.yaml with a piece of its text replaced."""
    assert old in SETTINGS
    return lambda place: place.path("params.yaml").write_text(SETTINGS.replace(old, new, 1), encoding="utf-8")


def file(name: str, content: bytes | str = b"not what it should be") -> Prepare:
    data = content.encode() if isinstance(content, str) else content
    return lambda place: place.path(name).write_bytes(data)


def folder(name: str) -> Prepare:
    return lambda place: (place.path(name) / "inside").mkdir(parents=True)


def link(name: str, target: str) -> Prepare:
    return lambda place: place.path(name).symlink_to(target)


def good_images(place: Place) -> None:
    place.images()


def good_model(place: Place) -> None:
    place.model()


# Zips


def zip_bytes(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.compress_type = name, method  # as it is, whatever it is
            archive.writestr(info, data)
    return stream.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Prepare:
    return file("images.zip", zip_bytes(members, method))


def zip_entry(
    offset: int, layout: str, *values: int, members: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED
) -> Prepare:
    """A zip whose table of contents has `values` at `offset` of its first entry."""
    data = bytearray(zip_bytes(members or {"a.png": PNG, "b.png": PNG, "c.png": PNG}, method))
    struct.pack_into(layout, data, data.index(b"PK\x01\x02") + offset, *values)
    return file("images.zip", bytes(data))


def zip_with(name: str, content: bytes) -> Prepare:
    """Three good images and `content`."""
    good = {f"good{i}.png": png_bytes(picture(i)) for i in range(3)}
    return zipped({**good, name: content})


def limit(name: str, value: int) -> Prepare:
    """A smaller bound of began.data.archives, wherever it was imported."""

    def prepare(place: Place) -> None:
        for module in ("began.data.archives", "began.data.tar", "began.data.sources.folder"):
            place.patch.setattr(f"{module}.{name}", value, raising=False)

    return prepare


# Tars


def tar_bytes(members: dict[str, bytes], **options: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def tar_member(kind: bytes = tarfile.REGTYPE, size: int = 0, name: str = "a.png", **headers: str) -> bytes:
    """A tar of one header that says what it likes."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.pax_headers = kind, size, "/etc/passwd", headers
    return info.tobuf(tarfile.PAX_FORMAT if headers else tarfile.GNU_FORMAT) + bytes(2048)


def by_url(data: bytes, name: str = "a.tar", sha256: str | None = None) -> Prepare:
    """download.url names a file of this content on this disk."""

    def prepare(place: Place) -> None:
        place.path(name).write_bytes(data)
        place.set("download.source", "url")
        place.set("download.url", (place.folder / name).as_uri())
        place.set("download.sha256", sha256)

    return prepare


def address(url: str, sha256: str | None = None) -> Prepare:
    def prepare(place: Place) -> None:
        place.set("download.source", "url")
        place.set("download.url", url)
        place.set("download.sha256", sha256)

    return prepare


def served(url: str, sha256: str | None = None, **files: Served) -> Prepare:
    """download.url on a real server; `url` starts at its root."""

    def prepare(place: Place) -> None:
        place.patch.setenv("NO_PROXY", "127.0.0.1")
        root = place.serve(**files)
        address((root if "@" not in url else root.replace("//", "//me:secret@")) + url.replace("@", ""), sha256)(place)

    return prepare


# HDF5


def hdf5(edit: Callable[[h5py.File], object]) -> Prepare:
    """images.h5 of preprocess, edited."""

    def prepare(place: Place) -> None:
        with h5py.File(place.images(), "r+") as opened:
            edit(opened)

    return prepare


def attribute(key: str, value: object) -> Prepare:
    if value is ...:
        return hdf5(lambda opened: opened.attrs.__delitem__(key))
    return hdf5(lambda opened: opened.attrs.__setitem__(key, value))


ROWS = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)


def cut(name: str, part: float) -> Prepare:
    """A good file (images.h5, or one in model/) of which only a part is there."""

    def prepare(place: Place) -> None:
        place.model()
        path = place.path(name)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part) if part < 1 else int(part)])

    return prepare


def changed_rows(place: Place) -> None:
    with h5py.File(place.images(), "r+") as opened:
        opened["images"][5, 0, 0, 0] ^= 1


# Models


def without(name: str) -> Prepare:
    def prepare(place: Place) -> None:
        place.model()
        place.path(name).unlink()

    return prepare


def description(edit: Callable[[dict[str, Any]], object]) -> Prepare:
    """model.json, edited."""

    def prepare(place: Place) -> None:
        path = place.model() / "model.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        edit(document)
        document["digest"] = _digest(document)
        path.write_text(json.dumps(document), encoding="utf-8")

    return prepare


def described(key: str, value: object) -> Prepare:
    """A key of model.json, by its dotted name; what comes after "parameters." is one name. `...` takes it away."""

    def edit(document: dict[str, Any]) -> None:
        first, _, last = key.partition(".")
        section, name = (document[first], last) if last else (document, first)
        if value is ...:
            del section[name]
        else:
            section[name] = value

    return description(edit)


def in_model(name: str, content: bytes | str) -> Prepare:
    """A file of the model; model.json has the SHA-256 of the curves and pictures as they are then."""
    whole = both(good_model, file(f"model/{name}", content))
    return both(whole, describe_again) if name.endswith((".csv", ".png")) else whole


def describe_again(place: Place) -> None:
    """model.json gets the digests of what lies beside it."""
    folder = place.folder / "model"
    write_description(folder, json.loads((folder / "model.json").read_text(encoding="utf-8")))


def weights(name: str, content: bytes) -> Prepare:
    """A weight file of another content, of which model.json has the right SHA-256."""
    return both(
        described(f"weights.{name}", hashlib.sha256(content).hexdigest()),
        lambda place: place.path(f"model/{name}").write_bytes(content),
    )


def tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    """A weight file with other tensors, of which model.json has the right SHA-256."""

    def prepare(place: Place) -> None:
        content = load_file(place.model() / name)
        edit(content)
        data = save(content)
        path = place.folder / "model" / name
        path.write_bytes(data)
        describe_again(place)

    return prepare


def flipped(name: str) -> Prepare:
    """One bit of a file of the model is another."""

    def prepare(place: Place) -> None:
        path = place.model() / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    return prepare


class Canary:
    """Unpickled, it makes the file EXECUTED in the current folder."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, ("EXECUTED", "w")


def header(text: bytes, num_bytes: int | None = None) -> bytes:
    """A safetensors file of this header, which says of itself that it has `num_bytes`."""
    return struct.pack("<Q", len(text) if num_bytes is None else num_bytes) + text


def curve(edit: Callable[[list[str]], list[str]]) -> Prepare:
    """history.csv, its lines edited."""

    def prepare(place: Place) -> None:
        path = place.model() / "history.csv"
        path.write_text("\n".join(edit(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")
        describe_again(place)

    return prepare


def cell(line: int, column: int, value: str) -> Prepare:
    def edit(lines: list[str]) -> list[str]:
        cells = lines[line].split(",")
        cells[column] = value
        return [*lines[:line], ",".join(cells), *lines[line + 1 :]] if line >= 0 else [*lines[:line], ",".join(cells)]

    return curve(edit)


# Images


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large."""
    return re.sub(
        rb"(?s)IHDR.{8}(.{5}).{4}",
        lambda found: _chunk_body(b"IHDR" + struct.pack(">2L", width, height) + found[1]),
        PNG,
        count=1,
    )


def _chunk_body(body: bytes) -> bytes:
    return body + struct.pack(">L", zlib.crc32(body))


def png_with(kind: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk before its pixels."""
    position = PNG.index(b"IDAT") - 4
    return PNG[:position] + struct.pack(">L", len(content)) + _chunk_body(kind + content) + PNG[position:]


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Asserts that nothing new lies under `folder`, `.began` aside, and that what lay there is as it was."""

    def content() -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and stat.S_ISREG(path.stat().st_mode) and ".began" not in path.parts
        }

    before = content()
    yield
    after = content()
    assert after.keys() == before.keys()
    assert after == before


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(num_bytes)
