"""/v1/label-sets: routes to the use cases of label sets."""

import asyncio
import math
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.documentation.responses import BODY_ERRORS, INFERENCE_ERRORS, STATE_ERRORS, error_responses, header
from service.api.json_writer import json_text, warnings_text, written
from service.api.native.label_set_schemas import (
    DEFAULT_PAGE,
    DELETE,
    GET,
    LIST,
    MAX_PAGE,
    PUT,
    DescribedLabel,
    LabelSetIn,
    LabelSetOut,
    LabelSetsOut,
    Name,
    label_set_json,
    labels_text,
)
from service.api.problems.table import FieldErrors
from service.api.request.body import JSON, read_body, require_media_type
from service.api.request.disconnect import cancel_on_disconnect
from service.api.request.etags import etag, read_condition
from service.api.request.off_loop import off_loop
from service.api.request.query import read_query, refuse_query
from service.api.request.strict_json import parse_json_object
from service.api.request.validation import validate_fields
from service.api.services import services_of
from service.api.warning_header import warning_headers
from service.errors import (
    DeadlineExceeded,
    InvalidLabels,
    InvalidTemplates,
    MalformedRequest,
    PromptTooLong,
    StateFull,
    TooManyLabels,
    UnknownLabelSet,
    VersionMismatch,
)
from service.label_sets.definition import NAME, Definition, check_definition
from service.label_sets.status import LabelSetStatus
from service.label_sets.use_cases import LabelSets
from service.model.answer_warnings import AnswerWarning
from service.settings import Settings

_CREATED: Final = 201
_ACCEPTED: Final = 202
_NOT_MODIFIED: Final = 304

router = APIRouter(tags=["Label sets"])


def _described(description: str, *, computing: bool = False) -> dict[str, Any]:
    """Describe a response with a set; `computing` if the set is always still being computed."""
    headers = header("ETag", always=True) | header("Retry-After", always=computing) | header("X-Anyclass-Warnings")
    return {"description": description, "headers": headers, "model": LabelSetOut}


@router.put(
    "/v1/label-sets/{name}",
    response_model=LabelSetOut,
    summary="Write a label set",
    openapi_extra=PUT,
    responses={
        200: _described("The set existed already, and is ready."),
        201: _described("The set is new, and ready."),
        202: _described("The set is written, and being computed.", computing=True),
        **error_responses(
            "/v1/label-sets/{name}",
            *BODY_ERRORS,
            InvalidLabels,
            InvalidTemplates,
            TooManyLabels,
            VersionMismatch,
            PromptTooLong,
            *INFERENCE_ERRORS,
            StateFull,
            *STATE_ERRORS,
        ),
    },
)
async def put_label_set(request: Request, name: Name) -> Response:
    """Computes a small set before the answer, a large one (202) in the background.

    Writing the same content again changes nothing: the version stays.
    """
    services = services_of(request)
    sets, settings = services.classifier.label_sets, services.settings
    _check_name(name)
    refuse_query(request)
    require_media_type(request, JSON)
    condition = read_condition(request)
    content = await read_body(request, settings)
    # Up to 100,000 labels: checking them would block the event loop.
    definition = await off_loop(len(content), lambda: _definition(content, settings))

    async def write() -> tuple[LabelSetStatus, bool, tuple[AnswerWarning, ...]]:
        try:
            async with asyncio.timeout(settings.request_timeout_s):
                return *(await sets.put(name, definition, condition)), await sets.warnings(definition)
        except TimeoutError as exc:
            raise DeadlineExceeded(f"The label set was not computed within {settings.request_timeout_s:g} s.") from exc

    status, created, warnings = await cancel_on_disconnect(request, write())
    ready = _CREATED if created else 200
    return _answer(status, ready if status.retry_after_s is None else _ACCEPTED, warnings=warnings)


@router.get(
    "/v1/label-sets/{name}",
    response_model=LabelSetOut,
    summary="How a label set stands",
    openapi_extra=GET,
    responses={
        200: _described("The set's status; with `Retry-After` while it is computed."),
        304: {"description": "The set is ready and has not changed.", "headers": header("ETag", always=True)},
        **error_responses("/v1/label-sets/{name}", MalformedRequest, UnknownLabelSet, FieldErrors, *STATE_ERRORS),
    },
)
async def get_label_set(request: Request, name: Name) -> Response:
    """While the set is being computed, `Retry-After` has the time until the next request."""
    sets = services_of(request).classifier.label_sets
    include = read_query(request, "include").get("include")
    if include not in (None, "labels"):
        raise FieldErrors([("include", "must be labels, or left out")])
    known = read_condition(request).if_none_match
    status, definition = (await sets.status(name), None) if include is None else await sets.described(name)
    if known is not None and status.state == "ready" and known & {"*", status.head.version}:
        return Response(status_code=_NOT_MODIFIED, headers={"etag": etag(status.head.version)})
    return await written(lambda: _answer(status, 200, definition))


@router.delete(
    "/v1/label-sets/{name}",
    status_code=204,
    response_class=Response,
    summary="Delete a label set",
    openapi_extra=DELETE,
    responses={
        204: {"description": "The set is deleted."},
        **error_responses("/v1/label-sets/{name}", MalformedRequest, UnknownLabelSet, VersionMismatch, *STATE_ERRORS),
    },
)
async def delete_label_set(request: Request, name: Name) -> Response:
    """Requests that already use the set finish with it."""
    sets = services_of(request).classifier.label_sets
    await sets.delete(name, read_condition(request))
    return Response(status_code=204)


@router.get(
    "/v1/label-sets",
    response_model=LabelSetsOut,
    summary="The label sets of this server",
    openapi_extra=LIST,
    responses=error_responses("/v1/label-sets", FieldErrors, *STATE_ERRORS),
)
async def list_label_sets(request: Request) -> Response:
    """Ordered by name, in pages."""
    sets: LabelSets = services_of(request).classifier.label_sets
    query = read_query(request, "after", "limit")
    after, limit = query.get("after", ""), query.get("limit", str(DEFAULT_PAGE))
    if after and not NAME.fullmatch(after):
        raise FieldErrors([("after", "is not the name of a label set")])
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 1 <= int(limit) <= MAX_PAGE):  # noqa: PLR2004
        raise FieldErrors([("limit", f"must be a whole number from 1 to {MAX_PAGE}")])
    page, following = await sets.page(after=after, limit=int(limit))
    return JSONResponse({"label_sets": [label_set_json(status) for status in page], "next": following})


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise FieldErrors(
            [("name", "must have 1 to 100 characters of a-z 0-9 . _ - and begin with a letter or a digit")]
        )


def _definition(content: bytes, settings: Settings) -> Definition:
    fields = parse_json_object(content)
    labels = fields.get("labels")
    limit = settings.max_label_set_labels
    if isinstance(labels, list) and len(labels) > limit:
        raise TooManyLabels(f"The label set has {len(labels)} labels; this server accepts at most {limit} in one set.")
    parsed = validate_fields(LabelSetIn, fields)
    return check_definition(
        [each if isinstance(each, str) else each.label for each in parsed.labels],
        {index: each.descriptions for index, each in enumerate(parsed.labels) if isinstance(each, DescribedLabel)},
        parsed.templates,
        settings,
    )


def _answer(
    status: LabelSetStatus, code: int, definition: Definition | None = None, warnings: tuple[AnswerWarning, ...] = ()
) -> Response:
    headers = {"etag": etag(status.head.version), **warning_headers(warnings)}
    if status.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(status.retry_after_s)))
    head = json_text(label_set_json(status))
    labels = "" if definition is None else f',"labels":{labels_text(definition)}'
    text = f"{head[:-1]}{labels}{warnings_text(warnings)}}}"
    return Response(text, code, headers, media_type="application/json")
