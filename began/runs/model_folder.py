"""The model folder: networks ⇄ safetensors, and model.json, which says how they came to be."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from began import __version__
from began.base.files import sha256
from began.gan.networks import Discriminator, Generator, num_resolutions
from began.params import Params, shareable


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Architecture(_Part):
    model_config = ConfigDict(extra="forbid")  # all but the last are the networks' arguments

    image_size: int = Field(ge=32, le=1024)
    n_filters: int = Field(ge=1, le=1024)
    N_h: int = Field(ge=1, le=4096)
    skip_connections: bool
    has_flow: bool = False  # true: of an older version, whose G had a normalising flow before it

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
    files: dict[Annotated[str, Field(pattern=r"^((history|distances)\.csv|(samples|reconstructions)/\d+\.png)$")], str]
    device: str
    precision: str
    versions: dict[str, str]
    warnings: list[str]
    digest: str

    @field_validator("parameters")
    @classmethod
    def _are_whole(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        if missing := {"gamma", "lambda_k", "seed", "profile", "train.eta", "train.batch_size"} - parameters.keys():
            raise ValueError(f"{min(missing)} is missing")
        for name in ("gamma", "lambda_k"):
            if not isinstance(parameters[name], int | float):
                raise ValueError(f"{name}: {parameters[name]!r}, expected a number")
        if parameters["train.eta"] not in (1, 2):
            raise ValueError(f"train.eta: {parameters['train.eta']!r}, expected 1 or 2")
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
    signature: str,
    warnings: list[str],
) -> str:
    """Writes both weight files and model.json into the existing `folder`; returns `model_digest`.

    What lies there already, curves and pictures, is part of the model from now on. data: what is known of the rows:
    digest, source, num_train, image_size, licence, credit. commit: of the code, where git knows it. signature: of the
    run (began.runs.states). warnings: what was noticed while it trained.
    """
    tensors = _tensors(G) | {AVERAGED + name: tensor for name, tensor in _tensors(G_ema).items()}
    _write_tensors(tensors, folder / GENERATOR)
    _write_tensors(_tensors(D), folder / DISCRIMINATOR)
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
        "device": device,
        "precision": precision,
        "num_threads": torch.get_num_threads(),
        "commit": commit,
        "signature": signature,
        "warnings": warnings,
        "versions": {
            "began": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    return write_description(folder, description)


def write_half(model: Model, folder: Path) -> str:
    """Writes `model` into the existing `folder` once more, its weights in half precision; returns `model_digest`.

    Curves go with it, pictures do not. ValueError where a weight is too large for half precision (above 65504).
    """
    for name in (GENERATOR, DISCRIMINATOR):
        tensors = {key: tensor.half() for key, tensor in _read_tensors(model.folder / name).items()}
        if large := next((key for key, tensor in tensors.items() if not tensor.isfinite().all()), None):
            raise ValueError(
                f"{model.folder / name}: {large}: holds a number above 65504, too large for half precision"
            )
        _write_tensors(tensors, folder / name)
    for name in ("history.csv", "distances.csv"):
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)
    return write_description(folder, model.description)


def write_description(folder: Path, description: dict[str, Any]) -> str:
    """Writes model.json with the digests of all that lies in `folder`, and of itself; returns `model_digest`."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    digests = {name: sha256(path) for name, path in files.items() if name != DESCRIPTION}
    weights = {name: digests.pop(name) for name in (GENERATOR, DISCRIMINATOR)}
    whole = description | {"weights": weights, "files": digests}
    whole["digest"] = _digest(whole)
    text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    return weights[GENERATOR]


def read_model(folder: Path) -> Model:
    """Reads a model folder; checks everything in it against the digests in model.json.

    Raises ValueError naming the file when one is missing, damaged, or of another architecture.
    """
    description = read_description(folder)
    check_files(folder, description)
    architecture = description["architecture"]
    tensors = _read_tensors(folder / GENERATOR)
    raw = {name: tensor for name, tensor in tensors.items() if not name.startswith(AVERAGED)}
    return Model(
        G=_make(Generator, architecture, raw, folder / GENERATOR),
        G_ema=_make(Generator, architecture, _averaged(tensors), folder / GENERATOR),
        D=_make(Discriminator, architecture, _read_tensors(folder / DISCRIMINATOR), folder / DISCRIMINATOR),
        description=description,
        folder=folder,
    )


def read_generator(path: Path) -> Generator:
    """The averaged generator of a model folder, or of a generator.safetensors with model.json beside it.

    ValueError naming the file when it is missing, or is not the one that model.json describes.
    """
    folder = path if path.is_dir() else path.parent
    description = read_description(folder)
    file = folder / GENERATOR if path.is_dir() else path
    _check_digest(file, description["weights"][GENERATOR])
    return _make(Generator, description["architecture"], _averaged(_read_tensors(file)), file)


def read_description(folder: Path) -> dict[str, Any]:
    """model.json of a model folder; its parameters are those that may be shared, also of an older version.

    ValueError naming the file when it is missing, of another form or damaged, and naming the folder when an older
    version made it whose G had a flow.
    """
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
    if description["digest"] != _digest(description):
        raise ValueError(f"{path}: its content is not what its digest was made of: damaged or edited")
    if description["architecture"].pop("has_flow", False):
        raise ValueError(
            f"{folder}: was made by an older version, with a flow before G that this version does not have"
        )
    return description | {"parameters": shareable(description["parameters"])}


def check_files(folder: Path, description: dict[str, Any]) -> None:
    """ValueError naming the first of the weights, the curves and the pictures that is not the one model.json names."""
    for name, digest in (description["weights"] | description["files"]).items():
        _check_digest(folder / name, digest)


def _digest(description: dict[str, Any]) -> str:
    content = {name: value for name, value in description.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_digest(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such file, but {DESCRIPTION} names it")
    if sha256(path) != expected:
        raise ValueError(f"{path}: its SHA-256 is not the {expected[:12]}… of {DESCRIPTION}: damaged or replaced")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _averaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of generator.safetensors, the averaged generator's tensors."""
    return {name.removeprefix(AVERAGED): tensor for name, tensor in tensors.items() if name.startswith(AVERAGED)}


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    path.write_bytes(save(tensors))  # safetensors' own save_file leaves a file that only its owner may read


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is not a safetensors file: {error}") from None


def _make(kind: type[Network], architecture: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> Network:
    """The network of these tensors, in float32; they have to be all of it, float32 or float16, and finite."""
    with torch.device("meta"):  # shapes only: what model.json claims may be larger than memory
        module = kind(**architecture)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError(f"{path}: its tensors do not match the architecture in {DESCRIPTION}")
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16):
            raise ValueError(f"{path}: {name}: {tensor.dtype}, expected torch.float32 or torch.float16")
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: {name}: holds numbers that are not finite")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return module.requires_grad_(False).eval()
