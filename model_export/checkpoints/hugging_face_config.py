"""Reads what a Hugging Face folder says of its model beside the weights. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from model_export.checkpoints.description import Description
from model_export.checkpoints.layouts import HF_CONFIG
from model_export.checkpoints.model_source import SourceOptions
from model_export.checkpoints.preprocessing import image_section, stated
from model_export.errors import SourceError
from model_export.families.family import HuggingFaceKind, ModelKind
from model_export.families.hugging_face import TOWERS
from model_export.families.table import FAMILIES, HUGGING_FACE_KINDS, KEEPING_ASPECT
from model_export.families.tokenizers import has_tokenizer
from model_export.files import read_object
from service.model.manifest import MAX_PATCHES, ImageSection

K = TypeVar("K", bound=ModelKind[Any])

_OWN_CODE: Final = "auto_map"
"""Names Python files of the repository, which transformers runs with ``trust_remote_code``."""


def check_kind(folder: Path, options: SourceOptions) -> None:
    """Check that ``config.json`` is of a model that can be exported, from this file alone.

    Raises:
        SourceError: the file is not readable, or of another kind; the message says which models are read.
    """
    _read_config(folder, options)


def describe(folder: Path, options: SourceOptions) -> Description:
    """Read everything but the weights.

    Raises:
        SourceError: a file is missing, corrupt, or does not fit the others, or the model is one that cannot be
            exported; the message names the file.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: is not a folder with a {HF_CONFIG}")
    file = folder / HF_CONFIG
    family, said = _read_config(folder, options)
    if options.arch is not None:
        raise SourceError(f"{file}: states the architecture; leave --arch out")
    if options.keep_aspect:
        family = _with_aspect(family, file)
    layout = family.hugging_face
    image = image_section(folder, family=family, image_size=layout.image_size(said))
    config, tokens = layout.configure(said, file, _tokenizer(folder, options), options.as_published)
    if options.activation is not None and config.activations != {options.activation}:
        raise SourceError(f"{file}: states the activation, which is not {options.activation}; leave --activation out")
    if options.keep_aspect:
        image = _within_budget(image, folder, config.image.patch_size)
    return Description(file, family, config, image, tokens, layout.convert)


def _with_aspect(family: HuggingFaceKind[Any], file: Path) -> HuggingFaceKind[Any]:
    """Return the same kind with pictures that keep their aspect. Raises SourceError: there is none."""
    if family.name not in KEEPING_ASPECT:
        titles = " or ".join(kind.title for kind in KEEPING_ASPECT.values())
        raise SourceError(
            f"{file}: is of a {family.title}; only pictures of a {titles} keep their aspect, leave --keep-aspect out"
        )
    return KEEPING_ASPECT[family.name]


def _within_budget(image: ImageSection, folder: Path, patch_size: int) -> ImageSection:
    """Return the preprocessing that keeps the aspect within the published budget of patches.

    Raises:
        SourceError: a bundle cannot express the budget.
    """
    patches = stated(folder, "max_num_patches", default=MAX_PATCHES)
    if not isinstance(patches, int) or not 1 <= patches <= MAX_PATCHES:
        raise SourceError(f"{folder}: has a budget of {patches} patches a picture; 1 to {MAX_PATCHES} are read")
    fields = {**image.model_dump(), "resize": "aspect", "height": patches + 1, "width": patch_size**2}
    return ImageSection.model_validate(fields)


def check_graphs(fields: Mapping[str, Any], file: Path) -> None:
    """Check that the ``model_type`` of a ``config.json`` is of a family whose published graphs are read.

    Raises:
        SourceError: it is not; the message says which relatives of the model are read.
    """
    _known(FAMILIES, fields, file)


def _known(kinds: Mapping[str, K], fields: Mapping[str, Any], file: Path) -> K:
    """Return the kind that ``model_type`` names.

    Raises:
        SourceError: none; the message says which relatives of the model are read.
    """
    model_type = str(fields.get("model_type"))
    kind = kinds.get(model_type)
    if kind is None:
        hints = [row.relatives[model_type] for row in FAMILIES.values() if model_type in row.relatives]
        if model_type in HUGGING_FACE_KINDS:
            hints = [f"a {HUGGING_FACE_KINDS[model_type].title} is read from its weights, not from graphs"]
        *first, last = kinds
        known = "; ".join((f"{', '.join(first)} and {last} can be exported", *hints))
        raise SourceError(f"{file}: model_type is {model_type}; {known}")
    return kind


def _read_config(folder: Path, options: SourceOptions) -> tuple[HuggingFaceKind[Any], Any]:
    file = folder / HF_CONFIG
    fields = read_object(file, hint="is this the folder of a Hugging Face model?")
    family = _known(HUGGING_FACE_KINDS, fields, file)
    if fields.get(_OWN_CODE) and options.layout != "hugging_face":
        raise SourceError(
            f"{file}: wants code of the repository to be run ({_OWN_CODE}), which is never done; if the weights are "
            f"those of a {family.title} of transformers, add --layout hugging_face"
        )
    absent = [name for name in TOWERS if fields.get(name) is None and fields.get(f"{name}_dict") is None]
    if absent:
        raise SourceError(f"{file}: lacks {' and '.join(absent)}: it does not describe both towers of a {family.title}")
    return family, family.hugging_face.read(fields, file)


def _tokenizer(folder: Path, options: SourceOptions) -> Path | None:
    """Return the tokenizer that the user names, if the folder has none."""
    if options.tokenizer is not None and has_tokenizer(folder):
        raise SourceError(
            f"{folder}: brings its own tokenizer; leave --tokenizer out, or take its tokenizer files away"
        )
    return options.tokenizer
