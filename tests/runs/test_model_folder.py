"""The model folder: what was written is what is read, and nothing else passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from began.base.files import sha256
from began.gan.networks import Discriminator, Generator
from began.params import load_params
from began.runs.model_folder import (
    _digest,
    read_description,
    read_generator,
    read_model,
    write_description,
    write_half,
    write_model,
)
from tests import REPOSITORY

PARAMS = REPOSITORY / "params.yaml"
DATA = {"digest": "0" * 64, "source": "portraits", "num_train": 8, "image_size": 32}


def make_model(folder: Path):
    params = load_params(PARAMS)
    train = params.train.model_copy(update={"n_filters": 4, "N_h": 8, "skip_connections": False})
    torch.manual_seed(0)
    networks = Generator(32, 4, 8, False), Generator(32, 4, 8, False), Discriminator(32, 4, 8, False)
    folder.mkdir()
    digest = write_model(
        folder,
        *networks,
        params.model_copy(update={"train": train}),
        10,
        DATA,
        device="cpu",
        precision="float32",
        commit=None,
        signature="0" * 16,
        warnings=["something"],
    )
    return networks, digest


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_whoever_may_read_a_new_file_may_read_the_weights(tmp_path):
    make_model(tmp_path / "model")
    (tmp_path / "half").mkdir()
    write_half(read_model(tmp_path / "model"), tmp_path / "half")
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in tmp_path.glob("*/*.safetensors")}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_a_model_reads_back_as_it_was_written(tmp_path):
    (G, G_ema, D), digest = make_model(tmp_path / "model")
    model = read_model(tmp_path / "model")
    assert same(model.G, G) and same(model.G_ema, G_ema) and same(model.D, D)
    assert not same(model.G, model.G_ema)
    assert model.digest == digest == sha256(tmp_path / "model" / "generator.safetensors")
    assert same(read_generator(tmp_path / "model"), G_ema)
    assert same(read_generator(tmp_path / "model" / "generator.safetensors"), G_ema)


def test_a_model_of_an_older_version_is_read_unless_it_had_a_flow(tmp_path):
    (_, G_ema, _), _ = make_model(tmp_path / "model")
    change_architecture(tmp_path / "model", has_flow=False)
    assert same(read_model(tmp_path / "model").G_ema, G_ema)
    assert same(read_generator(tmp_path / "model"), G_ema)
    change_architecture(tmp_path / "model", has_flow=True)
    expected = (
        rf"^{tmp_path}/model: was made by an older version, with a flow before G that this version does not have$"
    )
    for read in (read_model, read_generator, read_description):
        with pytest.raises(ValueError, match=expected):
            read(tmp_path / "model")


def test_what_is_shared_of_an_older_version_names_no_path_of_ones_own_pictures(tmp_path):
    make_model(tmp_path / "model")
    older = json.loads((tmp_path / "model" / "model.json").read_text())
    older["parameters"] |= {"download.folder": "/home/private/faces", "download.url": "file:///home/private/a.zip"}
    write_description(tmp_path / "model", older)
    (tmp_path / "half").mkdir()
    write_half(read_model(tmp_path / "model"), tmp_path / "half")
    assert "private" in (tmp_path / "model" / "model.json").read_text()
    assert "private" not in (tmp_path / "half" / "model.json").read_text()
    assert read_description(tmp_path / "half")["data"] == DATA


def test_a_generator_that_is_not_the_one_described_is_refused(tmp_path):
    make_model(tmp_path / "model")
    path = tmp_path / "model" / "generator.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    for name in (path, path.parent):
        with pytest.raises(ValueError, match=r"generator\.safetensors: its SHA-256 is not the .* damaged or replaced"):
            read_generator(name)


def test_the_description_holds_what_a_repetition_needs(tmp_path):
    make_model(tmp_path / "model")
    description = read_description(tmp_path / "model")
    assert description["parameters"]["gamma"] == load_params(PARAMS).gamma
    assert description["parameters"]["train.n_filters"] == 4
    assert description["data"] == DATA
    assert description["precision"] == "float32"
    assert {"began", "python", "torch", "numpy"} <= description["versions"].keys()


def test_the_weights_are_plain_safetensors(tmp_path):
    (G, *_), _ = make_model(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "generator.safetensors")
    assert torch.equal(tensors["last.bias"], G.last.bias)


def test_a_copy_in_half_precision_is_the_same_model_to_eleven_bits(tmp_path):
    make_model(tmp_path / "model")
    (tmp_path / "half").mkdir()
    model = read_model(tmp_path / "model")
    digest = write_half(model, tmp_path / "half")
    half = read_model(tmp_path / "half")
    assert half.digest == digest != model.digest
    assert half.description["parameters"] == model.description["parameters"]
    for name in ("G", "G_ema", "D"):
        pairs = zip(getattr(half, name).parameters(), getattr(model, name).parameters(), strict=True)
        for rounded, weight in pairs:
            assert rounded.dtype == torch.float32
            torch.testing.assert_close(rounded, weight, rtol=2**-11, atol=2**-25)
    sizes = [(tmp_path / folder / "generator.safetensors").stat().st_size for folder in ("half", "model")]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_weight_that_half_precision_cannot_hold_is_named(tmp_path):
    make_model(tmp_path / "model")
    model = read_model(tmp_path / "model")
    path = tmp_path / "model" / "generator.safetensors"
    save_file(load_file(path) | {"last.bias": torch.full((3,), 1e5)}, path)
    (tmp_path / "half").mkdir()
    with pytest.raises(ValueError, match=r"generator\.safetensors: last\.bias: holds a number above 65504"):
        write_half(model, tmp_path / "half")


def damage_weights(folder: Path) -> None:
    path = folder / "generator.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change(folder: Path, key: str, value: object) -> None:
    path = folder / "model.json"
    description = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps(description | {"digest": _digest(description)}))


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "model.json"
    path.write_text(path.read_text().replace(old, new))


def change_architecture(folder: Path, **changes: int) -> None:
    change(folder, "architecture", json.loads((folder / "model.json").read_text())["architecture"] | changes)


def replace_with_others(folder: Path) -> None:
    save_file({"a": torch.zeros(1)}, folder / "discriminator.safetensors")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_weights, r"generator\.safetensors: its SHA-256 is not"),
        (replace_with_others, r"discriminator\.safetensors: its SHA-256 is not"),
        (
            lambda folder: change_architecture(folder, n_filters=5),
            r"generator\.safetensors: its tensors do not match the architecture",
        ),
        (lambda folder: (folder / "generator.safetensors").unlink(), r"generator\.safetensors: no such file"),
        (lambda folder: (folder / "model.json").unlink(), r"model\.json: no such file"),
        (lambda folder: (folder / "model.json").write_text("{"), r"model\.json: is not the description"),
        (lambda folder: (folder / "model.json").write_text("[]"), r"model\.json: .*valid dictionary"),
        (lambda folder: change(folder, "data", {}), r"model\.json: data\.digest: .*required"),
        (lambda folder: change(folder, "parameters", {}), r"model\.json: parameters: .*gamma is missing"),
        (lambda folder: change(folder, "step", "ten"), r"model\.json: step: "),
        (lambda folder: change(folder, "weights", {"generator.safetensors": "0"}), r"model\.json: weights: "),
        (lambda folder: change_architecture(folder, n_filters=-1), r"architecture\.n_filters: "),
        (lambda folder: change_architecture(folder, n_filters=10**9), r"architecture\.n_filters: "),
        (lambda folder: change_architecture(folder, image_size=33), r"architecture\.image_size: .*32·2\^m"),
        (lambda folder: change_architecture(folder, depth=3), r"architecture\.depth: "),
        (lambda folder: edit(folder, "portraits", "portraitz"), r"model\.json: .*damaged or edited"),
        (lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe"), r"model\.json: is not the description"),
    ],
)
def test_a_folder_that_does_not_match_is_refused(tmp_path, harm, message):
    make_model(tmp_path / "model")
    harm(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        read_model(tmp_path / "model")


def test_another_format_is_named(tmp_path):
    make_model(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match=r"model\.json: format: "):
        read_model(tmp_path / "model")


def test_a_file_that_is_not_weights_is_named(tmp_path):
    make_model(tmp_path / "model")
    (tmp_path / "model" / "generator.safetensors").write_bytes(b"no weights")
    write_description(tmp_path / "model", json.loads((tmp_path / "model" / "model.json").read_text()))
    with pytest.raises(ValueError, match=r"generator\.safetensors: is not a safetensors file"):
        read_generator(tmp_path / "model")
