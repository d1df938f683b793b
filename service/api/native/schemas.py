"""What the service answers, as JSON: the shapes for documentation and for clients, and how they are filled."""

import json
from json.encoder import encode_basestring
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.classification.classifier import Classification
from service.inference.served_model import ModelInfo
from service.model.manifest import Parity


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FieldProblem(_Answer):
    """One field that is at fault."""

    field: Annotated[str, Field(examples=["labels[3]"])]
    detail: Annotated[str, Field(examples=["must be a string"])]


class Problem(_Answer):
    """An error (RFC 9457)."""

    type: Annotated[str, Field(examples=["urn:anyclass:problem:invalid-labels"], description="Never changes.")]
    title: str
    status: int
    detail: Annotated[str, Field(description="What is wrong with this request and what to do about it.")]
    request_id: Annotated[str, Field(description="Also in the answer's X-Request-ID and in the log.")]
    errors: Annotated[list[FieldProblem] | None, Field(description="The fields at fault, where they are known.")] = None


class PredictionOut(_Answer):
    """A label as the client spelled it, and its score."""

    label: str
    score: float


class Usage(_Answer):
    """What the request cost: `labels_cached` of `labels` were known without the text encoder."""

    labels: int
    labels_cached: int


class ClassifyAnswer(_Answer):
    """The predictions for one image, best first."""

    model: Annotated[str, Field(examples=["demo"])]
    revision: Annotated[str, Field(description="Identifies the model's weights and preprocessing exactly.")]
    predictions: list[PredictionOut]
    usage: Usage


class BatchResult(_Answer):
    """The predictions for the image at `index`, best first, or what was wrong with it."""

    index: int
    name: Annotated[str | None, Field(description="The file's name, where the images came in an archive.")] = None
    predictions: list[PredictionOut] | None = None
    error: Problem | None = None


class BatchAnswer(_Answer):
    """One result for each image, in the images' order."""

    model: str
    results: list[BatchResult]
    usage: Usage


class TemplatesAnswer(_Answer):
    """The prompt templates that belong to a model, by the name of their set."""

    model: str
    templates: Annotated[dict[str, list[str]], Field(examples=[{"default": ["a photo of a {}."], "none": ["{}"]}])]


class ImageSize(_Answer):
    """The picture that the model sees, in pixels."""

    height: int
    width: int


class ModelOut(_Answer):
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
    scoring: Annotated[Literal["softmax", "sigmoid"], Field(description="The model's own way.")]
    templates: Annotated[list[str], Field(description="Names of its template sets.", examples=[["default", "none"]])]


class OpenAIModel(_Answer):
    """A model as OpenAI's clients read it."""

    id: Annotated[str, Field(examples=["demo"])]
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Always 0: a bundle does not say when it was made.")] = 0
    owned_by: str = "anyclass"


class ModelsAnswer(_Answer):
    """The models that are served, the default first; `object` and `data` are there for OpenAI's clients."""

    models: list[ModelOut]
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class Status(_Answer):
    """A probe's answer."""

    status: str


def predictions_text(classification: Classification) -> str:
    """The predictions as a JSON list; scores are float32, of which seven digits are true.

    Written by hand, row by row: there may be 100,000, and `json.dumps` would hold up every thread meanwhile.
    """
    rows = [
        f'{{"label":{encode_basestring(each.label)},"score":{float(f"{each.score:.7g}")!r}}}'
        for each in classification.predictions
    ]
    return f"[{','.join(rows)}]"


def answer_text(classification: Classification) -> str:
    """One image's answer as a JSON object, as `ClassifyAnswer` describes it."""
    usage = {"labels": classification.labels, "labels_cached": classification.labels_cached}
    head = json_text({"model": classification.model, "revision": classification.revision})
    return f'{head[:-1]},"predictions":{predictions_text(classification)},"usage":{json_text(usage)}}}'


def predictions_json(classification: Classification) -> list[dict[str, Any]]:
    """`predictions_text` as Python has it."""
    predictions: list[dict[str, Any]] = json.loads(predictions_text(classification))
    return predictions


def answer_json(classification: Classification) -> dict[str, Any]:
    """`answer_text` as Python has it."""
    answer: dict[str, Any] = json.loads(answer_text(classification))
    return answer


def one_line(text: str) -> str:
    """JSON that every client takes for one line: many end a line at these characters too, which JSON may have."""
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def json_text(value: object) -> str:
    """JSON as all answers have it: without white space, in UTF-8, finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


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
