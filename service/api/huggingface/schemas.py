"""Hugging Face's request for zero-shot image classification, in the forms that clients send."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.api.problems.schemas import AnswerModel

_Labels = list[str] | str


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)


class Parameters(_Fields):
    """What may be the same for many images."""

    candidate_labels: Annotated[
        _Labels | None, Field(description="What the image may show: a list, or a text with commas.")
    ] = None
    hypothesis_template: Annotated[
        str | None, Field(description="What each label is put into, with one `{}`; the model's own when left out.")
    ] = None


class InputObject(_Fields):
    """The older form, in which the labels are beside the image."""

    image: Annotated[str, Field(description="A data URI, base64, or a URL where that is allowed.")]
    candidate_labels: _Labels | None = None
    camel_labels: Annotated[_Labels | None, Field(alias="candidateLabels")] = None


class ZeroShotRequest(_Fields):
    """Hugging Face's request for the task zero-shot-image-classification."""

    inputs: Annotated[
        str | InputObject, Field(description="The image: a data URI, base64, or a URL where that is allowed.")
    ]
    parameters: Parameters = Parameters()
    options: Annotated[dict[str, Any] | None, Field(description="Accepted and not looked at.")] = None


class LabelScore(AnswerModel):
    """A label as the client spelled it, and its score."""

    label: str
    score: float
