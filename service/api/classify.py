"""POST /v1/classify and /v1/classify/batch: thin routes around the classifier."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from service.api import openapi
from service.api.fields import ClassifyRequest
from service.api.handlers import log_failure
from service.api.parsing import parse_batch, parse_single
from service.api.problems import NotAcceptable, problem_of
from service.api.schemas import BatchAnswer, ClassifyAnswer, answer_json, predictions_json
from service.api.services import Services, services_of
from service.classifier import Classification, Timings
from service.errors import AnyclassError

NDJSON: Final = "application/x-ndjson"

Result = tuple[int, Classification | AnyclassError]
T = TypeVar("T")

router = APIRouter(tags=["classify"])


@router.post(
    "/v1/classify",
    response_model=ClassifyAnswer,
    summary="Classify one image against any labels",
    openapi_extra=openapi.CLASSIFY,
    responses=openapi.problems(400, 404, 408, 413, 415, 422, 429, 500, 503),
)
async def classify(request: Request) -> Response:
    """Send JSON, a form, or the picture itself; the answer is the same."""
    services = services_of(request)
    classifier = services.classifier
    if len(services.models.names) == 1:
        # Refused before a byte of the body is read. With more models, which one it is for stands in the body.
        classifier.check_admission()
    parsed = await parse_single(request, services.settings)
    (image,) = parsed.images
    assert isinstance(image, bytes)  # noqa: S101 - parse_single raises what is wrong with the only image
    timings = Timings()
    work = classifier.classify(image, parsed.query, parsed.options, model=parsed.model, timings=timings)
    classification = await _unless_client_goes(request, work)
    return _json(request, answer_json(classification), timings)


@router.post(
    "/v1/classify/batch",
    response_model=BatchAnswer,
    response_model_exclude_none=True,
    summary="Classify several images against the same labels",
    openapi_extra=openapi.BATCH,
    responses={
        200: {"content": {NDJSON: {"schema": {"$ref": "#/components/schemas/BatchResult"}}}},
        **openapi.problems(400, 404, 406, 408, 413, 415, 422, 429, 500, 503),
    },
)
async def classify_batch(request: Request) -> Response:
    """An image that cannot be classified has an `error` in place of `predictions` and fails no other.

    With `Accept: application/x-ndjson` each result is a line, sent as soon as it is known.
    """
    services = services_of(request)
    services.classifier  # noqa: B018 - raises NotReady before the body is read
    streamed = _wants_lines(request)
    parsed = await parse_batch(request, services.settings)
    results = _results(services, parsed)
    if not streamed:
        return await _unless_client_goes(request, _whole_batch(request, services, parsed, results))
    pump = _Pump(results)
    try:
        # What is wrong with the whole request shows before the first line, while the answer's status is still open.
        await _unless_client_goes(request, pump.first())
    except BaseException:
        await pump.close()
        raise
    return StreamingResponse(_lines(request, pump), media_type=NDJSON)


async def _whole_batch(
    request: Request, services: Services, parsed: ClassifyRequest, results: AsyncGenerator[Result]
) -> Response:
    classified: Classification | None = None
    rows: list[dict[str, Any]] = []
    async with aclosing(results):
        async for index, result in results:
            rows.append(_row(request, index, result))
            if classified is None and isinstance(result, Classification):
                classified = result
    usage = {
        "labels": len(parsed.query.labels),
        "labels_cached": classified.labels_cached if classified else 0,
    }
    model = classified.model if classified else services.models.get(parsed.model).name
    return _json(request, {"model": model, "results": rows, "usage": usage})


async def _lines(request: Request, pump: "_Pump") -> AsyncIterator[bytes]:
    try:
        while (item := await pump.next()) is not None:
            yield _dump(_row(request, *item)) + b"\n"
    except AnyclassError as exc:
        # The status is long sent; a line without an index says that the rest will not come.
        yield _dump(_error_row(request, exc)) + b"\n"
    finally:
        await pump.close()


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


async def _results(services: Services, parsed: ClassifyRequest) -> AsyncGenerator[Result]:
    """Results in the images' order, those of images that could not even be unpacked among them."""
    unpacked = [(index, image) for index, image in enumerate(parsed.images) if isinstance(image, bytes)]
    classified = services.classifier.classify_many(
        [image for _, image in unpacked], parsed.query, parsed.options, model=parsed.model
    )
    upcoming = 0
    async with aclosing(cast("AsyncGenerator[Result]", classified)):
        async for position, result in classified:
            index = unpacked[position][0]
            for earlier in range(upcoming, index):
                yield earlier, _error_of(parsed, earlier)
            yield index, result
            upcoming = index + 1
    for rest in range(upcoming, len(parsed.images)):
        yield rest, _error_of(parsed, rest)


def _error_of(parsed: ClassifyRequest, index: int) -> AnyclassError:
    image = parsed.images[index]
    assert isinstance(image, AnyclassError)  # noqa: S101 - all others were classified
    return image


def _row(request: Request, index: int, result: Classification | AnyclassError) -> dict[str, Any]:
    if isinstance(result, AnyclassError):
        return {"index": index, **_error_row(request, result)}
    return {"index": index, "predictions": predictions_json(result)}


def _error_row(request: Request, error: AnyclassError) -> dict[str, Any]:
    log_failure(error)
    return {"error": problem_of(error, request.state.request_id)}


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _json(request: Request, content: dict[str, Any], timings: Timings | None = None) -> JSONResponse:
    return JSONResponse(content, headers={"server-timing": server_timing(request.state.started, timings)})


def server_timing(started: float, timings: Timings | None) -> str:
    """The Server-Timing header: milliseconds in each stage and in all; `started` is of `time.perf_counter`."""
    stages = {}
    if timings is not None:
        stages = {
            "decode": timings.decode_s,
            "queue": timings.queue_s,
            "text": timings.text_s,
            "image": timings.image_s,
            "score": timings.score_s,
        }
    stages["total"] = time.perf_counter() - started
    return ", ".join(f"{name};dur={seconds * 1000:.2f}" for name, seconds in stages.items())


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


async def _unless_client_goes(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, or drop it and raise `ClientDisconnect` as soon as nobody waits for it any more."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_client_gone(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
