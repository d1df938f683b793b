"""What a SigLIP model is made of, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from model_export.families.clip.config import Section


class _Transformer(Section):
    width: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072

    @model_validator(mode="after")
    def _divides(self) -> _Transformer:
        if self.width % self.heads:
            msg = f"width {self.width} is not a multiple of {self.heads} heads"
            raise ValueError(msg)
        return self


class SiglipImageConfig(_Transformer):
    """ViT without a class token, pooled by attention; its width is the joint space's."""

    image_size: PositiveInt = 224
    """Not always a multiple of the patch size: So400m/14 at 384 leaves the last six rows and columns unseen."""
    patch_size: PositiveInt = 16

    @model_validator(mode="after")
    def _large_enough(self) -> SiglipImageConfig:
        if self.image_size < self.patch_size:
            msg = f"image_size {self.image_size} is less than one patch of {self.patch_size}"
            raise ValueError(msg)
        return self

    @property
    def patches(self) -> int:
        """Whole patches in a picture."""
        return (self.image_size // self.patch_size) ** 2


class SiglipTextConfig(_Transformer):
    """Bidirectional text transformer; every text is padded to the context, its feature is read at the last place."""

    vocab_size: PositiveInt = 32000
    context_length: PositiveInt = 64
    embed_dim: PositiveInt = 768
    pad_id: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _knows_its_padding(self) -> SiglipTextConfig:
        if self.pad_id >= self.vocab_size:
            msg = f"pad_id must be below vocab_size {self.vocab_size}"
            raise ValueError(msg)
        return self


class SiglipConfig(Section):
    """Both towers."""

    image: SiglipImageConfig = SiglipImageConfig()
    text: SiglipTextConfig = SiglipTextConfig()
    layer_norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"

    @property
    def embed_dim(self) -> int:
        """Dimensions of the joint space."""
        return self.text.embed_dim

    @model_validator(mode="after")
    def _meet(self) -> SiglipConfig:
        if self.image.width != self.text.embed_dim:
            msg = f"image.width {self.image.width} and text.embed_dim {self.text.embed_dim} must be the same"
            raise ValueError(msg)
        return self
