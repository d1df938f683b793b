"""The three kinds of work on a job: to check its input, to answer a chunk of its lines, and to write its output."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from service.concurrency import together
from service.errors import (
    AnyclassError,
    DeadlineExceeded,
    DeviceLost,
    DeviceOutOfMemory,
    InvalidLine,
    LabelSetComputing,
    NotReady,
    Overloaded,
    StateCorrupt,
    StateUnavailable,
)
from service.jobs.files import FileStore, FileWriter
from service.jobs.line_handler import Answer, LineHandler, LineRequest
from service.jobs.records import Job, LineFault, Status
from service.jobs.store import JobStore, LineResult
from service.jobs.transitions import Plan
from service.jobs.validation import LineSplitter, Validation

_SUCCESS: Final = range(200, 300)
_ATTEMPTS: Final = 3
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_PASSING: Final = (
    NotReady,  # as `DeviceLost`: the line is done after the restart
    DeviceLost,
    Overloaded,
    LabelSetComputing,
    StateUnavailable,
    DeadlineExceeded,
    DeviceOutOfMemory,
)
"""Errors that say nothing about the line."""
_NOT_DONE: Final[Mapping[Status, tuple[str, str]]] = {
    Status.EXPIRED: ("batch_expired", "The request was not begun before the completion window ended."),
    Status.CANCELLED: ("batch_cancelled", "The request was not begun before the batch was cancelled."),
}

_log = structlog.stdlib.get_logger("service.jobs")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an input file may hold."""

    max_lines: int
    max_line_bytes: int


class Patience:
    """How long the lines of a chunk may wait for what passes by itself: not once their job has expired or is cancelled.

    Waiting is not work: a cancelled job answers what it has begun, and does not go on trying.
    """

    def __init__(self, job: Job, clock: Callable[[], float] = time.time) -> None:
        self._expires_at = job.expires_at
        self._clock = clock
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Wake all who wait: the job is being cancelled."""
        self._cancelled.set()

    @property
    def outcome(self) -> Status | None:
        """What becomes of a line that would have to wait on; None while it may."""
        if self._cancelled.is_set():
            return Status.CANCELLED
        return Status.EXPIRED if self._clock() >= self._expires_at else None

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the job is cancelled."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._cancelled.wait()


class JobWork:
    """Does the work; who may do it, and what becomes of it, is the runner's business."""

    def __init__(self, jobs: JobStore, files: FileStore, handler: LineHandler, limits: Limits) -> None:
        self._jobs = jobs
        self._files = files
        self._handler = handler
        self._limits = limits

    async def check(self, job: Job) -> tuple[Plan, Sequence[LineFault]]:
        """Read the whole input, and say how to cut it, or what is wrong with it."""
        limits = self._limits
        validation = Validation(
            self._handler, job.endpoint, max_lines=limits.max_lines, max_line_bytes=limits.max_line_bytes
        )
        try:
            async for piece in self._input(job):
                await asyncio.to_thread(validation.feed, piece)
                if validation.over:
                    break
        except StateCorrupt as exc:
            validation.faults.append(LineFault(code="input_file_unreadable", message=exc.detail))
        plan = await asyncio.to_thread(validation.finish)
        return plan, validation.faults

    async def answer(self, job: Job, chunk: int, patience: Patience) -> list[LineResult]:
        """Answer all lines of a chunk, in the order of the input. Raises NotReady and StateUnavailable."""
        lines = await self._lines(job, chunk)
        return await together([self._answer(job, number, line, patience) for number, line in lines])

    async def write(self, job: Job, now: float, keep_s: float) -> tuple[bool, bool]:
        """Write the output, the input's order kept; whether there are answers, and whether there are errors.

        May be done again: files that are there already stay.
        """
        output, errors = self._files.writer(), self._files.writer()
        try:
            for chunk in range(len(job.starts)):
                for result in await self._results(job, chunk):
                    await (output if result.ok else errors).write(f"{result.text}\n".encode())
            await self._keep(job, output, "output", now, keep_s)
            await self._keep(job, errors, "error", now, keep_s)
        except BaseException:
            await asyncio.gather(output.discard(), errors.discard(), return_exceptions=True)
            raise
        return output.bytes > 0, errors.bytes > 0

    async def _keep(self, job: Job, writer: FileWriter, kind: str, now: float, keep_s: float) -> None:
        if writer.bytes:
            file_id = job.output_id if kind == "output" else job.error_id
            name = f"{job.id}_{kind}.jsonl"
            await self._files.add(
                writer,
                file_id=file_id,
                name=name,
                purpose="batch_output",
                now=now,
                keep_s=job.keep_output_s or keep_s,
            )

    async def _results(self, job: Job, chunk: int) -> list[LineResult]:
        results = await self._jobs.results(job, chunk)
        if results is not None:
            return results
        assert job.outcome is not None  # noqa: S101 - it is decided before the output is written
        outcome = job.outcome
        lines = await self._lines(job, chunk)
        names = await asyncio.to_thread(lambda: [self._custom_id(job, line) for _, line in lines])
        return [_not_done(job, number, name, outcome) for (number, _), name in zip(lines, names, strict=True)]

    def _custom_id(self, job: Job, line: bytes) -> str | None:
        try:
            return self._handler.read(line, job.endpoint).custom_id
        except InvalidLine:  # it was valid once: a limit has been lowered since
            return None

    async def _lines(self, job: Job, chunk: int) -> list[tuple[int, bytes]]:
        """Number and content of each line of a chunk that is not blank."""
        start, end, first_line = job.chunk(chunk)
        splitter = LineSplitter(self._limits.max_line_bytes, offset=start, first_line=first_line)
        found: list[tuple[int, bytes]] = []
        async for piece in self._input(job, start, end):
            found += [(number, line) for _, number, line in splitter.feed(piece) if line and line.strip()]
        found += [(number, line) for _, number, line in splitter.finish() if line and line.strip()]
        return found

    async def _input(self, job: Job, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        record = await self._files.get(job.input_file_id)
        if record is None:
            raise StateCorrupt("The input file is gone.")
        async for piece in self._files.read(record, start, end):
            yield piece

    async def _answer(self, job: Job, number: int, line: bytes, patience: Patience) -> LineResult:
        try:
            request = await asyncio.to_thread(self._handler.read, line, job.endpoint)
        except InvalidLine as exc:  # it was valid once: a limit has been lowered since
            answer = self._handler.failure(exc, job.endpoint, request_id(job, number))
            return _result(job, number, None, answer)
        structlog.contextvars.bind_contextvars(request_id=request_id(job, number))
        return await self._patiently(job, number, request, patience)

    async def _patiently(self, job: Job, number: int, request: LineRequest, patience: Patience) -> LineResult:
        """Answer one line; what will pass by itself is waited for, unless the job ends meanwhile."""
        pause_s = _FIRST_PAUSE_S
        failures = 0
        while True:
            try:
                return await self._once(job, number, request)
            except (Overloaded, LabelSetComputing, StateUnavailable):
                if (outcome := patience.outcome) is not None:
                    return _not_done(job, number, request.custom_id, outcome)
            except (DeadlineExceeded, DeviceOutOfMemory) as exc:
                failures += 1
                if failures == _ATTEMPTS:
                    return self._failed(job, number, request, exc)
            await patience.pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _once(self, job: Job, number: int, request: LineRequest) -> LineResult:
        """Answer one line, or say why not. Raises what is `_PASSING`."""
        try:
            answer = await self._handler.answer(request, job.endpoint)
        except _PASSING:
            raise
        except AnyclassError as exc:
            return self._failed(job, number, request, exc)
        except Exception:  # noqa: BLE001 - one line fails no other
            _log.exception("unexpected error in a batch line", batch=job.id, line=number)
            return self._failed(job, number, request, None)
        return _result(job, number, request.custom_id, answer)

    def _failed(self, job: Job, number: int, request: LineRequest, error: AnyclassError | None) -> LineResult:
        failure = self._handler.failure(error, job.endpoint, request_id(job, number))
        return _result(job, number, request.custom_id, failure)


def request_id(job: Job, number: int) -> str:
    """The id of a line's request: the same however often the line is begun, and in the log."""
    return f"batch_req_{hashlib.sha256(f'{job.id} {number}'.encode()).hexdigest()[:32]}"


def _result(job: Job, number: int, custom_id: str | None, answer: Answer) -> LineResult:
    text = _output_line(job, number, custom_id, answer, None)
    return LineResult(number, ok=answer.status in _SUCCESS, text=text)


def _not_done(job: Job, number: int, custom_id: str | None, outcome: Status) -> LineResult:
    code, message = _NOT_DONE[outcome]
    text = _output_line(job, number, custom_id, None, {"code": code, "message": message})
    return LineResult(number, ok=False, text=text)


def _output_line(
    job: Job, number: int, custom_id: str | None, answer: Answer | None, error: Mapping[str, str] | None
) -> str:
    own_id = json.dumps(request_id(job, number))
    response = "null"
    if answer is not None:
        # The body is JSON already, and may be long: it is not read to be written again.
        response = f'{{"status_code":{answer.status},"request_id":{own_id},"body":{answer.body}}}'
    return f'{{"id":{own_id},"custom_id":{json.dumps(custom_id)},"response":{response},"error":{json.dumps(error)}}}'
