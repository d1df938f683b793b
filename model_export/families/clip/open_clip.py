"""CLIP in open_clip's layout: ``model_cfg`` with an image tower of open_clip's own, tokenizer, names of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.families.clip.config import (
    PAD_ID,
    ClipConfig,
    ImageTowerConfig,
    ModifiedResNetConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.clip.keys import CUSTOM_TEXT, OPENAI
from model_export.families.clip.tokenizer import installed_vocabulary, tokenizer_json
from model_export.families.family import OpenClipLayout
from model_export.families.open_clip import Block, Gelu, Model, Section, Side, TextBase, Timm, square_side
from model_export.families.tokenizers import REFERENCE, TextTokens
from model_export.files import blamed, checked

if TYPE_CHECKING:
    from torch import Tensor


class _ClipNorm(Section):
    eps: Annotated[float, Field(ge=1e-5, le=1e-5)] = 1e-5


class _Vision(Block, Timm):
    """An image tower of open_clip's own."""

    layers: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = 12
    width: PositiveInt = 768
    head_width: PositiveInt = 64
    mlp_ratio: PositiveFloat = 4.0
    patch_size: PositiveInt | None = 16
    image_size: Side = 224
    attentional_pool: Literal[False] = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8
    no_ln_pre: Literal[False] = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    final_ln_after_pool: bool = False  # no difference: only the class token is read
    pool_type: Literal["tok"] = "tok"
    act_kwargs: Gelu | None = None
    norm_kwargs: _ClipNorm | None = None
    timm_model_name: None = None
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"


class _Text(TextBase):
    """The text tower of a CLIP."""

    tokenizer_kwargs: dict[str, Any] | None = Field(default=None, max_length=0)
    no_causal_mask: Literal[False] = False
    pool_type: Literal["argmax", "eos"] = "argmax"
    proj_bias: Literal[False] = False
    norm_kwargs: _ClipNorm | None = None


class _OpenClip(Model):
    """``model_cfg`` of a CLIP."""

    quick_gelu: bool = False
    vision_cfg: _Vision
    text_cfg: _Text


def _matches(vision: Mapping[str, Any], _text: Mapping[str, Any]) -> bool:
    return not vision.get("timm_model_name")


def _read(fields: Mapping[str, Any], activation: Activation | None, path: Path) -> ClipConfig:
    config = _config(checked(_OpenClip, fields, path), path)
    said = config.text.activation
    if activation not in {None, said}:
        raise SourceError(f"{path}: states the activation, {said}; leave --activation out")
    return config


def _config(model: _OpenClip, path: Path) -> ClipConfig:
    text = model.text_cfg
    with blamed(path):
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
                # "argmax" reads at the highest id: the end of text is the vocabulary's last token
                end_of_text_id=text.eos_id if text.pool_type == "eos" else text.vocab_size - 1,
                pad_id=PAD_ID,
            ),
        )


def _image_tower(model: _OpenClip, path: Path) -> ImageTowerConfig:
    vision = model.vision_cfg
    size = square_side(vision.image_size, path)
    if isinstance(vision.layers, tuple):
        if vision.head_width != 64:
            raise SourceError(f"{path}: vision_cfg.head_width of a ResNet must be 64, not {vision.head_width}")
        return ModifiedResNetConfig(image_size=size, layers=vision.layers, width=vision.width)
    if vision.patch_size is None:
        raise SourceError(f"{path}: vision_cfg.patch_size is missing")
    return VisionTransformerConfig(
        image_size=size,
        patch_size=vision.patch_size,
        width=vision.width,
        layers=vision.layers,
        heads=vision.width // vision.head_width,
        mlp_width=_mlp_width(vision.width, vision.mlp_ratio),
        activation=_activation(model, vision.act_kwargs, path),
    )


def _activation(model: _OpenClip, gelu: Gelu | None, path: Path) -> Activation:
    if model.quick_gelu:
        if gelu is not None:
            raise SourceError(f"{path}: states quick_gelu and act_kwargs, which exclude each other")
        return "quick_gelu"
    return "gelu_tanh" if gelu is not None and gelu.approximate == "tanh" else "gelu"


def _mlp_width(width: int, ratio: float) -> int | None:
    # Four times the width is not stated, so that every layout gives the same configuration.
    return None if ratio == 4 else int(width * ratio)


def _read_tokenizer(place: Path | None, config: ClipConfig, weights: Path) -> TextTokens:
    """Read the tokenizer of OpenAI's and open_clip's weights, whose programs clean texts before it."""
    place = place or installed_vocabulary()
    if place is None:
        raise SourceError(
            f"{weights}: carries no tokenizer; name one with --tokenizer (a tokenizer.json, or {REFERENCE}), "
            "or pip install open_clip_torch, whose vocabulary is then read"
        )
    text = config.text
    content = tokenizer_json(place, vocab_size=text.vocab_size, end_of_text_id=text.end_of_text_id)
    return TextTokens(content, text.end_of_text_id, text.pad_id, cleaning="clip")


def _convert(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    own_text = any(name.startswith("text.") for name in weights)
    return (CUSTOM_TEXT if own_text else OPENAI).convert(weights, wanted, path)


OPEN_CLIP: Final = OpenClipLayout(
    matches=_matches,
    read=_read,
    read_tokenizer=_read_tokenizer,
    complete=lambda config, _tokens: config,
    needs_preprocess_cfg=False,
    convert=_convert,
)
