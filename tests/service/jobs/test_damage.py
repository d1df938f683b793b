"""One damaged record of files and jobs does not stop lists, work or expiry of the others."""

import io

import pytest

from service.errors import StateCorrupt
from service.jobs.files import PIECE_BYTES
from service.jobs.records import FileRecord, Job, JobStatus
from service.jobs.store import JobStore
from service.jobs.use_cases import Idempotency
from service.state.protocol import StateStore
from tests.support.job_parts import Replica
from tests.support.state_stores import damage

KEEP_S = 1_000.0


async def key_of(state: StateStore, prefix: str, object_id: str) -> str:
    """Return the key under `prefix` of a job or a file."""
    (key,) = [key for key in await state.keys(prefix, limit=9) if key.endswith(object_id[-20:])]
    return key


async def three_jobs(replica: Replica) -> list[Job]:
    """Create three jobs a second apart, the oldest first."""
    jobs = []
    for word in ("a", "b", "c"):
        replica.clock.now += 1
        jobs.append(await replica.job([word]))
    return jobs


async def cancelled(jobs: JobStore, job: Job) -> None:
    """End a job without its work."""
    await jobs.change(job.id, lambda old: old.model_copy(update={"status": JobStatus.CANCELLED}))
    await jobs.ended(job)


async def test_a_damaged_job_is_left_out_of_the_list(replica: Replica, state: StateStore) -> None:
    """Pages have as many jobs as asked for nevertheless: clients take an empty page for the last."""
    oldest, middle, newest = await three_jobs(replica)
    await damage(state, await key_of(state, "jobs/record/", newest.id))
    store = replica.jobs.job_store
    assert ([middle], True) == await store.page(after=None, limit=1)
    assert ([oldest], False) == await store.page(after=middle.id, limit=1)
    assert ([middle, oldest], False) == await store.page(after=None, limit=9)


async def test_a_damaged_file_is_left_out_of_the_list(replica: Replica, state: StateStore) -> None:
    """The others are there in both orders."""
    files: list[FileRecord] = []
    for content in (b"a", b"b", b"c"):
        replica.clock.now += 1
        files.append(await replica.file(content))
    await damage(state, await key_of(state, "files/record/", files[1].id))
    store = replica.jobs.file_store
    assert ([files[2], files[0]], False) == await store.page(after=None, limit=2)
    assert ([files[0], files[2]], False) == await store.page(after=None, limit=2, ascending=True)


async def test_everything_else_expires(replica: Replica, state: StateStore) -> None:
    """Jobs, their files, and idempotency keys expire beside a damaged one of each kind; the damaged ones stay."""
    store = replica.jobs.job_store
    jobs = await three_jobs(replica)
    for number in range(2):
        await replica.jobs.add_file(
            await replica.jobs.begin_file(), name="x", purpose="batch", keep_s=9, idempotency=Idempotency(str(number))
        )
    for job in jobs:
        await cancelled(store, job)
    damaged = [
        await key_of(state, "jobs/record/", jobs[1].id),
        await key_of(state, "files/record/", jobs[1].input_file_id),
        (await state.keys("jobs/reserved/", limit=1))[0],
    ]
    for key in damaged:
        await damage(state, key)
    replica.clock.now += 1_000_000
    await store.sweep(replica.clock(), KEEP_S)
    await replica.jobs.file_store.sweep(replica.clock(), frozenset())
    assert sorted(damaged) == await state.keys("", limit=99)


async def test_the_content_of_a_damaged_record_is_kept(replica: Replica, state: StateStore) -> None:
    """A record that is restored has its content: it does not count as that of an aborted upload."""
    file = await replica.file(bytes(PIECE_BYTES + 1))
    key = await key_of(state, "files/record/", file.id)
    await damage(state, key)
    replica.clock.now += 1_000_000
    for _ in range(3):
        await replica.jobs.file_store.sweep(replica.clock(), frozenset())
    await damage(state, key)  # the same bit
    assert PIECE_BYTES + 1 == sum([len(piece) async for piece in replica.jobs.file_store.read(file)])


async def test_a_damaged_mark_stops_no_work(replica: Replica, state: StateStore) -> None:
    """A job that has ended and whose mark cannot be deleted is passed by."""
    first, second, _ = await three_jobs(replica)
    store = replica.jobs.job_store
    await damage(state, f"jobs/active/{first.id.removeprefix('batch_')}")
    await store.change(first.id, lambda old: old.model_copy(update={"status": JobStatus.CANCELLED}))
    await store.ended(first)
    claim = await store.claim(replica.clock(), 30.0)
    assert claim is not None
    assert second.id == claim.job.id
    await store.sweep(replica.clock(), KEEP_S)


async def test_damage_is_reported_once(replica: Replica, state: StateStore, log: io.StringIO) -> None:
    """However often it is met, a damaged entry has one line in the log and counts once."""
    jobs = await three_jobs(replica)
    key = await key_of(state, "jobs/record/", jobs[0].id)
    await damage(state, key)
    for _ in range(3):
        await replica.jobs.job_store.page(after=None, limit=9)
        await replica.jobs.job_store.active()
        await replica.jobs.job_store.sweep(replica.clock(), KEEP_S)
    assert 1 == replica.count("anyclass_state_damaged_total", kind="job")
    assert 0 == replica.count("anyclass_state_damaged_total", kind="file")
    assert 1 == log.getvalue().count("is skipped")
    assert key in log.getvalue()


async def test_the_object_itself_says_that_it_is_damaged(replica: Replica, state: StateStore) -> None:
    """Only lists leave it out."""
    (job, *_) = await three_jobs(replica)
    await damage(state, await key_of(state, "jobs/record/", job.id))
    with pytest.raises(StateCorrupt, match="restore it, or remove it"):
        await replica.jobs.job(job.id)
