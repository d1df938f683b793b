"""SigLIP's row: two towers whose pairs are scored one by one, by a sigmoid (Zhai et al. 2023); also SigLIP 2."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from model_export.architectures.activations import Activation
from model_export.families.family import Family, ImageDefaults, OnnxLayout
from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.hugging_face import HUGGING_FACE
from model_export.families.siglip.open_clip import OPEN_CLIP
from model_export.families.siglip.sizes import SIGLIP_SIZES
from model_export.families.siglip.tokenizer import read_siglip_tokenizer
from model_export.families.tokenizers import TextTokens

if TYPE_CHECKING:
    from model_export.architectures.towers import TwoTowers


def _build(config: SiglipConfig) -> TwoTowers:
    from model_export.families.siglip.model import SiglipModel

    return SiglipModel(config)


def _named(config: SiglipConfig, _arch: str, activation: Activation | None, path: Path) -> SiglipConfig:
    return config if activation is None else config.with_activation(activation, path)


def _onnx_tokenizer(folder: Path, tokenizer: Path | None, vocab_size: int) -> TextTokens:
    return read_siglip_tokenizer(folder, tokenizer=tokenizer, vocab_size=vocab_size)


SIGLIP: Final = Family(
    name="siglip",
    title="SigLIP",
    config=SiglipConfig,
    default=SiglipConfig(),
    build=_build,
    sizes=SIGLIP_SIZES,
    named=_named,
    padding="fixed",
    has_bias=True,
    images=ImageDefaults(
        processors=("SiglipImageProcessor",),
        resize="squash",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    hugging_face=HUGGING_FACE,
    open_clip=OPEN_CLIP,
    onnx=OnnxLayout(
        architecture="siglip/vit",
        # The towers project inside, so what they pool is in the joint space already.
        image_outputs=("image_embeds", "pooler_output"),
        text_outputs=("text_embeds", "pooler_output"),
        read_tokenizer=_onnx_tokenizer,
    ),
    relatives={
        "siglip_vision_model": "this is a SigLIP's image tower alone, and only whole models are read",
        "siglip_text_model": "this is a SigLIP's text tower alone, and only whole models are read",
    },
)
