"""Transitions of a job's state: pure functions from a job to the changed job, or None if the change is not allowed.

A unit of work is leased under a token. Only results under the unit's current token are accepted, so a worker whose
lease ran out cannot change anything: nothing is done twice. A unit without accepted results is leased again: nothing
is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import Conflict
from service.jobs.records import Job, JobStatus, Lease, LineFault, Unit

_CANCELLABLE: Final = (JobStatus.VALIDATING, JobStatus.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Claim:
    """A leased unit of a job; `job` is the state at the time of the lease."""

    job: Job
    unit: Unit
    token: int


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """The division of an input file into chunks: first byte and first line of each, and the totals."""

    starts: Sequence[int]
    first_lines: Sequence[int]
    bytes: int
    lines: int


def lease_unit(job: Job, now: float, lease_s: float) -> tuple[Job, Claim] | None:
    """Lease the next free unit; expired leases are dropped. Returns None if no unit is free."""
    live = {unit: lease for unit, lease in job.leases.items() if lease.until > now}
    unit = _next_unit(job, live, now)
    if unit is None:
        return None
    token = job.fence + 1
    leases = {**live, str(unit): Lease(token=token, until=now + lease_s)}
    leased = job.model_copy(update={"leases": leases, "fence": token})
    return leased, Claim(leased, unit, token)


def _next_unit(job: Job, live: dict[str, Lease], now: float) -> Unit | None:
    if not job.active:
        return None
    if job.status in (JobStatus.FINALIZING, JobStatus.CANCELLING) or now >= job.expires_at:
        return None if live else "finalise"
    if job.status is JobStatus.VALIDATING:
        return None if live else "validate"
    todo = (number for number, token in enumerate(job.accepted) if not token and str(number) not in live)
    chunk = next(todo, None)
    if chunk is None and not live:
        return "finalise"
    return chunk


def holds(job: Job, claim: Claim) -> bool:
    """Return whether the claim's token is the current one of its unit."""
    lease = job.leases.get(str(claim.unit))
    return lease is not None and lease.token == claim.token


def renew(job: Job, claim: Claim, until: float) -> Job | None:
    """Extend a lease."""
    if not holds(job, claim):
        return None
    lease = Lease(token=claim.token, until=until)
    return job.model_copy(update={"leases": {**job.leases, str(claim.unit): lease}})


def release(job: Job, claim: Claim) -> Job | None:
    """Give up a lease without results."""
    return _without(job, claim) if holds(job, claim) else None


def accept(job: Job, claim: Claim, completed: int, failed: int) -> Job | None:
    """Accept the results of a chunk."""
    assert isinstance(claim.unit, int)  # noqa: S101 - only chunks have results
    if claim.unit < len(job.accepted) and job.accepted[claim.unit] == claim.token:
        return job  # accepted before; only the reply was lost
    if not holds(job, claim):
        return None
    accepted = (*job.accepted[: claim.unit], claim.token, *job.accepted[claim.unit + 1 :])
    return _without(job, claim, accepted=accepted, completed=job.completed + completed, failed=job.failed + failed)


def start(job: Job, claim: Claim, plan: ChunkPlan, now: float) -> Job | None:
    """Begin answering after a successful validation. A job that is being cancelled stays so."""
    if not holds(job, claim):
        return None
    going = {"status": JobStatus.IN_PROGRESS, "in_progress_at": int(now)} if job.status is JobStatus.VALIDATING else {}
    return _without(
        job,
        claim,
        starts=tuple(plan.starts),
        first_lines=tuple(plan.first_lines),
        accepted=(0,) * len(plan.starts),
        input_bytes=plan.bytes,
        total=plan.lines,
        **going,
    )


def fail(job: Job, claim: Claim, faults: Sequence[LineFault], now: float) -> Job | None:
    """End the job as failed because of its input."""
    if not holds(job, claim):
        return None
    return _without(job, claim, status=JobStatus.FAILED, failed_at=int(now), errors=tuple(faults), leases={})


def cancel(job: Job, now: float) -> Job:
    """Begin cancelling. Raises Conflict if the job is finalising or has ended."""
    if job.status is JobStatus.CANCELLING:
        return job
    if job.status not in _CANCELLABLE:
        raise Conflict(f"A batch that is {job.status.value} cannot be cancelled.")
    return job.model_copy(update={"status": JobStatus.CANCELLING, "cancelling_at": int(now)})


def finalise(job: Job, claim: Claim, now: float) -> Job | None:
    """Begin to write the output, and decide the final status."""
    if not holds(job, claim):
        return None
    if job.outcome is not None:
        return job
    if job.status is JobStatus.CANCELLING:
        return job.model_copy(update={"outcome": JobStatus.CANCELLED})
    outcome = JobStatus.COMPLETED if job.starts and all(job.accepted) else JobStatus.EXPIRED
    return job.model_copy(update={"status": JobStatus.FINALIZING, "finalizing_at": int(now), "outcome": outcome})


def end(job: Job, claim: Claim, now: float, *, has_output: bool, has_errors: bool) -> Job | None:
    """End the job after its output was written."""
    if not holds(job, claim) or job.outcome is None:
        return None
    ended = {f"{job.outcome.value}_at": int(now), "status": job.outcome}
    return _without(job, claim, has_output=has_output, has_errors=has_errors, **ended)


def _without(job: Job, claim: Claim, **changes: object) -> Job:
    leases = {unit: lease for unit, lease in job.leases.items() if unit != str(claim.unit)}
    return job.model_copy(update={"leases": leases, **changes})
