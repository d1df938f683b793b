"""A model family: everything that is known of it, as one row of `model_export.families.table`.

A row needs no torch until `Family.build` or a layout's ``convert`` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from model_export.architectures.activations import Activation
from model_export.families.operations import Operations
from model_export.families.tokenizers import TextTokens
from service.model.manifest import ImageSection, Rgb

if TYPE_CHECKING:
    from torch import Tensor

    from model_export.architectures.towers import TwoTowers

Convert: TypeAlias = "Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Path], dict[str, Tensor]]"
"""Renames weights: the file's tensors, the model's state dict (names and shapes), the file for messages."""


class ImageTowerShape(Protocol):
    """The configuration of an image tower, of any family."""

    @property
    def image_size(self) -> int:
        """Side of the square picture, pixels."""


class TextTowerShape(Protocol):
    """The configuration of a text tower, of any family."""

    @property
    def vocab_size(self) -> int:
        """Tokens that the tower knows."""

    @property
    def context_length(self) -> int:
        """Tokens of the longest text."""

    @property
    def width(self) -> int:
        """Channels."""

    @property
    def layers(self) -> int:
        """Blocks."""


class ModelConfig(Protocol):
    """Both towers of a model as data, of any family."""

    @property
    def embed_dim(self) -> int:
        """Dimensions of the joint space."""

    @property
    def image(self) -> ImageTowerShape:
        """The image tower."""

    @property
    def text(self) -> TextTowerShape:
        """The text tower."""

    @property
    def architecture(self) -> str:
        """Family and image tower, for people: ``clip/vit``."""

    @property
    def image_shape(self) -> str:
        """Layers and width of the image tower, for people: ``ViT 12×768``."""

    @property
    def activations(self) -> frozenset[Activation]:
        """Activations of the towers' MLPs."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the configuration as JSON types."""


C = TypeVar("C", bound=ModelConfig)
S = TypeVar("S")


@dataclass(frozen=True)
class NamedSize:
    """A published size.

    Attributes:
        name: as open_clip writes it.
        config: both towers and the joint space.
        operations: of one picture and one text.
        parameters: as published, without buffers.
        imagenet_top1: ImageNet zero-shot accuracy of the published weights, per cent, if known.
        aliases: other names that `named_size` takes, such as a hub id; ``ViT-B/32`` and the like need none.
    """

    name: str
    config: ModelConfig
    operations: Operations
    parameters: int
    imagenet_top1: float | None
    aliases: tuple[str, ...] = ()

    @property
    def embed_dim(self) -> int:
        """Dimensions of the joint space."""
        return self.config.embed_dim

    @property
    def image_size(self) -> int:
        """Side of the square picture that the image tower takes, pixels."""
        return self.config.image.image_size

    @property
    def context_length(self) -> int:
        """Tokens of the longest text."""
        return self.config.text.context_length


@dataclass(frozen=True)
class ImageDefaults:
    """How a family prepares pictures where a source does not say.

    Attributes:
        processors: names of its image processors in transformers, without ``Fast`` or ``Pil``.
        resize: the shorter side and a centre crop, or both sides.
        mean: of each channel, of pixels in 0..1.
        std: of each channel.
        size: side of the pictures, pixels; None if it is the tower's.
    """

    processors: tuple[str, ...]
    resize: Literal["shortest", "squash"]
    mean: Rgb
    std: Rgb
    size: int | None = 224

    def section(self, size: int) -> ImageSection:
        """Return the manifest's section for square pictures of ``size`` pixels, resized by Pillow's bicubic."""
        return ImageSection(
            height=size,
            width=size,
            resize=self.resize,
            interpolation="bicubic",
            crop="center" if self.resize == "shortest" else "none",
            mean=self.mean,
            std=self.std,
        )


@dataclass(frozen=True)
class HuggingFaceLayout(Generic[S, C]):
    """How transformers publishes a family.

    Attributes:
        read: validates the fields of ``config.json``, named by its path in errors.
        image_size: returns the side of the pictures, pixels.
        configure: reads the tokenizer, in the folder or at a given path, and completes the configuration with it;
            as its files have it if the last argument is true, otherwise as in training.
    """

    read: Callable[[Mapping[str, Any], Path], S]
    image_size: Callable[[S], int]
    configure: Callable[[S, Path, Path | None, bool], tuple[C, TextTokens]]
    convert: Convert


@dataclass(frozen=True)
class OpenClipLayout(Generic[C]):
    """How open_clip publishes a family.

    Attributes:
        matches: returns whether ``vision_cfg`` and ``text_cfg`` are this family's.
        read: turns ``model_cfg`` and the user's ``--activation`` into a configuration; the path is for errors.
        read_tokenizer: reads a file or folder; None means that neither the source nor the user has one. The path of
            the weights is for errors.
        complete: puts into the configuration what only the tokenizer knows.
        needs_preprocess_cfg: whether ``preprocess_cfg`` is required.
        as_trained: returns how pictures and texts were prepared in training, if that is known and open_clip does
            otherwise; takes the tokenizer's file or folder, and what open_clip does with pictures.
    """

    matches: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Activation | None, Path], C]
    read_tokenizer: Callable[[Path | None, C, Path], TextTokens]
    complete: Callable[[C, TextTokens], C]
    needs_preprocess_cfg: bool
    convert: Convert
    as_trained: Callable[[Path | None, C, ImageSection], tuple[ImageSection, TextTokens] | None] | None = None


@dataclass(frozen=True)
class OnnxLayout:
    """How optimum and transformers.js publish a family's encoders as ONNX graphs.

    Attributes:
        architecture: for people.
        image_outputs: outputs in the joint space; the first that a graph has is taken.
        text_outputs: the same of the text graph.
        read_tokenizer: reads the tokenizer, in the folder or at a given path, for a vocabulary of so many tokens.
    """

    architecture: str
    image_outputs: tuple[str, ...]
    text_outputs: tuple[str, ...]
    read_tokenizer: Callable[[Path, Path | None, int], TextTokens]


@dataclass(frozen=True)
class ModelKind(Generic[C]):
    """All that is needed to make a bundle of a model, whatever its layout.

    Attributes:
        name: of the kind; of a family, the ``model_type`` of its ``config.json``.
        title: for people.
        config: the class of its configurations.
        build: makes a module with fresh weights.
        padding: of texts in training, as far as vectors depend on it.
        has_bias: whether scores are sigmoids of scale · cosine + bias, rather than a softmax of scale · cosine.
    """

    name: str
    title: str
    config: type[C]
    build: Callable[[C], TwoTowers]
    padding: Literal["longest", "fixed"]
    has_bias: bool
    images: ImageDefaults


@dataclass(frozen=True)
class OpenClipKind(ModelKind[C]):
    """A kind that open_clip publishes."""

    open_clip: OpenClipLayout[C]


@dataclass(frozen=True)
class HuggingFaceKind(ModelKind[C]):
    """A kind that transformers publishes."""

    hugging_face: HuggingFaceLayout[Any, C]


@dataclass(frozen=True)
class Family(OpenClipKind[C], HuggingFaceKind[C]):
    """A model family: a kind with modules of its own, in every layout.

    Attributes:
        default: the configuration whose values transformers' ``config.json`` may leave out.
        sizes: that have a name.
        named: completes a named size, given the ``--arch`` and ``--activation`` of the user, and a path for errors.
        relatives: models that may be taken for the family's but are not read, by ``model_type``: which ones are, for
            messages.
    """

    default: C
    sizes: tuple[NamedSize, ...]
    named: Callable[[C, str, Activation | None, Path], C]
    onnx: OnnxLayout
    relatives: Mapping[str, str]
