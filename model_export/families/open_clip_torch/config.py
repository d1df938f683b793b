"""``model_cfg`` of open_clip as data: every setting of open_clip's ``CLIPVisionCfg`` and ``CLIPTextCfg``.

Names and types follow open_clip 3.3. The values are passed to open_clip's own modules, so they are not interpreted
here, except those that a bundle cannot express.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.families.open_clip import Gelu, Model, Section, Side, square_side
from model_export.families.open_clip_torch.text_towers import TEXT_TOWERS
from model_export.files import checked

_TimmName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
"""A name of timm's own; one with a colon would be a hub's, which timm would download."""

_SIZE_OF_NAME: Final = re.compile(r"(vit_|eva|beit|deit|swin)\w*_(?P<size>\d{3})(\.|$)")
"""Towers of timm's that take pictures of one size, which ends their name.

ViTamin is left to the modules: open_clip's own ``ViTamin-XL-384`` states 256.
"""


class _Norm(Section):
    eps: PositiveFloat = 1e-5


class _Blocks(Section):
    """Settings of either transformer."""

    layers: PositiveInt = 12
    mlp_ratio: PositiveFloat = 4.0
    ls_init_value: float | None = None
    output_tokens: bool = False
    act_kwargs: Gelu | None = None
    norm_kwargs: _Norm | None = None
    block_type: Literal["default", "custom"] | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False


class _Vision(_Blocks):
    layers: PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = 12  # type: ignore[assignment]
    width: PositiveInt = 768
    head_width: PositiveInt = 64
    patch_size: PositiveInt | None = 16
    image_size: Side = 224
    patch_dropout: float = 0.0
    attentional_pool: bool = False
    attn_pooler_queries: PositiveInt = 256
    attn_pooler_heads: PositiveInt = 8
    no_ln_pre: bool = False
    pos_embed_type: Literal["learnable", "sin_cos_2d"] = "learnable"
    final_ln_after_pool: bool = False
    pool_type: Literal["tok", "avg"] = "tok"
    timm_model_name: _TimmName | None = None
    timm_model_pretrained: bool = False
    timm_pool: str = "avg"
    timm_proj: str | None = "linear"
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None


class _TokenizerSettings(Section):
    clean: Literal["whitespace", "canonicalize"] | None = None
    strip_sep_token: bool = False


class _Text(_Blocks):
    context_length: Annotated[int, Field(ge=2)] = 77
    vocab_size: PositiveInt = 49408
    hf_tokenizer_name: str | None = None
    tokenizer_mode: None = None
    tokenizer_kwargs: _TokenizerSettings | None = None
    width: PositiveInt = 512
    heads: PositiveInt = 8
    embed_cls: bool = False
    pad_id: Annotated[int, Field(ge=0)] = 0
    eos_id: Annotated[int, Field(ge=0)] = 2
    no_causal_mask: bool = False
    final_ln_after_pool: bool = False
    pool_type: Literal["first", "last", "argmax", "eos"] = "argmax"
    proj_type: Literal["linear", "none"] = "linear"
    proj_bias: bool = False
    hf_model_name: str | None = None
    hf_model_pretrained: bool = True
    hf_proj_type: Literal["linear", "mlp"] | None = "mlp"
    hf_pooler_type: Literal["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] | None = "mean_pooler"


class _ModelCfg(Model):
    quick_gelu: bool = False
    vision_cfg: _Vision
    text_cfg: _Text
    multimodal_cfg: dict[str, Any] | None = None


class ImageShape(BaseModel):
    """The image tower, as far as anything but its modules needs it."""

    model_config = ConfigDict(frozen=True)

    image_size: PositiveInt


class TextShape(BaseModel):
    """The text tower, as far as anything but its modules needs it.

    Attributes:
        end_of_text_id: of the token at which the tower reads its feature; None if it reads elsewhere.
        tokenizer: the form of its tokenizer.
    """

    model_config = ConfigDict(frozen=True)

    vocab_size: PositiveInt
    context_length: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    end_of_text_id: int | None
    pad_id: int
    tokenizer: Literal["clip", "canonical", "bert", "hugging_face"]


class OpenClipTorchConfig(BaseModel):
    """A model that open_clip's modules compute.

    Attributes:
        settings: ``model_cfg`` for open_clip's ``CustomTextCLIP``.
    """

    model_config = ConfigDict(frozen=True)

    embed_dim: PositiveInt
    image: ImageShape
    text: TextShape
    settings: dict[str, Any]

    @property
    def tower(self) -> str:
        """The name of the image tower: timm's, or the kind of open_clip's."""
        vision = self.settings["vision_cfg"]
        own = "vit" if isinstance(vision["layers"], int) else "modified_resnet"
        return str(vision["timm_model_name"] or own)

    @property
    def architecture(self) -> str:
        """Program and image tower, for people."""
        return f"open_clip/{self.tower}"

    @property
    def image_shape(self) -> str:
        """The image tower, for people."""
        return self.tower

    @property
    def activations(self) -> frozenset[Activation]:
        """None is known: they are a matter of the modules."""
        return frozenset()

    @property
    def hf_text_tower(self) -> str | None:
        """The hub id whose text tower it is, if it is one of transformers'."""
        name: str | None = self.settings["text_cfg"]["hf_model_name"]
        return name

    @property
    def reads_at_end_of_text(self) -> bool:
        """Whether the text's vector depends on nothing behind its end-of-text token, so that padding is free."""
        text = self.settings["text_cfg"]
        return not (
            text["hf_model_name"] or text["no_causal_mask"] or text["embed_cls"] or self.text.end_of_text_id is None
        )


def size_of_tower(name: str) -> int | None:
    """Return the side of the pictures that a tower of timm's takes, pixels, if its name says."""
    found = _SIZE_OF_NAME.match(name)
    return None if found is None else int(found["size"])


def read_config(fields: Mapping[str, Any], activation: Activation | None, path: Path) -> OpenClipTorchConfig:
    """Read ``model_cfg``.

    Raises:
        SourceError: a setting is unknown or invalid, or a bundle cannot express it; the message names it.
    """
    if activation is not None:
        raise SourceError(f"{path}: states the activation; leave --activation out")
    given = checked(_ModelCfg, fields, path)
    vision, text = given.vision_cfg, given.text_cfg
    size = square_side(vision.image_size, path)
    if vision.timm_model_name is not None and vision.timm_model_name.startswith("naflex"):
        raise SourceError(f"{path}: its image tower {vision.timm_model_name} takes pictures of any shape, a bundle one")
    named = size_of_tower(vision.timm_model_name or "")
    if named not in {None, size}:
        raise SourceError(
            f"{path}: image_size is {size}, timm's {vision.timm_model_name} takes pictures of {named} pixels"
        )
    if vision.timm_model_name is None and isinstance(vision.layers, int):
        if vision.patch_size is None:
            raise SourceError(f"{path}: vision_cfg.patch_size is missing")
        if size % vision.patch_size:
            raise SourceError(f"{path}: image_size {size} is not a multiple of patch_size {vision.patch_size}")
    if text.hf_model_name is None and text.width % text.heads:
        raise SourceError(f"{path}: width {text.width} is not a multiple of {text.heads} heads")
    if given.quick_gelu and (vision.act_kwargs or text.act_kwargs):
        raise SourceError(f"{path}: states quick_gelu and act_kwargs, which exclude each other")
    settings = given.model_dump(mode="json", include={"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"})
    # Tokens are for a decoder, dropouts for training, and weights come from the file.
    settings["vision_cfg"] |= {"output_tokens": False, "patch_dropout": 0.0, "timm_model_pretrained": False}
    settings["text_cfg"] |= {"output_tokens": False, "hf_model_pretrained": False}
    return OpenClipTorchConfig(
        embed_dim=given.embed_dim, image=ImageShape(image_size=size), text=_text_shape(text, path), settings=settings
    )


def _text_shape(text: _Text, path: Path) -> TextShape:
    if text.hf_model_name is not None:
        tower = TEXT_TOWERS.get(text.hf_model_name)
        if tower is None:
            known = ", ".join(TEXT_TOWERS)
            raise SourceError(
                f"{path}: its text tower is {text.hf_model_name}, whose shape is unknown; {known} are read"
            )
        return TextShape(
            vocab_size=tower.vocab_size,
            context_length=text.context_length,
            width=tower.width,
            layers=tower.layers,
            end_of_text_id=None,
            pad_id=tower.pad_id,
            tokenizer="hugging_face",
        )
    end = {"argmax": text.vocab_size - 1, "eos": text.eos_id}.get(text.pool_type)
    return TextShape(
        vocab_size=text.vocab_size,
        context_length=text.context_length,
        width=text.width,
        layers=text.layers,
        end_of_text_id=None if text.embed_cls else end,
        pad_id=text.pad_id,
        tokenizer=_tokenizer(text, path),
    )


def _tokenizer(text: _Text, path: Path) -> Literal["clip", "canonical", "bert", "hugging_face"]:
    settings = text.tokenizer_kwargs or _TokenizerSettings()
    if text.hf_tokenizer_name is None:
        if text.tokenizer_kwargs is not None and text.tokenizer_kwargs != _TokenizerSettings():
            raise SourceError(
                f"{path}: states text_cfg.tokenizer_kwargs, which open_clip's own tokenizer does not have"
            )
        return "clip"
    if settings.strip_sep_token:
        return "bert"
    return "canonical" if settings.clean == "canonicalize" else "hugging_face"
