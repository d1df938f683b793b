"""Stores jobs: records changed by compare-and-set, and the results of each chunk in a blob of its own.

A blob of results is written first, and counts only once the job's record contains the token it was written under. So a
process may be killed at any time, and late results of a lost lease are ignored.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import Conflict, StateCorrupt, StateUnavailable
from service.jobs import transitions
from service.jobs.records import ALL, JOB_PREFIX, IdempotencyRecord, Job, dump, is_id, made_at, newest_first, parse
from service.jobs.transitions import Claim
from service.state.damage import DamagedEntries
from service.state.protocol import StateStore

_RECORDS: Final = "jobs/record/"
_ACTIVE: Final = "jobs/active/"
_RESULTS: Final = "jobs/results/"
_RESERVED: Final = "jobs/reserved/"
_ATTEMPTS: Final = 200
_LONGEST_PAUSE_S: Final = 0.05
_ORPHANED_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class LineResult:
    """The line of output for a line of input, without a line break; `ok` selects output or error file."""

    line: int
    ok: bool
    text: str


class JobStore:
    """Reads and changes jobs."""

    def __init__(self, state: StateStore, damaged: DamagedEntries) -> None:
        self._state = state
        self._damaged = damaged

    async def add(self, job: Job, *, limit: int) -> Job | None:
        """Store a new active job; return None if `limit` jobs are active already.

        Returns the existing job, unchanged, if the id is already in use.
        """
        if (existing := await self.get(job.id)) is not None:
            return existing
        if len(await self._state.keys(_ACTIVE, limit=limit)) >= limit:
            return None
        # In this order: a killed process may leave a mark without a job, but never an active job without a mark.
        await self._state.put(_ACTIVE + _hex(job.id), b"", expected=None)
        await self._state.put(_key(job.id), dump(job), expected=None)
        return await self.get(job.id)

    async def get(self, job_id: str) -> Job | None:
        """Look up a job; return None if it does not exist or the id is malformed."""
        if not is_id(JOB_PREFIX, job_id):
            return None
        return await self._record(_key(job_id))

    async def page(self, *, after: str | None, limit: int) -> tuple[list[Job], bool]:
        """Return up to `limit` jobs after `after`, newest first, and whether more follow. Skips damaged jobs."""
        jobs: list[Job] = []
        last = "" if after is None else _key(after)
        while keys := await self._state.keys(_RECORDS, after=last, limit=limit + 1):
            for key in keys:
                with self._damaged.skipped("job"):
                    job = await self._record(key)
                    if job is not None and len(jobs) == limit:
                        return jobs, True
                    if job is not None:
                        jobs.append(job)
            if len(keys) <= limit:
                break
            last = keys[-1]
        return jobs, False

    async def change(self, job_id: str, change: Callable[[Job], Job | None]) -> Job | None:
        """Change a job atomically; return None if it is gone or `change` returns None. `change` may be called again."""
        key = _key(job_id)
        for _ in range(_ATTEMPTS):
            entry = await self._state.get(key)
            changed = None if entry is None else change(parse(Job, key, entry.value))
            if entry is None or changed is None:
                return None
            if await self._state.put(key, dump(changed), expected=entry.version) is not None:
                return changed
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S))  # noqa: S311 - separates writers that collided
        raise StateUnavailable("Too many clients are changing this batch at once; try again later.")

    async def claim(self, now: float, lease_s: float) -> Claim | None:
        """Lease a unit of the oldest job that has a free one."""
        for name in await self._state.keys(_ACTIVE, limit=ALL):
            with self._damaged.skipped("job"):
                claim = await self._claim_of(JOB_PREFIX + name.removeprefix(_ACTIVE), name, now, lease_s)
                if claim is not None:
                    return claim
        return None

    async def _claim_of(self, job_id: str, name: str, now: float, lease_s: float) -> Claim | None:
        """Lease a unit of the job with the active mark `name`, if it has a free one."""
        try:
            job = await self.get(job_id)
        except StateCorrupt:
            await self._forget_active(name)
            raise
        if job is None or not job.active:
            if job is not None or made_at(job_id) < now - _ORPHANED_S:
                await self._forget_active(name)
            return None
        if transitions.lease_unit(job, now, lease_s) is None:
            return None
        return await self._lease_unit(job_id, now, lease_s)

    async def _lease_unit(self, job_id: str, now: float, lease_s: float) -> Claim | None:
        claims: list[Claim] = []

        def lease(job: Job) -> Job | None:
            claims.clear()
            leased = transitions.lease_unit(job, now, lease_s)
            if leased is None:
                return None
            claims.append(leased[1])
            return leased[0]

        return claims[0] if await self.change(job_id, lease) is not None else None

    async def renew(self, claim: Claim, until: float) -> Job | None:
        """Extend a lease and return the current job, or None if the lease is lost."""
        return await self.change(claim.job.id, lambda job: transitions.renew(job, claim, until))

    async def release(self, claim: Claim) -> None:
        """Give up a lease if it is still held."""
        await self.change(claim.job.id, lambda job: transitions.release(job, claim))

    async def accept(self, claim: Claim, results: Sequence[LineResult]) -> bool:
        """Store the results of a chunk; return False, without a change, if the lease is lost."""
        assert isinstance(claim.unit, int)  # noqa: S101 - only chunks have results
        completed = sum(result.ok for result in results)
        lines = [f"{'+' if each.ok else '-'}{each.line} {each.text}" for each in results]
        await self._state.put_blob(_results_key(claim.job.id, claim.unit, claim.token), "\n".join(lines).encode())
        failed = len(results) - completed
        changed = await self.change(claim.job.id, lambda job: transitions.accept(job, claim, completed, failed))
        return changed is not None

    async def results(self, job: Job, chunk: int) -> list[LineResult] | None:
        """Return the accepted results of a chunk, or None if it has none yet."""
        token = job.accepted[chunk]
        if not token:
            return None
        key = _results_key(job.id, chunk, token)
        blob = await self._state.get_blob(key)
        if blob is None:
            raise StateCorrupt(f"The stored entry {key} is missing.")
        return [_result(line) for line in blob.decode().split("\n") if line]

    async def ended(self, job: Job) -> None:
        """Delete the results and the active mark of an ended job."""
        await self._forget_active(_ACTIVE + _hex(job.id))
        await self._state.delete_blobs(f"{_RESULTS}{_hex(job.id)}/")

    async def reserved(self, key: str, fingerprint: str, *, now: float) -> str | None:
        """Return the id of the object of an idempotency key, or None if the key is new. Raises as `reserve`."""
        entry = await self._state.get(_RESERVED + key)
        return None if entry is None else _object_of(entry.value, _RESERVED + key, fingerprint, now)

    async def reserve(self, key: str, fingerprint: str, object_id: str, *, now: float, keep_s: float) -> str:
        """Return the id of the object of an idempotency key: `object_id`, reserved for `keep_s`, if the key is new.

        Raises Conflict if the key was used for another request.
        """
        stored_key = _RESERVED + key
        wanted = IdempotencyRecord(fingerprint=fingerprint, object_id=object_id, until=now + keep_s)
        while True:
            entry = await self._state.get(stored_key)
            existing = None if entry is None else _object_of(entry.value, stored_key, fingerprint, now)
            if existing is not None:
                return existing
            expected = None if entry is None else entry.version
            if await self._state.put(stored_key, dump(wanted), expected=expected) is not None:
                return object_id

    async def active(self) -> list[Job]:
        """Return all jobs that have not ended, oldest first."""
        found: list[Job] = []
        for name in await self._state.keys(_ACTIVE, limit=ALL):
            with self._damaged.skipped("job"):
                job = await self.get(JOB_PREFIX + name.removeprefix(_ACTIVE))
                if job is not None and job.active:
                    found.append(job)
        return found

    async def sweep(self, now: float, keep_s: float) -> None:
        """Delete jobs that ended more than `keep_s` ago, expired idempotency keys, and results of ended jobs.

        Also restores missing marks of active jobs. Damaged entries stay, with the results of damaged jobs.
        """
        for key in await self._state.keys(_RECORDS, limit=ALL):
            with self._damaged.skipped("job"):
                await self._sweep_job(key, now, keep_s)
        for key in await self._state.keys(_RESERVED, limit=ALL):
            with self._damaged.skipped("idempotency-key"):
                entry = await self._state.get(key)
                if entry is not None and parse(IdempotencyRecord, key, entry.value).until < now:
                    await self._state.delete(key, expected=entry.version)
        # A process that was killed just after a job ended has left its results.
        for name in {key.split("/")[2] for key in await self._state.blob_keys(_RESULTS)}:
            with self._damaged.skipped("job"):
                job = await self.get(JOB_PREFIX + name)
                if job is None or not job.active:
                    await self._state.delete_blobs(f"{_RESULTS}{name}/")

    async def _sweep_job(self, key: str, now: float, keep_s: float) -> None:
        entry = await self._state.get(key)
        if entry is None:
            return
        job = parse(Job, key, entry.value)
        if job.active:
            # Another process may have deleted the mark as orphaned just before the record was written.
            await self._state.put(_ACTIVE + _hex(job.id), b"", expected=None)
        elif job.expires_at + keep_s < now:
            await self._state.delete_blobs(f"{_RESULTS}{_hex(job.id)}/")
            await self._state.delete(key, expected=entry.version)

    async def _record(self, key: str) -> Job | None:
        entry = await self._state.get(key)
        return None if entry is None else parse(Job, key, entry.value)

    async def _forget_active(self, name: str) -> None:
        with self._damaged.skipped("job"):
            entry = await self._state.get(name)
            if entry is not None:
                await self._state.delete(name, expected=entry.version)


def count_by_status(jobs: Sequence[Job]) -> Mapping[str, int]:
    """Count jobs by status."""
    return Counter(job.status.value for job in jobs)


def _object_of(value: bytes, key: str, fingerprint: str, now: float) -> str | None:
    """Return the object of an idempotency record, None if it has expired. Raises Conflict for another request's."""
    record = parse(IdempotencyRecord, key, value)
    if record.until <= now:
        return None
    if record.fingerprint != fingerprint:
        raise Conflict("This Idempotency-Key was used for another request; take a new one.")
    return record.object_id


def _hex(job_id: str) -> str:
    return job_id.removeprefix(JOB_PREFIX)


def _key(job_id: str) -> str:
    return _RECORDS + newest_first(job_id)


def _results_key(job_id: str, chunk: int, token: int) -> str:
    return f"{_RESULTS}{_hex(job_id)}/{chunk:08}-{token}"


def _result(line: str) -> LineResult:
    number, _, text = line[1:].partition(" ")
    return LineResult(int(number), line[0] == "+", text)
