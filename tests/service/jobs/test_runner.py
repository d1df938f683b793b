from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import NotReady
from service.jobs.records import JobStatus
from service.jobs.validation import CHUNK_LINES
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.classifying import until
from tests.support.job_parts import MANY, Replica, custom_ids, ended, words, working
from tests.support.redis_server import running_redis

pytestmark = pytest.mark.usefixtures("log")


async def test_a_job_goes_on_where_another_process_left_it(make_directory_state: Callable[[], StateStore]) -> None:
    """Lines in flight are answered before the end; the next start answers the rest, and none twice."""
    first = Replica(make_directory_state(), workers=1)
    first.words.gate.clear()
    job = await first.job(words(MANY))
    async with working(first):
        await until(lambda: first.words.begun == CHUNK_LINES)
        first.stopping = True
        first.words.gate.set()
    assert CHUNK_LINES == len(first.words.answered)
    assert CHUNK_LINES == (await first.jobs.job(job.id)).completed
    second = Replica(make_directory_state(), first.clock)
    async with working(second):
        job = await ended(second, job)
    assert words(MANY) == custom_ids(await second.content(job.output_id))
    assert words(MANY) == sorted(first.words.answered + second.words.answered)


async def test_several_processes_share_a_directory(make_directory_state: Callable[[], StateStore]) -> None:
    """Both processes answer lines of the job, and no line is answered twice."""
    replicas = [Replica(make_directory_state(), workers=1) for _ in range(2)]
    for worker in replicas:
        worker.words.gate.clear()
    job = await replicas[0].job(words(MANY))
    async with working(replicas[0]), working(replicas[1]):
        await until(lambda: all(worker.words.begun == CHUNK_LINES for worker in replicas))
        for worker in replicas:
            worker.words.gate.set()
        job = await ended(replicas[0], job)
    assert words(MANY) == custom_ids(await replicas[1].content(job.output_id))
    assert words(MANY) == sorted(replicas[0].words.answered + replicas[1].words.answered)


async def test_work_under_a_lost_lease_is_dropped(make_directory_state: Callable[[], StateStore]) -> None:
    """A process that could not renew its lease stops its lines, because another has them."""
    slow, quick = Replica(make_directory_state(), workers=1, lease_s=1.5), Replica(make_directory_state())
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


async def test_a_process_that_cannot_answer_gives_its_lines_back(worker: Replica) -> None:
    """Another attempt answers them later."""
    worker.words.failing = {"a": [NotReady("It is starting.")]}
    job = await worker.job(["a", "b"])
    async with working(worker):
        job = await ended(worker, job)
    assert (JobStatus.COMPLETED, 2) == (job.status, job.completed)


async def test_the_runner_waits_for_a_store_that_is_away(tmp_path: Path) -> None:
    """The job continues without loss once the store is back."""
    with running_redis(tmp_path, arguments=["--appendonly", "yes", "--appendfsync", "always"]) as redis:
        worker = Replica(RedisStateStore(redis.url, timeout_s=1.0))
        worker.words.gate.clear()
        job = await worker.job(words(MANY))
        async with working(worker):
            await until(lambda: worker.words.begun == 2 * CHUNK_LINES)
            redis.freeze()
            worker.words.gate.set()
            await until(lambda: len(worker.words.answered) == 2 * CHUNK_LINES)
            await until(lambda: 0 == worker.count("anyclass_state_up"))
            redis.thaw()
            job = await ended(worker, job)
        assert words(MANY) == custom_ids(await worker.content(job.output_id))
        assert words(MANY) == sorted(worker.words.answered)
        await worker.jobs.file_store._state.close()


async def test_a_store_that_is_away_shows(tmp_path: Path) -> None:
    """The metric `state_up` falls while the store does not answer, and recovers afterwards."""
    with running_redis(tmp_path) as redis:
        worker = Replica(RedisStateStore(redis.url, timeout_s=1.0))
        assert 1 == worker.count("anyclass_state_up")
        redis.freeze()
        async with working(worker):
            await until(lambda: 0 == worker.count("anyclass_state_up"))
            redis.thaw()
            await until(lambda: 1 == worker.count("anyclass_state_up"))
        await worker.jobs.file_store._state.close()


async def test_a_store_that_takes_no_writes_shows(tmp_path: Path) -> None:
    """The metric `state_up` falls, though the store answers every read."""
    with running_redis(tmp_path) as redis:
        worker = Replica(RedisStateStore(redis.url))
        await worker.file(b"a")
        redis.command("CONFIG", "SET", "maxmemory", "1")
        async with working(worker):
            await until(lambda: 0 == worker.count("anyclass_state_up"))
        await worker.jobs.file_store._state.close()


async def test_damaged_results_fail_the_job(worker: Replica) -> None:
    """A job with damaged results fails instead of omitting lines."""
    worker.words.gate.clear()
    job = await worker.job(words(2 * CHUNK_LINES + 1))
    async with working(worker):
        await until(lambda: worker.words.begun == 2 * CHUNK_LINES)
        worker.words.gate.set()

        async def half_done() -> bool:
            return (await worker.jobs.job(job.id)).completed > 0

        await until(half_done)
        await worker.jobs.file_store._state.delete_blobs("jobs/results/")
        job = await ended(worker, job)
    assert (JobStatus.FAILED, ["state_corrupt"]) == (job.status, [fault.code for fault in job.errors])


async def test_a_job_without_its_file_fails(worker: Replica) -> None:
    """A job whose input was deleted fails."""
    job = await worker.job(["a"])
    await worker.jobs.file_store.delete(job.input_file_id)
    async with working(worker):
        job = await ended(worker, job)
    assert (JobStatus.FAILED, ["input_file_unreadable"]) == (job.status, [fault.code for fault in job.errors])


async def test_what_has_expired_is_deleted(worker: Replica) -> None:
    """Old ended jobs, their files and idempotency keys are deleted; younger ones stay."""
    old = await worker.job(["a"])
    async with working(worker):
        await ended(worker, old)
    worker.clock.now += 50 * 3600
    young = await worker.job(["a"])
    await worker.jobs.job_store.sweep(worker.clock(), 1_000.0)
    await worker.jobs.file_store.sweep(worker.clock(), frozenset([young.input_file_id]))
    jobs, _ = await worker.jobs.job_store.page(after=None, limit=10)
    files, _ = await worker.jobs.file_store.page(after=None, limit=10)
    assert [young.id] == [job.id for job in jobs]
    assert [young.input_file_id] == [file.id for file in files]


async def test_active_jobs_are_counted_by_status(worker: Replica) -> None:
    """Every status has its series from the start."""
    worker.words.gate.clear()
    await worker.job(["a"])
    async with working(worker):
        await until(lambda: worker.count("anyclass_jobs_active", status="validating") == 1)
        assert 0 == worker.count("anyclass_jobs_active", status="cancelling")
        worker.words.gate.set()


async def test_without_workers_nothing_is_done(make_directory_state: Callable[[], StateStore]) -> None:
    """A process without workers accepts jobs and leaves them to others."""
    worker = Replica(make_directory_state(), workers=0)
    job = await worker.job(["a"])
    async with working(worker):
        worker.runner.wake()
        assert [] == worker.runner._tasks
    assert JobStatus.VALIDATING == (await worker.jobs.job(job.id)).status


async def test_a_wakeup_before_the_end_does_not_delay_it(worker: Replica) -> None:
    """A job added while the process stops is not begun, and the event loop stays free."""
    worker.stopping = True
    async with working(worker):
        job = await worker.job(["a"])
        await until(lambda: not worker.runner._wakeup.is_set())
    assert JobStatus.VALIDATING == (await worker.jobs.job(job.id)).status
