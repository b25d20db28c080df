"""The model folder: networks ⇄ safetensors, and model.json, which says how they came to be."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from began import __version__
from began.files import sha256
from began.networks import Discriminator, Generator, num_resolutions
from began.params import Params


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Architecture(_Part):
    model_config = ConfigDict(extra="forbid")  # they are the networks' arguments

    image_size: int = Field(ge=32, le=1024)
    n_filters: int = Field(ge=1, le=1024)
    N_h: int = Field(ge=1, le=4096)
    skip_connections: bool

    @field_validator("image_size")
    @classmethod
    def _fits_the_networks(cls, image_size: int) -> int:
        num_resolutions(image_size)
        return image_size


class _Data(_Part):
    digest: str
    source: str
    num_train: int
    image_size: int


class _Description(_Part):
    """What is relied upon in model.json; there may be more."""

    format: Literal[1]
    architecture: _Architecture
    parameters: dict[str, bool | int | float | str | None]
    step: int = Field(ge=0)
    data: _Data
    weights: dict[Literal["generator.safetensors", "discriminator.safetensors"], str] = Field(min_length=2)
    device: str
    precision: str
    versions: dict[str, str]

    @field_validator("parameters")
    @classmethod
    def _are_whole(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if missing := {"gamma", "lambda_k", "seed", "profile", "train.eta", "train.batch_size"} - parameters.keys():
            raise ValueError(f"{min(missing)} is missing")
        return parameters


Network = TypeVar("Network", bound=nn.Module)

FORMAT = 1
GENERATOR, DISCRIMINATOR, DESCRIPTION = "generator.safetensors", "discriminator.safetensors", "model.json"
AVERAGED = "averaged."  # prefix of the averaged generator's tensors, beside the raw ones


@dataclass(frozen=True)
class Model:
    """A trained model, on the CPU in evaluation mode: raw and averaged generator, discriminator, and model.json."""

    G: Generator
    G_ema: Generator
    D: Discriminator
    description: dict[str, Any]
    folder: Path

    @property
    def digest(self) -> str:
        """`model_digest`: SHA-256 of generator.safetensors, by which an MLflow run is found again."""
        return str(self.description["weights"][GENERATOR])


def write_model(
    folder: Path,
    G: Generator,
    G_ema: Generator,
    D: Discriminator,
    params: Params,
    step: int,
    data: dict[str, Any],
    device: str,
    precision: str,
    commit: str | None,
) -> str:
    """Writes both weight files and model.json into the existing `folder`; returns `model_digest`.

    data: what is known of the rows: digest, source, num_train, image_size, licence, credit. commit: of the code, where
    git knows it.
    """
    tensors = _tensors(G) | {AVERAGED + name: tensor for name, tensor in _tensors(G_ema).items()}
    save_file(tensors, folder / GENERATOR)
    save_file(_tensors(D), folder / DISCRIMINATOR)
    weights = {name: sha256(folder / name) for name in (GENERATOR, DISCRIMINATOR)}
    description = {
        "format": FORMAT,
        "architecture": {
            "image_size": data["image_size"],
            "n_filters": params.train.n_filters,
            "N_h": params.train.N_h,
            "skip_connections": params.train.skip_connections,
        },
        "parameters": params.flat(),
        "step": step,
        "data": data,
        "weights": weights,
        "device": device,
        "precision": precision,
        "num_threads": torch.get_num_threads(),
        "commit": commit,
        "versions": {
            "began": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return weights[GENERATOR]


def read_model(folder: Path) -> Model:
    """Reads a model folder; checks the weights against the digests in model.json.

    Raises ValueError naming the file when one is missing, damaged, or of another architecture.
    """
    description = read_description(folder)
    architecture = description["architecture"]
    for name, expected in description["weights"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path}: no such file, but {DESCRIPTION} names it")
        if sha256(path) != expected:
            raise ValueError(f"{path}: its SHA-256 is not the {expected[:12]}… of {DESCRIPTION}: damaged or replaced")
    tensors = _read_tensors(folder / GENERATOR)
    raw = {name: tensor for name, tensor in tensors.items() if not name.startswith(AVERAGED)}
    averaged = {name.removeprefix(AVERAGED): t for name, t in tensors.items() if name.startswith(AVERAGED)}
    return Model(
        G=_fill(Generator(**architecture), raw, folder / GENERATOR),
        G_ema=_fill(Generator(**architecture), averaged, folder / GENERATOR),
        D=_fill(Discriminator(**architecture), _read_tensors(folder / DISCRIMINATOR), folder / DISCRIMINATOR),
        description=description,
        folder=folder,
    )


def read_generator(path: Path) -> Generator:
    """The averaged generator of a model folder, or of a generator.safetensors with model.json beside it."""
    folder = path if path.is_dir() else path.parent
    architecture = read_description(folder)["architecture"]
    file = folder / GENERATOR if path.is_dir() else path
    tensors = _read_tensors(file)
    averaged = {name.removeprefix(AVERAGED): t for name, t in tensors.items() if name.startswith(AVERAGED)}
    return _fill(Generator(**architecture), averaged, file)


def read_description(folder: Path) -> dict[str, Any]:
    """model.json of a model folder; ValueError naming the file when it is missing or of another form."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a model folder is made by `began train` or `dvc repro`")
    try:
        description: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _Description.model_validate(description)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise ValueError(f"{path}: {key}: is not what a model's description has: {problem['msg']}") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError(f"{path}: is not the description of a model") from None
    return description


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is not a safetensors file: {error}") from None


def _fill(module: Network, tensors: dict[str, Tensor], path: Path) -> Network:
    try:
        module.load_state_dict(tensors)
    except RuntimeError:
        raise ValueError(f"{path}: its tensors do not match the architecture in {DESCRIPTION}") from None
    return module.requires_grad_(False).eval()
