"""``open_clip_config.json``, as far as our modules can compute what it says.

The defaults are those of open_clip's ``CLIPVisionCfg``, ``CLIPTextCfg`` and ``PreprocessCfg``. A setting that changes
the model and that our modules do not have may only have its default; one that is unknown is refused too.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from model_export.checkpoints.json_files import checked
from model_export.errors import SourceError
from service.model.manifest import Rgb

TIMM_SIGLIP: Final = re.compile(r"vit_(?P<width>[a-z0-9]+)_patch(?P<patch>\d+)_siglip_(?P<size>\d+)")
"""timm's names for the image towers of SigLIP; those with ``gap`` in the name are pooled by the mean, not read here."""

Side = PositiveInt | tuple[PositiveInt, PositiveInt]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gelu(_Section):
    """Arguments of ``nn.GELU``."""

    approximate: Literal["none", "tanh"] = "none"


class _ClipNorm(_Section):
    eps: Annotated[float, Field(ge=1e-5, le=1e-5)] = 1e-5


class _SiglipNorm(_Section):
    eps: Annotated[float, Field(ge=1e-6, le=1e-6)]


class _Block(_Section):
    """What may be set of either transformer, and may not differ from its default."""

    block_type: Literal["default"] | None = None
    ls_init_value: None = None
    qk_norm: Literal[False] = False
    scaled_cosine_attn: Literal[False] = False
    scale_heads: Literal[False] = False
    scale_attn_inner: Literal[False] = False
    scale_attn: Literal[False] = False
    scale_fc: Literal[False] = False
    output_tokens: bool = False


class _Vision(_Block):
    """An image tower of open_clip's own."""

    layers: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = 12
    width: PositiveInt = 768
    head_width: PositiveInt = 64
    mlp_ratio: PositiveFloat = 4.0
    patch_size: PositiveInt | None = 16
    image_size: Side = 224
    patch_dropout: float = 0.0
    attentional_pool: Literal[False] = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8
    no_ln_pre: Literal[False] = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    final_ln_after_pool: bool = False  # the class token alone is read, so it makes no difference
    pool_type: Literal["tok"] = "tok"
    act_kwargs: Gelu | None = None
    norm_kwargs: _ClipNorm | None = None
    timm_model_name: None = None
    timm_model_pretrained: bool = False
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None


class _TextBase(_Block):
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


class _Text(_TextBase):
    """The text tower of a CLIP."""

    tokenizer_kwargs: dict[str, Any] | None = Field(default=None, max_length=0)
    no_causal_mask: Literal[False] = False
    pool_type: Literal["argmax", "eos"] = "argmax"
    proj_bias: Literal[False] = False
    norm_kwargs: _ClipNorm | None = None


class _Cleaning(_Section):
    clean: Literal["canonicalize"]


class _SiglipText(_TextBase):
    """The text tower of a SigLIP."""

    tokenizer_kwargs: _Cleaning
    no_causal_mask: Literal[True]
    pool_type: Literal["last"]
    proj_bias: Literal[True]
    norm_kwargs: _SiglipNorm


class _TimmVision(_Section):
    """An image tower of timm's that is a SigLIP's."""

    timm_model_name: str
    image_size: Side = 224
    timm_model_pretrained: bool = False
    timm_pool: Literal["map"]
    timm_proj: Literal["none"]
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None
    patch_dropout: float = 0.0


class _Model(_Section):
    embed_dim: PositiveInt
    custom_text: bool = False
    init_logit_scale: float | None = None
    init_logit_bias: float | None = None
    nonscalar_logit_scale: bool = False


class OpenClip(_Model):
    """``model_cfg`` of a CLIP."""

    quick_gelu: bool = False
    vision_cfg: _Vision
    text_cfg: _Text


class OpenSiglip(_Model):
    """``model_cfg`` of a SigLIP."""

    quick_gelu: Literal[False] = False
    vision_cfg: _TimmVision
    text_cfg: _SiglipText


class Preprocess(BaseModel):
    """``preprocess_cfg``; open_clip passes over what it does not know, and takes the size from the model."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    mode: Literal["RGB"] = "RGB"
    mean: float | Rgb | None = None
    std: float | Rgb | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    resize_mode: Literal["shortest", "squash", "longest"] | None = None


def model_config(fields: object, path: Path) -> OpenClip | OpenSiglip:
    """Read ``model_cfg``.

    Raises:
        SourceError: a value is of another kind, or says what our modules cannot compute; it is named.
    """
    sections = fields if isinstance(fields, dict) else {}
    vision, text = sections.get("vision_cfg"), sections.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise SourceError(f"{path}: lacks vision_cfg and text_cfg; is it an open_clip_config.json?")
    if "multimodal_cfg" in sections:
        raise SourceError(f"{path}: is of a CoCa, which is not read here; only CLIP and SigLIP are")
    if name := text.get("hf_model_name"):
        raise SourceError(f"{path}: its text tower is {name}, which is not read here")
    timm = vision.get("timm_model_name")
    if not timm:
        return checked(OpenClip, sections, path)
    if not TIMM_SIGLIP.fullmatch(str(timm)):
        raise SourceError(f"{path}: its image tower is timm's {timm}, which is not read here; only SigLIP's are")
    return checked(OpenSiglip, sections, path)
