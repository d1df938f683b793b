"""How a source prepares pictures: ``preprocessor_config.json`` → the manifest's image section.

The file is what `CLIPImageProcessor` and `SiglipImageProcessor` of transformers write, in any of its ages: ``size`` is
a number, ``{"shortest_edge"}`` or ``{"height", "width"}``; what is left out has the class's default. A step that the
manifest cannot say is an error, not left out.

One thing differs on purpose. Where a centre crop cannot be centred, the manifest means the rounding of torchvision,
which CLIP's reference uses; transformers rounds down. For one size in four the two are a pixel apart.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from model_export.checkpoints.json_files import checked, read_object
from model_export.errors import SourceError
from service.model.manifest import ImageSection, Rgb

PREPROCESSOR: Final = "preprocessor_config.json"
PROCESSOR: Final = "processor_config.json"
"""Of newer sources: holds what the preprocessor's file would, under ``image_processor``."""

ModelType = Literal["clip", "siglip"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]

_PROCESSORS: Final[Mapping[str, ModelType]] = {
    "CLIPFeatureExtractor": "clip",
    "CLIPImageProcessor": "clip",
    "SiglipImageProcessor": "siglip",
}
_BACKENDS: Final = ("Fast", "Pil")
"""Suffixes of a processor's name: the same steps, computed by something else."""

_INTERPOLATIONS: Final[Mapping[int, Interpolation]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
_RESAMPLING_NAMES: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""By Pillow's number."""

_DEFAULTS: Final[Mapping[ModelType, Mapping[str, Any]]] = {
    "clip": {
        "size": {"shortest_edge": 224},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "siglip": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "image_mean": (0.5, 0.5, 0.5),
        "image_std": (0.5, 0.5, 0.5),
    },
}

_WITHOUT_EFFECT: Final = frozenset({"do_convert_rgb"})
"""Steps that the service always does."""

_PositiveInt = Annotated[int, Field(ge=1)]
_Deviation = Annotated[float, Field(gt=0)]


class _Preprocessor(BaseModel):
    """The fields that decide the pixels; the defaults are those that both classes share."""

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


def image_section(folder: Path, *, model_type: ModelType, image_size: int) -> ImageSection:
    """Read how a source prepares pictures.

    Args:
        folder: holds ``preprocessor_config.json``, or ``processor_config.json``.
        model_type: decides the defaults where the file does not name its class.
        image_size: the side of the square that the image tower takes.

    Raises:
        SourceError: the file is not there or not readable, belongs to another kind of model or another size, or asks
            for a step that a bundle cannot say.
    """
    path, given = _read(folder)
    fields = {**_DEFAULTS[_kind(given, path, model_type)], **given}
    steps = checked(_Preprocessor, fields, path)
    unknown = [name for name, value in (steps.model_extra or {}).items() if name.startswith("do_") and value]
    if left := sorted(set(unknown) - _WITHOUT_EFFECT):
        raise SourceError(f"{path}: asks for {', '.join(left)}, which a bundle cannot say")
    if not steps.do_resize:
        raise SourceError(f"{path}: does not resize (do_resize is false); a bundle takes pictures of every size")
    if not steps.do_rescale or not math.isclose(steps.rescale_factor * 255, 1, rel_tol=1e-6):
        raise SourceError(f"{path}: rescales by {steps.rescale_factor if steps.do_rescale else 1}, a bundle by 1/255")
    if steps.resample not in _INTERPOLATIONS:
        raise SourceError(f"{path}: resample {_resampling(steps.resample)} cannot be said; 1, 2 and 3 can")
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


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the file that says it, and its fields; null means what leaving a field out means."""
    path, fields = folder / PREPROCESSOR, None
    if not path.exists() and (folder / PROCESSOR).exists():
        fields = read_object(folder / PROCESSOR, hint="").get("image_processor")
        path = folder / PROCESSOR if isinstance(fields, dict) else path
    if not isinstance(fields, dict):
        fields = read_object(path, hint="it says how pictures are prepared; take it from where the weights are from")
    return path, {name: value for name, value in fields.items() if value is not None}


def _kind(fields: dict[str, Any], path: Path, model_type: ModelType) -> ModelType:
    # The older of the two names lives on in files that were written anew, where the newer one is right.
    name = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if name is None:
        return model_type
    base = str(name)
    for suffix in _BACKENDS:
        base = base.removesuffix(suffix)
    if base not in _PROCESSORS:
        raise SourceError(f"{path}: is of a {name}; only {', '.join(sorted(_PROCESSORS))} are read")
    return _PROCESSORS[base]


def _resized(steps: _Preprocessor, path: Path) -> tuple[int, int, Literal["shortest", "squash"]]:
    """Return height and width of what the tower gets, and how a picture is brought to them."""
    size = steps.size
    if isinstance(size, int):
        size = {"height": size, "width": size} if steps.default_to_square else {"shortest_edge": size}
    crop = _crop(steps, path)
    if size.keys() == {"height", "width"}:
        squashed = (size["height"], size["width"])
        if crop not in {None, squashed}:
            raise SourceError(f"{path}: resizes to {_text(squashed)} and then crops; a bundle cannot say both")
        return *squashed, "squash"
    if size.keys() != {"shortest_edge"}:
        raise SourceError(
            f"{path}: size says {', '.join(sorted(size))}; it must say height and width, or shortest_edge"
        )
    edge = size["shortest_edge"]
    if crop is None:
        raise SourceError(f"{path}: resizes the shorter side and does not crop; a bundle needs pictures of one size")
    if crop != (edge, edge):
        raise SourceError(
            f"{path}: resizes the shorter side to {edge} and crops {_text(crop)}; a bundle says one size for both"
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
