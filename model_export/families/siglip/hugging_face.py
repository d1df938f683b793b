"""`SiglipModel` of transformers: ``config.json``, tokenizer, names of parameters.

The defaults are those that `SiglipConfig` publishes: a file may leave out what does not differ from them. What our
modules fix, a file may not state otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import PositiveInt

from model_export.errors import SourceError
from model_export.families import hugging_face
from model_export.families.family import HuggingFaceLayout
from model_export.families.hugging_face import TRANSFORMERS, Config, Side, Tower, VisionSection, activation, read_config
from model_export.families.key_tables import KeyTable, Rows
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from model_export.families.siglip.tokenizer import read_siglip_tokenizer
from model_export.families.tokenizers import TextTokens
from model_export.files import blamed

LAYER_NORM_EPS: Final = 1e-6

_ACTIVATIONS: Final[Mapping[str, Literal["gelu_tanh", "gelu"]]] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


class Text(Tower):
    """``text_config``, with SigLIP's defaults."""

    vocab_size: PositiveInt = 32000
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_attention_heads: PositiveInt = 12
    max_position_embeddings: PositiveInt = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = LAYER_NORM_EPS
    projection_size: PositiveInt | None = None


class Vision(VisionSection):
    """``vision_config``, with SigLIP's defaults."""

    patch_size: Side = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = LAYER_NORM_EPS
    vision_use_head: Literal[True] = True


class HfSiglip(Config):
    """The fields of a `SiglipModel`'s ``config.json`` that decide a vector."""

    text_config: Text = Text()
    vision_config: Vision = Vision()


def read_siglip(fields: Mapping[str, Any], path: Path) -> HfSiglip:
    """Read a `SiglipModel`'s ``config.json``; errors as of `read_config`."""
    return read_config(HfSiglip, fields, path, eps=LAYER_NORM_EPS)


def _configure(
    said: HfSiglip,
    config: Path,
    tokenizer: Path | None,
    as_published: bool,  # noqa: FBT001 - of a row's signature
) -> tuple[SiglipConfig, TextTokens]:
    vision = said.vision_config
    return configured(said, vision, vision.image_size, config, tokenizer, as_published=as_published)


def configured(
    said: Any,  # noqa: ANN401 - of either layout, with the same text section
    vision: Vision,
    image_size: int,
    config: Path,
    tokenizer: Path | None,
    *,
    as_published: bool,
) -> tuple[SiglipConfig, TextTokens]:
    """Read the tokenizer, and return it with both towers, for pictures of ``image_size`` pixels.

    Raises:
        SourceError: the tokenizer cannot be read, or a value is invalid; the message names it.
    """
    text: Text = said.text_config
    tokens = read_siglip_tokenizer(
        config.parent, tokenizer=tokenizer, vocab_size=text.vocab_size, as_published=as_published
    )
    hidden_act = activation("vision_config", vision, _ACTIVATIONS, config)
    if hidden_act != activation("text_config", text, _ACTIVATIONS, config):
        raise SourceError(f"{config}: the towers' hidden_act differ; SigLIP's are the same here")
    with blamed(config):
        ours = SiglipConfig(
            image=SiglipImageConfig(
                image_size=image_size,
                patch_size=vision.patch_size,
                width=vision.hidden_size,
                layers=vision.num_hidden_layers,
                heads=vision.num_attention_heads,
                mlp_width=vision.intermediate_size,
            ),
            text=SiglipTextConfig(
                vocab_size=text.vocab_size,
                context_length=text.max_position_embeddings,
                width=text.hidden_size,
                layers=text.num_hidden_layers,
                heads=text.num_attention_heads,
                mlp_width=text.intermediate_size,
                embed_dim=text.projection_size or text.hidden_size,
                pad_id=tokens.pad_id,
            ),
            layer_norm_eps=LAYER_NORM_EPS,
            activation=hidden_act,
        )
    return ours, tokens


ROWS: Final[Rows] = {
    **TRANSFORMERS,
    "vision_model.embeddings.patch_embedding.*": ("visual.conv1.*",),
    "vision_model.head.probe": ("visual.pool.probe",),
    "vision_model.head.attention.in_proj_*": tuple(f"visual.pool.attn.{which}_proj.*" for which in "qkv"),
    "vision_model.head.attention.out_proj.*": ("visual.pool.attn.out_proj.*",),
    "vision_model.head.layernorm.*": ("visual.pool.ln.*",),
    "vision_model.head.mlp.fc1.*": ("visual.pool.mlp.c_fc.*",),
    "vision_model.head.mlp.fc2.*": ("visual.pool.mlp.c_proj.*",),
    "text_model.head.*": ("text.proj.*",),
    "logit_bias": ("logit_bias",),
}
"""Names of parameters, each with ours."""

HUGGING_FACE: Final = HuggingFaceLayout(
    read=read_siglip,
    image_size=lambda said: said.vision_config.image_size,
    configure=_configure,
    convert=partial(hugging_face.convert, KeyTable(ROWS)),
)
