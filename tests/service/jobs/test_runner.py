import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.errors import DeadlineExceeded, InvalidImage, LabelSetComputing, NotReady, Overloaded, StateFull
from service.jobs.records import Job, JobStatus
from service.jobs.validation import CHUNK_LINES
from service.monitoring import logs
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.classifying import until
from tests.support.job_parts import Replica
from tests.support.redis_server import running_redis

MANY = 3 * CHUNK_LINES


@pytest.fixture(autouse=True)
def log(restored_logging: None) -> io.StringIO:
    """What is logged, as `anyclass serve` would."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    return stream


@pytest.fixture
async def make_state(tmp_path: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Makes state stores in one directory, as processes of one machine have them."""
    stores: list[StateStore] = []

    def make() -> StateStore:
        stores.append(DirectoryStateStore(tmp_path / "state"))
        return stores[-1]

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def replica(make_state: Callable[[], StateStore]) -> AsyncIterator[Replica]:
    """One replica, whose runner is yet to be started."""
    replica = Replica(make_state())
    yield replica
    replica.words.gate.set()
    await replica.runner.close()


@asynccontextmanager
async def working(replica: Replica) -> AsyncIterator[None]:
    """The runner, until the end of the block."""
    replica.runner.start()
    try:
        yield
    finally:
        await replica.runner.close()


async def ended(replica: Replica, job: Job) -> Job:
    """Wait for the end of a job."""

    async def over() -> bool:
        return not (await replica.jobs.job(job.id)).active

    await until(over)
    return await replica.jobs.job(job.id)


def words(count: int) -> list[str]:
    """Make so many different words."""
    return [f"word{number:04}" for number in range(count)]


def custom_ids(lines: list[str]) -> list[str]:
    """Whose lines they are."""
    return [json.loads(line)["custom_id"] for line in lines]


async def test_a_job_is_answered_in_the_order_of_its_input(replica: Replica) -> None:
    """However its chunks were spread; each line once; ids say which request it was."""
    job = await replica.job(words(MANY + 5))
    async with working(replica):
        job = await ended(replica, job)
    assert (JobStatus.COMPLETED, MANY + 5, MANY + 5, 0) == (job.status, job.total, job.completed, job.failed)
    lines = await replica.content(job.output_id)
    assert words(MANY + 5) == custom_ids(lines)
    assert sorted(replica.words.answered) == words(MANY + 5)
    first: dict[str, Any] = json.loads(lines[0])
    assert {"status_code": 200, "request_id": first["id"], "body": {"word": "WORD0000"}} == first["response"]
    assert first["error"] is None
    assert MANY + 5 == len({json.loads(line)["id"] for line in lines})
    assert not job.has_errors
    assert MANY + 5 == replica.count("anyclass_job_lines_total", outcome="completed")
    assert 1 == replica.count("anyclass_jobs_ended_total", status="completed")
    assert [] == await replica.jobs.file_store._state.blob_keys("jobs/results/")


async def test_lines_that_fail_go_to_the_error_file(replica: Replica, log: io.StringIO) -> None:
    """What is wrong with one line fails no other, foreseen or not; the log has the reason of the latter only."""
    replica.words.failing = {"b": [InvalidImage("It is no picture.")], "d": [RuntimeError("a secret")]}
    job = await replica.job(["a", "b", "c", "d"])
    async with working(replica):
        job = await ended(replica, job)
    assert (JobStatus.COMPLETED, 2, 2) == (job.status, job.completed, job.failed)
    assert ["a", "c"] == custom_ids(await replica.content(job.output_id))
    errors = [json.loads(line)["response"] for line in await replica.content(job.error_id)]
    assert [(422, "It is no picture."), (500, "internal")] == [
        (each["status_code"], each["body"]["detail"]) for each in errors
    ]
    assert "a secret" in log.getvalue()
    assert "It is no picture" not in log.getvalue()


async def test_what_passes_by_itself_is_waited_for(replica: Replica) -> None:
    """A line is tried again while too much waits; one that takes too long is tried a few times."""
    busy, slow = Overloaded("Too many images are waiting.", 1.0), DeadlineExceeded("Too slow.")
    replica.words.failing = {"a": [busy] * 4, "b": [slow] * 2, "c": [slow] * 9}
    job = await replica.job(["a", "b", "c"])
    async with working(replica):
        job = await ended(replica, job)
    assert ["a", "b"] == custom_ids(await replica.content(job.output_id))
    assert ["c"] == custom_ids(await replica.content(job.error_id))


async def test_an_invalid_file_fails_as_a_whole(replica: Replica) -> None:
    """With the numbers of its lines, and nothing is answered."""
    job = await replica.job(["a", "!", "c", "?"])
    async with working(replica):
        job = await ended(replica, job)
    assert (JobStatus.FAILED, [2, 4], []) == (job.status, [fault.line for fault in job.errors], replica.words.answered)
    assert not job.has_output


async def test_a_cancelled_job_keeps_what_is_done(replica: Replica) -> None:
    """The lines in work are answered, no others are begun, and the error file tells which were not done."""
    replica.words.gate.clear()
    job = await replica.job(words(MANY))
    async with working(replica):
        await until(lambda: replica.words.begun == 2 * CHUNK_LINES)
        assert JobStatus.CANCELLING == (await replica.jobs.cancel(job.id)).status
        replica.words.gate.set()
        job = await ended(replica, job)
    assert (JobStatus.CANCELLED, MANY, 2 * CHUNK_LINES, 0) == (job.status, job.total, job.completed, job.failed)
    assert words(MANY)[: 2 * CHUNK_LINES] == custom_ids(await replica.content(job.output_id))
    errors = [json.loads(line) for line in await replica.content(job.error_id)]
    assert words(MANY)[2 * CHUNK_LINES :] == [line["custom_id"] for line in errors]
    assert {"batch_cancelled"} == {line["error"]["code"] for line in errors}


async def test_a_cancelled_job_waits_for_nothing(make_state: Callable[[], StateStore]) -> None:
    """A line that waits for what may never pass is not in work: the job ends at the lease's next renewal."""
    replica = Replica(make_state(), lease_s=0.3)
    replica.words.failing = {"b": [LabelSetComputing("Still computing.", 60.0)] * 1_000}
    job = await replica.job(["a", "b"])
    async with working(replica):
        await until(lambda: "a" in replica.words.answered and len(replica.words.failing["b"]) < 1_000)
        await replica.jobs.cancel(job.id)
        job = await ended(replica, job)
    assert (JobStatus.CANCELLED, 1, 1) == (job.status, job.completed, job.failed)
    assert ["a"] == custom_ids(await replica.content(job.output_id))
    (line,) = [json.loads(line) for line in await replica.content(job.error_id)]
    assert ("b", None, "batch_cancelled") == (line["custom_id"], line["response"], line["error"]["code"])


async def test_a_job_whose_window_ends_waits_for_nothing(replica: Replica) -> None:
    """A line that could not be begun until then has expired."""
    replica.words.failing = {"b": [Overloaded("Too many images are waiting.", 1.0)] * 1_000}
    job = await replica.job(["a", "b"])
    async with working(replica):
        await until(lambda: "a" in replica.words.answered and len(replica.words.failing["b"]) < 1_000)
        replica.clock.now = job.expires_at
        job = await ended(replica, job)
    assert (1, 1) == (job.completed, job.failed)
    (line,) = [json.loads(line) for line in await replica.content(job.error_id)]
    assert ("b", None, "batch_expired") == (line["custom_id"], line["response"], line["error"]["code"])


async def test_a_job_past_its_window_expires(replica: Replica) -> None:
    """What was done until then is kept."""
    replica.words.gate.clear()
    job = await replica.job(words(MANY))
    replica.clock.now = job.expires_at - 10
    async with working(replica):
        await until(lambda: replica.words.begun == 2 * CHUNK_LINES)
        replica.clock.now += 10
        replica.words.gate.set()
        job = await ended(replica, job)
    assert (JobStatus.EXPIRED, 2 * CHUNK_LINES) == (job.status, job.completed)
    errors = [json.loads(line) for line in await replica.content(job.error_id)]
    assert CHUNK_LINES == len(errors)
    assert {"batch_expired"} == {line["error"]["code"] for line in errors}


async def test_a_job_goes_on_where_another_process_left_it(make_state: Callable[[], StateStore]) -> None:
    """Lines in flight at the end are answered; after the next start the rest is done, and nothing twice."""
    first = Replica(make_state(), workers=1)
    first.words.gate.clear()
    job = await first.job(words(MANY))
    async with working(first):
        await until(lambda: first.words.begun == CHUNK_LINES)
        first.stopping = True
        first.words.gate.set()
    assert CHUNK_LINES == len(first.words.answered)
    assert CHUNK_LINES == (await first.jobs.job(job.id)).completed
    second = Replica(make_state(), first.clock)
    async with working(second):
        job = await ended(second, job)
    assert words(MANY) == custom_ids(await second.content(job.output_id))
    assert words(MANY) == sorted(first.words.answered + second.words.answered)


async def test_several_processes_share_a_directory(make_state: Callable[[], StateStore]) -> None:
    """Each answers lines of the same job, and none is answered twice."""
    replicas = [Replica(make_state(), workers=1) for _ in range(2)]
    for replica in replicas:
        replica.words.gate.clear()
    job = await replicas[0].job(words(MANY))
    async with working(replicas[0]), working(replicas[1]):
        await until(lambda: all(replica.words.begun == CHUNK_LINES for replica in replicas))
        for replica in replicas:
            replica.words.gate.set()
        job = await ended(replicas[0], job)
    assert words(MANY) == custom_ids(await replicas[1].content(job.output_id))
    assert words(MANY) == sorted(replicas[0].words.answered + replicas[1].words.answered)


async def test_work_under_a_lost_lease_is_dropped(make_state: Callable[[], StateStore]) -> None:
    """A process that could not renew its lease in time stops its lines, for another has them."""
    slow, quick = Replica(make_state(), workers=1, lease_s=1.5), Replica(make_state())
    slow.words.gate.clear()
    job = await slow.job(words(CHUNK_LINES))
    async with working(slow):
        await until(lambda: slow.words.begun == CHUNK_LINES)
        quick.clock.now = slow.clock.now + 100
        async with working(quick):
            job = await ended(quick, job)
        slow.words.gate.set()
    assert JobStatus.COMPLETED == job.status
    assert words(CHUNK_LINES) == custom_ids(await quick.content(job.output_id))
    assert 0 == slow.count("anyclass_job_lines_total", outcome="completed")


async def test_a_process_that_cannot_answer_gives_its_lines_back(replica: Replica) -> None:
    """They are answered once it can."""
    replica.words.failing = {"a": [NotReady("It is starting.")]}
    job = await replica.job(["a", "b"])
    async with working(replica):
        job = await ended(replica, job)
    assert (JobStatus.COMPLETED, 2) == (job.status, job.completed)


async def test_the_runner_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    """Nothing is lost by it: the job goes on when the store is back, with its content."""
    with running_redis(tmp_path, arguments=["--appendonly", "yes", "--appendfsync", "always"]) as redis:
        replica = Replica(RedisStateStore(redis.url, timeout_s=0.2))
        replica.words.gate.clear()
        job = await replica.job(words(MANY))
        async with working(replica):
            await until(lambda: replica.words.begun == 2 * CHUNK_LINES)
            redis.freeze()
            replica.words.gate.set()
            await until(lambda: len(replica.words.answered) == 2 * CHUNK_LINES)
            await asyncio.sleep(0.5)
            redis.thaw()
            job = await ended(replica, job)
        assert words(MANY) == custom_ids(await replica.content(job.output_id))
        assert words(MANY) == sorted(replica.words.answered)
        await replica.jobs.file_store._state.close()


async def test_a_store_that_is_away_shows(tmp_path: Path) -> None:
    """The metric that an alert looks at falls while the keeper is not answered, and rises again by itself."""
    with running_redis(tmp_path) as redis:
        replica = Replica(RedisStateStore(redis.url, timeout_s=0.2))
        assert 1 == replica.count("anyclass_state_up")
        redis.freeze()
        async with working(replica):
            await until(lambda: 0 == replica.count("anyclass_state_up"))
            redis.thaw()
            await until(lambda: 1 == replica.count("anyclass_state_up"), within_s=20)
        await replica.jobs.file_store._state.close()


async def test_damaged_results_fail_the_job(replica: Replica) -> None:
    """Rather than leave lines out of the output."""
    replica.words.gate.clear()
    job = await replica.job(words(2 * CHUNK_LINES + 1))
    async with working(replica):
        await until(lambda: replica.words.begun == 2 * CHUNK_LINES)
        replica.words.gate.set()

        async def half_done() -> bool:
            return (await replica.jobs.job(job.id)).completed > 0

        await until(half_done)
        await replica.jobs.file_store._state.delete_blobs("jobs/results/")
        job = await ended(replica, job)
    assert (JobStatus.FAILED, ["state_corrupt"]) == (job.status, [fault.code for fault in job.errors])


async def test_a_job_without_its_file_fails(replica: Replica) -> None:
    """The input was deleted before it could be read."""
    job = await replica.job(["a"])
    await replica.jobs.file_store.delete(job.input_file_id)
    async with working(replica):
        job = await ended(replica, job)
    assert (JobStatus.FAILED, ["input_file_unreadable"]) == (job.status, [fault.code for fault in job.errors])


async def test_what_has_expired_is_deleted(replica: Replica) -> None:
    """Jobs that ended long ago, their files, and idempotency keys; what is young stays."""
    old = await replica.job(["a"])
    async with working(replica):
        await ended(replica, old)
    replica.clock.now += 50 * 3600
    young = await replica.job(["a"])
    await replica.jobs.job_store.sweep(replica.clock(), 1_000.0)
    await replica.jobs.file_store.sweep(replica.clock(), frozenset([young.input_file_id]))
    jobs, _ = await replica.jobs.job_store.page(after=None, limit=10)
    files, _ = await replica.jobs.file_store.page(after=None, limit=10)
    assert [young.id] == [job.id for job in jobs]
    assert [young.input_file_id] == [file.id for file in files]


async def test_active_jobs_are_counted_by_status(replica: Replica) -> None:
    """Every status has its series from the start."""
    replica.words.gate.clear()
    await replica.job(["a"])
    async with working(replica):
        await until(lambda: replica.count("anyclass_jobs_active", status="validating") == 1, within_s=20)
        assert 0 == replica.count("anyclass_jobs_active", status="cancelling")
        replica.words.gate.set()


async def test_without_workers_nothing_is_done(make_state: Callable[[], StateStore]) -> None:
    """A replica may take jobs in and leave them to others."""
    replica = Replica(make_state(), workers=0)
    job = await replica.job(["a"])
    async with working(replica):
        await asyncio.sleep(0.1)
    assert JobStatus.VALIDATING == (await replica.jobs.job(job.id)).status


async def test_a_wakeup_before_the_end_does_not_delay_it(replica: Replica) -> None:
    """A job that comes in while the process is stopping is left alone, and the event loop is free for others."""
    replica.stopping = True
    async with working(replica):
        job = await replica.job(["a"])
        await asyncio.sleep(0.05)
    assert JobStatus.VALIDATING == (await replica.jobs.job(job.id)).status


async def test_results_are_never_refused(make_state: Callable[[], StateStore]) -> None:
    """A job that was accepted gets its output where there is no room for a file any more; the output counts then."""
    replica = Replica(make_state(), max_total_file_bytes=100)
    job = await replica.job([f"word{number}" for number in range(10)])
    async with working(replica):
        job = await ended(replica, job)
    output = await replica.jobs.file(job.output_id)
    assert (JobStatus.COMPLETED, 10) == (job.status, len(await replica.content(output.id)))
    await replica.jobs.delete_file(job.input_file_id)
    with pytest.raises(StateFull):
        await replica.jobs.begin_file()
    await replica.jobs.delete_file(output.id)
    await replica.file(bytes(100))
