"""What OpenAI's and open_clip's readers share: from weights and a configuration to a `ModelSource`."""

import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor

from model_export.architectures.activations import Activation
from model_export.checkpoints.model_source import TEMPLATES, ModelSource, SourceOptions, load_weights, text_section
from model_export.checkpoints.naming import bundle_aliases, bundle_name
from model_export.errors import SourceError
from model_export.families.clip.config import ClipConfig, VisionTransformerConfig
from model_export.families.clip.model import ClipModel
from model_export.families.clip.tokenizer import REFERENCE, has_tokenizer, tokenizer_json
from model_export.families.key_tables import KeyTable
from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.model import SiglipModel
from model_export.families.sizes import named_size
from service.model.manifest import FileEntry, ImageSection, Provenance, SigmoidScoring, SoftmaxScoring

PAD_ID: Final = 0
"""With which CLIP's reference fills a text up; under a causal mask it changes nothing."""

_DISTRIBUTIONS: Final = ("open_clip_torch", "clip")
"""The packages that carry the reference tokenizer's vocabulary."""

_Model = TypeVar("_Model", ClipModel, SiglipModel)

_SCALARS: Final = ("logit_scale", "logit_bias")


def clip_image_section(size: int) -> ImageSection:
    """Say how CLIP's reference prepares a picture: shortest side by Pillow's bicubic, centre crop, its own mean."""
    return ImageSection(
        height=size,
        width=size,
        resize="shortest",
        interpolation="bicubic",
        crop="center",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )


def siglip_image_section(size: int) -> ImageSection:
    """Say how SigLIP's published weights want a picture: squashed, by bicubic, to the range -1..1."""
    return ImageSection(
        height=size,
        width=size,
        resize="squash",
        interpolation="bicubic",
        crop="none",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def named_config(arch: str, activation: Activation | None, path: Path) -> ClipConfig | SiglipConfig:
    """Return the configuration that ``--arch`` names, with the activation that is known, or that the name tells.

    Raises:
        SourceError: there is no such size, or its activation is open: OpenAI trained the paper's sizes with QuickGELU,
            open_clip with GELU, under the same names.
    """
    config = named_size(arch).config
    if isinstance(config, SiglipConfig):
        return config if activation is None else with_siglip_activation(config, activation, path)
    if activation is not None:
        return with_activation(config, activation)
    told = arch.casefold().endswith("quickgelu") or arch.startswith("openai/")
    if config.text.activation == "quick_gelu" and not told:
        raise SourceError(
            f"{path}: does not tell its activation, and {arch} was trained with both; add --activation quick_gelu "
            "(OpenAI's weights) or --activation gelu (most of open_clip's)"
        )
    return config


def with_activation(config: ClipConfig, activation: Activation) -> ClipConfig:
    """Return the configuration with this activation in both towers; a ResNet's stays ReLU."""
    image = config.image
    if isinstance(image, VisionTransformerConfig):
        image = image.model_copy(update={"activation": activation})
    return config.model_copy(update={"image": image, "text": config.text.model_copy(update={"activation": activation})})


def with_siglip_activation(config: SiglipConfig, activation: Activation, path: Path) -> SiglipConfig:
    """Return the configuration with this activation in both towers.

    Raises:
        SourceError: it is none of SigLIP's.
    """
    if activation == "quick_gelu":
        raise SourceError(f"{path}: no SigLIP was trained with quick_gelu; leave --activation out")
    return config.model_copy(update={"activation": activation})


@dataclass(frozen=True)
class Found:
    """Weights in a public layout, and what is to be said of them.

    Attributes:
        path: as the user named it; the bundle's name may follow from it.
        file: of the weights.
        weights: as the file calls them.
        table: how they are called here.
        image: how a picture is prepared.
        options: what the user said.
        notes: on how the source was understood, for the manifest; the configuration is added.
    """

    path: Path
    file: Path
    weights: Mapping[str, Tensor]
    table: KeyTable
    image: ImageSection
    options: SourceOptions
    notes: Mapping[str, str]


def clip_source(found: Found, config: ClipConfig) -> ModelSource:
    """Put weights into a CLIP model, with all that its bundle will say.

    Raises:
        SourceError: a weight or the tokenizer is missing or does not fit.
    """
    text = config.text
    where = tokenizer_place(found.file, found.options) or installed_vocabulary()
    if where is None:
        raise SourceError(
            f"{found.file}: carries no tokenizer; name one with --tokenizer (a tokenizer.json, or {REFERENCE}), "
            "or pip install open_clip_torch, whose vocabulary is then read"
        )
    tokenizer = tokenizer_json(where, vocab_size=text.vocab_size, end_of_text_id=text.end_of_text_id)
    weights = _scalars_flat(found.weights)
    bias = weights.pop("logit_bias", None)  # a CLIP may be trained with SigLIP's loss
    model = _loaded(lambda: ClipModel(config), weights, found)
    scale = _exponential(model.logit_scale, found.file)
    return ModelSource(
        name=bundle_name(found.path, found.options),
        aliases=bundle_aliases(found.options),
        architecture=f"clip/{config.image.kind}",
        model=model,
        dim=config.embed_dim,
        image=found.image,
        text=text_section(context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=text.end_of_text_id),
        scoring=SoftmaxScoring(logit_scale=scale)
        if bias is None
        else SigmoidScoring(logit_scale=scale, logit_bias=_finite("logit_bias", bias, found.file)),
        templates=dict(TEMPLATES),
        tokenizer=tokenizer,
        provenance=_provenance(found, config),
    )


def siglip_source(found: Found, config: SiglipConfig, *, tokenizer: bytes, end_of_text_id: int) -> ModelSource:
    """Put weights into a SigLIP model, with all that its bundle will say; raises what `clip_source` does."""
    text = config.text
    model = _loaded(lambda: SiglipModel(config), _scalars_flat(found.weights), found)
    return ModelSource(
        name=bundle_name(found.path, found.options),
        aliases=bundle_aliases(found.options),
        architecture="siglip/vit",
        model=model,
        dim=config.embed_dim,
        image=found.image,
        text=text_section(
            context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=end_of_text_id, fixed=True
        ),
        scoring=SigmoidScoring(
            logit_scale=_exponential(model.logit_scale, found.file), logit_bias=model.logit_bias.item()
        ),
        templates=dict(TEMPLATES),
        tokenizer=tokenizer,
        provenance=_provenance(found, config),
    )


def tokenizer_place(file: Path, options: SourceOptions) -> Path | None:
    """Return the folder of the weights if it holds a tokenizer, or else the file that the user names, if any.

    Raises:
        SourceError: there are both.
    """
    if not has_tokenizer(file.parent):
        return options.tokenizer
    if options.tokenizer is not None:
        raise SourceError(f"{file.parent}: brings a tokenizer; leave --tokenizer out, or take its tokenizer files away")
    return file.parent


def installed_vocabulary() -> Path | None:
    """Find the reference tokenizer's vocabulary in an installed package; importing that would need torchvision."""
    for name in _DISTRIBUTIONS:
        try:
            files = importlib.metadata.files(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files or ():
            if file.name == REFERENCE and (path := Path(str(file.locate()))).is_file():
                return path
    return None


def _loaded(build: Callable[[], _Model], weights: Mapping[str, Tensor], found: Found) -> _Model:
    with torch.device("meta"):  # names and shapes are compared before a large model is made
        wanted = build().state_dict()
    given = found.table.convert(weights, wanted, found.file)
    model = build()
    load_weights(model, given, found.file)
    return model


def _scalars_flat(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with the scale and the bias of shape []; open_clip writes [1] too."""
    return {
        name: tensor.reshape(()) if name in _SCALARS and tensor.numel() == 1 else tensor
        for name, tensor in weights.items()
    }


def _exponential(logarithm: Tensor, file: Path) -> float:
    try:
        return math.exp(logarithm.item())
    except OverflowError as exc:
        raise SourceError(f"{file}: logit_scale is {logarithm.item()}; it is kept as a logarithm, e.g. 4.6") from exc


def _finite(name: str, value: Tensor, file: Path) -> float:
    if value.numel() != 1 or not torch.isfinite(value).all():
        raise SourceError(f"{file}: {name} is not one finite number")
    return float(value.item())


def _provenance(found: Found, config: ClipConfig | SiglipConfig) -> Provenance:
    return Provenance(
        source=found.options.source_id or found.file.name,
        source_sha256=FileEntry.of(found.file).sha256,
        licence=found.options.licence,
        recipe={**found.notes, "model": config.model_dump(mode="json")},
    )
