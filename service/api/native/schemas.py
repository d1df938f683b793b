"""What the service answers, as JSON: the shapes for documentation and for clients, and how they are filled."""

from typing import Annotated, Any, Literal

from pydantic import Field

from service.api.problems.schemas import AnswerModel, Problem
from service.inference.registry import ModelInfo
from service.model.choices import ScoringKind
from service.model.manifest import Parity


class PredictionOut(AnswerModel):
    """A label as the client spelled it, and its score."""

    label: str
    score: float


class Usage(AnswerModel):
    """What the request cost: `labels_cached` of `labels` were known without the text encoder."""

    labels: int
    labels_cached: int


class ClassifyAnswer(AnswerModel):
    """The predictions for one image, best first."""

    model: Annotated[str, Field(examples=["demo"])]
    revision: Annotated[str, Field(description="Identifies the model's weights and preprocessing exactly.")]
    predictions: list[PredictionOut]
    usage: Usage


class BatchResult(AnswerModel):
    """The predictions for the image at `index`, best first, or what was wrong with it."""

    index: int
    name: Annotated[str | None, Field(description="The file's name, where the images came in an archive.")] = None
    predictions: list[PredictionOut] | None = None
    error: Problem | None = None


class BatchAnswer(AnswerModel):
    """One result for each image, in the images' order."""

    model: str
    results: list[BatchResult]
    usage: Usage


class TemplatesAnswer(AnswerModel):
    """The prompt templates that belong to a model, by the name of their set."""

    model: str
    templates: Annotated[dict[str, list[str]], Field(examples=[{"default": ["a photo of a {}."], "none": ["{}"]}])]


class ImageSize(AnswerModel):
    """The picture that the model sees, in pixels."""

    height: int
    width: int


class ModelOut(AnswerModel):
    """What really runs under a name."""

    name: str
    aliases: list[str]
    default: Annotated[bool, Field(description="Whether it answers requests that name no model.")]
    architecture: str
    revision: str
    provider: Annotated[str, Field(description="What runs it.", examples=["cpu"])]
    precision: Annotated[str, Field(examples=["fp32"])]
    parity: Annotated[Parity | None, Field(description="How far it is from its reference; null if not measured.")]
    dim: int
    image: ImageSize
    context_length: Annotated[int, Field(description="Tokens that a prompt may have.")]
    scoring: Annotated[ScoringKind, Field(description="The model's own way.")]
    templates: Annotated[list[str], Field(description="Names of its template sets.", examples=[["default", "none"]])]


class OpenAIModel(AnswerModel):
    """A model as OpenAI's clients read it."""

    id: Annotated[str, Field(examples=["demo"])]
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Always 0: a bundle does not say when it was made.")] = 0
    owned_by: str = "anyclass"


class ModelsAnswer(AnswerModel):
    """The models that are served, the default first; `object` and `data` are there for OpenAI's clients."""

    models: list[ModelOut]
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class Status(AnswerModel):
    """A probe's answer."""

    status: str


def model_json(info: ModelInfo) -> dict[str, Any]:
    """What really runs under a name, as `ModelOut` describes it."""
    return {
        "name": info.name,
        "aliases": list(info.aliases),
        "default": info.default,
        "architecture": info.architecture,
        "revision": info.revision,
        "provider": info.provider,
        "precision": info.precision,
        "parity": None if info.parity is None else info.parity.model_dump(),
        "dim": info.dim,
        "image": {"height": info.image_height, "width": info.image_width},
        "context_length": info.context_length,
        "scoring": info.scoring,
        "templates": sorted(info.templates),
    }
