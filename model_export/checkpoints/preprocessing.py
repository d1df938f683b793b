"""Reads ``preprocessor_config.json`` as the manifest's image section.

The file is written by the families' image processors in transformers, of any release: ``size`` is a number,
``{"shortest_edge"}`` or ``{"height", "width"}``; absent fields have the class's defaults. A step that the manifest
cannot express is an error, not left out.

One thing differs on purpose. If a centre crop cannot be centred, the manifest rounds as torchvision does, which CLIP's
reference uses; transformers rounds down. For one size in four the two are a pixel apart.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_export.errors import SourceError
from model_export.families.family import ImageDefaults, ModelKind
from model_export.families.table import HUGGING_FACE_KINDS
from model_export.files import checked, read_object
from service.model.manifest import ImageSection, Rgb

PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
"""Newer sources hold the preprocessor's fields in this file, under ``image_processor``."""

Interpolation = Literal["bicubic", "bilinear", "lanczos"]

_PROCESSORS: Final[Mapping[str, ImageDefaults]] = {
    name: kind.images for kind in HUGGING_FACE_KINDS.values() for name in kind.images.processors
}
_BACKENDS: Final = ("Fast", "Pil")
"""Suffixes of a processor's name: the same steps in another implementation."""

_INTERPOLATIONS: Final[Mapping[int, Interpolation]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESAMPLING_NAMES: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's number."""

_WITHOUT_EFFECT: Final = frozenset({"do_convert_rgb"})
"""Steps that the service always takes."""

_PositiveInt = Annotated[int, Field(ge=1)]
_Deviation = Annotated[float, Field(gt=0)]


class _Preprocessor(BaseModel):
    """The fields that decide the pixels; the defaults are those that all processors share."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    do_resize: bool = True
    size: _PositiveInt | dict[str, _PositiveInt]
    default_to_square: bool = False
    resample: int = 3
    do_center_crop: bool
    crop_size: _PositiveInt | dict[str, _PositiveInt] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Rgb
    image_std: tuple[_Deviation, _Deviation, _Deviation]


def image_section(folder: Path, *, family: ModelKind[Any], image_size: int) -> ImageSection:
    """Read how a source prepares pictures.

    Args:
        folder: holds ``preprocessor_config.json``, or ``processor_config.json``.
        family: decides the defaults of a file that does not name its class.
        image_size: side of the square that the image tower takes.

    Raises:
        SourceError: the file is missing or not readable, belongs to another kind of model or another size, or asks
            for a step that a bundle cannot express.
    """
    path, given = _read(folder)
    fields = {**_defaults(_images(given, path, family), image_size), **given}
    steps = checked(_Preprocessor, fields, path)
    unknown = [name for name, value in (steps.model_extra or {}).items() if name.startswith("do_") and value]
    if left := sorted(set(unknown) - _WITHOUT_EFFECT):
        raise SourceError(f"{path}: asks for {', '.join(left)}, which a bundle cannot express")
    if not steps.do_resize:
        raise SourceError(f"{path}: does not resize (do_resize is false); a bundle takes pictures of every size")
    if not steps.do_rescale or not math.isclose(steps.rescale_factor * 255, 1, rel_tol=1e-6):
        raise SourceError(f"{path}: rescales by {steps.rescale_factor if steps.do_rescale else 1}, a bundle by 1/255")
    if steps.resample not in _INTERPOLATIONS:
        raise SourceError(f"{path}: resample {_resampling(steps.resample)} is not supported; 1, 2 and 3 are")
    height, width, resize = _resized(steps, path)
    if (height, width) != (image_size, image_size):
        raise SourceError(
            f"{path}: prepares pictures of {height}x{width}, the model takes {image_size}x{image_size}; "
            "are both files of one source?"
        )
    return ImageSection(
        height=height,
        width=width,
        resize=resize,
        interpolation=_INTERPOLATIONS[steps.resample],
        crop="center" if resize == "shortest" else "none",
        mean=steps.image_mean if steps.do_normalize else (0.0, 0.0, 0.0),
        std=steps.image_std if steps.do_normalize else (1.0, 1.0, 1.0),
    )


def stated(folder: Path, name: str, *, default: object) -> object:
    """Return a field of ``preprocessor_config.json``; errors as of `image_section`."""
    return _read(folder)[1].get(name, default)


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file, and its fields; null counts as absent."""
    path, fields = folder / PREPROCESSOR, None
    if not path.exists() and (folder / PROCESSOR).exists():
        fields = read_object(folder / PROCESSOR, hint="").get("image_processor")
        path = folder / PROCESSOR if isinstance(fields, dict) else path
    if not isinstance(fields, dict):
        fields = read_object(path, hint="it says how pictures are prepared; take it from where the weights are from")
    return path, {name: value for name, value in fields.items() if value is not None}


def _defaults(images: ImageDefaults, image_size: int) -> dict[str, Any]:
    """Return the defaults of a family's image processor."""
    side = images.size or image_size
    square = {"height": side, "width": side}
    squash = images.resize == "squash"
    crop = {} if squash else {"crop_size": square}
    size = square if squash else {"shortest_edge": side}
    return {**crop, "size": size, "do_center_crop": not squash, "image_mean": images.mean, "image_std": images.std}


def _images(fields: dict[str, Any], path: Path, family: ModelKind[Any]) -> ImageDefaults:
    # The second name may survive from an older file; then the first is right.
    name = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if name is None:
        return family.images
    base = str(name)
    for suffix in _BACKENDS:
        base = base.removesuffix(suffix)
    if base not in _PROCESSORS:
        raise SourceError(f"{path}: is of a {name}; only {', '.join(sorted(_PROCESSORS))} are read")
    return _PROCESSORS[base]


def _resized(steps: _Preprocessor, path: Path) -> tuple[int, int, Literal["shortest", "squash"]]:
    """Return the height and width of the tower's pictures, and the way to resize to them."""
    size = steps.size
    if isinstance(size, int):
        size = {"height": size, "width": size} if steps.default_to_square else {"shortest_edge": size}
    crop = _crop(steps, path)
    if size.keys() == {"height", "width"}:
        squashed = (size["height"], size["width"])
        if crop not in {None, squashed}:
            raise SourceError(f"{path}: resizes to {_text(squashed)} and then crops; a bundle cannot express both")
        return *squashed, "squash"
    if size.keys() != {"shortest_edge"}:
        raise SourceError(
            f"{path}: size has {', '.join(sorted(size))}; it must have height and width, or shortest_edge"
        )
    edge = size["shortest_edge"]
    if crop is None:
        raise SourceError(f"{path}: resizes the shorter side and does not crop; a bundle needs pictures of one size")
    if crop != (edge, edge):
        raise SourceError(
            f"{path}: resizes the shorter side to {edge} and crops {_text(crop)}; a bundle has one size for both"
        )
    return *crop, "shortest"


def _crop(steps: _Preprocessor, path: Path) -> tuple[int, int] | None:
    if not steps.do_center_crop:
        return None
    crop = steps.crop_size
    if isinstance(crop, int):
        return crop, crop
    if crop is None or crop.keys() != {"height", "width"}:
        raise SourceError(f"{path}: crop_size must be a number, or height and width")
    return crop["height"], crop["width"]


def _resampling(number: int) -> str:
    return f"{number} ({_RESAMPLING_NAMES[number]})" if 0 <= number < len(_RESAMPLING_NAMES) else str(number)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
