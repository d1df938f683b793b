"""open_clip's layout: weights beside an ``open_clip_config.json``, as on the hub, or a checkpoint with ``--arch``.

CLIP with either image tower of open_clip's own, and SigLIP, whose image tower is timm's. Any other combination that
open_clip can build is refused by its name.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.checkpoints.assembly import (
    Found,
    clip_image_section,
    clip_source,
    named_config,
    siglip_image_section,
    siglip_source,
    tokenizer_place,
    with_siglip_activation,
)
from model_export.checkpoints.json_files import read_object
from model_export.checkpoints.layouts import OPEN_CLIP_CONFIG, is_open_clip
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.weight_files.tensors import SUFFIXES, peek_names, read_tensors
from model_export.errors import SourceError
from model_export.families import key_tables
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.open_clip import clip_config, image_section, siglip_config
from model_export.families.open_clip import OpenClip, OpenSiglip, model_config
from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.open_clip_tokenizer import read_canonical_tokenizer
from model_export.families.siglip.tokenizer import SiglipTokenizer
from service.model.manifest import ImageSection

WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
"""What open_clip calls them on the hub, the safest first. Beside them may lie the same weights in other layouts."""

_OWN_NAMES: Final = ("text.token_embedding.weight", "visual.trunk.patch_embed.proj.weight")
"""Of a checkpoint that no other program writes."""

_POSITIONS: Final = "visual.trunk.pos_embed"


@dataclass(frozen=True)
class _Place:
    """Where a source is: what it may be called after, the weights, and the configuration, if there is one."""

    path: Path
    weights: Path
    config: Path | None

    @property
    def config_file(self) -> Path:
        """The configuration's file, or where it would be."""
        return self.config or self.weights.parent / OPEN_CLIP_CONFIG


def recognises(path: Path) -> bool:
    """Tell open_clip's weights by the configuration beside them, or by names that only open_clip uses."""
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
            mis-shaped or not finite; or the model, its preprocessing or its tokenizer cannot be said. The file and the
            key are named.
    """
    place = _place(path)
    if place.config is None:
        return _load_named(place, options)
    if options.arch is not None:
        raise SourceError(f"{place.config}: says the architecture; leave --arch out")
    fields = read_object(place.config, hint="it stands beside open_clip's weights")
    model = model_config(fields.get("model_cfg", fields), place.config)
    preprocessing = fields.get("preprocess_cfg") or {}
    if isinstance(model, OpenClip):
        return _load_clip(place, model, preprocessing, options)
    return _load_siglip(place, model, preprocessing, options)


def _load_clip(place: _Place, model: OpenClip, preprocessing: object, options: SourceOptions) -> ModelSource:
    config = clip_config(model, place.config_file)
    said = config.text.activation
    if options.activation not in {None, said}:
        raise SourceError(f"{place.config}: says the activation, {said}; leave --activation out")
    default = clip_image_section(config.image.image_size)
    image = image_section(preprocessing, default=default, path=place.config_file)
    return clip_source(_found(place, image, options), config)


def _load_siglip(place: _Place, model: OpenSiglip, preprocessing: object, options: SourceOptions) -> ModelSource:
    tokenizer = _siglip_tokenizer(place, model.text_cfg.vocab_size, options)
    config = siglip_config(model, place.config_file, pad_id=tokenizer.pad_id)
    if options.activation is not None:
        config = with_siglip_activation(config, options.activation, place.config_file)
    if not preprocessing:
        raise SourceError(f"{place.config}: lacks preprocess_cfg, which says how pictures are prepared")
    default = siglip_image_section(config.image.image_size)
    image = image_section(preprocessing, default=default, path=place.config_file)
    return _siglip_source(_found(place, image, options), config, tokenizer)


def _load_named(place: _Place, options: SourceOptions) -> ModelSource:
    """Read weights without a configuration: as the published ones of the size that ``--arch`` names."""
    if options.arch is None:
        raise SourceError(
            f"{place.weights}: has no {OPEN_CLIP_CONFIG} beside it; add --arch with a name of `anyclass-export list`"
        )
    config = named_config(options.arch, options.activation, place.weights)
    notes = {"arch": options.arch, "preprocessing": "not stated; that of the published weights of this size"}
    if isinstance(config, ClipConfig):
        return clip_source(_found(place, clip_image_section(config.image.image_size), options, **notes), config)
    tokenizer = _siglip_tokenizer(place, config.text.vocab_size, options)
    config = config.model_copy(update={"text": config.text.model_copy(update={"pad_id": tokenizer.pad_id})})
    found = _found(place, siglip_image_section(config.image.image_size), options, **notes)
    return _siglip_source(found, config, tokenizer)


def _place(path: Path) -> _Place:
    folder = path if path.is_dir() else path.parent
    config = folder / OPEN_CLIP_CONFIG
    if not path.is_dir():
        # A name that all such files have says nothing; the folder's does.
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


def _found(place: _Place, image: ImageSection, options: SourceOptions, **notes: str) -> Found:
    weights = read_tensors(place.weights)
    own_text = any(name.startswith("text.") for name in weights)
    return Found(
        path=place.path,
        file=place.weights,
        weights=weights,
        table=key_tables.CLIP_CUSTOM_TEXT if own_text else key_tables.CLIP,
        image=image,
        options=options,
        notes={"layout": "open_clip", **notes},
    )


def _siglip_tokenizer(place: _Place, vocab_size: int, options: SourceOptions) -> SiglipTokenizer:
    where = tokenizer_place(place.weights, options)
    if where is None:
        raise SourceError(f"{place.weights}: carries no tokenizer; name its tokenizer.json with --tokenizer")
    return read_canonical_tokenizer(where, vocab_size=vocab_size)


def _siglip_source(found: Found, config: SiglipConfig, tokenizer: SiglipTokenizer) -> ModelSource:
    weights = {
        name: tensor.squeeze(0) if name == _POSITIONS and tensor.ndim == 3 else tensor  # [1, patches, width]
        for name, tensor in found.weights.items()
    }
    found = dataclasses.replace(found, weights=weights, table=key_tables.SIGLIP)
    return siglip_source(found, config, tokenizer=tokenizer.content, end_of_text_id=tokenizer.end_of_text_id)
