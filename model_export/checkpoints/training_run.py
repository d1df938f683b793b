"""Reads a training run of this program, and checks each file before anything is computed."""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.model_source import ModelSource, SourceOptions, load_weights, text_section
from model_export.errors import SourceError
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel
from model_export.families.tokenizers import TOKENIZER, check_tokenizer
from model_export.files import checked, decoded, read, read_object
from service.model.manifest import DEFAULT_TEMPLATES, Alias, FileEntry, ImageSection, Provenance, Slug, SoftmaxScoring

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "card.md"

_HINT = "is this a finished training run?"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RunProvenance(_Section):
    """Source of a run's weights, as far as its other files do not state it."""

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


def load(path: Path, options: SourceOptions) -> ModelSource:
    """Read a training run; of the options only the name is used, as its files state everything else.

    Raises:
        SourceError: as `load_training_run`.
    """
    source = load_training_run(path)
    return source if options.name is None else dataclasses.replace(source, name=options.name)


def load_training_run(path: Path) -> ModelSource:
    """Read a training run.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others; the message names the file.
    """
    if not path.is_dir():
        raise SourceError(f"{path}: is not the folder of a training run")
    config = checked(RunConfig, read_object(path / CONFIG, hint=_HINT), path / CONFIG)
    text = config.model.text
    tokenizer = read(path / TOKENIZER, hint=_HINT)
    check_tokenizer(tokenizer, path / TOKENIZER, vocab_size=text.vocab_size, end_of_text_id=text.end_of_text_id)
    try:
        weights = load_file(path / WEIGHTS)
    except FileNotFoundError as exc:
        raise SourceError(f"{path / WEIGHTS}: is missing; {_HINT}") from exc
    except (SafetensorError, OSError) as exc:
        raise SourceError(f"{path / WEIGHTS}: is not a readable safetensors file ({exc})") from exc
    model = ClipModel(config.model)
    load_weights(model, weights, path / WEIGHTS)
    card = path / CARD
    return ModelSource(
        name=config.name,
        aliases=config.aliases,
        architecture=config.model.architecture,
        model=model,
        dim=config.model.embed_dim,
        image=config.image,
        text=text_section(context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=text.end_of_text_id),
        scoring=SoftmaxScoring(logit_scale=math.exp(model.logit_scale.item())),
        templates=config.templates,
        tokenizer=tokenizer,
        provenance=Provenance(
            source=config.provenance.source,
            source_sha256=FileEntry.of(path / WEIGHTS).sha256,
            licence=config.provenance.licence,
            recipe=_read_recipe(path / RECIPE),
            card=decoded(read(card, hint=_HINT), card) if card.exists() else None,
        ),
    )


def _read_recipe(path: Path) -> dict[str, JsonValue]:
    text = decoded(read(path, hint=_HINT), path)
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise SourceError(f"{path}: is not TOML ({exc})") from exc
    # TOML has dates and times, JSON has not.
    try:
        recipe: dict[str, JsonValue] = json.loads(json.dumps(fields, default=str, allow_nan=False))
    except ValueError as exc:
        raise SourceError(f"{path}: holds a number that is not finite") from exc
    return recipe
