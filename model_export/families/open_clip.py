"""What families share of open_clip's layout: the sections of ``open_clip_config.json``.

The defaults are those of open_clip's ``CLIPVisionCfg`` and ``CLIPTextCfg``. A setting that changes the model and that
our modules do not have may only have its default; an unknown setting is refused.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from model_export.errors import SourceError

Side = PositiveInt | tuple[PositiveInt, PositiveInt]


class Section(BaseModel):
    """A section of the file; an unknown setting is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gelu(Section):
    """Arguments of ``nn.GELU``."""

    approximate: Literal["none", "tanh"] = "none"


class Block(Section):
    """Settings of either transformer that may only have their default."""

    block_type: Literal["default"] | None = None
    ls_init_value: None = None
    qk_norm: Literal[False] = False
    scaled_cosine_attn: Literal[False] = False
    scale_heads: Literal[False] = False
    scale_attn_inner: Literal[False] = False
    scale_attn: Literal[False] = False
    scale_fc: Literal[False] = False
    output_tokens: bool = False


class Timm(Section):
    """Settings of an image tower of timm's that change no vector."""

    timm_model_pretrained: bool = False
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None
    patch_dropout: float = 0.0


class TextBase(Block):
    """Settings of a text tower that every family has."""

    context_length: PositiveInt = 77
    vocab_size: PositiveInt = 49408
    hf_tokenizer_name: str | None = None
    tokenizer_mode: None = None
    width: PositiveInt = 512
    heads: PositiveInt = 8
    layers: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    embed_cls: Literal[False] = False
    pad_id: int = 0
    eos_id: int = 2
    final_ln_after_pool: Literal[False] = False
    proj_type: Literal["linear"] = "linear"
    act_kwargs: Gelu | None = None
    hf_model_name: None = None
    hf_model_pretrained: bool = True
    hf_proj_type: str = "mlp"
    hf_pooler_type: str = "mean_pooler"


class Model(Section):
    """Settings beside the towers."""

    embed_dim: PositiveInt
    custom_text: bool = False
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False


def square_side(size: Side, path: Path) -> int:
    """Return the side of a square picture.

    Raises:
        SourceError: the picture is not square.
    """
    if isinstance(size, tuple):
        if size[0] != size[1]:
            raise SourceError(f"{path}: image_size {list(size)} is not square; only square pictures are read here")
        return size[0]
    return size
