"""What can be exported: a training run, read and checked file by file before anything is computed."""

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from model_export.architectures import ClipConfig, ClipModel, build
from model_export.errors import SourceError
from service.manifest import DEFAULT_TEMPLATES, Alias, FileEntry, ImageSection, Provenance, Slug

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
RECIPE = "recipe.toml"
CARD = "card.md"

SAMPLE_TEXT = "a photo of a cat"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunProvenance(_Section):
    """Where a run's weights come from, as far as its files do not say it themselves."""

    source: str
    licence: str | None = None


class RunConfig(_Section):
    """A training run's ``config.json``."""

    name: Slug
    aliases: tuple[Alias, ...] = ()
    model: ClipConfig
    image: ImageSection
    templates: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    provenance: RunProvenance

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        size = self.model.image.image_size
        if (self.image.height, self.image.width) != (size, size):
            msg = f"image is {self.image.height}x{self.image.width}, the model takes {size}x{size}"
            raise ValueError(msg)
        if DEFAULT_TEMPLATES not in self.templates:
            msg = f"templates lacks the set {DEFAULT_TEMPLATES!r}"
            raise ValueError(msg)
        for name, templates in self.templates.items():
            if any(template.count("{}") != 1 for template in templates):
                msg = f"templates.{name}: every template needs exactly one {{}}"
                raise ValueError(msg)
        return self


@dataclass(frozen=True)
class TrainingRun:
    """A training run that passed every check.

    Attributes:
        config: the run's ``config.json``.
        model: the architecture with the trained weights, float32, in evaluation mode, without gradients.
        tokenizer: the bytes of ``tokenizer.json``.
        provenance: source, digest of the weights, licence, recipe and card.
    """

    config: RunConfig
    model: ClipModel
    tokenizer: bytes
    provenance: Provenance

    @property
    def logit_scale(self) -> float:
        """The factor of the cosines, already exponentiated."""
        return math.exp(self.model.logit_scale.item())


def load_training_run(path: Path) -> TrainingRun:
    """Read a training run.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others; it names the file.
    """
    if not path.is_dir():
        raise SourceError(f"{path}: is not the folder of a training run")
    config = _read_config(path / CONFIG)
    tokenizer = _read_tokenizer(path / TOKENIZER, config.model)
    model = _read_weights(path / WEIGHTS, config.model)
    card = path / CARD
    provenance = Provenance(
        source=config.provenance.source,
        source_sha256=FileEntry.of(path / WEIGHTS).sha256,
        licence=config.provenance.licence,
        recipe=_read_recipe(path / RECIPE),
        card=_text(_read(card), card) if card.exists() else None,
    )
    return TrainingRun(config, model, tokenizer, provenance)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is not there; is this a finished training run?") from exc
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path}: is not text in UTF-8") from exc


def _read_config(path: Path) -> RunConfig:
    text = _text(_read(path), path)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{path}: is not JSON ({exc})") from exc
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'content'}: {error['msg'].removeprefix('Value error, ')}"
            for error in exc.errors()
        )
        raise SourceError(f"{path}: {problems}") from exc


def _read_recipe(path: Path) -> dict[str, JsonValue]:
    text = _text(_read(path), path)
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise SourceError(f"{path}: is not TOML ({exc})") from exc
    # TOML knows dates and times, JSON does not.
    try:
        recipe: dict[str, JsonValue] = json.loads(json.dumps(fields, default=str, allow_nan=False))
    except ValueError as exc:
        raise SourceError(f"{path}: holds a number that is not finite") from exc
    return recipe


def _read_tokenizer(path: Path, model: ClipConfig) -> bytes:
    content = _read(path)
    try:
        tokenizer = Tokenizer.from_str(_text(content, path))
    except SourceError:
        raise
    except Exception as exc:  # the library raises bare Exception
        raise SourceError(f"{path}: is not a tokenizer ({exc})") from exc
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise SourceError(f"{path}: truncates or pads; a served text is never cut, so remove both sections")
    vocabulary = tokenizer.get_vocab_size()
    if vocabulary > model.text.vocab_size:
        raise SourceError(f"{path}: has {vocabulary} tokens, the model's text tower knows {model.text.vocab_size}")
    # The feature is read at the first end-of-text token, so there must be one, and only at the end.
    ids = tokenizer.encode(SAMPLE_TEXT).ids
    if [i for i, token in enumerate(ids) if token == model.text.end_of_text_id] != [len(ids) - 1]:
        raise SourceError(f"{path}: does not end a text with the model's end-of-text id {model.text.end_of_text_id}")
    return content


def _read_weights(path: Path, config: ClipConfig) -> ClipModel:
    try:
        weights = load_file(path)
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is not there; is this a finished training run?") from exc
    except (SafetensorError, OSError) as exc:
        raise SourceError(f"{path}: is not a readable safetensors file ({exc})") from exc
    model = build(config)
    _check_weights(path, weights, model.state_dict())
    model.load_state_dict(weights)
    return model.float().eval().requires_grad_(requires_grad=False)


def _check_weights(path: Path, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for what, names in (
        ("lacks", wanted.keys() - given.keys()),
        ("has unknown", given.keys() - wanted.keys()),
    ):
        if names:
            raise SourceError(f"{path}: {what} {_some(sorted(names))}")
    for name, tensor in sorted(given.items()):
        if tensor.shape != wanted[name].shape:
            raise SourceError(
                f"{path}: {name} has shape {list(tensor.shape)}, the model has {list(wanted[name].shape)}"
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise SourceError(f"{path}: {name} has dtype {tensor.dtype}, the model has {wanted[name].dtype}")
        if not torch.isfinite(tensor).all():
            raise SourceError(f"{path}: {name} holds NaN or infinity")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
