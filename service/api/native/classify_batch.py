"""POST /v1/classify/batch: many images, the same labels; as one document or line by line."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import IO, Any, Final, TypeAlias, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.api.documentation import request_bodies as openapi
from service.api.documentation import responses as answers
from service.api.json_writer import json_text, one_line, predictions_text
from service.api.native.schemas import BatchAnswer
from service.api.problems.handlers import log_failure
from service.api.problems.table import NotAcceptable, problem_of
from service.api.request import body as bodies
from service.api.request.archive import MEDIA_TYPES, ArchiveImages, Upload, check_room
from service.api.request.classify_request import media_type, parse_archive_query, parse_batch
from service.api.request.disconnect import unless_client_goes
from service.api.request.fields import ClassifyRequest
from service.api.request.spool import Spool
from service.api.services import Services, services_of
from service.api.timing import server_timing
from service.classification.types import Classification, ImageSource
from service.concurrency import run_off_loop
from service.errors import AnyclassError, InvalidRequest, PayloadTooLarge, UnknownModel
from service.images.archives import too_large

NDJSON: Final = "application/x-ndjson"

_LINES: Final = (
    "Each line is a `BatchResult`. Should the whole fail midway, the last line is an object with `error` alone."
)

Result: TypeAlias = tuple[int, str | None, Classification | AnyclassError]
"""An image's index, its name where it has one, and what became of it."""

Gone: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

router = APIRouter(tags=["Classify"])


@router.post(
    "/v1/classify/batch",
    response_model=BatchAnswer,
    response_model_exclude_none=True,
    summary="Classify several images against the same labels",
    openapi_extra=openapi.BATCH,
    responses={
        200: {
            "description": "Every image has its result; one that cannot be classified has its error there.",
            "headers": answers.header("Server-Timing"),
            "content": {
                "application/json": answers.example("BATCH"),
                NDJSON: {"schema": {"type": "string", "description": _LINES}, **answers.example("BATCH_LINES")},
            },
        },
        **answers.refusals(
            "/v1/classify/batch",
            NotAcceptable,
            *answers.READING,
            *answers.LABELLING,
            *answers.LABEL_SETS,
            UnknownModel,
            *answers.COMPUTING,
        ),
    },
)
async def classify_batch(request: Request) -> Response:
    """An image that cannot be classified has an `error` in place of `predictions` and fails no other.

    Send JSON, a form, or a tar, tar.gz or zip of images. With `Accept: application/x-ndjson` each result is a line,
    sent as soon as it is known.
    """
    services = services_of(request)
    services.classifier  # noqa: B018 - raises NotReady before the body is read
    streamed = _wants_lines(request)
    batch = await _batch(request, services, streamed=streamed)
    results = _results(services, batch)
    gone = None if batch.upload is None else batch.upload.client_gone
    if not streamed:
        return await unless_client_goes(request, _document(request, services, batch.parsed, results), gone)
    pump = _Pump(results)
    try:
        # What is wrong with the whole request shows before the first line, while the answer's status is still open.
        await unless_client_goes(request, pump.first(), gone)
    except BaseException:
        await pump.close()
        raise
    return _Lines(request, pump, gone)


@dataclass(frozen=True, slots=True)
class _Batch:
    """A request, the archive that its images are in, and the upload that the archive still is."""

    parsed: ClassifyRequest
    archive: ArchiveImages | None = None
    upload: Upload | None = None


async def _batch(request: Request, services: Services, *, streamed: bool) -> _Batch:
    """Read the request; of an archive in its body nothing is read yet."""
    settings = services.settings
    max_images = settings.max_archive_images if streamed else settings.max_batch_images
    if media_type(request) in MEDIA_TYPES:
        limit = settings.max_archive_bytes
        try:
            bodies.check_declared_length(request.headers.get("content-length"), limit)
        except PayloadTooLarge as exc:
            raise too_large(limit) from exc
        spool = Spool()
        archive = ArchiveImages(cast("IO[bytes]", spool), settings, max_images=max_images)
        return _Batch(parse_archive_query(request, settings), archive, Upload(request.receive, spool, settings))
    parsed = await parse_batch(request, settings, services.image_fetcher)
    if parsed.archive is None:
        return _Batch(parsed)
    return _Batch(parsed, ArchiveImages(io.BytesIO(parsed.archive), settings, max_images=max_images))


async def _results(services: Services, batch: _Batch) -> AsyncGenerator[Result]:
    """Results in the images' order. Closing it drops what is not done."""
    parsed, archive = batch.parsed, batch.archive
    if archive is None:
        async with aclosing(_classified(services, parsed, parsed.images)) as classified:
            async for index, result in classified:
                yield index, None, result
        return
    check_room(services.archives)
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
                    f"The answer would have more than {limit} bytes, the limit of this server: ask for the best labels "
                    f"only (top_k), or for lines (Accept: {NDJSON}), which may have any number."
                )
            if classified is None and isinstance(row[2], Classification):
                classified = row[2]
    usage = {
        "labels": classified.labels if classified else len(parsed.query.labels),
        "labels_cached": classified.labels_cached if classified else 0,
    }
    model = classified.model if classified else services.models.get(parsed.model).name
    headers = {"server-timing": server_timing(request.state.started, None)}
    head, tail = f'{{"model":{json_text(model)},"results":[', f'],"usage":{json_text(usage)}}}'
    content = b"".join([head.encode(), b",".join(rows), tail.encode()])
    return Response(content, media_type="application/json", headers=headers)


class _Lines(StreamingResponse):
    """The results line by line, for as long as the client stays.

    Starlette's own way to notice that it has gone would swallow the body of an upload that is still coming in.
    """

    def __init__(self, request: Request, pump: "_Pump", gone: Gone | None) -> None:
        super().__init__(_lines(request, pump), media_type=NDJSON)
        self._request = request
        self._pump = pump
        self._gone = gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send everything. Raises `ClientDisconnect`."""
        try:
            await unless_client_goes(self._request, self.stream_response(send), self._gone)
        finally:
            await self._pump.close()


async def _lines(request: Request, pump: "_Pump") -> AsyncIterator[bytes]:
    try:
        while (item := await pump.next()) is not None:
            yield f"{one_line(await _row(request, *item))}\n".encode()
    except AnyclassError as exc:
        # The status is long sent; a line without an index says that the rest will not come.
        yield f"{one_line(json_text(_error(request, exc)))}\n".encode()


class _Pump:
    """Runs a generator in a task of its own, one result ahead, so that it may be waited for from several tasks.

    The first result is awaited by the route and the others by the response; an async generator that holds a
    timeout or a task group must not be handed about like that.
    """

    def __init__(self, results: AsyncGenerator[Result]) -> None:
        self._queue: asyncio.Queue[Result | BaseException | None] = asyncio.Queue(maxsize=1)
        self._first: list[Result | None] = []
        self._task = asyncio.create_task(self._run(results))

    async def close(self) -> None:
        """Drop the work that is not done."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, results: AsyncGenerator[Result]) -> None:
        try:
            async with aclosing(results):
                async for result in results:
                    await self._queue.put(result)
            await self._queue.put(None)
        except Exception as exc:  # noqa: BLE001 - raised again where the result is awaited
            await self._queue.put(exc)

    async def first(self) -> None:
        """Wait for the first result and keep it for `next`. Raises what the generator raised."""
        self._first = [await self.next()]

    async def next(self) -> Result | None:
        """The next result, or None after the last. Raises what the generator raised."""
        if self._first:
            return self._first.pop()
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item


async def _row(request: Request, index: int, name: str | None, result: Classification | AnyclassError) -> str:
    row: dict[str, Any] = {"index": index} if name is None else {"index": index, "name": name}
    if isinstance(result, AnyclassError):
        return json_text({**row, **_error(request, result)})
    predictions = await run_off_loop(len(result.predictions), lambda: predictions_text(result))
    return f'{json_text(row)[:-1]},"predictions":{predictions}}}'


def _error(request: Request, error: AnyclassError) -> dict[str, Any]:
    log_failure(error)
    return {"error": problem_of(error, request.state.request_id)}


def _wants_lines(request: Request) -> bool:
    """Whether the client prefers lines to one document; the document when it does not mind."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept", "*/*").split(","):
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
        raise NotAcceptable(f"This route answers with application/json or {NDJSON}; accept one of them.")
    return lines > document
