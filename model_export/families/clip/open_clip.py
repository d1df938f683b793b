"""What an ``open_clip_config.json`` says → our configurations and the manifest's image section."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from model_export.architectures.activations import Activation
from model_export.checkpoints.assembly import PAD_ID
from model_export.checkpoints.json_files import checked
from model_export.errors import SourceError, messages
from model_export.families.clip.config import (
    ClipConfig,
    ImageTowerConfig,
    ModifiedResNetConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.open_clip import TIMM_SIGLIP, Gelu, OpenClip, OpenSiglip, Preprocess, Side
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from service.model.manifest import ImageSection, Rgb

TIMM_WIDTHS: Final[Mapping[str, Mapping[str, int]]] = {
    "base": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
    "large": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096},
    "so400m": {"width": 1152, "layers": 27, "heads": 16, "mlp_width": 4304},
    "giantopt": {"width": 1536, "layers": 40, "heads": 16, "mlp_width": 6144},
}
"""The image towers of SigLIP, by the word in their timm name."""


def clip_config(model: OpenClip, path: Path) -> ClipConfig:
    """Say a CLIP of open_clip's in our terms.

    Raises:
        SourceError: the values do not fit together, or our modules cannot compute it.
    """
    text = model.text_cfg
    try:
        return ClipConfig(
            embed_dim=model.embed_dim,
            image=_image_tower(model, path),
            text=TextTransformerConfig(
                vocab_size=text.vocab_size,
                context_length=text.context_length,
                width=text.width,
                layers=text.layers,
                heads=text.heads,
                mlp_width=_mlp_width(text.width, text.mlp_ratio),
                activation=_activation(model, text.act_kwargs, path),
                # "argmax" reads where the highest id stands: the end of text is the vocabulary's last token
                end_of_text_id=text.eos_id if text.pool_type == "eos" else text.vocab_size - 1,
                pad_id=PAD_ID,
            ),
        )
    except ValidationError as exc:
        raise _misfit(exc, path) from exc


def siglip_config(model: OpenSiglip, path: Path, *, pad_id: int) -> SiglipConfig:
    """Say a SigLIP of open_clip's in our terms; raises what `clip_config` does.

    The activation is the one SigLIP was trained with, GELU by its tanh formula, as transformers has it. timm's port
    computes the exact GELU in some of the sizes, open_clip's text tower in others: the weights are the same ones.
    """
    vision, text = model.vision_cfg, model.text_cfg
    found = TIMM_SIGLIP.fullmatch(vision.timm_model_name)
    if found is None or found["width"] not in TIMM_WIDTHS:
        raise SourceError(f"{path}: its image tower is timm's {vision.timm_model_name}, whose shape is not known here")
    size = _side(vision.image_size, path)
    if size != int(found["size"]):
        raise SourceError(f"{path}: image_size {size} is not that of timm's {vision.timm_model_name}")
    try:
        return SiglipConfig(
            image=SiglipImageConfig(image_size=size, patch_size=int(found["patch"]), **TIMM_WIDTHS[found["width"]]),
            text=SiglipTextConfig(
                vocab_size=text.vocab_size,
                context_length=text.context_length,
                width=text.width,
                layers=text.layers,
                heads=text.heads,
                mlp_width=int(text.width * text.mlp_ratio),
                embed_dim=model.embed_dim,
                pad_id=pad_id,
            ),
        )
    except ValidationError as exc:
        raise _misfit(exc, path) from exc


def image_section(fields: object, *, default: ImageSection, path: Path) -> ImageSection:
    """Read ``preprocess_cfg``.

    Args:
        fields: what the file says; null means what leaving a field out means.
        default: what holds where the file says nothing, and the size.
        path: the file, for what is said of it.

    Raises:
        SourceError: a bundle cannot say it.
    """
    if not isinstance(fields, dict):
        raise SourceError(f"{path}: preprocess_cfg must be a JSON object")
    given = checked(Preprocess, {name: value for name, value in fields.items() if value is not None}, path)
    if given.resize_mode == "longest":
        raise SourceError(f"{path}: resize_mode 'longest' pads a picture, which a bundle cannot say")
    resize = given.resize_mode or default.resize
    # "random" is for training; in use, open_clip then takes bicubic
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


def _image_tower(model: OpenClip, path: Path) -> ImageTowerConfig:
    vision = model.vision_cfg
    size = _side(vision.image_size, path)
    if isinstance(vision.layers, tuple):
        if vision.head_width != 64:
            raise SourceError(f"{path}: vision_cfg.head_width of a ResNet must be 64, not {vision.head_width}")
        return ModifiedResNetConfig(image_size=size, layers=vision.layers, width=vision.width)
    if vision.patch_size is None:
        raise SourceError(f"{path}: vision_cfg.patch_size is not said")
    return VisionTransformerConfig(
        image_size=size,
        patch_size=vision.patch_size,
        width=vision.width,
        layers=vision.layers,
        heads=vision.width // vision.head_width,
        mlp_width=_mlp_width(vision.width, vision.mlp_ratio),
        activation=_activation(model, vision.act_kwargs, path),
    )


def _activation(model: OpenClip, gelu: Gelu | None, path: Path) -> Activation:
    if model.quick_gelu:
        if gelu is not None:
            raise SourceError(f"{path}: says quick_gelu, and act_kwargs, which are GELU's")
        return "quick_gelu"
    return "gelu_tanh" if gelu is not None and gelu.approximate == "tanh" else "gelu"


def _mlp_width(width: int, ratio: float) -> int | None:
    # Four times the width goes without saying, so that every layout gives the same configuration.
    return None if ratio == 4 else int(width * ratio)


def _side(size: Side, path: Path) -> int:
    if isinstance(size, tuple):
        if size[0] != size[1]:
            raise SourceError(f"{path}: image_size {list(size)} is not square; only square pictures are read here")
        return size[0]
    return size


def _rgb(value: float | Rgb | None, default: Rgb) -> Rgb:
    if value is None:
        return default
    return value if isinstance(value, tuple) else (value, value, value)


def _misfit(exc: ValidationError, path: Path) -> SourceError:
    return SourceError(f"{path}: {messages(exc)}")
