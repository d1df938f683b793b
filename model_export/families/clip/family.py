"""CLIP's row: an image and a text tower into one joint space, scored by a softmax (Radford et al. 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.config import ClipConfig, VisionTransformerConfig
from model_export.families.clip.hugging_face import HUGGING_FACE
from model_export.families.clip.open_clip import OPEN_CLIP
from model_export.families.clip.sizes import CLIP_SIZES
from model_export.families.clip.tokenizer import open_tokenizer
from model_export.families.family import Family, ImageDefaults, OnnxLayout
from model_export.families.published import REFUSED
from model_export.families.tokenizers import TextTokens, TokenizerSettings

if TYPE_CHECKING:
    from model_export.architectures.towers import TwoTowers


def _build(config: ClipConfig) -> TwoTowers:
    from model_export.families.clip.model import ClipModel

    return ClipModel(config)


def _named(config: ClipConfig, arch: str, activation: Activation | None, path: Path) -> ClipConfig:
    """Set the activation of a named size.

    Raises:
        SourceError: the activation is open: OpenAI trained the paper's sizes with QuickGELU, open_clip with GELU,
            under the same names.
    """
    if activation is not None:
        return config.with_activation(activation)
    stated = arch.casefold().endswith("quickgelu") or arch.startswith("openai/")
    if config.text.activation == "quick_gelu" and not stated:
        raise SourceError(
            f"{path}: does not state its activation, and {arch} was trained with both; add --activation quick_gelu "
            "(OpenAI's weights) or --activation gelu (most of open_clip's)"
        )
    return config


def _onnx_tokenizer(folder: Path, tokenizer: Path | None, vocab_size: int) -> TextTokens:
    opened = open_tokenizer(tokenizer or folder, vocab_size=vocab_size)
    settings = TokenizerSettings.read(folder)
    # The graph itself decides where it reads; configurations often state an eos_token_id of 2 that was never true.
    end = settings.token("eos_token", END_OF_TEXT)
    end_of_text_id = opened.token_id(end, "end of text")
    pad_id = opened.token_id(settings.token("pad_token", end), "padding")
    content = opened.to_json(vocab_size=vocab_size, end_of_text_id=end_of_text_id)
    return TextTokens(content, end_of_text_id, pad_id)


_NOT_READ: Final = {each.pattern: f"no {each.name} is read: {each.reason}" for each in REFUSED}

CLIP: Final = Family(
    name="clip",
    title="CLIP",
    config=ClipConfig,
    default=ClipConfig(image=VisionTransformerConfig()),
    build=_build,
    sizes=CLIP_SIZES,
    named=_named,
    padding="longest",
    has_bias=False,
    images=ImageDefaults(
        processors=("CLIPFeatureExtractor", "CLIPImageProcessor"),
        resize="shortest",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    hugging_face=HUGGING_FACE,
    open_clip=OPEN_CLIP,
    onnx=OnnxLayout(
        architecture="clip/vit",
        image_outputs=("image_embeds",),
        text_outputs=("text_embeds",),
        read_tokenizer=_onnx_tokenizer,
    ),
    relatives={
        "jina_clip": _NOT_READ["jina-clip-v2"],
        "chinese_clip": _NOT_READ["chinese-clip"],
        "altclip": _NOT_READ["altclip"],
        "M-CLIP": _NOT_READ["m-clip/"],
        "nomic_bert": _NOT_READ["nomic-embed-vision"],
        "clip_vision_model": "this is a CLIP's image tower alone, and only whole models are read",
        "clip_text_model": "this is a CLIP's text tower alone, and only whole models are read",
    },
)
