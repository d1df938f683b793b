"""A text model of sentence-transformers as data: DistilBERT, pooling, and a dense layer into the joint space."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, PositiveInt, model_validator

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.families import hugging_face
from model_export.families.family import ImageTowerShape, ModelConfig
from model_export.files import Section, checked, read_object

LAYER_NORM_EPS: Final = 1e-12

_SETTINGS: Final = "sentence_bert_config.json"
_IDENTITY: Final = "torch.nn.modules.linear.Identity"
_POOLING: Final = "pooling_mode_"


class SentenceTextConfig(Section):
    """DistilBERT (Sanh et al. 2019): a post-norm transformer that attends to the whole text; padding is masked."""

    vocab_size: PositiveInt = 119_547
    context_length: int = Field(default=128, ge=2)
    positions: PositiveInt = 512
    width: PositiveInt = 768
    layers: PositiveInt = 6
    heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    pooling: Literal["mean", "first"] = "mean"
    embed_dim: PositiveInt = 512
    bias: bool = False
    """Of the dense layer."""
    pad_id: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> SentenceTextConfig:
        if self.width % self.heads:
            msg = f"width {self.width} is not a multiple of {self.heads} heads"
            raise ValueError(msg)
        if self.context_length > self.positions:
            msg = f"texts have up to {self.context_length} tokens, the tower has {self.positions} positions"
            raise ValueError(msg)
        return self


class SentenceConfig(Section):
    """The text model beside the image tower of another model.

    Attributes:
        image_model: the other model's configuration.
    """

    image_model: Any
    text: SentenceTextConfig

    @property
    def embed_dim(self) -> int:
        """Dimensions of the joint space."""
        return self.text.embed_dim

    @property
    def image(self) -> ImageTowerShape:
        """The image tower."""
        model: ModelConfig = self.image_model
        return model.image

    @property
    def architecture(self) -> str:
        """The image tower's, and the text tower, for people."""
        return f"{self.image_model.architecture}+distilbert"

    @property
    def image_shape(self) -> str:
        """Layers and width of the image tower, for people."""
        return str(self.image_model.image_shape)

    @property
    def activations(self) -> frozenset[Activation]:
        """Of the text tower, and of the other model."""
        return frozenset({"gelu", *self.image_model.activations})


class _DistilBert(hugging_face.Section):
    model_type: Literal["distilbert"]
    vocab_size: PositiveInt = 30_522
    max_position_embeddings: PositiveInt = 512
    n_layers: PositiveInt = 6
    n_heads: PositiveInt = 12
    dim: PositiveInt = 768
    hidden_dim: PositiveInt = 3072
    activation: Literal["gelu"] = "gelu"
    sinusoidal_pos_embds: bool = False
    """How the positions were initialised; the weights are in the file in any case."""


class _Dense(hugging_face.Section):
    in_features: PositiveInt
    out_features: PositiveInt
    bias: bool = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


class _Settings(hugging_face.Section):
    max_seq_length: PositiveInt | None = None
    do_lower_case: Literal[False] = False


def read_text_config(model: Path, pooling: Path, dense: Path) -> SentenceTextConfig:
    """Read the configurations in the folders of the three modules.

    Raises:
        SourceError: a file is missing or invalid, or states what is not read here; the message names it.
    """
    config = model / "config.json"
    fields = read_object(config, hint="it describes the text model")
    if fields.get("model_type") != "distilbert":
        raise SourceError(
            f"{config}: model_type is {fields.get('model_type')}; of the text models of sentence-transformers only "
            "DistilBERT is read, such as sentence-transformers/clip-ViT-B-32-multilingual-v1"
        )
    said = checked(_DistilBert, fields, config)
    layer = checked(_Dense, read_object(dense / "config.json", hint="it describes the dense layer"), dense)
    if layer.activation_function != _IDENTITY or layer.in_features != said.dim:
        raise SourceError(
            f"{dense / 'config.json'}: is a layer of {layer.in_features} features with {layer.activation_function}; "
            f"one of {said.dim} without an activation is read"
        )
    settings = model / _SETTINGS
    limits = checked(_Settings, read_object(settings, hint=""), settings) if settings.exists() else _Settings()
    return checked(
        SentenceTextConfig,
        {
            "vocab_size": said.vocab_size,
            "context_length": limits.max_seq_length or said.max_position_embeddings,
            "positions": said.max_position_embeddings,
            "width": said.dim,
            "layers": said.n_layers,
            "heads": said.n_heads,
            "mlp_width": said.hidden_dim,
            "pooling": _pooling(pooling / "config.json"),
            "embed_dim": layer.out_features,
            "bias": layer.bias,
        },
        config,
    )


def _pooling(path: Path) -> Literal["mean", "first"]:
    fields = read_object(path, hint="it says how tokens are pooled")
    chosen = [name.removeprefix(_POOLING) for name, value in fields.items() if name.startswith(_POOLING) and value]
    if isinstance(mode := fields.get("pooling_mode"), str):  # newer files
        chosen = [{"mean": "mean_tokens", "cls": "cls_token"}.get(mode, mode)]
    known: dict[str, Literal["mean", "first"]] = {"mean_tokens": "mean", "cls_token": "first"}
    if len(chosen) != 1 or chosen[0] not in known:
        raise SourceError(f"{path}: pools by {', '.join(chosen) or 'nothing'}; one of {', '.join(known)} is read")
    return known[chosen[0]]
