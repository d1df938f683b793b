"""``config.json`` of `CLIPModel` and `SiglipModel` → our configurations.

The defaults are the table that `CLIPConfig` and `SiglipConfig` of transformers publish: a configuration may leave out
what does not differ from them. What our modules fix, a configuration may not say otherwise.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from model_export.architectures.activations import Activation
from model_export.architectures.layers import LAYER_NORM_EPS
from model_export.checkpoints.json_files import checked
from model_export.errors import SourceError, messages
from model_export.families.clip.config import ClipConfig, TextTransformerConfig, VisionTransformerConfig
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig

LEGACY_END_OF_TEXT: Final = 2
"""What older CLIP configurations say of ``eos_token_id``, whatever it is: transformers then takes the highest id of a
text, which is the tokenizer's end of text."""

REFERENCE_PAD_ID: Final = 0
"""CLIP's reference pads with 0; behind the end of a text, under a causal mask, it changes nothing."""

_SIGLIP_LAYER_NORM_EPS: Final = 1e-6

_CLIP_ACTIVATIONS: Final[Mapping[str, Activation]] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
_SIGLIP_ACTIVATIONS: Final[Mapping[str, Literal["gelu_tanh", "gelu"]]] = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
}


_Known = TypeVar("_Known", bound=str)


def _side(value: object) -> object:
    """Take ``[n, n]`` for ``n``."""
    return value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value


def _one(value: object) -> object:
    """Take ``[n]`` for ``n``."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


_Side = Annotated[PositiveInt, BeforeValidator(_side)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _ClipText(_Section):
    vocab_size: PositiveInt = 49408
    hidden_size: PositiveInt = 512
    intermediate_size: PositiveInt = 2048
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 8
    max_position_embeddings: PositiveInt = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: Annotated[int, Field(ge=0), BeforeValidator(_one)] = 49407


class _ClipVision(_Section):
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    num_channels: Literal[3] = 3
    image_size: _Side = 224
    patch_size: _Side = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class HfClip(_Section):
    """What a ``config.json`` of `CLIPModel` says, as far as it decides a vector."""

    projection_dim: PositiveInt = 512
    text_config: _ClipText = _ClipText()
    vision_config: _ClipVision = _ClipVision()


class _SiglipText(_Section):
    vocab_size: PositiveInt = 32000
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    max_position_embeddings: PositiveInt = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    projection_size: PositiveInt | None = None


class _SiglipVision(_Section):
    hidden_size: PositiveInt = 768
    intermediate_size: PositiveInt = 3072
    num_hidden_layers: PositiveInt = 12
    num_attention_heads: PositiveInt = 12
    num_channels: Literal[3] = 3
    image_size: _Side = 224
    patch_size: _Side = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    vision_use_head: Literal[True] = True


class HfSiglip(_Section):
    """What a ``config.json`` of `SiglipModel` says, as far as it decides a vector."""

    text_config: _SiglipText = _SiglipText()
    vision_config: _SiglipVision = _SiglipVision()


def read_clip(fields: Mapping[str, Any], path: Path) -> HfClip:
    """Read what a ``config.json`` of `CLIPModel` says.

    Raises:
        SourceError: a value is of another kind, or other than our modules compute with; it is named.
    """
    config = checked(HfClip, _sections(fields, path), path)
    _check_eps(config, LAYER_NORM_EPS, path)
    return config


def read_siglip(fields: Mapping[str, Any], path: Path) -> HfSiglip:
    """Read what a ``config.json`` of `SiglipModel` says; raises what `read_clip` does."""
    config = checked(HfSiglip, _sections(fields, path), path)
    _check_eps(config, _SIGLIP_LAYER_NORM_EPS, path)
    return config


def clip_config(config: HfClip, path: Path, *, end_of_text_id: int) -> ClipConfig:
    """Say a `CLIPModel` in our terms.

    Raises:
        SourceError: an activation is not known, or values do not fit together.
    """
    text, vision = config.text_config, config.vision_config
    try:
        return ClipConfig(
            embed_dim=config.projection_dim,
            image=VisionTransformerConfig(
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                width=vision.hidden_size,
                layers=vision.num_hidden_layers,
                heads=vision.num_attention_heads,
                mlp_width=_mlp_width(vision),
                activation=_activation(vision, _CLIP_ACTIVATIONS, path),
            ),
            text=TextTransformerConfig(
                vocab_size=text.vocab_size,
                context_length=text.max_position_embeddings,
                width=text.hidden_size,
                layers=text.num_hidden_layers,
                heads=text.num_attention_heads,
                mlp_width=_mlp_width(text),
                activation=_activation(text, _CLIP_ACTIVATIONS, path),
                end_of_text_id=end_of_text_id,
                pad_id=REFERENCE_PAD_ID,
            ),
        )
    except ValidationError as exc:
        raise _misfit(exc, path) from exc


def siglip_config(config: HfSiglip, path: Path, *, pad_id: int) -> SiglipConfig:
    """Say a `SiglipModel` in our terms; raises what `clip_config` does."""
    text, vision = config.text_config, config.vision_config
    activation = _activation(vision, _SIGLIP_ACTIVATIONS, path)
    if activation != _activation(text, _SIGLIP_ACTIVATIONS, path):
        raise SourceError(f"{path}: the towers' hidden_act differ; SigLIP's are the same here")
    try:
        return SiglipConfig(
            image=SiglipImageConfig(
                image_size=vision.image_size,
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
                pad_id=pad_id,
            ),
            layer_norm_eps=_SIGLIP_LAYER_NORM_EPS,
            activation=activation,
        )
    except ValidationError as exc:
        raise _misfit(exc, path) from exc


def _sections(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Lay what the file says out as it counts; null means what leaving a field out means."""
    sections: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    for name in ("text_config", "vision_config"):
        # Older files say each tower twice. Where they differ, transformers takes the second, with its defaults.
        said = sections.get(f"{name}_dict", sections.get(name, {}))
        if not isinstance(said, dict):
            raise SourceError(f"{path}: {name} must be a JSON object")
        sections[name] = {key: value for key, value in said.items() if value is not None}
    return sections


def _check_eps(config: HfClip | HfSiglip, wanted: float, path: Path) -> None:
    for name, tower in (("text_config", config.text_config), ("vision_config", config.vision_config)):
        if not math.isclose(tower.layer_norm_eps, wanted, rel_tol=1e-6):
            raise SourceError(
                f"{path}: {name}.layer_norm_eps is {tower.layer_norm_eps:g}; only {wanted:g} can be exported"
            )


def _mlp_width(tower: _ClipText | _ClipVision) -> int | None:
    # Four times the width goes without saying, so that every layout gives the same configuration.
    return None if tower.intermediate_size == 4 * tower.hidden_size else tower.intermediate_size


def _activation(
    tower: _ClipText | _ClipVision | _SiglipText | _SiglipVision, table: Mapping[str, _Known], path: Path
) -> _Known:
    if tower.hidden_act not in table:
        section = "text_config" if isinstance(tower, (_ClipText, _SiglipText)) else "vision_config"
        raise SourceError(f"{path}: {section}.hidden_act {tower.hidden_act!r} is not known; {', '.join(table)} are")
    return table[tower.hidden_act]


def _misfit(exc: ValidationError, path: Path) -> SourceError:
    return SourceError(f"{path}: {messages(exc)}")
