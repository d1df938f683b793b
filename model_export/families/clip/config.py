"""CLIP's configuration: also the ``model`` section of a recipe and of a training run's ``config.json``."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, assert_never

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from model_export.architectures.activations import Activation
from model_export.files import Section


class _TransformerSection(Section):
    mlp_width: PositiveInt | None = None
    """Channels inside the MLPs; by default four times the width."""

    @model_serializer(mode="wrap")
    def _without_default(self, to_fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Writing the default out would change the digest of recipes: older runs could not be resumed.
        fields: dict[str, Any] = to_fields(self)
        if self.mlp_width is None:
            fields.pop("mlp_width", None)
        return fields


class VisionTransformerConfig(_TransformerSection):
    """ViT image tower (paper, section 2.4): one more LayerNorm before the transformer."""

    kind: Literal["vit"] = "vit"
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 32
    width: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    activation: Activation = "quick_gelu"

    @model_validator(mode="after")
    def _divides(self) -> VisionTransformerConfig:
        if self.image_size % self.patch_size:
            msg = f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            raise ValueError(msg)
        if self.width % self.heads:
            msg = f"width {self.width} is not a multiple of {self.heads} heads"
            raise ValueError(msg)
        return self


class ModifiedResNetConfig(Section):
    """The paper's ResNet: three-convolution stem, average-pool downsampling, attention pooling."""

    kind: Literal["modified_resnet"] = "modified_resnet"
    image_size: PositiveInt = 224
    layers: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (3, 4, 6, 3)
    width: PositiveInt = 64

    @property
    def heads(self) -> int:
        """Heads of the attention pool: its width is 32 times the stem's, 64 channels a head."""
        return max(1, self.width * 32 // 64)

    @model_validator(mode="after")
    def _divides(self) -> ModifiedResNetConfig:
        if self.image_size % 32:
            msg = f"image_size {self.image_size} is not a multiple of 32, this tower's total stride"
            raise ValueError(msg)
        return self


PAD_ID: Final = 0
"""With which CLIP's reference fills a text up; behind its end, under a causal mask, it changes nothing."""

WHITENED: Final = 24
"""Channels of a whitening stem: the 12 directions of a 2x2 patch of 3 colours, and their negatives."""


class ResidualConvConfig(Section):
    """A small residual convolutional tower for small images, on which a ViT learns too little."""

    kind: Literal["residual_conv"] = "residual_conv"
    image_size: PositiveInt = 32
    stem: Literal["learned", "whitening", "strided"] = "learned"
    """A learned 3x3 convolution with batch norm; 2x2 patches whitened by the training pictures' statistics; or 4x4
    patches, learned, at every other pixel, for pictures of twice the size at the same cost."""
    stem_width: PositiveInt = 32
    widths: tuple[PositiveInt, ...] = (128, 256, 320)
    mirror: bool = False
    """Encode a picture as the mean of itself and its mirror image, except in training, where flips do the same."""
    shifts: Annotated[tuple[tuple[int, int], ...], Field(min_length=1)] = ((0, 0),)
    """Moves of the pictures in that mean, whole pixels ``(right, down)``, the border reflected."""

    @model_validator(mode="after")
    def _large_enough(self) -> ResidualConvConfig:
        halvings = len(self.widths) + (self.stem == "strided")
        if not self.widths or self.image_size < 2**halvings:
            msg = f"image_size {self.image_size} cannot be halved {halvings} times"
            raise ValueError(msg)
        if any(abs(pixels) >= self.image_size for shift in self.shifts for pixels in shift):
            msg = f"shifts move a picture by less than its size, {self.image_size} pixels"
            raise ValueError(msg)
        if self.stem == "whitening" and self.stem_width != WHITENED:
            msg = f"a whitening stem has stem_width {WHITENED}, not {self.stem_width}"
            raise ValueError(msg)
        return self


ImageTowerConfig = Annotated[
    VisionTransformerConfig | ModifiedResNetConfig | ResidualConvConfig, Field(discriminator="kind")
]


class TextTransformerConfig(_TransformerSection):
    """Causal text transformer; its feature is read at the first end-of-text token."""

    vocab_size: PositiveInt = 49408
    context_length: int = Field(default=77, ge=2)
    width: PositiveInt = 512
    layers: PositiveInt = 12
    heads: PositiveInt = 8
    activation: Activation = "quick_gelu"
    end_of_text_id: int = Field(default=49407, ge=0)
    pad_id: int = Field(default=PAD_ID, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TextTransformerConfig:
        if self.width % self.heads:
            msg = f"width {self.width} is not a multiple of {self.heads} heads"
            raise ValueError(msg)
        if max(self.end_of_text_id, self.pad_id) >= self.vocab_size:
            msg = f"end_of_text_id and pad_id must be below vocab_size {self.vocab_size}"
            raise ValueError(msg)
        return self


class ClipConfig(Section):
    """Both towers and the joint space."""

    embed_dim: PositiveInt = 512
    image: ImageTowerConfig
    text: TextTransformerConfig = TextTransformerConfig()

    @property
    def architecture(self) -> str:
        """Family and image tower, for people: ``clip/vit``."""
        return f"clip/{self.image.kind}"

    @property
    def image_shape(self) -> str:
        """Layers and width of the image tower, for people: ``ViT 12×768``."""
        image = self.image
        match image:
            case VisionTransformerConfig():
                return f"ViT {image.layers}×{image.width}"
            case ModifiedResNetConfig():
                return f"RN {','.join(map(str, image.layers))}×{image.width}"
            case ResidualConvConfig():
                return f"conv {','.join(map(str, image.widths))}"
            case _:  # pragma: no cover - the union is closed
                assert_never(image)

    @property
    def activations(self) -> frozenset[Activation]:
        """Activations of the MLPs; a convolutional tower's stays ReLU and is not named."""
        own = {self.image.activation} if isinstance(self.image, VisionTransformerConfig) else set()
        return frozenset({self.text.activation, *own})

    def with_activation(self, activation: Activation) -> ClipConfig:
        """Return the configuration with this activation in both towers; a ResNet's stays ReLU."""
        image = self.image
        if isinstance(image, VisionTransformerConfig):
            image = image.model_copy(update={"activation": activation})
        text = self.text.model_copy(update={"activation": activation})
        return self.model_copy(update={"image": image, "text": text})
