"""/v1/files: the input and output files of batches, in OpenAI's form."""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from service.api.documentation.examples import FILE_LINES
from service.api.documentation.responses import STATE_ERRORS, error_responses
from service.api.openai.schemas import (
    FILES_PAGE,
    LONGEST_KEEP_S,
    SHORTEST_KEEP_S,
    AfterFile,
    ExpiresAfter,
    FileDeletedOut,
    FileId,
    FileOut,
    FilesOut,
    IdempotencyKey,
    file_json,
    idempotency_of,
    page_json,
)
from service.api.problems.table import BodiesFull, BodyTimeout, FieldErrors, UnsupportedMediaType
from service.api.request.body import MULTIPART, OCTETS, check_declared_length, receive_chunks, require_media_type
from service.api.request.disconnect import StoppableStream
from service.api.request.file_upload import FILE, FileForm, read_file_form
from service.api.request.query import refuse_query
from service.api.request.validation import validate_fields
from service.api.services import services_of
from service.errors import Conflict, MalformedRequest, PayloadTooLarge, StateFull, UnknownObject
from service.jobs.records import FILE_PREFIX, is_id

_FORM_BYTES: Final = 65_536
"""Bytes allowed for the form around the file."""
_ANCHOR: Final = "expires_after[anchor]"
_SECONDS: Final = "expires_after[seconds]"
_FIELDS: Final = ("purpose", _ANCHOR, _SECONDS)

_UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "dependentRequired": {_ANCHOR: [_SECONDS], _SECONDS: [_ANCHOR]},
                    "properties": {
                        "file": {
                            "type": "string",
                            "format": "binary",
                            "description": "Lines of JSON, each with `custom_id`, `method` (`POST`), `url` (the "
                            "batch's `endpoint`) and `body` (the request to that route).",
                        },
                        "purpose": {"type": "string", "enum": ["batch"]},
                        _ANCHOR: {"type": "string", "enum": ["created_at"]},
                        _SECONDS: {
                            "type": "integer",
                            "minimum": SHORTEST_KEEP_S,
                            "maximum": LONGEST_KEEP_S,
                            "description": "Seconds for which the file is kept, up to the maximum of this server.",
                        },
                    },
                },
                "examples": {
                    "file": {"summary": "Two requests", "value": {"file": FILE_LINES, "purpose": "batch"}},
                    "kept": {
                        "summary": "A file that is kept for a day",
                        "value": {"file": FILE_LINES, "purpose": "batch", _ANCHOR: "created_at", _SECONDS: 86_400},
                    },
                },
            }
        },
    }
}

_LINKS: Final = {
    "retrieve": {"operationId": "retrieve_file", "parameters": {"file_id": "$response.body#/id"}},
    "content": {"operationId": "file_content", "parameters": {"file_id": "$response.body#/id"}},
    "delete": {"operationId": "delete_file", "parameters": {"file_id": "$response.body#/id"}},
    "batch": {
        "operationId": "create_batch",
        "requestBody": {"input_file_id": "$response.body#/id", "endpoint": "/v1/embeddings"},
    },
}
_ONE_FILE_ERRORS: Final = error_responses("/v1/files/{file_id}", FieldErrors, UnknownObject, *STATE_ERRORS)

router = APIRouter(tags=["Batch jobs"])


@router.post(
    "/v1/files",
    response_model=FileOut,
    summary="Send a file of requests",
    openapi_extra=_UPLOAD,
    responses={
        200: {"description": "The stored file.", "links": _LINKS},
        **error_responses(
            "/v1/files",
            MalformedRequest,
            FieldErrors,
            UnsupportedMediaType,
            PayloadTooLarge,
            BodyTimeout,
            Conflict,
            StateFull,
            *STATE_ERRORS,
        ),
    },
)
async def create_file(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """The file is stored as it arrives. Its lines are validated by the batch."""
    services = services_of(request)
    jobs, settings = services.jobs, services.settings
    idempotency = idempotency_of(idempotency_key, getattr(request.state, "api_key", None) or "")
    refuse_query(request)
    require_media_type(request, MULTIPART)
    limit = settings.max_file_bytes + _FORM_BYTES
    declared = check_declared_length(request.headers.get("content-length"), limit)
    chunks = receive_chunks(request.receive, limit=limit, timeout_s=settings.upload_timeout_s)
    writer = await jobs.begin_file(max(0, declared - _FORM_BYTES))
    try:
        form = await read_file_form(chunks, request.headers["content-type"], writer.write, fields=_FIELDS)
        name, keep_s = _validated(form, settings.keep_files_s)
        record = await jobs.add_file(writer, name=name, purpose="batch", keep_s=keep_s, idempotency=idempotency)
    except BaseException:
        await writer.discard()
        raise
    return JSONResponse(file_json(record))


@router.get(
    "/v1/files",
    response_model=FilesOut,
    summary="The files",
    responses=error_responses("/v1/files", FieldErrors, *STATE_ERRORS),
)
async def list_files(
    request: Request,
    after: AfterFile = None,
    limit: Annotated[int, Query(description="Files on a page.", ge=1, le=FILES_PAGE)] = FILES_PAGE,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
    purpose: Annotated[str | None, Query(description="Only files of this purpose.", max_length=100)] = None,
) -> Response:
    """Newest first, unless `order` is `asc`."""
    if after is not None and not is_id(FILE_PREFIX, after):
        raise FieldErrors([("after", "is not the id of a file")])
    files = services_of(request).jobs.file_store
    found, more = await files.page(after=after, limit=limit, ascending=order == "asc", purpose=purpose)
    return JSONResponse(page_json([file_json(record) for record in found], has_more=more))


@router.get("/v1/files/{file_id}", response_model=FileOut, summary="A file", responses=_ONE_FILE_ERRORS)
async def retrieve_file(request: Request, file_id: FileId) -> Response:
    """The file's metadata; `/content` has its bytes."""
    return JSONResponse(file_json(await services_of(request).jobs.file(file_id)))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    summary="The content of a file",
    responses={
        200: {"description": "The bytes.", "content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}},
        **error_responses("/v1/files/{file_id}", FieldErrors, UnknownObject, BodiesFull, *STATE_ERRORS),
    },
)
async def file_content(request: Request, file_id: FileId) -> Response:
    """The bytes as they were uploaded, or as the batch has written them."""
    jobs = services_of(request).jobs
    record = await jobs.file(file_id)
    headers = {"content-length": str(record.bytes)}
    if request.method == "HEAD":
        # Without reading a file that the server would discard.
        return Response(headers=headers, media_type=OCTETS)
    pieces = jobs.file_store.read(record)
    # Read the first piece before the status is sent, so that errors of the file change the status.
    first = [await anext(pieces, b"")]
    request.state.buffered_body.check_fits(len(first[0]))

    async def content() -> AsyncIterator[bytes]:
        yield first.pop()  # kept nowhere while the others are sent
        async for piece in pieces:
            yield piece

    return StoppableStream(content(), media_type=OCTETS, headers=headers)


@router.delete(
    "/v1/files/{file_id}",
    response_model=FileDeletedOut,
    summary="Delete a file",
    responses=error_responses("/v1/files/{file_id}", FieldErrors, UnknownObject, Conflict, *STATE_ERRORS),
)
async def delete_file(request: Request, file_id: FileId) -> Response:
    """Refused with 409 while a batch reads the file."""
    await services_of(request).jobs.delete_file(file_id)
    return JSONResponse(FileDeletedOut(id=file_id).model_dump())


def _validated(form: FileForm, longest_s: int) -> tuple[str, float]:
    """Validate a form; return the file's name and for how many seconds the file is kept."""
    fields: Mapping[str, str] = form.fields
    if form.name is None:
        raise FieldErrors([(FILE, "is missing; send the file as a file part of that name")])
    if fields.get("purpose") != "batch":
        raise FieldErrors([("purpose", "must be batch")])
    if _ANCHOR not in fields and _SECONDS not in fields:
        return form.name, longest_s
    given = {"anchor": fields.get(_ANCHOR), "seconds": fields.get(_SECONDS)}
    return form.name, min(validate_fields(ExpiresAfter, given).seconds, longest_s)
