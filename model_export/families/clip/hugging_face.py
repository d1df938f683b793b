"""`CLIPModel` of transformers: ``config.json``, tokenizer, names of parameters.

The defaults are those that `CLIPConfig` publishes: a file may leave out what does not differ from them. What our
modules fix, a file may not state otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, Field, PositiveInt

from model_export.architectures.activations import LAYER_NORM_EPS, Activation
from model_export.families import hugging_face
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.config import PAD_ID, ClipConfig, TextTransformerConfig, VisionTransformerConfig
from model_export.families.clip.tokenizer import open_tokenizer
from model_export.families.family import HuggingFaceLayout
from model_export.families.hugging_face import TRANSFORMERS, Config, Side, Tower, VisionSection, activation, read_config
from model_export.families.key_tables import KeyTable
from model_export.families.tokenizers import OpenTokenizer, TextTokens, TokenizerSettings
from model_export.files import blamed

if TYPE_CHECKING:
    from torch import Tensor

LEGACY_END_OF_TEXT: Final = 2
"""``eos_token_id`` of older configurations, whatever the tokenizer's is: transformers then takes the highest id of a
text, which is the tokenizer's end of text."""

_ACTIVATIONS: Final[Mapping[str, Activation]] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def _one(value: object) -> object:
    """Take ``[n]`` for ``n``."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class _Text(Tower):
    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = LAYER_NORM_EPS
    eos_token_id: Annotated[int, Field(ge=0), BeforeValidator(_one)] = 49407


class _Vision(VisionSection):
    patch_size: Side = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = LAYER_NORM_EPS


class HfClip(Config):
    """The fields of a `CLIPModel`'s ``config.json`` that decide a vector."""

    projection_dim: PositiveInt = 512
    text_config: _Text = _Text()
    vision_config: _Vision = _Vision()


def read_clip(fields: Mapping[str, Any], path: Path) -> HfClip:
    """Read a `CLIPModel`'s ``config.json``; errors as of `read_config`."""
    return read_config(HfClip, fields, path, eps=LAYER_NORM_EPS)


def _configure(
    said: HfClip,
    config: Path,
    tokenizer: Path | None,
    _as_published: bool,  # noqa: FBT001 - of a row's signature
) -> tuple[ClipConfig, TextTokens]:
    opened = open_tokenizer(tokenizer or config.parent, vocab_size=said.text_config.vocab_size)
    end_of_text_id = _end_of_text_id(said.text_config.eos_token_id, opened)
    ours = towers(said, config, end_of_text_id, PAD_ID)
    content = opened.to_json(vocab_size=said.text_config.vocab_size, end_of_text_id=end_of_text_id)
    return ours, TextTokens(content, end_of_text_id, PAD_ID)


def towers(said: HfClip, config: Path, end_of_text_id: int, pad_id: int) -> ClipConfig:
    """Return both towers; the path of ``config.json`` is for errors.

    Raises:
        SourceError: a value is invalid; the message names it.
    """
    text, vision = said.text_config, said.vision_config
    with blamed(config):
        return ClipConfig(
            embed_dim=said.projection_dim,
            image=VisionTransformerConfig(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                width=vision.hidden_size,
                layers=vision.num_hidden_layers,
                heads=vision.num_attention_heads,
                mlp_width=_mlp_width(vision),
                activation=activation("vision_config", vision, _ACTIVATIONS, config),
            ),
            text=TextTransformerConfig(
                vocab_size=text.vocab_size,
                context_length=text.max_position_embeddings,
                width=text.hidden_size,
                layers=text.num_hidden_layers,
                heads=text.num_attention_heads,
                mlp_width=_mlp_width(text),
                activation=activation("text_config", text, _ACTIVATIONS, config),
                end_of_text_id=end_of_text_id,
                pad_id=pad_id,
            ),
        )


def _end_of_text_id(said: int, tokenizer: OpenTokenizer) -> int:
    if said != LEGACY_END_OF_TEXT:
        return said
    token = TokenizerSettings.read(tokenizer.path.parent).token("eos_token", END_OF_TEXT)
    return tokenizer.token_id(token, "end of text")


def _mlp_width(tower: Tower) -> int | None:
    # Four times the width is not stated, so that every layout gives the same configuration.
    return None if tower.intermediate_size == 4 * tower.hidden_size else tower.intermediate_size


_KEYS: Final = KeyTable(
    {
        **TRANSFORMERS,
        "vision_model.embeddings.class_embedding": ("visual.class_embedding",),
        "vision_model.embeddings.patch_embedding.weight": ("visual.conv1.weight",),
        "vision_model.pre_layrnorm.*": ("visual.ln_pre.*",),  # so spelled
        "visual_projection.weight": ("visual.proj",),
        "text_projection.weight": ("text.text_projection",),
    }
)

_TRANSPOSED: Final = frozenset({"visual.proj", "text.text_projection"})


def _convert(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    return hugging_face.convert(_KEYS, weights, wanted, path, transposed=_TRANSPOSED)


HUGGING_FACE: Final = HuggingFaceLayout(
    read=read_clip,
    image_size=lambda said: said.vision_config.image_size,
    configure=_configure,
    convert=_convert,
)
