"""Every kind of file that is read, cut and with bits flipped at random.

Of a file that we wrote, what is read is what was written, or it is refused. A stranger's is accepted or refused. A
refusal is a ValueError or OSError of one line that names the file. Nothing else ever: no other exception, no crash of
the process, no case that takes long.
"""

from __future__ import annotations

import bz2
import dataclasses
import faulthandler
import gzip
import io
import lzma
import os
import signal
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from began.data.archives import ImageArchive, write_member
from began.data.card import Card, read_card, write_card
from began.data.images import decode_image, read_png, write_png
from began.data.isolated import CallFailed
from began.data.preparation import write_rows
from began.data.rows import ImageWriter, open_images, verify_digest
from began.data.tar import zip_from_tar
from began.gan.networks import Discriminator, Generator
from began.params import PreprocessParams, load_params
from began.runs.curve import CURVE, read_history
from began.runs.model_folder import check_files, read_description, read_model, write_model
from began.runs.states import States
from tests import REPOSITORY

NUM_WHOLE, NUM_SHORT = 2000, 25
SECONDS = 60.0  # that no case may take, on a machine that does much else

RNG = np.random.default_rng(0)
PICTURES = {f"{i:02}.png": RNG.integers(0, 256, (40, 36, 3), dtype=np.uint8) // (1 + 40 * (i % 2)) for i in range(6)}

Read = Callable[[Path], Any]
Damage = Callable[[bytes], bytes]


SAMPLES = "samples/0000400.png"


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file. `make` writes a good one of `name` into a folder, with what `read` needs beside it."""

    name: str
    make: Callable[[Path], None]
    read: Read
    ours: bool  # a wrong success would be noticed


@st.composite
def damages(draw: st.DrawFn, num_bytes: int) -> Damage:
    """Flips of 1 to 8 bits, a run of other bytes, or a cut; sometimes a cut and flips."""
    position = st.integers(0, num_bytes - 1)
    bit = st.integers(0, 8 * num_bytes - 1)
    kind = draw(st.sampled_from(("flip", "flip", "flips", "run", "cut", "both")))
    least, most = {"flip": (1, 1), "flips": (2, 8), "both": (1, 1)}.get(kind, (0, 0))
    bits = [draw(bit) for _ in range(draw(st.integers(least, most)))]
    start, run = (draw(position), draw(st.binary(min_size=1, max_size=16))) if kind == "run" else (0, b"")
    length = draw(position) if kind in ("cut", "both") else num_bytes

    def damage(whole: bytes) -> bytes:
        data = bytearray(whole)
        for i in bits:
            data[i // 8] ^= 1 << i % 8
        data[start : start + len(run)] = run
        return bytes(data[:length])

    return damage


# Formats of ours


def make_card(folder: Path) -> None:
    attributes = {name: {"hairColor": "#a55728", "mouthVariant": "smile"} for name in PICTURES}
    write_card(Card("portraits", len(PICTURES), "CC BY 4.0", "Ä & B", "0" * 64, attributes), folder / "card.json")


def make_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for name, picture in PICTURES.items():
            write_member(archive, f"faces/{name}", encoded(picture, "PNG"))


def read_zip(path: Path) -> object:
    """As preprocess does it. A member's checksum is all that stands for its content."""
    written = finish(write_rows(path, path.with_name("rows.h5"), SETTINGS, "centre", {"source": "zip"}, workers=1))
    originals = {encoded(picture, "PNG") for picture in PICTURES.values()}
    with ImageArchive(path) as archive:
        for entry in archive.entries():
            try:
                assert archive.read(entry) in originals
            except ValueError as error:
                refused(error, path)
    return written.num_rows


def make_rows(folder: Path) -> None:
    rows = RNG.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with ImageWriter(folder / "images.h5", 32, 5) as writer:
        writer.append(rows)
        writer.finish(list(PICTURES)[:5], 4, {"source": "orl", "licence": "none", "credit": "AT&T"})


def read_rows(path: Path) -> object:
    image_file = open_images(path)
    finish(verify_digest(image_file))
    values = dataclasses.asdict(image_file)
    return values | {"rows": image_file.rows.tobytes(), "names": image_file.names}


def make_model(folder: Path) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    params = params.model_copy(update={"train": params.train.model_copy(update={"n_filters": 1, "N_h": 2})})
    torch.manual_seed(0)
    skip = params.train.skip_connections
    G, G_ema, D = (kind(32, 1, 2, skip) for kind in (Generator, Generator, Discriminator))
    data = {"digest": "0" * 64, "source": "orl", "num_train": 4, "image_size": 32, "licence": "", "credit": ""}
    values = [np.linspace(1, 2, len(CURVE)) * step for step in range(1, 30)]
    lines = [",".join(f"{value:.9g}" for value in (step, *row[1:])) for step, row in enumerate(values, 1)]
    (folder / "history.csv").write_text("\n".join((",".join(CURVE), *lines)) + "\n")
    write_png(folder / SAMPLES, PICTURES["00.png"])
    write_model(
        folder, G, G_ema, D, params, 29, data, "cpu", "float32", None, signature="0" * 16, warnings=["step 3: …"]
    )  # fmt: skip


def read_whole_model(path: Path) -> object:
    model = read_model(path.parent)
    return [weights(network) for network in (model.G, model.G_ema, model.D)]


def read_curve(path: Path) -> object:
    """As evaluate and log do it, after the model's digests."""
    check_files(path.parent, read_description(path.parent))
    return {name: values.tobytes() for name, values in read_history(path).items()}


def read_samples(path: Path) -> object:
    folder = path.parent.parent
    check_files(folder, read_description(folder))
    return read_png(path).tobytes()


def weights(network: torch.nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


def make_state(folder: Path) -> None:
    tensors = {"weights": torch.arange(40.0), "num_done": torch.tensor(400)}
    States(folder).save(400, tensors, {"run_id": "abc", "curve": [[1, 0.5]]})


def read_state(path: Path) -> object:
    states = States(path.parent).all()
    assert [state.path for state in states] == [path]
    states[0].about()
    tensors, about = states[0].read()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, about


# Formats of others


def encoded(picture: np.ndarray, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def picture_format(name: str, kind: str, mode: str = "RGB", **options: Any) -> Format:
    def make(folder: Path) -> None:
        (folder / name).write_bytes(encoded(PICTURES["01.png"], kind, mode, **options))

    def read(path: Path) -> object:
        try:
            return decode_image(path.read_bytes(), 32, "centre")
        except ValueError as error:  # it has no file's name
            raise ValueError(f"{path}: {error}") from None

    return Format(name, make, read, ours=False)


def tar_format(name: str, compress: Callable[[bytes], bytes]) -> Format:
    def make(folder: Path) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for member, picture in PICTURES.items():
                data = encoded(picture, "PNG")
                info = tarfile.TarInfo(f"faces/{'long/' * 30 * (member == '01.png')}{member}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        (folder / name).write_bytes(compress(buffer.getvalue()))

    return Format(name, make, lambda path: finish(zip_from_tar(path, path.with_name("images.zip"))), ours=False)


def make_params(folder: Path) -> None:
    (folder / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())


EXIF = Image.Exif()
EXIF[0x0112] = 6
FORMATS = [
    Format("card.json", make_card, read_card, ours=True),
    Format("images.zip", make_zip, read_zip, ours=False),
    Format("images.h5", make_rows, read_rows, ours=True),
    Format("model.json", make_model, lambda path: read_description(path.parent), ours=True),
    Format("generator.safetensors", make_model, read_whole_model, ours=True),
    Format("discriminator.safetensors", make_model, read_whole_model, ours=True),
    Format("history.csv", make_model, read_curve, ours=True),
    Format(SAMPLES, make_model, read_samples, ours=True),
    Format("state.safetensors", make_state, read_state, ours=True),
    Format("params.yaml", make_params, lambda path: load_params(path).flat(), ours=False),
    tar_format("images.tar", bytes),
    tar_format("images.tar.gz", lambda data: gzip.compress(data, mtime=0)),
    tar_format("images.tar.bz2", bz2.compress),
    tar_format("images.tar.xz", lzma.compress),
    picture_format("colour.png", "PNG"),
    picture_format("palette.png", "PNG", "P"),
    picture_format("photo.jpg", "JPEG", exif=EXIF),
    picture_format("grey.pgm", "PPM", "L"),
    picture_format("picture.gif", "GIF"),
    picture_format("lossy.webp", "WEBP"),
    picture_format("picture.bmp", "BMP"),
    picture_format("picture.tiff", "TIFF", compression="tiff_lzw"),
    picture_format("picture.tga", "TGA"),
    picture_format("picture.pcx", "PCX"),
    picture_format("picture.sgi", "SGI"),
    picture_format("picture.jp2", "JPEG2000"),
    picture_format("picture.avif", "AVIF"),
]
SETTINGS = PreprocessParams(image_size=32, crop="centre", max_images=None, max_rejected=1.0, held_out=0.2)


def finish(work: Iterator[object]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def refused(error: Exception, path: Path) -> None:
    message = str(error)
    assert path.name in message, f"does not name the file: {error!r}"
    if path.suffix != ".yaml":  # a user's own keys are shown as they are; the command makes one line of them
        assert "\n" not in message, f"is more than a line: {error!r}"


def good_file(kind: Format, folder: Path) -> Path:
    """A good file of this format; the state's name is not fixed."""
    kind.make(folder)
    name = kind.name.split()[0]
    return next(folder.glob("*-*.safetensors")) if name == "state.safetensors" else folder / name


def call_by_fork(function: Callable[[str], bytes], argument: str, seconds: float) -> bytes:
    """As call_isolated, without the quarter of a second in which Python starts."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(int(seconds))
        with os.fdopen(writer, "wb") as file:
            file.write(function(argument))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    if os.waitpid(pid, 0)[1]:
        raise CallFailed("failed")
    return answer


@pytest.fixture(autouse=True)
def _fast_isolation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("began.data.rows.call_isolated", call_by_fork)


@pytest.fixture(autouse=True)
def _one_blas_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def counts(figure: Callable[[str, str], None]) -> Iterator[dict[str, int]]:
    counted: dict[str, int] = {}
    yield counted
    if counted:
        figure(
            "fuzzed files per format",
            f"{min(counted.values()):,} or more of each of {len(counted)} formats, {sum(counted.values()):,} in all",
        )


def run(num: int, strategy: st.SearchStrategy[Any], case: Callable[[Any], None]) -> None:
    """`case` on `num` examples, the same in every run."""
    chosen = settings(
        max_examples=num,
        derandomize=True,
        database=None,
        deadline=None,  # the first reading loads libraries
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    chosen(given(strategy)(case))()


def within_seconds(work: Callable[[], None]) -> None:
    """A hang, in C code too, ends the test run with a trace of where it is."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing but the one line reaches the user
            work()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert time.monotonic() - start < SECONDS / 4


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.name)
def test_damage_is_refused_or_harmless(kind: Format, tmp_path: Path, whole: bool, counts: dict[str, int]) -> None:
    path = good_file(kind, tmp_path)
    content = path.read_bytes()
    expected = kind.read(path)
    num = 0

    def case(damage: Damage) -> None:
        nonlocal num
        num += 1
        path.unlink()  # never written in place, as rows may still be mapped
        path.write_bytes(damage(content))

        def read() -> None:
            try:
                found = kind.read(path)
            except (ValueError, OSError) as error:
                refused(error, path)
            else:
                assert not kind.ours or found == expected, "was read, but is not what was written"

        within_seconds(read)

    run(NUM_WHOLE if whole else NUM_SHORT, damages(len(content)), case)
    counts[kind.name] = num
    assert num >= (NUM_WHOLE if whole else NUM_SHORT)
