"""POST /v1/classify/batch: many images, the same labels; answered as one document or line by line."""

import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import IO, Any, Final, TypeAlias, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.direct_route import DirectRoute
from service.api.documentation.examples import RESULT_LINES
from service.api.documentation.request_bodies import BATCH
from service.api.documentation.responses import (
    BODY_ERRORS,
    INFERENCE_ERRORS,
    LABEL_ERRORS,
    LABEL_SET_ERRORS,
    error_responses,
    header,
)
from service.api.json_writer import json_text, one_line, predictions_text, warnings_text, written
from service.api.native.schemas import BatchAnswer
from service.api.problems.handlers import log_failure
from service.api.problems.table import NotAcceptable, problem_of
from service.api.request.archive import MEDIA_TYPES, ArchiveImages, ArchiveUpload, check_archives_in_work
from service.api.request.body import check_declared_length, media_type
from service.api.request.classify_request import parse_archive_query, parse_batch
from service.api.request.disconnect import cancel_on_disconnect
from service.api.request.fields import ClassifyRequest
from service.api.request.spool import Spool
from service.api.services import Services, services_of
from service.api.timing import server_timing
from service.api.warning_header import warning_headers
from service.classification.types import Classification, ImageSource
from service.errors import AnyclassError, InvalidRequest, PayloadTooLarge, UnknownModel
from service.images.archives import too_large
from service.model.answer_warnings import AnswerWarning

NDJSON: Final = "application/x-ndjson"

_MAX_ACCEPT_CHARS: Final = 4_096
_LINES: Final = (
    "Each line is a `BatchResult`. Should the whole fail midway, the last line is an object with `error` alone."
)

Result: TypeAlias = tuple[int, str | None, Classification | AnyclassError]
"""An image's index, its name if it comes from an archive, and its classification or error."""

WaitDisconnected: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Waits until the client has disconnected."""

router = APIRouter(tags=["Classify"], route_class=DirectRoute)


@router.post(
    "/v1/classify/batch",
    response_model=BatchAnswer,
    summary="Classify several images against the same labels",
    openapi_extra=BATCH,
    responses={
        200: {
            "description": "Every image has its result; one that cannot be classified has its error there.",
            "headers": header("Server-Timing") | header("X-Anyclass-Warnings"),
            "content": {NDJSON: {"schema": {"type": "string", "description": _LINES}, "example": RESULT_LINES}},
        },
        **error_responses(
            "/v1/classify/batch",
            NotAcceptable,
            *BODY_ERRORS,
            *LABEL_ERRORS,
            *LABEL_SET_ERRORS,
            UnknownModel,
            *INFERENCE_ERRORS,
        ),
    },
)
async def classify_batch(request: Request) -> Response:
    """An image that cannot be classified has an `error` in place of `predictions` and fails no other.

    Send JSON, a form, or a tar, tar.gz or zip of images. With `Accept: application/x-ndjson` each result is a line,
    sent as soon as it is known.
    """
    services = services_of(request)
    services.require_loaded()
    streamed = _wants_lines(request)
    batch = await _batch(request, services, streamed=streamed)
    results = _results(services, batch)
    disconnected = None if batch.upload is None else batch.upload.client_disconnected
    if not streamed:
        return await cancel_on_disconnect(request, _document(request, services, batch.parsed, results), disconnected)
    try:
        # Errors of the whole request are raised with the first result, before the status is sent.
        first = await cancel_on_disconnect(request, _next(results), disconnected)
    except BaseException:
        await results.aclose()
        raise
    return _Lines(request, first, results, disconnected)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A request, its archive of images if it has one, and the upload of that archive if it is the body."""

    parsed: ClassifyRequest
    archive: ArchiveImages | None = None
    upload: ArchiveUpload | None = None


async def _batch(request: Request, services: Services, *, streamed: bool) -> _Batch:
    """Read the request. An archive that is the body is not read yet."""
    settings = services.settings
    max_images = settings.max_archive_images if streamed else settings.max_batch_images
    if media_type(request) in MEDIA_TYPES:
        limit = settings.max_archive_bytes
        try:
            check_declared_length(request.headers.get("content-length"), limit)
        except PayloadTooLarge as exc:
            raise too_large(limit) from exc
        parsed = await parse_archive_query(request, settings)
        spool = Spool()
        archive = ArchiveImages(cast("IO[bytes]", spool), settings, max_images=max_images)
        return _Batch(parsed, archive, ArchiveUpload(request.receive, spool, settings))
    parsed = await parse_batch(request, settings, services.image_fetcher)
    if parsed.archive is None:
        return _Batch(parsed)
    return _Batch(parsed, ArchiveImages(io.BytesIO(parsed.archive), settings, max_images=max_images))


async def _results(services: Services, batch: _Batch) -> AsyncGenerator[Result]:
    """Yield results in the images' order. Closing the generator cancels the work under way."""
    parsed, archive = batch.parsed, batch.archive
    if archive is None:
        async with aclosing(_classified(services, parsed, parsed.images)) as classified:
            async for index, result in classified:
                yield index, None, result
        return
    check_archives_in_work(services.archives)
    services.archives += 1
    try:
        if batch.upload is not None:
            batch.upload.start()
        async with aclosing(_classified(services, parsed, archive.images())) as classified:
            async for index, result in classified:
                yield index, archive.names[index], result
                archive.answered()
    finally:
        services.archives -= 1
        if batch.upload is not None:
            await batch.upload.close()
        await archive.close()


def _classified(
    services: Services, parsed: ClassifyRequest, images: AsyncIterator[ImageSource] | Sequence[ImageSource]
) -> AsyncGenerator[tuple[int, Classification | AnyclassError]]:
    return services.classifier.classify_many(images, parsed.query, parsed.options, model=parsed.model)


async def _document(
    request: Request, services: Services, parsed: ClassifyRequest, results: AsyncGenerator[Result]
) -> Response:
    classified: Classification | None = None
    rows: list[bytes] = []
    size, limit = 0, services.settings.max_answer_bytes
    async with aclosing(results):
        async for row in results:
            rows.append((await _row(request, *row)).encode())
            size += len(rows[-1])
            if size > limit:
                raise InvalidRequest(
                    f"The answer would have more than {limit} bytes, the limit of this server. Ask for fewer "
                    f"labels (top_k), or for lines (Accept: {NDJSON}), which have no limit."
                )
            if classified is None and isinstance(row[2], Classification):
                classified = row[2]
    usage = {
        "labels": classified.labels if classified else len(parsed.query.labels),
        "labels_cached": classified.labels_cached if classified else 0,
    }
    model = classified.model if classified else services.models.get(parsed.model).name
    warnings = classified.warnings if classified else ()
    headers = {"server-timing": server_timing(request.state.started, None), **warning_headers(warnings)}
    head, tail = f'{{"model":{json_text(model)},"results":[', f'],"usage":{json_text(usage)}{warnings_text(warnings)}}}'
    content = b"".join([head.encode(), b",".join(rows), tail.encode()])
    return Response(content, media_type="application/json", headers=headers)


class _Lines(StreamingResponse):
    """Sends the results line by line until the client disconnects.

    Starlette's own check for a disconnect would swallow the body of an upload that is still arriving.
    """

    def __init__(
        self,
        request: Request,
        first: Result | None,
        results: AsyncGenerator[Result],
        disconnected: WaitDisconnected | None,
    ) -> None:
        known = first[2].warnings if first is not None and isinstance(first[2], Classification) else ()
        super().__init__(_lines(request, first, results), media_type=NDJSON, headers=warning_headers(known))
        self._request = request
        self._results = results
        self._disconnected = disconnected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send everything. Raises `ClientDisconnect`."""
        async with aclosing(self._results):
            await cancel_on_disconnect(self._request, self.stream_response(send), self._disconnected)


async def _lines(request: Request, first: Result | None, results: AsyncGenerator[Result]) -> AsyncIterator[bytes]:
    result, warned = first, False
    try:
        while result is not None:
            warnings = () if warned or isinstance(result[2], AnyclassError) else result[2].warnings
            warned = warned or bool(warnings)
            yield f"{one_line(await _row(request, *result, warnings))}\n".encode()
            result = await _next(results)
    except AnyclassError as exc:
        # The status is already sent; a line without an index ends the results early.
        yield f"{one_line(json_text(_error(request, exc)))}\n".encode()


async def _next(results: AsyncGenerator[Result]) -> Result | None:
    return await anext(results, None)


async def _row(
    request: Request,
    index: int,
    name: str | None,
    result: Classification | AnyclassError,
    warnings: Sequence[AnswerWarning] = (),
) -> str:
    row: dict[str, Any] = {"index": index} if name is None else {"index": index, "name": name}
    if isinstance(result, AnyclassError):
        return json_text({**row, **_error(request, result)})
    predictions = await written(lambda: predictions_text(result), rows=len(result.predictions))
    return f'{json_text(row)[:-1]},"predictions":{predictions}{warnings_text(warnings)}}}'


def _error(request: Request, error: AnyclassError) -> dict[str, Any]:
    log_failure(error)
    return {"error": problem_of(error, request.state.request_id)}


def _wants_lines(request: Request) -> bool:
    """Return whether the client prefers lines to one document. Without a preference it gets the document."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept", "*/*")[:_MAX_ACCEPT_CHARS].split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[kind] = float(weight)
        except ValueError:
            weights[kind] = 0.0
    anything = max(weights.get("*/*", 0.0), weights.get("application/*", 0.0))
    lines = weights.get(NDJSON, anything)
    document = weights.get("application/json", anything)
    if lines <= 0 and document <= 0:
        raise NotAcceptable(f"This route answers with application/json or {NDJSON}. Accept one of them.")
    return lines > document
