import time
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import PayloadTooLarge, StateCorrupt, StateFull, UnknownObject
from service.jobs.files import PIECE_BYTES, FileStore, FileWriter
from service.jobs.records import FILE_PREFIX, new_id
from service.jobs.use_cases import Idempotency
from service.state.protocol import StateStore
from tests.support.job_parts import Replica
from tests.support.state_stores import unreported


async def test_a_file_is_read_as_it_was_written(replica: Replica, make_state: Callable[[], StateStore]) -> None:
    """Other replicas read it too, whole or in part, across pieces."""
    content = bytes(range(256)) * (2 * PIECE_BYTES // 256 + 3)
    record = await replica.file(content)
    assert len(content) == record.bytes
    files = FileStore(make_state(), unreported(), upload_timeout_s=600.0)
    assert record == await files.get(record.id)
    assert content == b"".join([piece async for piece in files.read(record)])
    start, end = PIECE_BYTES - 5, 2 * PIECE_BYTES + 5
    assert content[start:end] == b"".join([piece async for piece in files.read(record, start, end)])


async def test_a_file_that_is_too_large_is_refused_on_the_way(replica: Replica) -> None:
    """The content received so far is deleted."""
    writer = await replica.jobs.begin_file()
    for _ in range(3):
        await writer.write(bytes(PIECE_BYTES))
    with pytest.raises(PayloadTooLarge):
        await writer.write(b"x")
    await writer.discard()
    assert [] == await replica.jobs.file_store._state.blob_keys("files/data/")


async def refused(replica: Replica, content: bytes) -> None:
    """Send a file above the quota, and check that no content is left."""
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
    """A file above the quota is refused midway, or at once if its size is declared. Deleting files frees the quota."""
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
    """Of two uploads that only fit one at a time, one is refused and the other continues."""
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
    """Stored files of all replicas count; the last check is made when an upload is complete."""
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
    """Its content counts, as content without a file."""
    record = await replica.file(b"content")
    [key] = await state.keys("files/record/", limit=9)
    entry = await state.get(key)
    assert entry is not None
    assert await state.put(key, b"{", expected=entry.version)
    assert record.id != (await Replica(state, max_total_file_bytes=14).file(b"content")).id
    with pytest.raises(StateFull):
        await Replica(state, max_total_file_bytes=20).file(b"content")


async def left_by_a_killed_process(replica: Replica) -> FileWriter:
    """Write two pieces of a file and a part of a third, as a process does that is killed then."""
    writer = await replica.jobs.begin_file()
    await writer.write(bytes(2 * PIECE_BYTES + 5))
    return writer


async def test_what_a_killed_process_left_of_an_upload_counts(make_state: Callable[[], StateStore]) -> None:
    """Other processes see it in the store; after its deletion they have the room again."""
    await left_by_a_killed_process(Replica(make_state()))
    other = Replica(make_state(), max_total_file_bytes=2 * PIECE_BYTES + 100)
    with pytest.raises(StateFull):
        await other.jobs.begin_file(101)
    await other.file(bytes(100))
    await make_state().delete_blobs("files/data/")
    later = Replica(make_state(), max_total_file_bytes=2 * PIECE_BYTES + 100)
    await later.jobs.begin_file(2 * PIECE_BYTES)


async def test_an_upload_that_another_process_receives_counts_once(make_state: Callable[[], StateStore]) -> None:
    """As content first, then as a file; a discarded one no longer counts in its process."""
    one, other = (Replica(make_state(), max_total_file_bytes=3 * PIECE_BYTES) for _ in range(2))
    writer = await left_by_a_killed_process(one)
    with pytest.raises(StateFull):
        await other.jobs.begin_file(2 * PIECE_BYTES)
    await one.jobs.add_file(writer, name="x", purpose="batch", keep_s=9.0)
    await other.jobs.begin_file(PIECE_BYTES - 5)
    with pytest.raises(StateFull):
        await other.jobs.begin_file(PIECE_BYTES - 4)
    discarded = await one.jobs.begin_file()
    await discarded.write(bytes(PIECE_BYTES - 5))
    await discarded.discard()
    await one.jobs.begin_file(PIECE_BYTES - 5)


async def test_what_a_killed_process_left_of_an_upload_goes_after_the_longest_upload(replica: Replica) -> None:
    """An hour after the last moment at which its upload could have ended."""
    files, began = replica.jobs.file_store, time.time()
    await left_by_a_killed_process(replica)

    async def left(after_s: float) -> int:
        await files.sweep(began + after_s, frozenset())
        return len(await files._state.blob_keys("files/data/"))

    assert [2, 2, 2] == [await left(600), await left(600 + 3_590), await left(600 + 3_590)]
    assert 0 == await left(600 + 3_610)


async def test_content_that_grows_is_kept(replica: Replica) -> None:
    """The output of a large job may take long; two sweeps must find the same content."""
    files, late = replica.jobs.file_store, time.time() + 1_000_000
    writer = await left_by_a_killed_process(replica)
    await files.sweep(late, frozenset())
    await writer.write(bytes(PIECE_BYTES - 5))
    await files.sweep(late, frozenset())
    assert 3 == len(await files._state.blob_keys("files/data/"))
    await files.sweep(late, frozenset())
    assert [] == await files._state.blob_keys("files/data/")


async def test_files_are_listed_in_pages(replica: Replica) -> None:
    """Pages start with the newest or the oldest file, each after the last of the page before."""
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
    """Deleting it again fails, as for a malformed id."""
    record = await replica.file(b"content")
    await replica.jobs.delete_file(record.id)
    assert [] == await replica.jobs.file_store._state.blob_keys("files/data/")
    for file_id in (record.id, "file-..", "../../etc/passwd", new_id(FILE_PREFIX, 0)):
        with pytest.raises(UnknownObject):
            await replica.jobs.delete_file(file_id)


async def test_content_of_a_broken_upload_is_swept_away_a_day_later(replica: Replica) -> None:
    """Younger content may still be growing; content of files stays."""
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
    """Writing a job's output again changes nothing and leaves no content."""
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
    """A missing piece raises an error instead of shortening the file."""
    record = await replica.file(b"content")
    await replica.jobs.file_store._state.delete_blobs(f"files/data/{record.data}/")
    with pytest.raises(StateCorrupt):
        _ = [piece async for piece in replica.jobs.file_store.read(record)]
