"""Reads open_clip's layout: weights beside an ``open_clip_config.json``, as on the hub, or a file with ``--arch``.

A family says which models are its own; any other that open_clip can build is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from model_export.checkpoints.assembly import Found, assemble, named_config, tokenizer_place
from model_export.checkpoints.layouts import OPEN_CLIP_CONFIG, is_open_clip
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.open_clip_config import image_section, model_config
from model_export.checkpoints.weight_files.tensors import SUFFIXES, peek_names, read_tensors
from model_export.errors import SourceError
from model_export.families.family import Family, ModelConfig
from model_export.families.tokenizers import TextTokens
from model_export.files import read_object
from service.model.manifest import ImageSection

WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""open_clip's names on the hub, the safest first. The same weights in other layouts may lie beside them."""

_OWN_NAMES: Final = ("text.token_embedding.weight", "visual.trunk.patch_embed.proj.weight")
"""Names of parameters that no other program writes."""


@dataclass(frozen=True)
class _Place:
    """The files of a source, and the path that it may be named after."""

    path: Path
    weights: Path
    config: Path | None


def recognises(path: Path) -> bool:
    """Return whether weights have open_clip's configuration beside them, or names that only open_clip uses."""
    folder = path if path.is_dir() else path.parent
    if is_open_clip(folder):
        return path.is_dir() or path.suffix in SUFFIXES
    if not path.is_file():
        return False
    names = peek_names(path)
    return any(name in names for name in _OWN_NAMES)


def load(path: Path, options: SourceOptions) -> ModelSource:
    """Read open_clip's weights: a folder, or a file of one, or a file with ``options.arch``.

    Raises:
        SourceError: a file is missing, not readable, or does not fit the others; a weight is unknown, missing,
            mis-shaped or not finite; or a bundle cannot express the model, its preprocessing or its tokenizer. The
            message names the file and the key.
    """
    place = _place(path)
    if place.config is None:
        return _load_named(place, options)
    if options.arch is not None:
        raise SourceError(f"{place.config}: states the architecture; leave --arch out")
    fields = read_object(place.config, hint="it stands beside open_clip's weights")
    family, config = model_config(fields.get("model_cfg", fields), options.activation, place.config)
    tokens, config = _with_tokenizer(place, family, config, options)
    preprocessing = fields.get("preprocess_cfg") or {}
    if family.open_clip.needs_preprocess_cfg and not preprocessing:
        raise SourceError(f"{place.config}: lacks preprocess_cfg, which says how pictures are prepared")
    default = family.images.section(config.image.image_size)
    image = image_section(preprocessing, default=default, path=place.config)
    return assemble(_found(place, family, image, options), family, config, tokens)


def _load_named(place: _Place, options: SourceOptions) -> ModelSource:
    """Read weights without a configuration as the published ones of the size that ``--arch`` names."""
    if options.arch is None:
        raise SourceError(
            f"{place.weights}: has no {OPEN_CLIP_CONFIG} beside it; add --arch with a name of `anyclass-export list`"
        )
    family, config = named_config(options.arch, options, place.weights)
    tokens, config = _with_tokenizer(place, family, config, options)
    notes = {"arch": options.arch, "preprocessing": "not stated; that of the published weights of this size"}
    image = family.images.section(config.image.image_size)
    return assemble(_found(place, family, image, options, **notes), family, config, tokens)


def _with_tokenizer(
    place: _Place, family: Family[Any], config: ModelConfig, options: SourceOptions
) -> tuple[TextTokens, ModelConfig]:
    tokens = family.open_clip.read_tokenizer(tokenizer_place(place.weights, options), config, place.weights)
    return tokens, family.open_clip.complete(config, tokens)


def _place(path: Path) -> _Place:
    folder = path if path.is_dir() else path.parent
    config = folder / OPEN_CLIP_CONFIG
    if not path.is_dir():
        # A name that all such files have tells nothing; the folder's does.
        named = folder if path.name in WEIGHTS else path
        return _Place(named, path, config if config.is_file() else None)
    for name in WEIGHTS:
        if (path / name).is_file():
            return _Place(path, path / name, config)
    held = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(held) != 1:
        shown = ", ".join(file.name for file in held) or "none"
        raise SourceError(f"{path}: holds no {WEIGHTS[0]}; name the file of the weights (found: {shown})")
    return _Place(path, held[0], config)


def _found(place: _Place, family: Family[Any], image: ImageSection, options: SourceOptions, **notes: str) -> Found:
    return Found(
        path=place.path,
        file=place.weights,
        weights=read_tensors(place.weights),
        convert=family.open_clip.convert,
        image=image,
        options=options,
        notes={"layout": "open_clip", **notes},
    )
