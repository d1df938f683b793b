"""Zero-shot image classification for Hugging Face's clients: POST / and POST /models/{model}."""

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from service.api.documentation.examples import PREDICTIONS, RED_DOT
from service.api.documentation.request_bodies import ModelName, json_body
from service.api.documentation.responses import (
    BODY_ERRORS,
    IMAGE_ERRORS,
    INFERENCE_ERRORS,
    LABEL_ERRORS,
    error_responses,
    header,
)
from service.api.huggingface.schemas import InputObject, LabelScore, ZeroShotRequest
from service.api.json_writer import predictions_text, written
from service.api.problems.table import FieldErrors
from service.api.request.disconnect import cancel_on_disconnect
from service.api.request.fields import max_values
from service.api.request.image_field import image_from_text
from service.api.request.json_body import read_json
from service.api.request.off_loop import decoded
from service.api.request.validation import validate_fields
from service.api.services import services_of
from service.api.timing import server_timing
from service.api.warning_header import warning_headers
from service.classification.types import Classification, LabelQuery, ScoringOptions, Timings, load_image
from service.errors import TooManyLabels, UnknownModel

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "huggingface_hub": {
        "summary": "As huggingface_hub sends it",
        "value": {"inputs": RED_DOT, "parameters": {"candidate_labels": ["something red", "something green"]}},
    },
    "javascript": {
        "summary": "As @huggingface/inference sends it",
        "value": {
            "inputs": {"image": RED_DOT},
            "parameters": {"candidate_labels": ["red", "green"], "hypothesis_template": "a photo of something {}."},
        },
    },
    "older": {
        "summary": "The older form",
        "value": {"inputs": {"image": RED_DOT, "candidateLabels": "something red, something green"}},
    },
}

router = APIRouter(tags=["Hugging Face"])

_DOCUMENTED: Final[dict[str, Any]] = {
    "response_model": list[LabelScore],
    "openapi_extra": json_body(ZeroShotRequest, EXAMPLES),
}
_ANSWER: Final[dict[str, Any]] = {
    "description": "Every label and its score, best first.",
    "headers": header("Server-Timing", always=True) | header("X-Anyclass-Warnings"),
    "content": {"application/json": {"example": PREDICTIONS}},
}
_ERRORS: Final = (*BODY_ERRORS, *IMAGE_ERRORS, *LABEL_ERRORS, *INFERENCE_ERRORS)


@router.post(
    "/",
    summary="Zero-shot image classification",
    responses={200: _ANSWER, **error_responses("/", *_ERRORS)},
    **_DOCUMENTED,
)
async def classify_by_default(request: Request) -> Response:
    """Uses the default model. Scores add up to 1 if the model scores by softmax."""
    return await _classify(request, None)


@router.post(
    "/models/{model:path}",
    summary="Zero-shot image classification by a model",
    responses={200: _ANSWER, **error_responses("/models/{model:path}", UnknownModel, *_ERRORS)},
    **_DOCUMENTED,
)
async def classify_by_model(request: Request, model: ModelName) -> Response:
    """`model` is a name or an alias, which may contain a slash."""
    return await _classify(request, model)


async def _classify(request: Request, model: str | None) -> Response:
    services = services_of(request)
    classifier, settings = services.classifier, services.settings
    # The path names the model, so an overloaded one refuses the request before its body is read.
    classifier.check_admission(model)
    parsed = validate_fields(ZeroShotRequest, await read_json(request, settings, max_values=max_values(settings)))
    given = parsed.inputs
    image = given if isinstance(given, str) else given.image
    source = await decoded(len(image), lambda: image_from_text(image, services.image_fetcher))
    template = parsed.parameters.hypothesis_template
    query = LabelQuery(_labels(parsed, limit=settings.max_labels), "default" if template is None else (template,))
    timings = Timings()

    async def classified() -> Classification:
        image = await load_image(source)
        return await classifier.classify(image, query, ScoringOptions(), model=model, timings=timings)

    classification = await cancel_on_disconnect(request, classified())
    headers = {"server-timing": server_timing(request.state.started, timings)}
    headers |= warning_headers(classification.warnings)
    rows = len(classification.predictions)
    content = await written(lambda: predictions_text(classification).encode(), rows=rows)
    return Response(content, media_type="application/json", headers=headers)


def _labels(parsed: ZeroShotRequest, *, limit: int) -> tuple[str, ...]:
    """Return the labels from the one place that has them."""
    places: list[list[str] | str | None] = [parsed.parameters.candidate_labels]
    if isinstance(parsed.inputs, InputObject):
        places += [parsed.inputs.candidate_labels, parsed.inputs.camel_labels]
    given = [labels for labels in places if labels is not None]
    if not given:
        raise FieldErrors([("parameters.candidate_labels", "is missing; give the labels to choose from")])
    if len(given) > 1:
        raise FieldErrors([("parameters.candidate_labels", "is given in more than one place")])
    labels = given[0]
    if isinstance(labels, str):
        if labels.count(",") > 2 * limit:
            raise _too_many(limit)
        # As transformers' pipeline does.
        labels = [label for piece in labels.split(",") if (label := piece.strip())]
    if len(labels) > limit:
        raise _too_many(limit)
    return tuple(labels)


def _too_many(limit: int) -> TooManyLabels:
    return TooManyLabels(f"The request has more than {limit} labels, the limit of this server.")
