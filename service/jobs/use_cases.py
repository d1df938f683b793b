"""What clients may do with files and jobs, whatever protocol they speak."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from service.errors import Conflict, Overloaded, UnknownObject
from service.jobs import transitions as ledger
from service.jobs.files import FileStore, FileWriter
from service.jobs.quota import Room
from service.jobs.records import FILE_PREFIX, JOB_PREFIX, FileRecord, Job, Purpose, new_id
from service.jobs.store import JobStore
from service.state.protocol import StateStore

IDEMPOTENCY_S: Final = 24 * 3600.0
"""How long an idempotency key is remembered."""
_HOUR_S: Final = 3600
_RETRY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's key for a request, and whose it is: the same key of another client is another key."""

    key: str
    client: str = ""

    def digest(self, kind: str) -> str:
        """The key as it is kept."""
        return hashlib.sha256(f"{kind}\n{self.client}\n{self.key}".encode("utf-8", "replace")).hexdigest()


class JobDesk:
    """Takes in files and jobs, and tells of them."""

    def __init__(
        self,
        state: StateStore,
        *,
        max_file_bytes: int,
        max_total_file_bytes: int,
        max_active: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.files = FileStore(state)
        self.jobs = JobStore(state)
        self.on_news: Callable[[], None] = lambda: None
        self._max_file_bytes = max_file_bytes
        self._room = Room(state, max_total_file_bytes)
        self._max_active = max_active
        self._clock = clock

    async def begin_file(self, at_least: int = 0) -> FileWriter:
        """Begin to take in a file of `max_file_bytes` at most; end it with `add_file` or `FileWriter.discard`.

        Raises StateFull where all files have so many bytes already that there is no room for `at_least` more.
        """
        await self._room.ensure(at_least)
        return self.files.writer(self._max_file_bytes, self._room)

    async def add_file(
        self, writer: FileWriter, *, name: str, purpose: Purpose, keep_s: float, idempotency: Idempotency | None = None
    ) -> FileRecord:
        """Keep a file.

        Raises Conflict for an idempotency key that was used for another, and StateFull where other processes have taken
        the room meanwhile; the key is not used up then.
        """
        now = self._clock()
        file_id = new_id(FILE_PREFIX, now)
        await writer.close()
        await self._room.ensure()
        if idempotency is not None:
            fingerprint = _digest(writer.digest, name, purpose, str(keep_s))
            file_id = await self.jobs.reserve(
                idempotency.digest("file"), fingerprint, file_id, now=now, keep_s=IDEMPOTENCY_S
            )
        return await self.files.add(writer, file_id=file_id, name=name, purpose=purpose, now=now, keep_s=keep_s)

    async def file(self, file_id: str) -> FileRecord:
        """A file that has not expired. Raises UnknownObject."""
        record = await self.files.get(file_id)
        if record is None or record.expires_at <= self._clock():
            raise UnknownObject("There is no file of that id here.")
        return record

    async def delete_file(self, file_id: str) -> None:
        """Delete a file. Raises UnknownObject, and Conflict while a batch reads it."""
        await self.file(file_id)
        if any(job.input_file_id == file_id for job in await self.jobs.active()):
            raise Conflict("A batch still reads this file; cancel the batch first, or wait for its end.")
        if not await self.files.delete(file_id):
            raise UnknownObject("There is no file of that id here.")

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
        """Begin a job.

        Raises:
            UnknownObject: there is no input file of that id. A request that is sent again with its idempotency key is
                answered all the same: the file may have gone since.
            Conflict: the idempotency key was used for another request.
            Overloaded: as many jobs as may be are active.
        """
        now = self._clock()
        job_id = new_id(JOB_PREFIX, now)
        pairs = [part for pair in sorted((metadata or {}).items()) for part in pair]
        fingerprint = _digest(endpoint, input_file_id, str(window_hours), str(keep_output_s), *pairs)
        if idempotency is not None:
            known = await self.jobs.reserved(idempotency.digest("batch"), fingerprint, now=now)
            if known is not None and (there := await self.jobs.get(known)) is not None:
                return there
        if (await self.file(input_file_id)).purpose != "batch":
            raise UnknownObject("The file of that id was not sent with the purpose batch.")
        if idempotency is not None:
            # Only now: a request that is refused uses no key up.
            job_id = await self.jobs.reserve(
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
        added = await self.jobs.add(job, limit=self._max_active)
        if added is None:
            raise Overloaded("Too many batches are waiting; try again later.", _RETRY_S)
        self.on_news()
        return added

    async def job(self, job_id: str) -> Job:
        """A job. Raises UnknownObject."""
        job = await self.jobs.get(job_id)
        if job is None:
            raise UnknownObject("There is no batch of that id here.")
        return job

    async def cancel(self, job_id: str) -> Job:
        """Ask for a job's end. Raises UnknownObject, and Conflict for one that has ended."""
        await self.job(job_id)
        cancelled = await self.jobs.change(job_id, lambda job: ledger.cancel(job, self._clock()))
        if cancelled is None:
            raise UnknownObject("There is no batch of that id here.")
        self.on_news()
        return cancelled


def _digest(*parts: str) -> str:
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "replace")).hexdigest()
