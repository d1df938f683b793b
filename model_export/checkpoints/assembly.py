"""Puts a public checkpoint's parts together as a `ModelSource`, of any family."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model_export.architectures.towers import TwoTowers
from model_export.checkpoints.model_source import TEMPLATES, ModelSource, SourceOptions, load_weights, text_section
from model_export.checkpoints.naming import bundle_aliases, bundle_name
from model_export.errors import SourceError
from model_export.families.family import Convert, Family, ModelConfig, ModelKind
from model_export.families.key_tables import with_flat_scalars
from model_export.families.sizes import named_size
from model_export.families.table import family_of
from model_export.families.tokenizers import TextTokens
from service.model.manifest import FileEntry, ImageSection, Provenance, SigmoidScoring, SoftmaxScoring


@dataclass(frozen=True)
class Found:
    """Weights in a public layout that one file holds.

    Attributes:
        path: as the user named it; the bundle's name may follow from it.
        file: of the weights.
        weights: by the file's names.
        image: how a picture is prepared.
        notes: on how the source was understood, for the manifest; the configuration is added.
    """

    path: Path
    file: Path
    weights: Mapping[str, Tensor]
    convert: Convert
    image: ImageSection
    options: SourceOptions
    notes: Mapping[str, str]


def named_config(arch: str, options: SourceOptions, path: Path) -> tuple[Family[Any], ModelConfig]:
    """Return the family and configuration of a named size, with the activation of the weights at ``path``.

    Raises:
        SourceError: no size has the name, or its activation is open or not the family's.
    """
    config = named_size(arch).config
    family = family_of(config)
    return family, family.named(config, arch, options.activation, path)


def assemble(found: Found, family: ModelKind[Any], config: ModelConfig, tokens: TextTokens) -> ModelSource:
    """Put weights into a model, and describe it for its bundle.

    Raises:
        SourceError: a weight is missing or does not fit.
    """
    weights = with_flat_scalars(found.weights)
    # A family without a bias may be trained with a sigmoid loss: its scores then have one.
    extra = None if family.has_bias else weights.pop("logit_bias", None)
    model, converted = loaded(family, config, weights, found.convert, found.file)
    bias = converted["logit_bias"].float() if family.has_bias else extra
    return model_source(
        found.path,
        found.options,
        padding=family.padding,
        config=config,
        model=model,
        image=found.image,
        tokens=tokens,
        scale=_exponential(converted["logit_scale"], found.file),
        bias=None if bias is None else _finite("logit_bias", bias, found.file),
        provenance=Provenance(
            source=found.options.source_id or found.file.name,
            source_sha256=FileEntry.of(found.file).sha256,
            licence=found.options.licence,
            recipe={**found.notes, **prepared(tokens), "model": config.model_dump(mode="json")},
        ),
    )


def prepared(tokens: TextTokens) -> dict[str, str]:
    """Return the manifest's note on a preparation that differs from the source's files; none if it does not."""
    return {} if tokens.note is None else {"preparation": tokens.note}


def loaded(
    family: ModelKind[Any], config: ModelConfig, weights: Mapping[str, Tensor], convert: Convert, file: Path
) -> tuple[TwoTowers, dict[str, Tensor]]:
    """Build a model with weights that ``convert`` renames; return it, and the weights by our names.

    Raises:
        SourceError: a weight is missing, unknown, mis-shaped or not finite.
    """
    with torch.device("meta"):  # compare names and shapes before making a large model
        wanted = family.build(config).state_dict()
    converted = convert(weights, wanted, file)
    model = family.build(config)
    load_weights(model, converted, file)
    return model, converted


def model_source(
    path: Path,
    options: SourceOptions,
    *,
    padding: Literal["longest", "fixed"],
    config: ModelConfig,
    model: TwoTowers,
    image: ImageSection,
    tokens: TextTokens,
    scale: float,
    bias: float | None,
    provenance: Provenance,
) -> ModelSource:
    """Describe a model of a public checkpoint, as the user named it; the scale is already exponentiated."""
    return ModelSource(
        name=bundle_name(path, options),
        aliases=bundle_aliases(options),
        architecture=config.architecture,
        config=config,
        model=model,
        dim=config.embed_dim,
        image=image,
        text=text_section(
            context_length=config.text.context_length,
            pad_id=tokens.pad_id,
            end_of_text_id=tokens.end_of_text_id,
            fixed=padding == "fixed",
            cleaning=tokens.cleaning,
        ),
        scoring=SoftmaxScoring(logit_scale=scale)
        if bias is None
        else SigmoidScoring(logit_scale=scale, logit_bias=bias),
        templates=dict(TEMPLATES),
        tokenizer=tokens.content,
        provenance=provenance,
    )


def _exponential(logarithm: Tensor, file: Path) -> float:
    value = logarithm.float().item()
    try:
        return math.exp(value)
    except OverflowError as exc:
        raise SourceError(f"{file}: logit_scale is {value}; it is kept as a logarithm, e.g. 4.6") from exc


def _finite(name: str, value: Tensor, file: Path) -> float:
    if value.numel() != 1 or not torch.isfinite(value).all():
        raise SourceError(f"{file}: {name} is not one finite number")
    return float(value.item())
