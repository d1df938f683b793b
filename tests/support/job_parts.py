"""Parts of batch jobs with a manual clock and lines of simple words."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.errors import AnyclassError, InvalidLine
from service.jobs.line_handler import LineAnswer, LineRequest
from service.jobs.records import FileRecord, Job
from service.jobs.runner import JobRunner
from service.jobs.use_cases import Jobs
from service.jobs.validation import CHUNK_LINES
from service.jobs.work import InputLimits, JobWork
from service.monitoring.metrics import Metrics
from service.state.protocol import StateStore
from service.state.write_probe import PROBE_S, WriteProbe
from tests.support.classifying import until

ENDPOINT = "/v1/words"
MANY = 3 * CHUNK_LINES


@dataclass
class Clock:
    """Seconds since 1970, moved by hand."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        """Return the current time."""
        return self.now


@dataclass
class Words:
    """A `LineHandler` that answers each word in capitals, unless it should fail.

    Attributes:
        gate: while cleared, holds every answer.
        failing: word → errors of its next answers; with `always`, the last one repeats.
        answered: every word in the order of the answers.
    """

    endpoints: Collection[str] = (ENDPOINT,)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    failing: dict[str, list[Exception]] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)
    begun: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def read(self, line: bytes, endpoint: str) -> LineRequest:
        """See `LineHandler`."""
        word = line.decode().strip()
        if not word.isalnum():
            raise InvalidLine("no_word", "The line is not a word.")
        return LineRequest(word, {"word": word})

    async def answer(self, request: LineRequest, endpoint: str) -> LineAnswer:
        """See `LineHandler`."""
        self.begun += 1
        await self.gate.wait()
        word = request.body["word"]
        if self.failing.get(word):
            raise self.failing[word].pop(0)
        self.answered.append(word)
        return LineAnswer(200, json.dumps({"word": word.upper()}))

    def failure(self, error: AnyclassError | None, endpoint: str, request_id: str) -> LineAnswer:
        """See `LineHandler`."""
        detail = "internal" if error is None else error.detail
        return LineAnswer(500 if error is None else 422, json.dumps({"detail": detail}))


class Replica:
    """A replica: the use cases and a runner on a store."""

    def __init__(
        self,
        state: StateStore,
        clock: Clock | None = None,
        *,
        workers: int = 2,
        lease_s: float = 30.0,
        max_total_file_bytes: int = 2**30,
    ) -> None:
        self.clock = clock or Clock()
        self.words = Words()
        self.metrics = Metrics()
        self.jobs = Jobs(
            state,
            self.metrics,
            max_file_bytes=3 * 2**20,
            max_total_file_bytes=max_total_file_bytes,
            upload_timeout_s=600.0,
            max_active=3,
            clock=self.clock,
        )
        self.work = JobWork(
            self.jobs.job_store, self.jobs.file_store, self.words, InputLimits(max_lines=10_000, max_line_bytes=1_000)
        )
        self.stopping = False
        self.runner = JobRunner(
            self.jobs.job_store,
            self.jobs.file_store,
            self.work,
            WriteProbe(state, every_s=PROBE_S),
            self.metrics,
            workers=workers,
            lease_s=lease_s,
            keep_s=1_000.0,
            stopping=lambda: self.stopping,
            clock=self.clock,
        )
        self.jobs.on_change = self.runner.wake

    async def file(self, content: bytes, *, keep_s: float = 100_000.0) -> FileRecord:
        """Add a file."""
        writer = await self.jobs.begin_file()
        await writer.write(content)
        return await self.jobs.add_file(writer, name="in.jsonl", purpose="batch", keep_s=keep_s)

    async def job(self, words: list[str]) -> Job:
        """Add a job with one word a line."""
        file = await self.file("\n".join(words).encode())
        return await self.jobs.add_job(endpoint=ENDPOINT, input_file_id=file.id, window_hours=24, metadata=None)

    async def content(self, file_id: str) -> list[str]:
        """Read the lines of a file."""
        record = await self.jobs.file(file_id)
        return b"".join([piece async for piece in self.jobs.file_store.read(record)]).decode().splitlines()

    def count(self, name: str, **labels: str) -> float:
        """Return a metric's value, or 0 if it has none yet."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def working(worker: Replica) -> AsyncIterator[None]:
    """Run the worker until the end of the block."""
    worker.runner.start()
    try:
        yield
    finally:
        await worker.runner.close()


async def ended(worker: Replica, job: Job) -> Job:
    """Wait for the end of a job."""

    async def over() -> bool:
        return not (await worker.jobs.job(job.id)).active

    await until(over)
    return await worker.jobs.job(job.id)


def words(count: int) -> list[str]:
    """Return `count` different words."""
    return [f"word{number:04}" for number in range(count)]


def custom_ids(lines: list[str]) -> list[str]:
    """Return the custom ids of output lines."""
    return [json.loads(line)["custom_id"] for line in lines]
