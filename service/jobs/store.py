"""Jobs in the state store: records changed by compare-and-set, and the results of each chunk in a blob of its own.

A blob of results is written first and counts only once the job's record names the token it was written under. So a
process may be killed at any moment, and one that comes back late is not heard.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from service.errors import Conflict, StateCorrupt, StateUnavailable
from service.jobs import transitions as ledger
from service.jobs.records import (
    ALL,
    JOB_PREFIX,
    Job,
    Reservation,
    dump,
    is_id,
    made_at,
    newest_first,
    parse,
)
from service.jobs.transitions import Claim
from service.state.protocol import StateStore

_RECORDS: Final = "jobs/record/"
_ACTIVE: Final = "jobs/active/"
_RESULTS: Final = "jobs/results/"
_RESERVED: Final = "jobs/reserved/"
_ATTEMPTS: Final = 200
_LONGEST_PAUSE_S: Final = 0.05
_ORPHANED_S: Final = 60.0

_log = structlog.stdlib.get_logger("service.jobs")


@dataclass(frozen=True, slots=True)
class LineResult:
    """The line of output, without its end, that belongs to a line of input; `ok` tells for which file."""

    line: int
    ok: bool
    text: str


class JobStore:
    """All jobs."""

    def __init__(self, state: StateStore) -> None:
        self._state = state

    async def add(self, job: Job, *, limit: int) -> Job | None:
        """Keep a new job, to be worked on at once; None where `limit` jobs are active already.

        Where one of that id is there already, it stays and is returned.
        """
        if (there := await self.get(job.id)) is not None:
            return there
        if len(await self._state.keys(_ACTIVE, limit=limit)) >= limit:
            return None
        # In this order: a killed process may leave a mark without a job, never a job that nobody looks at.
        await self._state.put(_ACTIVE + _hex(job.id), b"", expected=None)
        await self._state.put(_key(job.id), dump(job), expected=None)
        return await self.get(job.id)

    async def get(self, job_id: str) -> Job | None:
        """Look up a job; None for what is not even an id."""
        if not is_id(JOB_PREFIX, job_id):
            return None
        entry = await self._state.get(_key(job_id))
        return None if entry is None else parse(Job, _key(job_id), entry.value)

    async def page(self, *, after: str | None, limit: int) -> tuple[list[Job], bool]:
        """Up to `limit` jobs that follow `after`, the newest first, and whether there are more."""
        keys = await self._state.keys(_RECORDS, after="" if after is None else _key(after), limit=limit + 1)
        entries = [(key, await self._state.get(key)) for key in keys[:limit]]
        jobs = [parse(Job, key, entry.value) for key, entry in entries if entry is not None]
        return jobs, len(keys) > limit

    async def change(self, job_id: str, change: Callable[[Job], Job | None]) -> Job | None:
        """Change a job in one step; None where it is gone or `change`, which may be called again, says so."""
        key = _key(job_id)
        for _ in range(_ATTEMPTS):
            entry = await self._state.get(key)
            changed = None if entry is None else change(parse(Job, key, entry.value))
            if entry is None or changed is None:
                return None
            if await self._state.put(key, dump(changed), expected=entry.version) is not None:
                return changed
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311 - only to part those who meet
        raise StateUnavailable("Too many are changing this batch at once; try again later.")

    async def claim(self, now: float, lease_s: float) -> Claim | None:
        """Lease a unit of the oldest job that has one to give."""
        for name in await self._state.keys(_ACTIVE, limit=ALL):
            job_id = JOB_PREFIX + name.removeprefix(_ACTIVE)
            try:
                job = await self.get(job_id)
            except StateCorrupt as exc:
                _log.error("a batch is given up", reason=exc.detail)
                await self._forget_active(name)
                continue
            if job is None or not job.active:
                if job is not None or made_at(job_id) < now - _ORPHANED_S:
                    await self._forget_active(name)
                continue
            if ledger.take(job, now, lease_s) is None:
                continue
            if (claim := await self._take(job_id, now, lease_s)) is not None:
                return claim
        return None

    async def _take(self, job_id: str, now: float, lease_s: float) -> Claim | None:
        claims: list[Claim] = []

        def take(job: Job) -> Job | None:
            claims.clear()
            taken = ledger.take(job, now, lease_s)
            if taken is None:
                return None
            claims.append(taken[1])
            return taken[0]

        return claims[0] if await self.change(job_id, take) is not None else None

    async def renew(self, claim: Claim, until: float) -> Job | None:
        """Keep a lease, and see the job as it is now; None where the lease is lost."""
        return await self.change(claim.job.id, lambda job: ledger.renew(job, claim, until))

    async def release(self, claim: Claim) -> None:
        """Give a lease back, if it is still held."""
        await self.change(claim.job.id, lambda job: ledger.release(job, claim))

    async def accept(self, claim: Claim, results: Sequence[LineResult]) -> bool:
        """Have a chunk's results count; False, and nothing has changed, where the lease is lost."""
        assert isinstance(claim.unit, int)  # noqa: S101 - only chunks have results
        completed = sum(result.ok for result in results)
        lines = [f"{'+' if each.ok else '-'}{each.line} {each.text}" for each in results]
        await self._state.put_blob(_results_key(claim.job.id, claim.unit, claim.token), "\n".join(lines).encode())
        failed = len(results) - completed
        changed = await self.change(claim.job.id, lambda job: ledger.accept(job, claim, completed, failed))
        return changed is not None

    async def results(self, job: Job, chunk: int) -> list[LineResult] | None:
        """The results of a chunk that count, None where there are none yet."""
        token = job.accepted[chunk]
        if not token:
            return None
        key = _results_key(job.id, chunk, token)
        blob = await self._state.get_blob(key)
        if blob is None:
            raise StateCorrupt(f"The stored entry {key} is missing.")
        return [_result(line) for line in blob.decode().split("\n") if line]

    async def ended(self, job: Job) -> None:
        """Tidy up behind a job that has ended."""
        await self._forget_active(_ACTIVE + _hex(job.id))
        await self._state.delete_blobs(f"{_RESULTS}{_hex(job.id)}/")

    async def reserved(self, key: str, fingerprint: str, *, now: float) -> str | None:
        """The id of the object that an idempotency key stands for, None where it is new. Raises as `reserve`."""
        entry = await self._state.get(_RESERVED + key)
        return None if entry is None else _object_of(entry.value, _RESERVED + key, fingerprint, now)

    async def reserve(self, key: str, fingerprint: str, object_id: str, *, now: float, keep_s: float) -> str:
        """The id of the object that an idempotency key stands for: `object_id` if the key is new.

        Raises Conflict where the key was used for another request.
        """
        place = _RESERVED + key
        wanted = Reservation(fingerprint=fingerprint, object_id=object_id, until=now + keep_s)
        while True:
            entry = await self._state.get(place)
            there = None if entry is None else _object_of(entry.value, place, fingerprint, now)
            if there is not None:
                return there
            expected = None if entry is None else entry.version
            if await self._state.put(place, dump(wanted), expected=expected) is not None:
                return object_id

    async def active(self) -> list[Job]:
        """All jobs that have not ended, the oldest first."""
        found: list[Job] = []
        for name in await self._state.keys(_ACTIVE, limit=ALL):
            with suppress(StateCorrupt):  # `claim` tells of it
                job = await self.get(JOB_PREFIX + name.removeprefix(_ACTIVE))
                if job is not None and job.active:
                    found.append(job)
        return found

    async def sweep(self, now: float, keep_s: float) -> None:
        """Delete what ended more than `keep_s` ago, idempotency keys that ran out, and results nobody needs.

        A job that has not ended and is not marked as such is marked again.
        """
        for key in await self._state.keys(_RECORDS, limit=ALL):
            entry = await self._state.get(key)
            job = None if entry is None else parse(Job, key, entry.value)
            if entry is not None and job is not None and not job.active and job.expires_at + keep_s < now:
                await self._state.delete_blobs(f"{_RESULTS}{_hex(job.id)}/")
                await self._state.delete(key, expected=entry.version)
            if job is not None and job.active:
                # Its mark was taken for one without a job by a process that looked just before the record was written.
                await self._state.put(_ACTIVE + _hex(job.id), b"", expected=None)
        for key in await self._state.keys(_RESERVED, limit=ALL):
            entry = await self._state.get(key)
            if entry is not None and parse(Reservation, key, entry.value).until < now:
                await self._state.delete(key, expected=entry.version)
        # A process that was killed between the end of a job and the tidying up has left its results.
        for name in {key.split("/")[2] for key in await self._state.blob_keys(_RESULTS)}:
            job = await self.get(JOB_PREFIX + name)
            if job is None or not job.active:
                await self._state.delete_blobs(f"{_RESULTS}{name}/")

    async def _forget_active(self, name: str) -> None:
        entry = await self._state.get(name)
        if entry is not None:
            await self._state.delete(name, expected=entry.version)


def count_by_status(jobs: Sequence[Job]) -> Mapping[str, int]:
    """How many jobs are in each status."""
    return Counter(job.status.value for job in jobs)


def _object_of(value: bytes, place: str, fingerprint: str, now: float) -> str | None:
    """The object of a reservation, None where it has run out. Raises Conflict where it is of another request."""
    there = parse(Reservation, place, value)
    if there.until <= now:
        return None
    if there.fingerprint != fingerprint:
        raise Conflict("This Idempotency-Key was used for another request; take a new one.")
    return there.object_id


def _hex(job_id: str) -> str:
    return job_id.removeprefix(JOB_PREFIX)


def _key(job_id: str) -> str:
    return _RECORDS + newest_first(job_id)


def _results_key(job_id: str, chunk: int, token: int) -> str:
    return f"{_RESULTS}{_hex(job_id)}/{chunk:08}-{token}"


def _result(line: str) -> LineResult:
    number, _, text = line[1:].partition(" ")
    return LineResult(int(number), line[0] == "+", text)
