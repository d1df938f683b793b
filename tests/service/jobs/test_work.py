import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import DeadlineExceeded, InvalidImage, LabelSetComputing, Overloaded, StateFull
from service.jobs.records import JobStatus
from service.jobs.validation import CHUNK_LINES
from service.state.protocol import StateStore
from tests.support.classifying import until
from tests.support.job_parts import MANY, Replica, custom_ids, ended, words, working

pytestmark = pytest.mark.usefixtures("log")


async def test_a_job_is_answered_in_the_order_of_its_input(worker: Replica) -> None:
    """The output has each line once, in order, and ids identify the requests."""
    job = await worker.job(words(MANY + 5))
    async with working(worker):
        job = await ended(worker, job)
    assert (JobStatus.COMPLETED, MANY + 5, MANY + 5, 0) == (job.status, job.total, job.completed, job.failed)
    lines = await worker.content(job.output_id)
    assert words(MANY + 5) == custom_ids(lines)
    assert sorted(worker.words.answered) == words(MANY + 5)
    first: dict[str, Any] = json.loads(lines[0])
    assert {"status_code": 200, "request_id": first["id"], "body": {"word": "WORD0000"}} == first["response"]
    assert first["error"] is None
    assert MANY + 5 == len({json.loads(line)["id"] for line in lines})
    assert not job.has_errors
    assert MANY + 5 == worker.count("anyclass_job_lines_total", outcome="completed")
    assert 1 == worker.count("anyclass_jobs_ended_total", status="completed")
    assert [] == await worker.jobs.file_store._state.blob_keys("jobs/results/")


async def test_lines_that_fail_go_to_the_error_file(worker: Replica, log: io.StringIO) -> None:
    """An error of one line, expected or not, fails no other; only unexpected ones are logged."""
    worker.words.failing = {"b": [InvalidImage("It is no picture.")], "d": [RuntimeError("a secret")]}
    job = await worker.job(["a", "b", "c", "d"])
    async with working(worker):
        job = await ended(worker, job)
    assert (JobStatus.COMPLETED, 2, 2) == (job.status, job.completed, job.failed)
    assert ["a", "c"] == custom_ids(await worker.content(job.output_id))
    errors = [json.loads(line)["response"] for line in await worker.content(job.error_id)]
    assert [(422, "It is no picture."), (500, "internal")] == [
        (each["status_code"], each["body"]["detail"]) for each in errors
    ]
    assert "a secret" in log.getvalue()
    assert "It is no picture" not in log.getvalue()


async def test_transient_errors_are_retried(worker: Replica) -> None:
    """A line is retried while the service is overloaded, and a few times after a timeout."""
    busy, slow = Overloaded("Too many images are waiting.", 1.0), DeadlineExceeded("Too slow.")
    worker.words.failing = {"a": [busy] * 4, "b": [slow] * 2, "c": [slow] * 9}
    job = await worker.job(["a", "b", "c"])
    async with working(worker):
        job = await ended(worker, job)
    assert ["a", "b"] == custom_ids(await worker.content(job.output_id))
    assert ["c"] == custom_ids(await worker.content(job.error_id))


async def test_an_invalid_file_fails_as_a_whole(worker: Replica) -> None:
    """The faults name lines, and no line is answered."""
    job = await worker.job(["a", "!", "c", "?"])
    async with working(worker):
        job = await ended(worker, job)
    assert (JobStatus.FAILED, [2, 4], []) == (job.status, [fault.line for fault in job.errors], worker.words.answered)
    assert not job.has_output


async def test_a_cancelled_job_keeps_what_is_done(worker: Replica) -> None:
    """Lines in flight are answered, no others begin, and the error file lists those not answered."""
    worker.words.gate.clear()
    job = await worker.job(words(MANY))
    async with working(worker):
        await until(lambda: worker.words.begun == 2 * CHUNK_LINES)
        assert JobStatus.CANCELLING == (await worker.jobs.cancel(job.id)).status
        worker.words.gate.set()
        job = await ended(worker, job)
    assert (JobStatus.CANCELLED, MANY, 2 * CHUNK_LINES, 0) == (job.status, job.total, job.completed, job.failed)
    assert words(MANY)[: 2 * CHUNK_LINES] == custom_ids(await worker.content(job.output_id))
    errors = [json.loads(line) for line in await worker.content(job.error_id)]
    assert words(MANY)[2 * CHUNK_LINES :] == [line["custom_id"] for line in errors]
    assert {"batch_cancelled"} == {line["error"]["code"] for line in errors}


async def test_a_cancelled_job_waits_for_nothing(make_directory_state: Callable[[], StateStore]) -> None:
    """Lines that are being retried do not delay the end: it comes with the next renewal of the lease."""
    worker = Replica(make_directory_state(), lease_s=0.3)
    worker.words.failing = {"b": [LabelSetComputing("Still computing.", 60.0)] * 1_000}
    job = await worker.job(["a", "b"])
    async with working(worker):
        await until(lambda: "a" in worker.words.answered and len(worker.words.failing["b"]) < 1_000)
        await worker.jobs.cancel(job.id)
        job = await ended(worker, job)
    assert (JobStatus.CANCELLED, 1, 1) == (job.status, job.completed, job.failed)
    assert ["a"] == custom_ids(await worker.content(job.output_id))
    (line,) = [json.loads(line) for line in await worker.content(job.error_id)]
    assert ("b", None, "batch_cancelled") == (line["custom_id"], line["response"], line["error"]["code"])


async def test_a_job_whose_window_ends_waits_for_nothing(worker: Replica) -> None:
    """Lines that could not be answered by then expire."""
    worker.words.failing = {"b": [Overloaded("Too many images are waiting.", 1.0)] * 1_000}
    job = await worker.job(["a", "b"])
    async with working(worker):
        await until(lambda: "a" in worker.words.answered and len(worker.words.failing["b"]) < 1_000)
        worker.clock.now = job.expires_at
        job = await ended(worker, job)
    assert (1, 1) == (job.completed, job.failed)
    (line,) = [json.loads(line) for line in await worker.content(job.error_id)]
    assert ("b", None, "batch_expired") == (line["custom_id"], line["response"], line["error"]["code"])


async def test_a_job_past_its_window_expires(worker: Replica) -> None:
    """Lines answered by then are kept."""
    worker.words.gate.clear()
    job = await worker.job(words(MANY))
    worker.clock.now = job.expires_at - 10
    async with working(worker):
        await until(lambda: worker.words.begun == 2 * CHUNK_LINES)
        worker.clock.now += 10
        worker.words.gate.set()
        job = await ended(worker, job)
    assert (JobStatus.EXPIRED, 2 * CHUNK_LINES) == (job.status, job.completed)
    errors = [json.loads(line) for line in await worker.content(job.error_id)]
    assert CHUNK_LINES == len(errors)
    assert {"batch_expired"} == {line["error"]["code"] for line in errors}


async def test_results_are_never_refused(make_directory_state: Callable[[], StateStore]) -> None:
    """An accepted job gets its output even if the quota is used up; the output then counts."""
    worker = Replica(make_directory_state(), max_total_file_bytes=100)
    job = await worker.job([f"word{number}" for number in range(10)])
    async with working(worker):
        job = await ended(worker, job)
    output = await worker.jobs.file(job.output_id)
    assert (JobStatus.COMPLETED, 10) == (job.status, len(await worker.content(output.id)))
    await worker.jobs.delete_file(job.input_file_id)
    with pytest.raises(StateFull):
        await worker.jobs.begin_file()
    await worker.jobs.delete_file(output.id)
    await worker.file(bytes(100))
