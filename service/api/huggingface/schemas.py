"""Hugging Face's request for zero-shot image classification, in the forms that clients send."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from service.api.problems.schemas import AnswerModel
from service.api.request.validation import RequestModel

_Labels = list[str] | str


class Parameters(RequestModel):
    """What may be the same for many images."""

    candidate_labels: Annotated[
        _Labels | None, Field(description="What the image may show: a list, or a text with commas.")
    ] = None
    hypothesis_template: Annotated[
        str | None, Field(description="What each label is put into, with one `{}`; the model's own when left out.")
    ] = None


class InputObject(RequestModel):
    """The older form, in which the labels are beside the image."""

    model_config = ConfigDict(populate_by_name=True)

    image: Annotated[str, Field(description="A data URI, base64, or a URL where that is allowed.")]
    candidate_labels: _Labels | None = None
    camel_labels: Annotated[_Labels | None, Field(alias="candidateLabels")] = None


class ZeroShotRequest(RequestModel):
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
