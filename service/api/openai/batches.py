"""/v1/batches: durable batch jobs, in OpenAI's form."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api.documentation.examples import FILE_ID
from service.api.documentation.request_bodies import json_body
from service.api.documentation.responses import BODY_ERRORS, STATE_ERRORS, error_responses
from service.api.openai.batch_lines import ENDPOINTS
from service.api.openai.schemas import (
    BATCHES_PAGE,
    MAX_BATCHES_PAGE,
    AfterBatch,
    BatchesOut,
    BatchId,
    BatchOut,
    BatchRequest,
    IdempotencyKey,
    batch_json,
    idempotency_of,
    page_json,
)
from service.api.problems.table import FieldErrors
from service.api.request.json_body import read_json
from service.api.request.validation import validate_fields
from service.api.services import services_of
from service.errors import Conflict, Overloaded, UnknownObject
from service.jobs.records import JOB_PREFIX, is_id

_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "batch": {
        "summary": "Classify the requests in a file",
        "value": {"input_file_id": FILE_ID, "endpoint": "/v1/classify", "completion_window": "24h"},
    },
    "every field": {
        "summary": "Every field",
        "value": {
            "input_file_id": FILE_ID,
            "endpoint": "/v1/embeddings",
            "completion_window": "6h",
            "metadata": {"experiment": "7"},
            "output_expires_after": {"anchor": "created_at", "seconds": 86_400},
        },
    },
}

_LINKS: Final = {
    "retrieve": {"operationId": "retrieve_batch", "parameters": {"batch_id": "$response.body#/id"}},
    "cancel": {"operationId": "cancel_batch", "parameters": {"batch_id": "$response.body#/id"}},
}

_MAX_VALUES: Final = 256

router = APIRouter(tags=["Batch jobs"])


@router.post(
    "/v1/batches",
    response_model=BatchOut,
    summary="Have a file of requests answered in the background",
    openapi_extra=json_body(BatchRequest, _EXAMPLES),
    responses={
        200: {"description": "The batch, which has started.", "links": _LINKS},
        **error_responses("/v1/batches", *BODY_ERRORS, Conflict, Overloaded, *STATE_ERRORS),
    },
)
async def create_batch(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """The file is validated first. A line that is no valid request fails the batch, and `errors` has its number."""
    services = services_of(request)
    jobs, settings = services.jobs, services.settings
    idempotency = idempotency_of(idempotency_key, getattr(request.state, "api_key", None) or "")
    parsed = validate_fields(BatchRequest, await read_json(request, settings, max_values=_MAX_VALUES))
    if parsed.endpoint not in ENDPOINTS:
        raise FieldErrors([("endpoint", f"must be one of {', '.join(ENDPOINTS)}")])
    keep = parsed.output_expires_after
    try:
        job = await jobs.add_job(
            endpoint=parsed.endpoint,
            input_file_id=parsed.input_file_id,
            window_hours=int(parsed.completion_window.removesuffix("h")),
            metadata=parsed.metadata,
            keep_output_s=None if keep is None else min(keep.seconds, settings.keep_files_s),
            idempotency=idempotency,
        )
    except UnknownObject as exc:
        raise FieldErrors([("input_file_id", exc.detail)]) from exc
    return JSONResponse(batch_json(job))


@router.get(
    "/v1/batches",
    response_model=BatchesOut,
    summary="The batches",
    responses=error_responses("/v1/batches", FieldErrors, *STATE_ERRORS),
)
async def list_batches(
    request: Request,
    after: AfterBatch = None,
    limit: Annotated[int, Query(description="Batches on a page.", ge=1, le=MAX_BATCHES_PAGE)] = BATCHES_PAGE,
) -> Response:
    """Newest first."""
    if after is not None and not is_id(JOB_PREFIX, after):
        raise FieldErrors([("after", "is not the id of a batch")])
    found, more = await services_of(request).jobs.job_store.page(after=after, limit=limit)
    return JSONResponse(page_json([batch_json(job) for job in found], has_more=more))


@router.get(
    "/v1/batches/{batch_id}",
    response_model=BatchOut,
    summary="A batch",
    responses=error_responses("/v1/batches/{batch_id}", FieldErrors, UnknownObject, *STATE_ERRORS),
)
async def retrieve_batch(request: Request, batch_id: BatchId) -> Response:
    """Status, progress and the ids of the result files."""
    return JSONResponse(batch_json(await services_of(request).jobs.job(batch_id)))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    response_model=BatchOut,
    summary="Cancel a batch",
    responses=error_responses("/v1/batches/{batch_id}/cancel", FieldErrors, UnknownObject, Conflict, *STATE_ERRORS),
)
async def cancel_batch(request: Request, batch_id: BatchId) -> Response:
    """Lines in work are still answered; finished results are kept."""
    return JSONResponse(batch_json(await services_of(request).jobs.cancel(batch_id)))
