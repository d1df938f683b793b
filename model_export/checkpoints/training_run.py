"""Reads a training run of this program, and checks each file before anything is computed."""

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Generic, TypeVar, cast

from pydantic import ConfigDict, Field, JsonValue, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from model_export.checkpoints.layouts import RECIPE, RUN_WEIGHTS
from model_export.checkpoints.model_source import (
    LOGIT_BIAS,
    ModelSource,
    SourceOptions,
    load_weights,
    text_section,
)
from model_export.errors import SourceError
from model_export.families.clip.config import ClipConfig
from model_export.families.family import Family, ModelConfig
from model_export.families.table import FAMILIES
from model_export.families.tokenizers import TOKENIZER, check_tokenizer
from model_export.files import Section, checked, decoded, read, read_object
from service.model.manifest import (
    DEFAULT_TEMPLATES,
    Alias,
    FileEntry,
    ImageSection,
    Provenance,
    Sha256,
    SigmoidScoring,
    Slug,
    SoftmaxScoring,
    TextSection,
)

CONFIG = "config.json"
WEIGHTS: Final = RUN_WEIGHTS["last"]
EMA_WEIGHTS: Final = RUN_WEIGHTS["ema"]
"""The moving average of a run's weights, if its recipe asked for one."""
CARD = "card.md"
DEFAULT_FAMILY: Final = "clip"

_HINT = "is this a finished training run?"

C = TypeVar("C", bound=Section)


class _Section(Section):
    model_config = ConfigDict(allow_inf_nan=False)


class RunProvenance(_Section):
    """Source of a run's weights and digests of its curated data, as far as its other files do not state it."""

    source: str
    licence: str | None = None
    data: tuple[Sha256, ...] | None = None


class RunConfig(_Section, Generic[C]):
    """A training run's ``config.json``; runs of older versions are CLIPs whose texts are not cleaned."""

    name: Slug
    aliases: tuple[Alias, ...] = ()
    family: str = DEFAULT_FAMILY
    model: C
    image: ImageSection
    text: TextSection | None = None
    templates: dict[str, Annotated[tuple[str, ...], Field(min_length=1)]]
    provenance: RunProvenance

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig[C]":
        model = cast("ModelConfig", self.model)  # as every family's is
        size = model.image.image_size
        if (self.image.height, self.image.width) != (size, size):
            msg = f"image is {self.image.height}x{self.image.width}, the model takes {size}x{size}"
            raise ValueError(msg)
        context = model.text.context_length
        if self.text is not None and self.text.max_length != context:
            msg = f"text has a max_length of {self.text.max_length}, the model a context_length of {context}"
            raise ValueError(msg)
        if DEFAULT_TEMPLATES not in self.templates:
            msg = f"templates lacks the set {DEFAULT_TEMPLATES!r}"
            raise ValueError(msg)
        for name, templates in self.templates.items():
            if any(template.count("{}") != 1 for template in templates):
                msg = f"templates.{name}: every template needs exactly one {{}}"
                raise ValueError(msg)
        return self


@dataclasses.dataclass(frozen=True)
class RunModel:
    """The model of a run but for its weights.

    Attributes:
        config: the run's ``config.json``.
        family: of the model.
        text: how a text is prepared.
        tokenizer: the bytes of ``tokenizer.json``, which fits the model.
    """

    config: RunConfig[Any]
    family: Family[Any]
    text: TextSection
    tokenizer: bytes


def load(path: Path, options: SourceOptions) -> ModelSource:
    """Read a training run; of the options only name and weights are used, as its files state everything else.

    Raises:
        SourceError: as `load_training_run`.
    """
    source = load_training_run(path, averaged=options.weights == "ema")
    return source if options.name is None else dataclasses.replace(source, name=options.name)


def read_run_model(path: Path) -> RunModel:
    """Read the configuration and the tokenizer of a run, finished or not.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the other; the message names the file.
    """
    if not path.is_dir():
        raise SourceError(f"{path}: is not the folder of a training run")
    fields = read_object(path / CONFIG, hint=_HINT)
    name = fields.get("family", DEFAULT_FAMILY)
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise SourceError(f"{path / CONFIG}: family is {name}; {' and '.join(FAMILIES)} are known")
    config = checked(RunConfig[family.config], fields, path / CONFIG)  # type: ignore[name-defined]
    text = config.text or _plain_text(config.model)
    tokenizer = read(path / TOKENIZER, hint=_HINT)
    check_tokenizer(
        tokenizer,
        path / TOKENIZER,
        vocab_size=config.model.text.vocab_size,
        end_of_text_id=text.end_of_text_id,
    )
    return RunModel(config, family, text, tokenizer)


def load_training_run(path: Path, *, averaged: bool = False) -> ModelSource:
    """Read a training run, with its last weights or their moving average.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others; the message names the file.
    """
    said = read_run_model(path)
    config, family = said.config, said.family
    file = path / (EMA_WEIGHTS if averaged else WEIGHTS)
    try:
        weights = load_file(file)
    except FileNotFoundError as exc:
        hint = "its recipe needs optim.ema; export the last weights" if averaged else _HINT
        raise SourceError(f"{file}: is missing; {hint}") from exc
    except (SafetensorError, OSError) as exc:
        raise SourceError(f"{file}: is not a readable safetensors file ({exc})") from exc
    bias = weights.get(LOGIT_BIAS) if family.has_bias else weights.pop(LOGIT_BIAS, None)
    model = family.build(config.model)
    load_weights(model, weights, file)
    scale = math.exp(weights["logit_scale"].item())
    card = path / CARD
    return ModelSource(
        name=config.name,
        aliases=config.aliases,
        architecture=config.model.architecture,
        config=config.model,
        model=model,
        dim=config.model.embed_dim,
        image=config.image,
        text=said.text,
        scoring=SoftmaxScoring(logit_scale=scale)
        if bias is None
        else SigmoidScoring(logit_scale=scale, logit_bias=bias.item()),
        templates=config.templates,
        tokenizer=said.tokenizer,
        provenance=Provenance(
            source=config.provenance.source + (", moving average of the weights" if averaged else ""),
            source_sha256=FileEntry.of(file).sha256,
            data=config.provenance.data,
            licence=config.provenance.licence,
            recipe=_read_recipe(path / RECIPE),
            card=decoded(read(card, hint=_HINT), card) if card.exists() else None,
        ),
    )


def _plain_text(model: ClipConfig) -> TextSection:
    """Return how the runs of older versions prepare texts."""
    text = model.text
    return text_section(context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=text.end_of_text_id)


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
