"""Reads open_clip's layout: weights beside an ``open_clip_config.json``, as on the hub, or a file with ``--arch``.

A family says which models are its own; any other that open_clip can build is refused by name.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.checkpoints.assembly import Found, assemble, named_config
from model_export.checkpoints.description import Description
from model_export.checkpoints.file_choice import OPEN_CLIP_WEIGHTS, loose_weights, open_clip_weights
from model_export.checkpoints.layouts import OPEN_CLIP_CONFIG, is_open_clip
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.open_clip_config import describe, preparation
from model_export.checkpoints.weight_files.tensors import SUFFIXES, peek_names, read_tensors
from model_export.errors import SourceError
from model_export.families.family import Convert
from service.model.manifest import ImageSection

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


def load(path: Path, options: SourceOptions, said: Description | None = None) -> ModelSource:
    """Read open_clip's weights: a folder, or a file of one, or a file with ``options.arch``.

    Args:
        path: as the user named it; the bundle's name may follow from it.
        said: what the files beside the weights say, if it was read already; the weights are beside its file.

    Raises:
        SourceError: a file is missing, not readable, or does not fit the others; a weight is unknown, missing,
            mis-shaped or not finite; or a bundle cannot express the model, its preprocessing or its tokenizer. The
            message names the file and the key.
    """
    place = _place(path, said)
    if place.config is None:
        return _load_named(place, options)
    said = said or describe(place.weights, options)
    return assemble(_found(place, said.convert, said.image, options), said.family, said.config, said.tokens)


def _load_named(place: _Place, options: SourceOptions) -> ModelSource:
    """Read weights without a configuration as the published ones of the size that ``--arch`` names."""
    if options.arch is None:
        raise SourceError(
            f"{place.weights}: has no {OPEN_CLIP_CONFIG} beside it; add --arch with a name of `anyclass-export list`"
        )
    family, config = named_config(options.arch, options, place.weights)
    image = family.images.section(config.image.image_size)
    image, tokens = preparation(family, config, image, place.weights, options)
    config = family.open_clip.complete(config, tokens)
    notes = {"arch": options.arch, "preprocessing": "not stated; that of the published weights of this size"}
    return assemble(_found(place, family.open_clip.convert, image, options, **notes), family, config, tokens)


def _place(path: Path, said: Description | None = None) -> _Place:
    held = path if said is None else said.file.parent
    folder = held if held.is_dir() else held.parent
    config = folder / OPEN_CLIP_CONFIG
    if not held.is_dir():
        # A name that all such files have tells nothing; the folder's does.
        named = folder if path.name in OPEN_CLIP_WEIGHTS else path
        return _Place(named, path, config if config.is_file() else None)
    names = [file.name for file in folder.iterdir() if file.is_file()]
    name = open_clip_weights(names)
    if name is None:
        shown = ", ".join(loose_weights(names)) or "none"
        raise SourceError(f"{folder}: holds no {OPEN_CLIP_WEIGHTS[0]}; name the file of the weights (found: {shown})")
    return _Place(path, folder / name, config)


def _found(place: _Place, convert: Convert, image: ImageSection, options: SourceOptions, **notes: str) -> Found:
    return Found(
        path=place.path,
        file=place.weights,
        weights=read_tensors(place.weights),
        convert=convert,
        image=image,
        options=options,
        notes={"layout": "open_clip", **notes},
    )
