from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from began.params import load_params
from tests import REPOSITORY

DEFAULT = REPOSITORY / "params.yaml"
DOCUMENT: dict[str, Any] = yaml.safe_load(DEFAULT.read_text(encoding="utf-8"))


def leaves(tree: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


# The profiles have the same keys: one of them stands for all.
KEYS = [path for path in leaves(DOCUMENT) if path[0] != "profiles" or path[1] == DOCUMENT["profile"]]


def changed(path: tuple[str, ...], value: object, folder: Path) -> Path:
    """params.yaml with one key set; `...` takes it away."""
    tree = copy.deepcopy(DOCUMENT)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    file = folder / "params.yaml"
    file.write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper, allow_unicode=True), encoding="utf-8")
    return file


def edited(old: str, new: str, folder: Path) -> Path:
    """params.yaml with a piece of its text replaced."""
    text = DEFAULT.read_text(encoding="utf-8")
    assert old in text
    file = folder / "params.yaml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return file


def message(file: Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_params(file)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{file}: ")
    return text


@pytest.mark.parametrize("profile", DOCUMENT["profiles"])
def test_every_profile_of_the_shipped_file_is_valid(profile: str, tmp_path: Path) -> None:
    assert load_params(changed(("profile",), profile, tmp_path)).profile == profile


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_a_missing_key_is_named(path: tuple[str, ...], tmp_path: Path) -> None:
    assert path[-1] in message(changed(path, ..., tmp_path))


# Of a wrong type, or out of range.
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
    "profiles.quick.preprocess.image_size": (48, 0, -32, 16, 2048, 64.0, "64", None),
    "profiles.quick.preprocess.crop": ("center", None, 0),
    "profiles.quick.preprocess.max_images": (0, -5, 1.5, "all"),
    "profiles.quick.preprocess.max_rejected": (-0.01, 1.01, float("nan"), "1 %", None),
    "profiles.quick.preprocess.held_out": (0, 1, -0.2, float("inf"), "a fifth"),
    "profiles.quick.train.n_filters": (0, -1, 1025, 24.0, "24"),
    "profiles.quick.train.N_h": (0, 4097, 64.5, None),
    "profiles.quick.train.skip_connections": (1, "yes", None),
    "profiles.quick.train.vanishing_residual_steps": (-1, 0.5, "none"),
    "profiles.quick.train.eta": (0, 3, 1.5, "1"),
    "profiles.quick.train.mirror": (1, "yes", None),
    "profiles.quick.train.batch_size": (0, 65537, 16.5, [16]),
    "profiles.quick.train.num_steps": (0, -1, 1e3, "many"),
    "profiles.quick.train.learning_rate": (0, -1e-4, 2, float("nan"), "1 e-4"),
    "profiles.quick.train.learning_rate_floor": (-1e-5, 1.5, "low"),
    "profiles.quick.train.learning_rate_decay": ("step", None, 3),
    "profiles.quick.train.decay_steps": (0, 2.5, None),
    "profiles.quick.train.beta_1": (-0.1, 1, "half"),
    "profiles.quick.train.beta_2": (1.0, -1, float("nan")),
    "profiles.quick.train.ema_decay": (1, -0.5, "0.99"),
    "profiles.quick.train.precision": ("float16", 32, None),
    "profiles.quick.train.on_divergence": ("ignore", None, True),
    "profiles.quick.train.evaluate_every": (-1, 0.5, "often", None),
    "profiles.quick.evaluate.num_samples": (1, 0, 2.5, "all"),
    "profiles.quick.evaluate.inception": ("yes", 1, None),
}


def test_the_table_of_wrong_values_has_every_key() -> None:
    assert WRONG_VALUES.keys() == {".".join(path) for path in KEYS}


@pytest.mark.parametrize("key", WRONG_VALUES)
def test_a_wrong_value_names_key_value_and_expectation(key: str, tmp_path: Path) -> None:
    for value in WRONG_VALUES[key]:
        text = message(changed(tuple(key.split(".")), value, tmp_path))
        assert f" {key}: {value!r}, " in text
        assert "expected" in text


@pytest.mark.parametrize("value", [2024, 1000.0, None, True, ["a", "b"], {"a": 1}], ids=repr)
def test_a_path_that_dvc_took_apart_names_the_way(value: object, tmp_path: Path) -> None:
    """`-S download.folder=2024` and the like; null is a value of the others."""
    for key in ("folder", "url", "celeba_zip", "sha256")[: 1 if value is None else 4]:
        text = message(changed(("download", key), value, tmp_path))
        assert f": download.{key}: " in text and text.endswith(f"in quotes any name is text: -S 'download.{key}=\"…\"'")


def test_a_password_in_pieces_of_an_address_is_not_shown(tmp_path: Path) -> None:
    text = message(changed(("download", "url"), ["https://me:secret@host/a.zip", "b"], tmp_path))
    assert "download.url: expected text" in text and "secret" not in text


@pytest.mark.parametrize(
    "value",
    [
        "my pictures (1)",
        "a,b=c&d",
        "Übung's",
        "#a;b!c|d",
        "~/x",
        "$HOME",
        "2024",
        "null",
        "[x]",
        "{a: 1}",
        "a\\b",
        "-x",
        "",
        "https://host/a%20b.zip?key=1&dl=(1),2#x",
    ],
)
def test_in_quotes_any_path_or_address_gets_through_dvcs_parser(value: str, tmp_path: Path) -> None:
    """As README and params.yaml show it; dvc itself is what `dvc exp run -S` calls."""
    from dvc.utils.hydra import apply_overrides, to_hydra_overrides

    file = changed(("seed",), 0, tmp_path)
    overrides = [f'download.{key}="{value}"' for key in ("folder", "url", "celeba_zip")]
    assert to_hydra_overrides(overrides)
    apply_overrides(file, overrides)
    download = yaml.safe_load(file.read_text(encoding="utf-8"))["download"]
    assert (download["folder"], download["url"], download["celeba_zip"]) == (value, value, value)


@pytest.mark.parametrize("path", [("gama",), ("download", "sorce"), ("profiles", "paper64", "train", "batchsize")])
def test_an_unknown_key_is_named(path: tuple[str, ...], tmp_path: Path) -> None:
    assert f"{'.'.join(path)}: unknown key" in message(changed(path, 1, tmp_path))


# Joined here, so that a search for what is gone finds nothing.
@pytest.mark.parametrize("key", ["_".join(words) for words in (("lambda", "e"), ("warm", "up", "steps"))])
def test_a_key_of_an_older_version_is_an_unknown_key(key: str, tmp_path: Path) -> None:
    text = message(changed(("profiles", "quick", "train", key), 0, tmp_path))
    assert text.endswith(f": profiles.quick.train.{key}: unknown key")


def test_a_floor_above_the_learning_rate_is_refused(tmp_path: Path) -> None:
    text = message(changed(("profiles", "quick", "train", "learning_rate_floor"), 0.5, tmp_path))
    assert "learning_rate_floor" in text
    assert "0.5" in text


def test_an_inactive_profile_is_checked_too(tmp_path: Path) -> None:
    text = message(changed(("profiles", "paper128", "train", "N_h"), 0, tmp_path))
    assert "profiles.paper128.train.N_h" in text


@pytest.mark.parametrize("written", ["1e-4", "1E-4", "1.e-4", "0.0001", "1.0e-4"])
def test_every_spelling_of_a_float_is_a_number(written: str, tmp_path: Path) -> None:
    params = load_params(edited(" learning_rate: ", f" learning_rate: {written}  # ", tmp_path))
    assert params.train.learning_rate == 1e-4


def test_an_integer_is_a_float_where_one_is_expected(tmp_path: Path) -> None:
    assert load_params(changed(("gamma",), 1, tmp_path)).gamma == 1.0


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert message(edited("seed: 0", "gamma: 0.5\nseed: 0", tmp_path)).endswith("'gamma' is there twice (line 5)")


@pytest.mark.parametrize(
    "content",
    [b"", b"gamma: [", b"\xff\xfe\x00", b"gamma: \0", b"profiles: 1", b"profile: a\nprofiles: {a: 1}", b"{[1]: 2}"],
    ids=repr,
)
def test_what_is_no_settings_file_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    message(file)


def test_a_date_is_a_text(tmp_path: Path) -> None:
    """A folder may be named by its day."""
    assert load_params(edited("folder: images", "folder: 2024-05-12", tmp_path)).download.folder == "2024-05-12"


def test_python_objects_in_yaml_are_refused(tmp_path: Path) -> None:
    message(edited("seed: 0", "seed: !!python/object/apply:os.getpid []", tmp_path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "absent.yaml")
    message(tmp_path)


def test_settings_cannot_be_changed() -> None:
    params = load_params(DEFAULT)
    with pytest.raises(ValueError, match="frozen"):
        params.train.num_steps = 1  # type: ignore[misc]


def test_flat_names_are_those_of_the_file_without_the_profile() -> None:
    flat = load_params(DEFAULT).flat()
    expected = {".".join(path[2:] if path[0] == "profiles" else path) for path in KEYS}
    assert flat.keys() == expected - {"download.folder", "download.celeba_zip"}
    assert flat["train.learning_rate"] == DOCUMENT["profiles"]["quick"]["train"]["learning_rate"]
    assert flat["gamma"] == DOCUMENT["gamma"]


@pytest.mark.parametrize(
    "url, shown",
    [
        ("https://me:secret@host:8000/a.zip?key=secret#secret", {"download.url": "https://host:8000/a.zip"}),
        (None, {"download.url": None}),
        ("file:///home/secret/faces.zip", {}),
        ("FILE:/home/secret/faces.zip", {}),
        ("/home/secret/faces.zip", {}),
    ],
)
def test_what_is_shared_has_no_password_no_key_and_no_path(
    tmp_path: Path, url: str | None, shown: dict[str, str | None]
) -> None:
    private = {"url": url, "folder": "/home/secret/faces", "celeba_zip": "/home/secret/a.zip"}
    params = load_params(changed(("download",), DOCUMENT["download"] | private, tmp_path))
    assert params.download.url == url
    flat = params.flat()
    assert {name: value for name, value in flat.items() if name == "download.url"} == shown
    assert "secret" not in str(flat)


@pytest.mark.parametrize(
    "url", ["http://me:se[cret@host/a.zip", "http://me:secret@ho\u2100st/a.zip", "http://me:secret@host:99999/a.zip"]
)
def test_a_malformed_address_is_named_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml: download\.url: is malformed, expected http://") as raised:
        load_params(changed(("download", "url"), url, tmp_path))
    assert "cret" not in str(raised.value)
