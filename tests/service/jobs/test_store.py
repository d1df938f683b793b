import asyncio
from collections.abc import Callable

import pytest

from service.errors import StateCorrupt
from service.jobs import transitions
from service.jobs.records import new_id
from service.jobs.store import JobStore, LineResult
from service.jobs.transitions import ChunkPlan, Claim
from service.state.protocol import StateStore
from tests.support.job_parts import Clock, Replica
from tests.support.state_stores import unreported

LEASE_S = 30.0


async def started(replica: Replica) -> str:
    """Create a job of two chunks that is in progress; return its id."""
    job = await replica.job(["one", "two"])
    claim = await claimed(replica.jobs.job_store, replica.clock)
    plan = ChunkPlan(starts=(0, 4), first_lines=(1, 2), bytes=7, lines=2)
    assert await replica.jobs.job_store.change(job.id, lambda job: transitions.start(job, claim, plan, replica.clock()))
    return job.id


async def claimed(jobs: JobStore, clock: Clock) -> Claim:
    """Lease the next unit; fail if none is free."""
    claim = await jobs.claim(clock(), LEASE_S)
    assert claim is not None
    return claim


async def test_replicas_lease_different_chunks(replica: Replica, make_state: Callable[[], StateStore]) -> None:
    """Concurrent replicas get different chunks."""
    await started(replica)
    stores = [JobStore(make_state(), unreported()) for _ in range(4)]
    claims = await asyncio.gather(*(store.claim(replica.clock(), LEASE_S) for store in stores))
    assert [0, 1] == sorted(claim.unit for claim in claims if claim is not None and isinstance(claim.unit, int))


async def test_a_paused_replica_doubles_nothing(replica: Replica, make_state: Callable[[], StateStore]) -> None:
    """A replica that returns after another has done its chunk cannot change the accepted results."""
    job_id = await started(replica)
    late = await claimed(replica.jobs.job_store, replica.clock)
    replica.clock.now += LEASE_S + 1
    other = JobStore(make_state(), unreported())
    claim = await claimed(other, replica.clock)
    assert late.unit == claim.unit
    assert await other.accept(claim, [LineResult(1, ok=True, text="ours")])
    assert not await replica.jobs.job_store.accept(late, [LineResult(1, ok=False, text="late")])
    assert not await replica.jobs.job_store.renew(late, replica.clock() + 1)
    job = await replica.jobs.job(job_id)
    assert (1, 0) == (job.completed, job.failed)
    assert [LineResult(1, ok=True, text="ours")] == await replica.jobs.job_store.results(job, 0)
    assert await replica.jobs.job_store.results(job, 1) is None


async def test_lines_of_results_come_back_as_they_were(replica: Replica) -> None:
    """Results keep their order and any characters except line breaks."""
    await started(replica)
    claim = await claimed(replica.jobs.job_store, replica.clock)
    results = [LineResult(7, ok=True, text='{"ä": "\u2028"}'), LineResult(9, ok=False, text="- + x")]
    assert await replica.jobs.job_store.accept(claim, results)
    assert results == await replica.jobs.job_store.results(await replica.jobs.job(claim.job.id), 0)


async def test_a_job_whose_mark_was_taken_for_an_orphans_is_worked_on(replica: Replica, state: StateStore) -> None:
    """If another replica deleted the mark just before the record was written, the next sweep restores it."""
    job = await replica.job(["a"])
    (mark,) = await state.keys("jobs/active/", limit=9)
    entry = await state.get(mark)
    assert entry is not None
    await state.delete(mark, expected=entry.version)
    assert await replica.jobs.job_store.claim(replica.clock(), LEASE_S) is None
    await replica.jobs.job_store.sweep(replica.clock(), 1_000.0)
    assert job.id == (await claimed(replica.jobs.job_store, replica.clock)).job.id


async def test_a_mark_without_a_job_is_forgotten(replica: Replica, state: StateStore) -> None:
    """The mark of a killed process is deleted after a while; a young one may still get its job."""
    orphan = new_id("", replica.clock())
    await state.put(f"jobs/active/{orphan}", b"", expected=None)
    assert await replica.jobs.job_store.claim(replica.clock(), LEASE_S) is None
    assert 1 == len(await state.keys("jobs/active/", limit=9))
    assert await replica.jobs.job_store.claim(replica.clock() + 61, LEASE_S) is None
    assert [] == await state.keys("jobs/active/", limit=9)


async def test_a_damaged_job_holds_up_no_other(replica: Replica, state: StateStore) -> None:
    """A damaged job is skipped; reading it raises StateCorrupt."""
    broken = await replica.job(["a"])
    replica.clock.now += 1
    sound = await replica.job(["b"])
    (key,) = [key for key in await state.keys("jobs/record/", limit=9) if key.endswith(broken.id[-20:])]
    entry = await state.get(key)
    assert entry is not None
    await state.put(key, b'{"id": 7}', expected=entry.version)
    assert sound.id == (await claimed(replica.jobs.job_store, replica.clock)).job.id
    assert [sound.id] == [job.id for job in await replica.jobs.job_store.active()]
    with pytest.raises(StateCorrupt):
        await replica.jobs.job(broken.id)
