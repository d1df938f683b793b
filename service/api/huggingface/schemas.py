"""Hugging Face's request for zero-shot image classification, in the variants that clients send."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from service.api.problems.schemas import AnswerModel
from service.api.request.validation import RequestModel

_Labels = Annotated[list[str], Field(fail_fast=True)] | str


class Parameters(RequestModel):
    """Labels and template."""

    candidate_labels: Annotated[
        _Labels | None, Field(description="The labels to choose from: a list, or a string with commas.")
    ] = None
    hypothesis_template: Annotated[
        str | None,
        Field(description="The prompt for each label, with one `{}`; the model's default templates if left out."),
    ] = None


class InputObject(RequestModel):
    """The older variant, with the labels next to the image."""

    model_config = ConfigDict(populate_by_name=True)

    image: Annotated[str, Field(description="A data URI, base64, or a URL if this server allows URLs.")]
    candidate_labels: _Labels | None = None
    camel_labels: Annotated[_Labels | None, Field(alias="candidateLabels")] = None


class ZeroShotRequest(RequestModel):
    """Hugging Face's request for the task zero-shot-image-classification."""

    inputs: Annotated[
        str | InputObject, Field(description="The image: a data URI, base64, or a URL if this server allows URLs.")
    ]
    parameters: Parameters = Parameters()
    options: Annotated[dict[str, Any] | None, Field(description="Accepted and ignored.")] = None


class LabelScore(AnswerModel):
    """A label in the client's spelling, and its score."""

    label: str
    score: float
