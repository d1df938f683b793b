"""The service's own JSON answers: schemas for the documentation and clients, and how to fill them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from service.api.problems.schemas import AnswerModel, Problem
from service.inference.registry import ModelInfo
from service.model.answer_warnings import Code
from service.model.choices import ScoringKind
from service.model.manifest import Parity


class PredictionOut(AnswerModel):
    """A label in the client's spelling, and its score."""

    label: str
    score: float


class Usage(AnswerModel):
    """The cost of the request: `labels_cached` of `labels` needed no text encoder."""

    labels: int
    labels_cached: int


class WarningOut(AnswerModel):
    """Labels that are valid, but that the model cannot use as they probably are meant."""

    code: Annotated[Code, Field(description="Never changes its meaning.")]
    message: Annotated[str, Field(description="What is the matter, and what to do.")]
    labels: Annotated[list[int], Field(description="Positions of the labels, the first 20.")]


Warnings = Annotated[list[WarningOut] | None, Field(description="Left out without warnings.")]


class ClassifyAnswer(AnswerModel):
    """The predictions for one image, best first."""

    model: Annotated[str, Field(examples=["demo"])]
    revision: Annotated[str, Field(description="Identifies the model's weights and preprocessing exactly.")]
    predictions: list[PredictionOut]
    usage: Usage
    warnings: Warnings = None


class BatchResult(AnswerModel):
    """The predictions for the image at `index`, best first, or its error."""

    index: int
    name: Annotated[str | None, Field(description="The file's name, if the images came in an archive.")] = None
    predictions: list[PredictionOut] | None = None
    error: Problem | None = None
    warnings: Annotated[
        list[WarningOut] | None,
        Field(description="Only in lines, and there in the first one with predictions; they concern all lines."),
    ] = None


class BatchAnswer(AnswerModel):
    """One result for each image, in the images' order."""

    model: str
    results: list[BatchResult]
    usage: Usage
    warnings: Warnings = None


class TemplatesAnswer(AnswerModel):
    """The prompt templates of a model, by the name of their set."""

    model: str
    templates: Annotated[dict[str, list[str]], Field(examples=[{"default": ["a photo of a {}."], "none": ["{}"]}])]


class ImageSize(AnswerModel):
    """The size of the image that the model reads, in pixels."""

    height: int
    width: int


class ModelOut(AnswerModel):
    """A model as it runs in this process."""

    name: str
    aliases: list[str]
    default: Annotated[bool, Field(description="Whether it answers requests that name no model.")]
    architecture: str
    revision: str
    provider: Annotated[str, Field(description="The execution provider.", examples=["cpu"])]
    precision: Annotated[str, Field(examples=["fp32"])]
    because: Annotated[
        str, Field(description="The reason for the choice of the provider.", examples=["asked for by name"])
    ]
    parity: Annotated[
        Parity | None, Field(description="Its measured difference from the reference; null if not measured.")
    ]
    dim: int
    image: ImageSize
    context_length: Annotated[int, Field(description="Most tokens that a prompt may have.")]
    scoring: Annotated[ScoringKind, Field(description="The model's own scoring.")]
    templates: Annotated[list[str], Field(description="Names of its template sets.", examples=[["default", "none"]])]


class OpenAIModel(AnswerModel):
    """A model as OpenAI's clients read it."""

    id: Annotated[str, Field(examples=["demo"])]
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Always 0: bundles have no creation time.")] = 0
    owned_by: str = "anyclass"


class ModelsAnswer(AnswerModel):
    """The models that are served, the default first; OpenAI's clients read `object` and `data`."""

    models: list[ModelOut]
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class Status(AnswerModel):
    """A probe's answer."""

    status: str


def model_json(info: ModelInfo) -> dict[str, Any]:
    """Return a model as `ModelOut` describes it."""
    return {
        "name": info.name,
        "aliases": list(info.aliases),
        "default": info.default,
        "architecture": info.architecture,
        "revision": info.revision,
        "provider": info.provider,
        "precision": info.precision,
        "because": info.provider_reason,
        "parity": None if info.parity is None else info.parity.model_dump(),
        "dim": info.dim,
        "image": {"height": info.image_height, "width": info.image_width},
        "context_length": info.context_length,
        "scoring": info.scoring,
        "templates": sorted(info.templates),
    }
