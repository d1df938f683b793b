import asyncio
from typing import Any

import pytest

from service.errors import Conflict, Overloaded, UnknownObject
from service.jobs.records import FILE_PREFIX, new_id
from service.jobs.use_cases import Idempotency
from tests.support.job_parts import ENDPOINT, Replica


async def test_a_file_that_a_job_reads_is_not_deleted(replica: Replica) -> None:
    """Nor does the file expire while the job runs."""
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


async def test_only_so_many_jobs_are_active(replica: Replica) -> None:
    """A job above the limit is refused until another has ended."""
    jobs = [await replica.job(["a"]) for _ in range(3)]
    with pytest.raises(Overloaded):
        await replica.job(["a"])
    await replica.jobs.job_store.ended(jobs[0])
    await replica.job(["a"])


async def test_the_same_idempotency_key_gives_the_same_object(replica: Replica) -> None:
    """The key is valid for one client and request, for a day; another request with it is refused."""

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
    """Two replicas that get the same request at the same time create one job."""
    file = await replica.file(b"one")
    request = {"endpoint": ENDPOINT, "input_file_id": file.id, "window_hours": 24, "metadata": {"a": "b"}}
    made = await asyncio.gather(*(replica.jobs.add_job(**request, idempotency=Idempotency("k")) for _ in range(3)))  # type: ignore[arg-type]
    assert 1 == len({job.id for job in made}) == len(await replica.jobs.job_store.active())
    with pytest.raises(Conflict):
        await replica.jobs.add_job(**{**request, "metadata": None}, idempotency=Idempotency("k"))  # type: ignore[arg-type]


async def test_a_request_that_is_sent_again_finds_its_job(replica: Replica) -> None:
    """It does so even after the input file was deleted; a refused request does not use up its key."""
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
