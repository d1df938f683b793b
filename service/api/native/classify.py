"""POST /v1/classify: one image."""

from fastapi import APIRouter, Request, Response

from service.api.direct_route import DirectRoute
from service.api.documentation.request_bodies import CLASSIFY
from service.api.documentation.responses import (
    BODY_ERRORS,
    IMAGE_ERRORS,
    INFERENCE_ERRORS,
    LABEL_ERRORS,
    LABEL_SET_ERRORS,
    error_responses,
    header,
)
from service.api.json_writer import answer_text, written
from service.api.native.schemas import ClassifyAnswer
from service.api.request.classify_request import parse_single
from service.api.request.disconnect import cancel_on_disconnect
from service.api.request.fields import ClassifyRequest
from service.api.services import services_of
from service.api.timing import server_timing
from service.api.warning_header import warning_headers
from service.classification.classifier import Classifier
from service.classification.types import Classification, Timings, load_image
from service.errors import UnknownModel

router = APIRouter(tags=["Classify"], route_class=DirectRoute)


@router.post(
    "/v1/classify",
    response_model=ClassifyAnswer,
    summary="Classify one image against any labels",
    openapi_extra=CLASSIFY,
    responses={
        200: {"headers": header("Server-Timing", always=True) | header("X-Anyclass-Warnings")},
        **error_responses(
            "/v1/classify",
            *BODY_ERRORS,
            *IMAGE_ERRORS,
            *LABEL_ERRORS,
            *LABEL_SET_ERRORS,
            UnknownModel,
            *INFERENCE_ERRORS,
        ),
    },
)
async def classify(request: Request) -> Response:
    """Send JSON, a form, or the image itself; the answer is the same."""
    services = services_of(request)
    classifier = services.classifier
    if len(services.models.names) == 1:
        # Refuse before the body is read. With several models the body names the model, so this check must wait.
        classifier.check_admission()
    parsed = await parse_single(request, services.settings, services.image_fetcher)
    timings = Timings()
    classification = await cancel_on_disconnect(request, _classified(classifier, parsed, timings))
    rows = len(classification.predictions)
    content = await written(lambda: answer_text(classification).encode(), rows=rows)
    headers = {"server-timing": server_timing(request.state.started, timings)}
    headers |= warning_headers(classification.warnings)
    return Response(content, media_type="application/json", headers=headers)


async def _classified(classifier: Classifier, parsed: ClassifyRequest, timings: Timings) -> Classification:
    image = await load_image(parsed.images[0])
    return await classifier.classify(image, parsed.query, parsed.options, model=parsed.model, timings=timings)
