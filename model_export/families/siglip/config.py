"""SigLIP's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.files import Section


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
    """Not always a multiple of the patch size: So400m/14 at 384 ignores the last six rows and columns."""
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
    """Bidirectional text transformer; every text is padded to the context, its feature is read at the last position."""

    vocab_size: PositiveInt = 32000
    context_length: PositiveInt = 64
    embed_dim: PositiveInt = 768
    pad_id: int = Field(default=1, ge=0)

    @model_validator(mode="after")
    def _padding_in_vocabulary(self) -> SiglipTextConfig:
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

    @property
    def architecture(self) -> str:
        """Family and image tower, for people."""
        return "siglip/vit"

    @property
    def image_shape(self) -> str:
        """Layers and width of the image tower, for people: ``ViT 12×768``."""
        return f"ViT {self.image.layers}×{self.image.width}"

    @property
    def activations(self) -> frozenset[Activation]:
        """The activation of both towers' MLPs."""
        return frozenset({self.activation})

    def with_activation(self, activation: Activation, path: Path) -> SiglipConfig:
        """Return the configuration with this activation in both towers; the path is of the source, for messages.

        Raises:
            SourceError: SigLIP has no such activation.
        """
        if activation == "quick_gelu":
            raise SourceError(f"{path}: no SigLIP was trained with quick_gelu; leave --activation out")
        return self.model_copy(update={"activation": activation})

    @model_validator(mode="after")
    def _same_space(self) -> SiglipConfig:
        if self.image.width != self.text.embed_dim:
            msg = f"image.width {self.image.width} and text.embed_dim {self.text.embed_dim} must be the same"
            raise ValueError(msg)
        return self
