"""The use cases of files and batch jobs, independent of a protocol."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from service.errors import Conflict, Overloaded, UnknownObject
from service.jobs import transitions
from service.jobs.files import FileStore, FileWriter
from service.jobs.quota import FileQuota
from service.jobs.records import FILE_PREFIX, JOB_PREFIX, FileRecord, Job, Purpose, new_id
from service.jobs.store import JobStore
from service.monitoring.metrics import Metrics
from service.state.damage import DamagedEntries
from service.state.protocol import StateStore

IDEMPOTENCY_S: Final = 24 * 3600.0
"""Lifetime of an idempotency key."""
_HOUR_S: Final = 3600
_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key for a request; keys of different clients are independent."""

    key: str
    client: str = ""

    def digest(self, kind: str) -> str:
        """Return the key under which it is stored."""
        return hashlib.sha256(f"{kind}\n{self.client}\n{self.key}".encode("utf-8", "replace")).hexdigest()


class Jobs:
    """Create, read, cancel and delete files and batch jobs.

    Attributes:
        on_change: called when a job was added or cancelled.
    """

    def __init__(
        self,
        state: StateStore,
        metrics: Metrics,
        *,
        max_file_bytes: int,
        max_total_file_bytes: int,
        upload_timeout_s: float,
        max_active: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        damaged = DamagedEntries(metrics)
        self.file_store = FileStore(state, damaged, upload_timeout_s=upload_timeout_s)
        self.job_store = JobStore(state, damaged)
        self.on_change: Callable[[], None] = lambda: None
        self._max_file_bytes = max_file_bytes
        self._quota = FileQuota(state, damaged, max_total_file_bytes)
        self._max_active = max_active
        self._clock = clock

    async def begin_file(self, at_least: int = 0) -> FileWriter:
        """Begin a file of at most `max_file_bytes`; end it with `add_file` or `FileWriter.discard`.

        Raises StateFull if all files together leave fewer than `at_least` bytes.
        """
        await self._quota.check(at_least)
        return self.file_store.writer(self._max_file_bytes, self._quota)

    async def add_file(
        self, writer: FileWriter, *, name: str, purpose: Purpose, keep_s: float, idempotency: Idempotency | None = None
    ) -> FileRecord:
        """Store a written file.

        Raises Conflict if the idempotency key was used for another file, and StateFull if other processes have filled
        the store meanwhile; the key can then be used again.
        """
        now = self._clock()
        file_id = new_id(FILE_PREFIX, now)
        await writer.close()
        await self._quota.check()
        if idempotency is not None:
            fingerprint = _digest(writer.digest, name, purpose, str(keep_s))
            file_id = await self.job_store.reserve(
                idempotency.digest("file"), fingerprint, file_id, now=now, keep_s=IDEMPOTENCY_S
            )
        return await self.file_store.add(writer, file_id=file_id, name=name, purpose=purpose, now=now, keep_s=keep_s)

    async def file(self, file_id: str) -> FileRecord:
        """Return a file that has not expired. Raises UnknownObject."""
        record = await self.file_store.get(file_id)
        if record is None or record.expires_at <= self._clock():
            raise UnknownObject("No file has this id.")
        return record

    async def delete_file(self, file_id: str) -> None:
        """Delete a file. Raises UnknownObject, and Conflict while a batch reads it."""
        await self.file(file_id)
        if any(job.input_file_id == file_id for job in await self.job_store.active()):
            raise Conflict("A batch still reads this file. Cancel the batch first, or wait until it has ended.")
        if not await self.file_store.delete(file_id):
            raise UnknownObject("No file has this id.")

    async def add_job(
        self,
        *,
        endpoint: str,
        input_file_id: str,
        window_hours: int,
        metadata: Mapping[str, str] | None,
        keep_output_s: int | None = None,
        idempotency: Idempotency | None = None,
    ) -> Job:
        """Create a job.

        Raises:
            UnknownObject: the input file does not exist. Not raised for a repeated request with its idempotency key:
                the file may have been deleted since.
            Conflict: the idempotency key was used for another request.
            Overloaded: `max_active` jobs are active.
        """
        now = self._clock()
        job_id = new_id(JOB_PREFIX, now)
        pairs = [part for pair in sorted((metadata or {}).items()) for part in pair]
        fingerprint = _digest(endpoint, input_file_id, str(window_hours), str(keep_output_s), *pairs)
        if idempotency is not None:
            known = await self.job_store.reserved(idempotency.digest("batch"), fingerprint, now=now)
            if known is not None and (existing := await self.job_store.get(known)) is not None:
                return existing
        if (await self.file(input_file_id)).purpose != "batch":
            raise UnknownObject("The file with this id was not sent with the purpose batch.")
        if idempotency is not None:
            # Only now, so that a refused request does not use up its key.
            job_id = await self.job_store.reserve(
                idempotency.digest("batch"), fingerprint, job_id, now=now, keep_s=IDEMPOTENCY_S
            )
        job = Job(
            id=job_id,
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=f"{window_hours}h",
            metadata=None if metadata is None else dict(metadata),
            created_at=int(now),
            expires_at=int(now) + window_hours * _HOUR_S,
            keep_output_s=keep_output_s,
            output_id=new_id(FILE_PREFIX, now),
            error_id=new_id(FILE_PREFIX, now),
        )
        added = await self.job_store.add(job, limit=self._max_active)
        if added is None:
            raise Overloaded("Too many batches are waiting; try again later.", _RETRY_S)
        self.on_change()
        return added

    async def job(self, job_id: str) -> Job:
        """Return a job. Raises UnknownObject."""
        job = await self.job_store.get(job_id)
        if job is None:
            raise UnknownObject("No batch has this id.")
        return job

    async def cancel(self, job_id: str) -> Job:
        """Begin to cancel a job. Raises UnknownObject, and Conflict if it has ended."""
        await self.job(job_id)
        cancelled = await self.job_store.change(job_id, lambda job: transitions.cancel(job, self._clock()))
        if cancelled is None:
            raise UnknownObject("No batch has this id.")
        self.on_change()
        return cancelled


def _digest(*parts: str) -> str:
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "replace")).hexdigest()
