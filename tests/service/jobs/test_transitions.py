import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Conflict
from service.jobs import transitions
from service.jobs.records import Job, JobStatus, LineFault, dump, parse
from service.jobs.transitions import ChunkPlan, Claim

LEASE_S = 10.0
PLAN = ChunkPlan(starts=(0, 100, 200), first_lines=(1, 33, 65), bytes=290, lines=96)


def new_job() -> Job:
    """Return a new job."""
    return Job(
        id="batch_" + "0" * 32,
        endpoint="/v1/classify",
        input_file_id="file-" + "0" * 32,
        completion_window="24h",
        metadata=None,
        created_at=0,
        expires_at=1_000,
        output_id="file-" + "1" * 32,
        error_id="file-" + "2" * 32,
    )


def take(job: Job, now: float = 0.0) -> tuple[Job, Claim]:
    """Lease the next unit; fail if none is free."""
    taken = transitions.lease_unit(job, now, LEASE_S)
    assert taken is not None
    return taken


def started() -> Job:
    """Return a job of three chunks that is in progress."""
    job, claim = take(new_job())
    begun = transitions.start(job, claim, PLAN, 1.0)
    assert begun is not None
    return begun


def must(job: Job | None) -> Job:
    """Return the job; fail if it is None."""
    assert job is not None
    return job


def test_the_way_of_a_job() -> None:
    """A job is validated, its chunks are leased in order, and it is finalised after all are accepted."""
    job, claim = take(new_job())
    assert ("validate", None) == (claim.unit, transitions.lease_unit(job, 0.0, LEASE_S))
    job = must(transitions.start(job, claim, PLAN, 1.0))
    assert (JobStatus.IN_PROGRESS, 96, 1) == (job.status, job.total, job.in_progress_at)
    claims = []
    for _ in range(3):
        job, claim = take(job)
        claims.append(claim)
    assert [0, 1, 2] == [claim.unit for claim in claims]
    assert transitions.lease_unit(job, 0.0, LEASE_S) is None
    for claim in claims:
        job = must(transitions.accept(job, claim, 30, 2))
    job, claim = take(job)
    assert "finalise" == claim.unit
    job = must(transitions.finalise(job, claim, 5.0))
    assert JobStatus.FINALIZING == job.status
    job = must(transitions.end(job, claim, 6.0, has_output=True, has_errors=True))
    assert (JobStatus.COMPLETED, 6, 90, 6) == (job.status, job.completed_at, job.completed, job.failed)
    assert transitions.lease_unit(job, 7.0, LEASE_S) is None


def test_chunks_know_their_place() -> None:
    """A chunk ends where the next begins, the last at the end of the file."""
    job = started()
    assert [(0, 100, 1), (100, 200, 33), (200, 290, 65)] == [job.chunk(number) for number in range(3)]


def test_a_unit_whose_lease_ran_out_is_leased_again_and_its_old_holder_is_not_heard() -> None:
    """A holder of a lost lease cannot submit results, renew it or give it up."""
    job, late = take(started())
    job, new = take(job, now=LEASE_S + 1)
    assert late.unit == new.unit
    assert transitions.accept(job, late, 32, 0) is None
    assert transitions.renew(job, late, 100.0) is None
    assert transitions.release(job, late) is None
    assert 32 == must(transitions.accept(job, new, 32, 0)).completed


def test_results_handed_in_twice_count_once() -> None:
    """Accepting the same results again succeeds, in case the reply was lost."""
    job, claim = take(started())
    once = must(transitions.accept(job, claim, 30, 2))
    assert once == transitions.accept(once, claim, 30, 2)


def test_a_renewed_lease_lasts_longer() -> None:
    """A unit is not leased again while its holder renews the lease."""
    job, claim = take(started())
    job = must(transitions.renew(job, claim, 30.0))
    assert 1 == take(job, now=20.0)[1].unit
    assert 0 == take(must(transitions.release(job, claim)), now=20.0)[1].unit


def test_a_cancelled_job_ends_after_the_chunks_in_work() -> None:
    """No new chunk begins and accepted results stay; then the job ends as cancelled."""
    job, claim = take(started())
    job = transitions.cancel(job, 2.0)
    assert (JobStatus.CANCELLING, None) == (job.status, transitions.lease_unit(job, 2.0, LEASE_S))
    job, claim = take(must(transitions.accept(job, claim, 32, 0)))
    assert "finalise" == claim.unit
    job = must(transitions.finalise(job, claim, 3.0))
    assert (JobStatus.CANCELLING, JobStatus.CANCELLED) == (job.status, job.outcome)
    job = must(transitions.end(job, claim, 4.0, has_output=True, has_errors=True))
    assert (JobStatus.CANCELLED, 4) == (job.status, job.cancelled_at)
    with pytest.raises(Conflict):
        transitions.cancel(job, 5.0)


def test_a_job_cancelled_while_it_is_validated_does_not_begin() -> None:
    """The plan is stored, because every unanswered line is reported; the status stays cancelling."""
    job, claim = take(new_job())
    job = must(transitions.start(transitions.cancel(job, 1.0), claim, PLAN, 2.0))
    assert (JobStatus.CANCELLING, 96) == (job.status, job.total)
    assert "finalise" == take(job)[1].unit


def test_a_job_past_its_window_expires() -> None:
    """Leased chunks may still end; then the job ends as expired."""
    job, claim = take(started(), now=999.0)
    assert transitions.lease_unit(job, 1_000.0, LEASE_S) is None
    job, claim = take(must(transitions.accept(job, claim, 32, 0)), now=1_000.0)
    job = must(transitions.finalise(job, claim, 1_000.0))
    assert JobStatus.EXPIRED == job.outcome
    assert JobStatus.EXPIRED == must(transitions.end(job, claim, 1_001.0, has_output=True, has_errors=True)).status


def test_an_invalid_input_fails_the_job() -> None:
    """The job keeps its faults, and no unit is left."""
    job, claim = take(new_job())
    fault = LineFault(code="invalid_json_line", message="The line is not JSON.", line=3)
    job = must(transitions.fail(job, claim, [fault], 1.0))
    assert (JobStatus.FAILED, (fault,), None) == (job.status, job.errors, transitions.lease_unit(job, 2.0, LEASE_S))


def step(data: st.DataObject, job: Job, claim: Claim, now: float) -> Job | None:
    """Apply a random action of a current or former holder of a claim."""
    match data.draw(st.sampled_from(["accept", "release", "renew"])):
        case "accept":
            return transitions.accept(job, claim, 1, 0)
        case "release":
            return transitions.release(job, claim)
        case _:
            return transitions.renew(job, claim, now + LEASE_S)


@given(st.data())
def test_every_chunk_is_accepted_once_whatever_happens(data: st.DataObject) -> None:
    """With workers that die, return late and submit twice, each chunk counts once and the job ends."""
    job, now = started(), 0.0
    claims: list[Claim] = []
    for _ in range(data.draw(st.integers(0, 40))):
        before = job
        now += data.draw(st.sampled_from([0.0, 1.0, LEASE_S]))
        taken = transitions.lease_unit(job, now, LEASE_S) if data.draw(st.booleans()) else None
        if taken is not None and isinstance(taken[1].unit, int):
            job = taken[0]
            claims.append(taken[1])
        elif claims:
            job = step(data, job, data.draw(st.sampled_from(claims)), now) or job
        # What was accepted stays, and what is counted is what was accepted.
        assert all(old in (0, new) for old, new in zip(before.accepted, job.accepted, strict=True))
        assert sum(token > 0 for token in job.accepted) == job.completed
    now += LEASE_S + 1
    while (taken := transitions.lease_unit(job, now, LEASE_S)) is not None and isinstance(taken[1].unit, int):
        job = must(transitions.accept(taken[0], taken[1], 1, 0))
    assert taken is not None
    assert ("finalise", 3) == (taken[1].unit, job.completed)


def test_a_job_survives_being_stored() -> None:
    """A record survives serialisation."""
    job, _ = take(started())
    assert job == parse(Job, "key", dump(job))
