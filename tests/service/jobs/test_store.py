import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service.errors import Conflict, Overloaded, PayloadTooLarge, StateCorrupt, StateFull, UnknownObject
from service.jobs import transitions
from service.jobs.files import PIECE_BYTES, FileStore
from service.jobs.records import FILE_PREFIX, new_id
from service.jobs.store import JobStore, LineResult
from service.jobs.transitions import ChunkPlan, Claim
from service.jobs.use_cases import Idempotency
from service.state.protocol import StateStore
from tests.support.job_parts import ENDPOINT, Clock, Replica
from tests.support.state_stores import KINDS, state_stores

LEASE_S = 30.0


@pytest.fixture(params=KINDS)
async def make_state(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Makes state stores of one kind on the same content, as replicas have them."""
    async with state_stores(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def state(make_state: Callable[[], StateStore]) -> StateStore:
    """One store."""
    return make_state()


@pytest.fixture
def replica(state: StateStore) -> Replica:
    """One replica, whose runner does not run."""
    return Replica(state)


async def started(replica: Replica) -> str:
    """Take in a job of two chunks that has begun; returns its id."""
    job = await replica.job(["one", "two"])
    claim = await claimed(replica.jobs.job_store, replica.clock)
    plan = ChunkPlan(starts=(0, 4), first_lines=(1, 2), bytes=7, lines=2)
    assert await replica.jobs.job_store.change(job.id, lambda job: transitions.start(job, claim, plan, replica.clock()))
    return job.id


async def claimed(jobs: JobStore, clock: Clock) -> Claim:
    """Lease the next unit, which there is."""
    claim = await jobs.claim(clock(), LEASE_S)
    assert claim is not None
    return claim


async def test_a_file_is_read_as_it_was_written(replica: Replica, make_state: Callable[[], StateStore]) -> None:
    """By another replica too, whole or in part, over the edges of its pieces."""
    content = bytes(range(256)) * (2 * PIECE_BYTES // 256 + 3)
    record = await replica.file(content)
    assert len(content) == record.bytes
    files = FileStore(make_state())
    assert record == await files.get(record.id)
    assert content == b"".join([piece async for piece in files.read(record)])
    start, end = PIECE_BYTES - 5, 2 * PIECE_BYTES + 5
    assert content[start:end] == b"".join([piece async for piece in files.read(record, start, end)])


async def test_a_file_that_is_too_large_is_refused_on_the_way(replica: Replica) -> None:
    """What has come so far is removed."""
    writer = await replica.jobs.begin_file()
    for _ in range(3):
        await writer.write(bytes(PIECE_BYTES))
    with pytest.raises(PayloadTooLarge):
        await writer.write(b"x")
    await writer.discard()
    assert [] == await replica.jobs.file_store._state.blob_keys("files/data/")


async def refused(replica: Replica, content: bytes) -> None:
    """Send a file for which there is no room: nothing of it is left."""
    before = await replica.jobs.file_store._state.blob_keys("files/data/")
    writer = await replica.jobs.begin_file()

    async def send() -> None:
        for start in range(0, len(content), 1_000):
            await writer.write(content[start : start + 1_000])

    with pytest.raises(StateFull, match="Delete files that are no longer needed, or have ANYCLASS_MAX_TOTAL_FILE_"):
        await send()
    await writer.discard()
    assert before == await replica.jobs.file_store._state.blob_keys("files/data/")


async def test_all_files_together_have_a_limit(make_state: Callable[[], StateStore]) -> None:
    """It is refused on the way, and at once where the client says how much comes. Room that is made is there again."""
    replica = Replica(make_state(), max_total_file_bytes=10_000)
    first = await replica.file(bytes(6_000))
    await refused(replica, bytes(4_001))
    with pytest.raises(StateFull):
        await replica.jobs.begin_file(4_001)
    await replica.file(bytes(4_000))
    await refused(replica, b"x")
    await replica.jobs.delete_file(first.id)
    await replica.file(bytes(6_000))


async def test_files_that_come_in_at_once_share_the_room(make_state: Callable[[], StateStore]) -> None:
    """Two that fit one by one do not fit together; the other goes on when one is refused."""
    replica = Replica(make_state(), max_total_file_bytes=10_000)
    one, two = await replica.jobs.begin_file(6_000), await replica.jobs.begin_file(6_000)
    await one.write(bytes(5_000))
    await two.write(bytes(5_000))
    with pytest.raises(StateFull):
        await one.write(bytes(1_000))
    await one.discard()
    await two.write(bytes(1_000))
    await replica.jobs.add_file(two, name="two", purpose="batch", keep_s=9e5)
    await refused(replica, bytes(4_001))


async def test_files_of_all_replicas_count(make_state: Callable[[], StateStore]) -> None:
    """Those that are kept, whoever took them in; the last look is when a file is complete."""
    replicas = [Replica(make_state(), max_total_file_bytes=10_000) for _ in range(2)]
    writers = [await replica.jobs.begin_file() for replica in replicas]
    for writer in writers:
        await writer.write(bytes(6_000))
    key = Idempotency("key")
    asked: dict[str, Any] = {"name": "in", "purpose": "batch", "keep_s": 9e5}
    kept = await replicas[0].jobs.add_file(writers[0], **asked)
    with pytest.raises(StateFull):
        await replicas[1].jobs.add_file(writers[1], **asked, idempotency=key)
    await writers[1].discard()
    await refused(replicas[1], bytes(5_000))
    await replicas[0].jobs.delete_file(kept.id)
    other = await replicas[1].jobs.begin_file()
    await other.write(b"another request may have the key now")
    await replicas[1].jobs.add_file(other, **asked, idempotency=key)


async def test_a_damaged_record_keeps_nobody_from_sending(replica: Replica, state: StateStore) -> None:
    """Its size cannot be known, so it does not count."""
    record = await replica.file(b"content")
    [key] = await state.keys("files/record/", limit=9)
    entry = await state.get(key)
    assert entry is not None
    assert await state.put(key, b"{", expected=entry.version)
    assert record.id != (await Replica(state, max_total_file_bytes=7).file(b"content")).id


async def test_files_are_listed_in_pages(replica: Replica) -> None:
    """The newest first, or the oldest; each page after the last of the page before."""
    records = []
    for number in range(5):
        replica.clock.now += 1
        records.append(await replica.file(str(number).encode()))
    files = replica.jobs.file_store
    newest = records[::-1]
    assert (newest[:2], True) == await files.page(after=None, limit=2)
    assert (newest[2:4], True) == await files.page(after=newest[1].id, limit=2)
    assert (newest[4:], False) == await files.page(after=newest[3].id, limit=2)
    assert (records[1:], False) == await files.page(after=records[0].id, limit=5, ascending=True)
    assert ([], False) == await files.page(after=None, limit=5, purpose="batch_output")


async def test_a_deleted_file_is_gone_with_its_content(replica: Replica) -> None:
    """A second time there is nothing to delete; what is no id is no file."""
    record = await replica.file(b"content")
    await replica.jobs.delete_file(record.id)
    assert [] == await replica.jobs.file_store._state.blob_keys("files/data/")
    for file_id in (record.id, "file-..", "../../etc/passwd", new_id(FILE_PREFIX, 0)):
        with pytest.raises(UnknownObject):
            await replica.jobs.delete_file(file_id)


async def test_a_file_that_a_job_reads_is_not_deleted(replica: Replica) -> None:
    """Nor does it expire while the job goes on."""
    file = await replica.file(b"one", keep_s=10.0)
    await replica.jobs.add_job(endpoint=ENDPOINT, input_file_id=file.id, window_hours=24, metadata=None)
    with pytest.raises(Conflict):
        await replica.jobs.delete_file(file.id)
    replica.clock.now += 100
    in_use = frozenset(job.input_file_id for job in await replica.jobs.job_store.active())
    await replica.jobs.file_store.sweep(replica.clock(), in_use)
    assert file == await replica.jobs.file_store.get(file.id)
    await replica.jobs.file_store.sweep(replica.clock(), frozenset())
    assert await replica.jobs.file_store.get(file.id) is None


async def test_content_of_a_broken_upload_is_swept_away_a_day_later(replica: Replica) -> None:
    """Not before: it may still be coming in. What belongs to a file stays."""
    kept = await replica.file(b"kept")
    writer = await replica.jobs.begin_file()
    await writer.write(b"lost")
    await writer.close()
    files, began = replica.jobs.file_store, int(writer.data[5:17], 16) / 1000
    await files.sweep(began + 3600, frozenset([kept.id]))
    assert 2 == len(await files._state.blob_keys("files/data/"))
    await files.sweep(began + 25 * 3600, frozenset([kept.id]))
    assert [kept.data] == [key.split("/")[2] for key in await files._state.blob_keys("files/data/")]


async def test_a_file_added_again_stays_as_it_is(replica: Replica) -> None:
    """Whoever writes a job's output a second time changes nothing, and leaves nothing behind."""
    files, file_id = replica.jobs.file_store, new_id(FILE_PREFIX, 1)
    records = []
    for content in (b"first", b"again"):
        writer = files.writer()
        await writer.write(content)
        record = await files.add(writer, file_id=file_id, name="out", purpose="batch_output", now=1.0, keep_s=9.0)
        await writer.discard()
        records.append(record)
    assert records[0] == records[1]
    assert b"first" == b"".join([piece async for piece in files.read(records[1])])
    assert 1 == len(await files._state.blob_keys("files/data/"))


async def test_missing_content_is_an_error(replica: Replica) -> None:
    """Never a shorter file."""
    record = await replica.file(b"content")
    await replica.jobs.file_store._state.delete_blobs(f"files/data/{record.data}/")
    with pytest.raises(StateCorrupt):
        _ = [piece async for piece in replica.jobs.file_store.read(record)]


async def test_replicas_lease_different_chunks(replica: Replica, make_state: Callable[[], StateStore]) -> None:
    """However many ask at the same time, each chunk is leased to one."""
    await started(replica)
    stores = [JobStore(make_state()) for _ in range(4)]
    claims = await asyncio.gather(*(store.claim(replica.clock(), LEASE_S) for store in stores))
    assert [0, 1] == sorted(claim.unit for claim in claims if claim is not None and isinstance(claim.unit, int))


async def test_a_paused_replica_doubles_nothing(replica: Replica, make_state: Callable[[], StateStore]) -> None:
    """It comes back when its chunk is done by another: its results are not accepted, and the others' stay."""
    job_id = await started(replica)
    late = await claimed(replica.jobs.job_store, replica.clock)
    replica.clock.now += LEASE_S + 1
    other = JobStore(make_state())
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
    """In their order, whatever characters they hold but an end of line."""
    await started(replica)
    claim = await claimed(replica.jobs.job_store, replica.clock)
    results = [LineResult(7, ok=True, text='{"ä": "\u2028"}'), LineResult(9, ok=False, text="- + x")]
    assert await replica.jobs.job_store.accept(claim, results)
    assert results == await replica.jobs.job_store.results(await replica.jobs.job(claim.job.id), 0)


async def test_only_so_many_jobs_are_active(replica: Replica) -> None:
    """One more is refused until another has ended."""
    jobs = [await replica.job(["a"]) for _ in range(3)]
    with pytest.raises(Overloaded):
        await replica.job(["a"])
    await replica.jobs.job_store.ended(jobs[0])
    await replica.job(["a"])


async def test_the_same_idempotency_key_gives_the_same_object(replica: Replica) -> None:
    """Of the same client, for the same request, for a day; another request with it is refused."""

    async def send(content: bytes, key: Idempotency) -> str:
        writer = await replica.jobs.begin_file()
        await writer.write(content)
        record = await replica.jobs.add_file(writer, name="in", purpose="batch", keep_s=9e5, idempotency=key)
        assert content == b"".join([piece async for piece in replica.jobs.file_store.read(record)])
        return record.id

    key = Idempotency("key", "me")
    first = await send(b"content", key)
    assert first == await send(b"content", key)
    assert 1 == len(await replica.jobs.file_store._state.blob_keys("files/data/"))
    with pytest.raises(Conflict):
        await send(b"other", key)
    assert first != await send(b"other", Idempotency("key", "you"))
    replica.clock.now += 25 * 3600
    assert first != await send(b"other", key)


async def test_a_job_is_made_once_by_key(replica: Replica) -> None:
    """Two replicas that get the same request at the same time make one job."""
    file = await replica.file(b"one")
    request = {"endpoint": ENDPOINT, "input_file_id": file.id, "window_hours": 24, "metadata": {"a": "b"}}
    made = await asyncio.gather(*(replica.jobs.add_job(**request, idempotency=Idempotency("k")) for _ in range(3)))  # type: ignore[arg-type]
    assert 1 == len({job.id for job in made}) == len(await replica.jobs.job_store.active())
    with pytest.raises(Conflict):
        await replica.jobs.add_job(**{**request, "metadata": None}, idempotency=Idempotency("k"))  # type: ignore[arg-type]


async def test_a_request_that_is_sent_again_finds_its_job(replica: Replica) -> None:
    """Also after its input file has gone; one that was refused has used its key up for nothing."""
    key = Idempotency("k")
    request: dict[str, Any] = {"endpoint": ENDPOINT, "window_hours": 24, "metadata": None, "idempotency": key}
    with pytest.raises(UnknownObject):
        await replica.jobs.add_job(**request, input_file_id=new_id(FILE_PREFIX, replica.clock()))
    file = await replica.file(b"one")
    made = await replica.jobs.add_job(**request, input_file_id=file.id)
    await replica.jobs.job_store.ended(made)
    await replica.jobs.delete_file(file.id)
    assert made.id == (await replica.jobs.add_job(**request, input_file_id=file.id)).id
    with pytest.raises(Conflict):
        await replica.jobs.add_job(**request, input_file_id=(await replica.file(b"two")).id)


async def test_a_job_whose_mark_was_taken_for_an_orphans_is_worked_on(replica: Replica, state: StateStore) -> None:
    """Another replica looked just before the record was written, and forgot the mark; the next sweep sets it again."""
    job = await replica.job(["a"])
    (mark,) = await state.keys("jobs/active/", limit=9)
    entry = await state.get(mark)
    assert entry is not None
    await state.delete(mark, expected=entry.version)
    assert await replica.jobs.job_store.claim(replica.clock(), LEASE_S) is None
    await replica.jobs.job_store.sweep(replica.clock(), 1_000.0)
    assert job.id == (await claimed(replica.jobs.job_store, replica.clock)).job.id


async def test_a_mark_without_a_job_is_forgotten(replica: Replica, state: StateStore) -> None:
    """A process that was killed while it took a job in has left a mark; a young one may still become a job."""
    orphan = new_id("", replica.clock())
    await state.put(f"jobs/active/{orphan}", b"", expected=None)
    assert await replica.jobs.job_store.claim(replica.clock(), LEASE_S) is None
    assert 1 == len(await state.keys("jobs/active/", limit=9))
    assert await replica.jobs.job_store.claim(replica.clock() + 61, LEASE_S) is None
    assert [] == await state.keys("jobs/active/", limit=9)


async def test_a_damaged_job_holds_up_no_other(replica: Replica, state: StateStore) -> None:
    """It is given up; whoever asks for it is told that it is damaged."""
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
