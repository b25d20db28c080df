"""params.yaml → frozen, validated settings. The only reader of YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from began.base.addresses import shown_url

_Value = int | float | bool | str | None


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DownloadParams(_Settings):
    """Where the images come from. Only the keys of the chosen source matter."""

    source: Literal["portraits", "orl", "folder", "url", "celeba"]
    num_images: int = Field(ge=1, le=1_000_000)
    clutter: float = Field(ge=0, le=1)
    folder: str
    url: str | None
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")
    accept_celeba_licence: bool
    celeba_zip: str | None

    @field_validator("url")
    @classmethod
    def _is_well_formed(cls, url: str | None) -> str | None:
        try:
            urlsplit(url or "").port  # noqa: B018  # reading it checks it
        except ValueError:
            # Its words may hold the password.
            raise ValueError("is malformed, expected http://, https:// or file:///") from None
        return url


class PreprocessParams(_Settings):
    """How an image becomes a row."""

    image_size: int
    crop: Literal["auto", "centre", "face"]
    max_images: int | None = Field(ge=1)
    max_rejected: float = Field(ge=0, le=1)
    held_out: float = Field(gt=0, lt=1)

    @field_validator("image_size")
    @classmethod
    def _is_32_times_a_power_of_two(cls, image_size: int) -> int:
        if image_size < 32 or image_size > 1024 or image_size & (image_size - 1):
            raise ValueError("expected 32·2^m up to 1024: 32, 64, 128, 256, …")
        return image_size


class TrainParams(_Settings):
    """Networks and optimisation; params.yaml has the paper's values beside them."""

    n_filters: int = Field(ge=1, le=1024)
    N_h: int = Field(ge=1, le=4096)
    skip_connections: bool
    vanishing_residual_steps: int = Field(ge=0, le=10**7)  # float32 counts steps exactly to 2^24
    eta: Literal[1, 2]
    mirror: bool
    batch_size: int = Field(ge=1, le=65536)
    num_steps: int = Field(ge=1, le=10**7)
    learning_rate: float = Field(gt=0, le=1)
    learning_rate_floor: float = Field(ge=0, le=1)
    learning_rate_decay: Literal["plateau", "cosine"]
    decay_steps: int = Field(ge=1, le=10**7)
    beta_1: float = Field(ge=0, lt=1)
    beta_2: float = Field(ge=0, lt=1)
    ema_decay: float = Field(ge=0, lt=1)
    precision: Literal["auto", "float32", "bfloat16"]
    on_divergence: Literal["stop", "rewind"]
    evaluate_every: int = Field(ge=0, le=10**7)

    @model_validator(mode="after")
    def _floor_is_not_above_the_start(self) -> TrainParams:
        if self.learning_rate_floor > self.learning_rate:
            raise ValueError(
                f"learning_rate_floor {self.learning_rate_floor} is above learning_rate {self.learning_rate}"
            )
        return self


class EvaluateParams(_Settings):
    """What evaluate measures."""

    num_samples: int = Field(ge=2)
    inception: bool  # also in the standard FID's features, which take a tenth of a second an image on a CPU


class Params(_Settings):
    """All of params.yaml that one run uses: the top level, `download`, and the active profile's three sections."""

    gamma: float = Field(gt=0, le=1)
    lambda_k: float = Field(ge=0)
    seed: int = Field(ge=0, lt=2**63)
    profile: str
    download: DownloadParams
    preprocess: PreprocessParams
    train: TrainParams
    evaluate: EvaluateParams

    def flat(self) -> dict[str, _Value]:
        """Dotted name → value, the names MLflow and `model.json` use, e.g. `train.learning_rate`.

        Both are made to be shared: they have what `shareable` leaves.
        """
        flat: dict[str, _Value] = {}
        for key, value in self.model_dump().items():
            if isinstance(value, dict):
                flat |= {f"{key}.{name}": inner for name, inner in value.items()}
            else:
                flat[key] = value
        return shareable(flat)


def shareable(flat: Mapping[str, _Value]) -> dict[str, _Value]:
    """Of dotted names and values those that may leave this machine: no path of one's pictures, no secret.

    Which pictures they were is told by the source's kind and the digest of the rows. `download.url` is left out where
    it is no address of the web, and else is there as `shown_url` has it.
    """
    kept = {name: value for name, value in flat.items() if name not in ("download.folder", "download.celeba_zip")}
    url = kept.get("download.url")
    if isinstance(url, str):
        kept["download.url"] = shown_url(url)
        if not url.lower().startswith(("http://", "https://")):
            del kept["download.url"]
    return kept


def load_params(path: Path) -> Params:
    """Reads `path` (params.yaml) and returns the settings of its active profile.

    Raises ValueError with one line that names the file, the key, the value and what was expected. Keys of the
    profiles that are not active are checked too, so that a typing error is found before that profile is needed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; run from the repository's root or name it with --params") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    document = _read_yaml(text, path)
    if not isinstance(document, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values")
    profiles = document.get("profiles")
    if not isinstance(profiles, dict) or not profiles:
        raise ValueError(f"{path}: profiles: expected a mapping of profile names to settings")
    active = document.get("profile")
    if not isinstance(active, str) or active not in profiles:
        raise ValueError(f"{path}: profile: {_shown(active)}, expected one of {', '.join(map(str, profiles))}")
    shared = {key: value for key, value in document.items() if key != "profiles"}
    settings: Params | None = None
    for name, sections in profiles.items():
        if not isinstance(sections, dict):
            raise ValueError(f"{path}: profiles.{name}: {_shown(sections)}, expected a mapping of sections")
        if clash := sections.keys() & shared.keys():
            raise ValueError(f"{path}: profiles.{name}.{min(map(str, clash))}: unknown key")
        try:
            checked = Params.model_validate({**shared, **sections})
        except ValidationError as error:
            raise ValueError(f"{path}: {_first_line(error, str(name), sections)}") from None
        if name == active:
            settings = checked
    assert settings is not None
    return settings


def _first_line(error: ValidationError, profile: str, sections: dict[str, Any]) -> str:
    """The first problem as `key: value, expected …`."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if key.split(".")[0] in sections or key.split(".")[0] in ("preprocess", "train", "evaluate"):
        key = f"profiles.{profile}.{key}"
    match problem["type"]:
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden" | "invalid_key":
            return f"{key}: unknown key"
        case "value_error":
            expectation = str(problem["ctx"]["error"])
        case "string_pattern_mismatch":
            expectation = "expected 64 hexadecimal digits"
        case "string_type" if key.startswith("download."):
            # What DVC's -S takes apart: a number, a list or a mapping came out.
            expectation = f"expected text; in quotes any name is text: -S '{key}=\"…\"'"
        case _:
            expectation = re.sub(r"^Input should be ", "expected ", problem["msg"])
    # An address may hold a password, in pieces too.
    secret = key == "download.url" and (isinstance(problem["input"], str) or re.search("[@?]", str(problem["input"])))
    shown = "" if secret or isinstance(problem["input"], (dict, BaseModel)) else f"{_shown(problem['input'])}, "
    return f"{key}: {shown}{expectation}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _read_yaml(text: str, path: Path) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        # Without the line itself that PyYAML would quote: it may hold a password.
        words = ", ".join(part for part in (error.context, error.problem) if part)
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{path}: is not YAML: {words}{line}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """YAML as people and DVC write it: 1e-4 is a number, a date is a text, a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in keys[:i]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":float", ":timestamp"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9]+\.?[0-9]*[eE][-+]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+([eE][-+]?[0-9]+)?|\.(inf|nan))$", re.I),
    list("-+.0123456789"),
)
