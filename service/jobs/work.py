"""The three kinds of work on a job: check its input, answer a chunk of its lines, write its output."""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from service.concurrency import pause, together
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
from service.jobs.line_handler import LineAnswer, LineHandler, LineRequest
from service.jobs.records import Job, JobStatus, LineFault
from service.jobs.store import JobStore, LineResult
from service.jobs.transitions import ChunkPlan
from service.jobs.validation import LineSplitter, Validation

_SUCCESS: Final = range(200, 300)
_ATTEMPTS: Final = 3
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_TRANSIENT: Final = (
    NotReady,  # like `DeviceLost`: the line is answered after the restart
    DeviceLost,
    Overloaded,
    LabelSetComputing,
    StateUnavailable,
    DeadlineExceeded,
    DeviceOutOfMemory,
)
"""Errors that are not caused by the line."""
_NOT_DONE: Final[Mapping[JobStatus, tuple[str, str]]] = {
    JobStatus.EXPIRED: ("batch_expired", "The request was not begun before the completion window ended."),
    JobStatus.CANCELLED: ("batch_cancelled", "The request was not begun before the batch was cancelled."),
}

_log = structlog.stdlib.get_logger("service.jobs")


@dataclass(frozen=True, slots=True)
class InputLimits:
    """Limits of an input file."""

    max_lines: int
    max_line_bytes: int


class WaitLimit:
    """Limits how long the lines of a chunk may be retried: until their job expires or is cancelled.

    A cancelled job answers the lines that it has begun, but does not retry them.
    """

    def __init__(self, job: Job, clock: Callable[[], float] = time.time) -> None:
        self._expires_at = job.expires_at
        self._clock = clock
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """End all pauses, because the job is being cancelled."""
        self._cancelled.set()

    @property
    def outcome(self) -> JobStatus | None:
        """Return the outcome of a line that would have to wait longer, or None if it may wait."""
        if self._cancelled.is_set():
            return JobStatus.CANCELLED
        return JobStatus.EXPIRED if self._clock() >= self._expires_at else None

    async def pause(self, seconds: float) -> None:
        """Sleep, or until the job is cancelled."""
        await pause(self._cancelled, seconds)


class JobWork:
    """Does the units of work. The runner handles leases and results."""

    def __init__(self, jobs: JobStore, files: FileStore, handler: LineHandler, limits: InputLimits) -> None:
        self._jobs = jobs
        self._files = files
        self._handler = handler
        self._limits = limits

    async def check(self, job: Job) -> tuple[ChunkPlan, Sequence[LineFault]]:
        """Validate the whole input; return its division into chunks, and its faults."""
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

    async def answer(self, job: Job, chunk: int, wait_limit: WaitLimit) -> list[LineResult]:
        """Answer all lines of a chunk, in the order of the input. Raises NotReady and StateUnavailable."""
        lines = await self._lines(job, chunk)
        return await together([self._answer(job, number, line, wait_limit) for number, line in lines])

    async def write(self, job: Job, now: float, keep_s: float) -> tuple[bool, bool]:
        """Write the output and error files in the order of the input; return whether each has lines.

        May be repeated: existing files stay.
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
        assert job.outcome is not None  # noqa: S101 - decided before the output is written
        outcome = job.outcome
        lines = await self._lines(job, chunk)
        names = await asyncio.to_thread(lambda: [self._custom_id(job, line) for _, line in lines])
        return [_not_done(job, number, name, outcome) for (number, _), name in zip(lines, names, strict=True)]

    def _custom_id(self, job: Job, line: bytes) -> str | None:
        try:
            return self._handler.read(line, job.endpoint).custom_id
        except InvalidLine:  # valid before: a limit was lowered since
            return None

    async def _lines(self, job: Job, chunk: int) -> list[tuple[int, bytes]]:
        """Return number and content of the lines of a chunk, without blank ones."""
        start, end, first_line = job.chunk(chunk)
        splitter = LineSplitter(self._limits.max_line_bytes, offset=start, first_line=first_line)
        found: list[tuple[int, bytes]] = []

        def keep(lines: Iterator[tuple[int, int, bytes | None]]) -> None:
            found.extend((number, line) for _, number, line in lines if line and line.strip())

        async for piece in self._input(job, start, end):
            # In a thread: between two lines there may be millions of blank ones.
            await asyncio.to_thread(keep, splitter.feed(piece))
        keep(splitter.finish())
        return found

    async def _input(self, job: Job, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        record = await self._files.get(job.input_file_id)
        if record is None:
            raise StateCorrupt("The input file was deleted.")
        async for piece in self._files.read(record, start, end):
            yield piece

    async def _answer(self, job: Job, number: int, line: bytes, wait_limit: WaitLimit) -> LineResult:
        try:
            request = await asyncio.to_thread(self._handler.read, line, job.endpoint)
        except InvalidLine as exc:  # valid before: a limit was lowered since
            answer = self._handler.failure(exc, job.endpoint, request_id(job, number))
            return _result(job, number, None, answer)
        structlog.contextvars.bind_contextvars(request_id=request_id(job, number))
        return await self._answer_with_retries(job, number, request, wait_limit)

    async def _answer_with_retries(
        self, job: Job, number: int, request: LineRequest, wait_limit: WaitLimit
    ) -> LineResult:
        """Answer a line; retry it after transient errors, unless the job ends meanwhile."""
        pause_s = _FIRST_PAUSE_S
        failures = 0
        while True:
            try:
                return await self._once(job, number, request)
            except (Overloaded, LabelSetComputing, StateUnavailable):
                if (outcome := wait_limit.outcome) is not None:
                    return _not_done(job, number, request.custom_id, outcome)
            except (DeadlineExceeded, DeviceOutOfMemory) as exc:
                failures += 1
                if failures == _ATTEMPTS:
                    return self._failed(job, number, request, exc)
            await wait_limit.pause(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _once(self, job: Job, number: int, request: LineRequest) -> LineResult:
        """Answer a line once; errors other than `_TRANSIENT` become its result."""
        try:
            answer = await self._handler.answer(request, job.endpoint)
        except _TRANSIENT:
            raise
        except AnyclassError as exc:
            return self._failed(job, number, request, exc)
        except Exception:  # noqa: BLE001 - a line must not fail the others
            _log.exception("unexpected error in a batch line", batch=job.id, line=number)
            return self._failed(job, number, request, None)
        return _result(job, number, request.custom_id, answer)

    def _failed(self, job: Job, number: int, request: LineRequest, error: AnyclassError | None) -> LineResult:
        failure = self._handler.failure(error, job.endpoint, request_id(job, number))
        return _result(job, number, request.custom_id, failure)


def request_id(job: Job, number: int) -> str:
    """Return the request id of a line, for answer and log; the same for every attempt."""
    return f"batch_req_{hashlib.sha256(f'{job.id} {number}'.encode()).hexdigest()[:32]}"


def _result(job: Job, number: int, custom_id: str | None, answer: LineAnswer) -> LineResult:
    text = _output_line(job, number, custom_id, answer, None)
    return LineResult(number, ok=answer.status in _SUCCESS, text=text)


def _not_done(job: Job, number: int, custom_id: str | None, outcome: JobStatus) -> LineResult:
    code, message = _NOT_DONE[outcome]
    text = _output_line(job, number, custom_id, None, {"code": code, "message": message})
    return LineResult(number, ok=False, text=text)


def _output_line(
    job: Job, number: int, custom_id: str | None, answer: LineAnswer | None, error: Mapping[str, str] | None
) -> str:
    own_id = json.dumps(request_id(job, number))
    response = "null"
    if answer is not None:
        # The body is JSON already and may be long, so it is not parsed and written again.
        response = f'{{"status_code":{answer.status},"request_id":{own_id},"body":{answer.body}}}'
    return f'{{"id":{own_id},"custom_id":{json.dumps(custom_id)},"response":{response},"error":{json.dumps(error)}}}'
