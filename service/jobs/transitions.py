"""Who works on what of a job, and how it goes on: pure functions from a job to the next, None where it may not be.

A unit of work is leased under a token. Only the holder of the current token can have its results accepted, so one
that was taken for dead and comes back changes nothing: nothing is done twice. What was leased and not accepted is
leased again: nothing is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import Conflict
from service.jobs.records import Job, Lease, LineFault, Status, Unit

_CANCELLABLE: Final = (Status.VALIDATING, Status.IN_PROGRESS)


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to work on one unit of a job, as it was when the unit was leased."""

    job: Job
    unit: Unit
    token: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How an input file is cut: byte and line at which each chunk begins, and the totals."""

    starts: Sequence[int]
    first_lines: Sequence[int]
    bytes: int
    lines: int


def take(job: Job, now: float, lease_s: float) -> tuple[Job, Claim] | None:
    """Lease the next unit that nobody works on; whoever let a lease run out has lost it."""
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
    if job.status in (Status.FINALIZING, Status.CANCELLING) or now >= job.expires_at:
        return None if live else "finalise"
    if job.status is Status.VALIDATING:
        return None if live else "validate"
    todo = (number for number, token in enumerate(job.accepted) if not token and str(number) not in live)
    chunk = next(todo, None)
    if chunk is None and not live:
        return "finalise"
    return chunk


def holds(job: Job, claim: Claim) -> bool:
    """Whether the claim's token is the current one of its unit."""
    lease = job.leases.get(str(claim.unit))
    return lease is not None and lease.token == claim.token


def renew(job: Job, claim: Claim, until: float) -> Job | None:
    """Keep a lease."""
    if not holds(job, claim):
        return None
    lease = Lease(token=claim.token, until=until)
    return job.model_copy(update={"leases": {**job.leases, str(claim.unit): lease}})


def release(job: Job, claim: Claim) -> Job | None:
    """Give a lease back with nothing done."""
    return _without(job, claim) if holds(job, claim) else None


def accept(job: Job, claim: Claim, completed: int, failed: int) -> Job | None:
    """Take a chunk's results as the ones that count."""
    assert isinstance(claim.unit, int)  # noqa: S101 - only chunks have results
    if claim.unit < len(job.accepted) and job.accepted[claim.unit] == claim.token:
        return job  # it was accepted, and only the answer that told so was lost
    if not holds(job, claim):
        return None
    accepted = (*job.accepted[: claim.unit], claim.token, *job.accepted[claim.unit + 1 :])
    return _without(job, claim, accepted=accepted, completed=job.completed + completed, failed=job.failed + failed)


def start(job: Job, claim: Claim, plan: Plan, now: float) -> Job | None:
    """The input is valid: begin. A job that is being cancelled stays so."""
    if not holds(job, claim):
        return None
    going = {"status": Status.IN_PROGRESS, "in_progress_at": int(now)} if job.status is Status.VALIDATING else {}
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
    """The job cannot be done."""
    if not holds(job, claim):
        return None
    return _without(job, claim, status=Status.FAILED, failed_at=int(now), errors=tuple(faults), leases={})


def cancel(job: Job, now: float) -> Job:
    """Ask for the end. Raises Conflict for a job that has ended or is about to."""
    if job.status is Status.CANCELLING:
        return job
    if job.status not in _CANCELLABLE:
        raise Conflict(f"A batch that is {job.status.value} cannot be cancelled.")
    return job.model_copy(update={"status": Status.CANCELLING, "cancelling_at": int(now)})


def finalise(job: Job, claim: Claim, now: float) -> Job | None:
    """Begin to write the output; what the job ends as is decided now."""
    if not holds(job, claim):
        return None
    if job.outcome is not None:
        return job
    if job.status is Status.CANCELLING:
        return job.model_copy(update={"outcome": Status.CANCELLED})
    outcome = Status.COMPLETED if job.starts and all(job.accepted) else Status.EXPIRED
    return job.model_copy(update={"status": Status.FINALIZING, "finalizing_at": int(now), "outcome": outcome})


def end(job: Job, claim: Claim, now: float, *, has_output: bool, has_errors: bool) -> Job | None:
    """The output is written."""
    if not holds(job, claim) or job.outcome is None:
        return None
    ended = {f"{job.outcome.value}_at": int(now), "status": job.outcome}
    return _without(job, claim, has_output=has_output, has_errors=has_errors, **ended)


def _without(job: Job, claim: Claim, **changes: object) -> Job:
    leases = {unit: lease for unit, lease in job.leases.items() if unit != str(claim.unit)}
    return job.model_copy(update={"leases": leases, **changes})
