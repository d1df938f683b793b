"""SigLIP in open_clip's layout: ``model_cfg`` with an image tower of timm's, tokenizer, names of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.families.family import OpenClipLayout
from model_export.families.key_tables import RESBLOCK, KeyTable, Rows, same, under
from model_export.families.open_clip import Model, Section, Side, TextBase, Timm, square_side
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from model_export.families.siglip.open_clip_tokenizer import read_canonical_tokenizer
from model_export.families.siglip.sizes import SHAPES
from model_export.families.siglip.tokenizer import read_siglip2_tokenizer
from model_export.families.tokenizers import TextTokens
from model_export.files import blamed, checked
from service.model.manifest import ImageSection

if TYPE_CHECKING:
    from torch import Tensor

_TIMM_NAME: Final = re.compile(r"vit_(?P<width>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<size>\d+)")
"""timm's names of SigLIP's image towers; one with ``gap`` in its name is pooled by the mean, and is not read here."""


_SECOND_VOCABULARY: Final = 256_000
"""Tokens of Gemma's vocabulary, which only SigLIP 2 has."""

_TRAINED: Final = (
    "texts keep their punctuation, and pictures are resized by bilinear, as in the training of SigLIP 2; open_clip "
    "strips punctuation and resizes by bicubic, which --as-published takes"
)


class _SiglipNorm(Section):
    eps: Annotated[float, Field(ge=1e-6, le=1e-6)]


class _Cleaning(Section):
    clean: Literal["canonicalize"]


class _SiglipText(TextBase):
    """The text tower of a SigLIP."""

    tokenizer_kwargs: _Cleaning
    no_causal_mask: Literal[True]
    pool_type: Literal["last"]
    proj_bias: Literal[True]
    norm_kwargs: _SiglipNorm


class _TimmVision(Timm):
    """An image tower of timm's that is a SigLIP's."""

    timm_model_name: str
    image_size: Side = 224
    timm_pool: Literal["map"]
    timm_proj: Literal["none"]


class _OpenSiglip(Model):
    """``model_cfg`` of a SigLIP."""

    quick_gelu: Literal[False] = False
    vision_cfg: _TimmVision
    text_cfg: _SiglipText


def _matches(vision: Mapping[str, Any], _text: Mapping[str, Any]) -> bool:
    return _TIMM_NAME.fullmatch(str(vision.get("timm_model_name"))) is not None


def _read(fields: Mapping[str, Any], activation: Activation | None, path: Path) -> SiglipConfig:
    """Read ``model_cfg``; the padding's id is still to come from the tokenizer.

    The activation is the one SigLIP was trained with, GELU by its tanh formula, as transformers has it. timm's port
    computes the exact GELU in some of the sizes, open_clip's text tower in others: the weights are the same ones.
    """
    config = _config(checked(_OpenSiglip, fields, path), path)
    return config if activation is None else config.with_activation(activation, path)


def _config(model: _OpenSiglip, path: Path) -> SiglipConfig:
    vision, text = model.vision_cfg, model.text_cfg
    found = _TIMM_NAME.fullmatch(vision.timm_model_name)
    if found is None or found["width"] not in SHAPES:
        raise SourceError(f"{path}: its image tower is timm's {vision.timm_model_name}, whose shape is unknown")
    size = square_side(vision.image_size, path)
    if size != int(found["size"]):
        raise SourceError(f"{path}: image_size {size} is not that of timm's {vision.timm_model_name}")
    with blamed(path):
        return SiglipConfig(
            image=SiglipImageConfig(image_size=size, patch_size=int(found["patch"]), **SHAPES[found["width"]]),
            text=SiglipTextConfig(
                vocab_size=text.vocab_size,
                context_length=text.context_length,
                width=text.width,
                layers=text.layers,
                heads=text.heads,
                mlp_width=int(text.width * text.mlp_ratio),
                embed_dim=model.embed_dim,
            ),
        )


def _read_tokenizer(place: Path | None, config: SiglipConfig, weights: Path) -> TextTokens:
    if place is None:
        raise SourceError(f"{weights}: carries no tokenizer; name its tokenizer.json with --tokenizer")
    return read_canonical_tokenizer(place, vocab_size=config.text.vocab_size)


def _as_trained(
    place: Path | None, config: SiglipConfig, image: ImageSection
) -> tuple[ImageSection, TextTokens] | None:
    """Return SigLIP 2's preparation: texts in lower case with their punctuation, pictures by bilinear.

    So does its authors' example, with ``resize(…)|value_range(-1, 1)`` and ``lower|tok(model="gemma")``, and so do its
    files for transformers. open_clip strips punctuation, and resizes by bicubic.
    """
    if place is None or config.text.vocab_size != _SECOND_VOCABULARY:
        return None
    tokens = read_siglip2_tokenizer(place, vocab_size=config.text.vocab_size)
    return image.model_copy(update={"interpolation": "bilinear"}), replace(tokens, note=_TRAINED)


def _complete(config: SiglipConfig, tokens: TextTokens) -> SiglipConfig:
    return config.model_copy(update={"text": config.text.model_copy(update={"pad_id": tokens.pad_id})})


_TIMM_BLOCK: Final[Rows] = {
    "norm1.*": ("ln_1.*",),
    "attn.qkv.*": ("attn.q_proj.*", "attn.k_proj.*", "attn.v_proj.*"),
    "attn.proj.*": ("attn.out_proj.*",),
    "norm2.*": ("ln_2.*",),
    "mlp.fc1.*": ("mlp.c_fc.*",),
    "mlp.fc2.*": ("mlp.c_proj.*",),
}
"""One block of timm's ``VisionTransformer``."""

_TIMM_TOWER: Final[Rows] = {
    "patch_embed.proj.*": ("conv1.*",),
    "pos_embed": ("positional_embedding",),
    **under("blocks.#.", "blocks.#.", _TIMM_BLOCK),
    "norm.*": ("ln_post.*",),
    "attn_pool.latent": ("pool.probe",),
    "attn_pool.q.*": ("pool.attn.q_proj.*",),
    "attn_pool.kv.*": ("pool.attn.k_proj.*", "pool.attn.v_proj.*"),
    "attn_pool.proj.*": ("pool.attn.out_proj.*",),
    "attn_pool.norm.*": ("pool.ln.*",),
    "attn_pool.mlp.fc1.*": ("pool.mlp.c_fc.*",),
    "attn_pool.mlp.fc2.*": ("pool.mlp.c_proj.*",),
}
"""timm's ``VisionTransformer`` with ``global_pool="map"`` and no class token."""

KEYS: Final = KeyTable(
    {
        **same("logit_scale", "logit_bias", "text.token_embedding.weight", "text.positional_embedding"),
        **same("text.ln_final.*"),
        "text.text_projection.*": ("text.proj.*",),
        **under("text.transformer.resblocks.#.", "text.blocks.#.", RESBLOCK),
        **under("visual.trunk.", "visual.", _TIMM_TOWER),
    }
)

_POSITIONS: Final = "visual.trunk.pos_embed"


def _convert(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    flat = {
        name: tensor.squeeze(0) if name == _POSITIONS and tensor.ndim == 3 else tensor  # [1, patches, width]
        for name, tensor in weights.items()
    }
    return KEYS.convert(flat, wanted, path)


OPEN_CLIP: Final = OpenClipLayout(
    matches=_matches,
    read=_read,
    read_tokenizer=_read_tokenizer,
    complete=_complete,
    needs_preprocess_cfg=True,
    convert=_convert,
    as_trained=_as_trained,
)
