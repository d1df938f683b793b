"""Reads ``open_clip_config.json``: ``model_cfg`` as a configuration of ours, ``preprocess_cfg`` as an image section.

Needs no torch.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from model_export.architectures.activations import Activation
from model_export.checkpoints.description import Description
from model_export.checkpoints.layouts import OPEN_CLIP_CONFIG
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError
from model_export.families.family import ModelConfig, OpenClipKind
from model_export.families.open_clip_torch.family import kind_of
from model_export.families.table import FAMILIES
from model_export.families.tokenizers import TextTokens, has_tokenizer
from model_export.files import checked, read_object
from service.model.manifest import ImageSection, Rgb


class _Preprocess(BaseModel):
    """``preprocess_cfg``, with open_clip's defaults; it ignores unknown fields, and takes the size from the model."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    mode: Literal["RGB"] = "RGB"
    mean: float | Rgb | None = None
    std: float | Rgb | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    resize_mode: Literal["shortest", "squash", "longest"] | None = None


def check_kind(folder: Path, options: SourceOptions) -> None:
    """Check that the configuration in a folder is of a model that can be exported, from this file alone.

    Raises:
        SourceError: the file is not readable, or of another kind; the message says which models are read.
    """
    _read_config(folder / OPEN_CLIP_CONFIG, options)


def describe(weights: Path, options: SourceOptions) -> Description:
    """Read everything but the weights, whose file may still be missing, from the files beside it.

    Raises:
        SourceError: a file is missing, not readable, or does not fit the others, or a bundle cannot express the model,
            its preprocessing or its tokenizer; the message names the file.
    """
    file = weights.parent / OPEN_CLIP_CONFIG
    fields, family, config = _read_config(file, options)
    if options.arch is not None:
        raise SourceError(f"{file}: states the architecture; leave --arch out")
    preprocessing = fields.get("preprocess_cfg") or {}
    if family.open_clip.needs_preprocess_cfg and not preprocessing:
        raise SourceError(f"{file}: lacks preprocess_cfg, which says how pictures are prepared")
    image = image_section(preprocessing, default=family.images.section(config.image.image_size), path=file)
    image, tokens = preparation(family, config, image, weights, options)
    return Description(file, family, family.open_clip.complete(config, tokens), image, tokens, family.open_clip.convert)


def preparation(
    family: OpenClipKind[Any], config: ModelConfig, image: ImageSection, weights: Path, options: SourceOptions
) -> tuple[ImageSection, TextTokens]:
    """Return how pictures and texts are prepared: as in training where that is known, otherwise as open_clip does.

    Args:
        config: without what only the tokenizer knows.
        image: what open_clip does with pictures.
        weights: a tokenizer may be beside them.

    Raises:
        SourceError: the tokenizer is missing, cannot be read or does not fit the text tower.
    """
    place, layout = tokenizer_place(weights, options), family.open_clip
    if layout.as_trained is not None and not options.as_published:
        trained = layout.as_trained(place, config, image)
        if trained is not None:
            return trained
    return image, layout.read_tokenizer(place, config, weights)


def tokenizer_place(weights: Path, options: SourceOptions) -> Path | None:
    """Return the folder of the weights if it holds a tokenizer, else the file that the user names, if any.

    Raises:
        SourceError: both are given.
    """
    folder = weights.parent
    if not has_tokenizer(folder):
        return options.tokenizer
    if options.tokenizer is not None:
        raise SourceError(f"{folder}: brings a tokenizer; leave --tokenizer out, or take its tokenizer files away")
    return folder


def _read_config(file: Path, options: SourceOptions) -> tuple[dict[str, Any], OpenClipKind[Any], ModelConfig]:
    fields = read_object(file, hint="it stands beside open_clip's weights")
    return fields, *model_config(fields.get("model_cfg", fields), options.activation, file)


def model_config(fields: object, activation: Activation | None, path: Path) -> tuple[OpenClipKind[Any], ModelConfig]:
    """Read ``model_cfg`` as its family does; the tokenizer is still to come.

    Args:
        activation: the one that the user states, if any.

    Raises:
        SourceError: a value is invalid, or our modules cannot compute it; the message names it.
    """
    sections = fields if isinstance(fields, dict) else {}
    vision, text = sections.get("vision_cfg"), sections.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise SourceError(f"{path}: lacks vision_cfg and text_cfg; is it an open_clip_config.json?")
    kind, config = _read_by_first(sections, path)
    return kind, config if activation is None else kind.open_clip.read(sections, activation, path)


def _read_by_first(sections: dict[str, Any], path: Path) -> tuple[OpenClipKind[Any], ModelConfig]:
    """Read ``model_cfg`` as the first family that takes it, or as a model that open_clip builds."""
    vision, text = sections["vision_cfg"], sections["text_cfg"]
    for family in FAMILIES.values():
        if "multimodal_cfg" not in sections and family.open_clip.matches(vision, text):
            with suppress(SourceError):  # open_clip has more settings; its refusal tells of those that no one has
                return family, family.open_clip.read(sections, None, path)
    return kind_of(sections, path)


def image_section(fields: object, *, default: ImageSection, path: Path) -> ImageSection:
    """Read ``preprocess_cfg``.

    Args:
        fields: the JSON value; null counts as absent.
        default: for what the file does not state, and for the size.

    Raises:
        SourceError: a value is invalid, or a bundle cannot express it.
    """
    if not isinstance(fields, dict):
        raise SourceError(f"{path}: preprocess_cfg must be a JSON object")
    given = checked(_Preprocess, {name: value for name, value in fields.items() if value is not None}, path)
    if given.resize_mode == "longest":
        raise SourceError(f"{path}: resize_mode 'longest' pads a picture, which a bundle cannot express")
    resize = given.resize_mode or default.resize
    # "random" is for training; otherwise open_clip takes bicubic.
    interpolation = "bicubic" if given.interpolation == "random" else given.interpolation or default.interpolation
    return ImageSection(
        height=default.height,
        width=default.width,
        resize=resize,
        interpolation=interpolation,
        crop="center" if resize == "shortest" else "none",
        mean=_rgb(given.mean, default.mean),
        std=_rgb(given.std, default.std),
    )


def _rgb(value: float | Rgb | None, default: Rgb) -> Rgb:
    if value is None:
        return default
    return value if isinstance(value, tuple) else (value, value, value)
