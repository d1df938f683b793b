"""Runs jobs in the background: leases a unit of work, does it, and stores its results."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from service.concurrency import pause
from service.errors import AnyclassError, StateUnavailable
from service.jobs import transitions
from service.jobs.files import FileStore
from service.jobs.records import ACTIVE, ENDED, Job, JobStatus, LineFault
from service.jobs.store import JobStore, LineResult, count_by_status
from service.jobs.transitions import Claim
from service.jobs.work import JobWork, WaitLimit
from service.monitoring.metrics import NO_STATE, Metrics
from service.state.write_probe import WriteProbe

_POLL_S: Final = 1.0
"""Interval of looking for jobs that another process received."""
_STORE_PAUSE_S: Final = 5.0
"""Pause after the store did not answer; it logs every failed attempt."""
_SWEEP_S: Final = 60.0
_CLOSE_TIMEOUT_S: Final = 5.0
"""Time for lines in flight when closing; lines that take longer are answered again after the next start."""

_log = structlog.stdlib.get_logger("service.jobs")


class JobRunner:
    """Runs workers, and a housekeeping task that deletes expired records. Belongs to one event loop."""

    def __init__(
        self,
        jobs: JobStore,
        files: FileStore,
        work: JobWork,
        probe: WriteProbe,
        metrics: Metrics,
        *,
        workers: int,
        lease_s: float,
        keep_s: float,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create a runner; `start` starts it.

        Args:
            probe: tries whether the store takes writes.
            workers: number of units run at the same time in this process.
            lease_s: time after which a unit is taken from a process that does not renew its lease.
            keep_s: lifetime of outputs and of ended jobs.
            stopping: returns whether the process is about to end, so that no new unit may begin.
        """
        self._jobs = jobs
        self._files = files
        self._work = work
        self._probe = probe
        self._metrics = metrics
        self._workers = workers
        self._lease_s = lease_s
        self._keep_s = keep_s
        self._stopping = stopping
        self._clock = clock
        self._closing = asyncio.Event()
        self._wakeup = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        for status in ACTIVE:
            metrics.jobs_active.labels(status.value)
        for status in ENDED:
            metrics.jobs_ended.labels(status.value)

    def start(self) -> None:
        """Start the workers and the housekeeping."""
        if self._workers:
            self._tasks = [asyncio.create_task(self._work_loop(), name=f"jobs-{n}") for n in range(self._workers)]
            self._tasks.append(asyncio.create_task(self._housekeep(), name="jobs-housekeeping"))

    def wake(self) -> None:
        """Wake a worker because a job was added or changed."""
        self._wakeup.set()

    async def close(self) -> None:
        """Begin nothing new and wait for lines in flight; cancel them after `_CLOSE_TIMEOUT_S`."""
        self._closing.set()
        self._wakeup.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_TIMEOUT_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work_loop(self) -> None:
        while not self._closing.is_set():
            self._wakeup.clear()
            claim = None if self._stopping() else await self._claim()
            if claim is None:
                await pause(self._wakeup, _POLL_S)
                continue
            structlog.contextvars.clear_contextvars()
            await self._under_lease(claim)

    async def _claim(self) -> Claim | None:
        try:
            return await self._jobs.claim(self._clock(), self._lease_s)
        except StateUnavailable:
            await pause(self._closing, _STORE_PAUSE_S)
        except AnyclassError as exc:
            _log.error("a batch cannot be read", reason=exc.detail)
        except Exception:  # noqa: BLE001 - a worker must survive any error
            _log.exception("a batch could not be claimed")
        return None

    async def _under_lease(self, claim: Claim) -> None:
        """Do a unit while its lease can be renewed."""
        wait_limit = WaitLimit(claim.job, self._clock)
        work = asyncio.create_task(self._do(claim, wait_limit), name=f"job-unit-{claim.unit}")
        renewals = asyncio.create_task(self._renew(claim, wait_limit), name="job-lease")
        try:
            await asyncio.wait({work, renewals}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, renewals):
                task.cancel()
            done, _ = await asyncio.gather(work, renewals, return_exceptions=True)
            if isinstance(done, BaseException):
                await self._give_back(claim, done)

    async def _renew(self, claim: Claim, wait_limit: WaitLimit) -> None:
        """Renew the lease; return once it is lost. Cancels `wait_limit` when the job is being cancelled."""
        until = self._clock() + self._lease_s
        while True:
            await asyncio.sleep(self._lease_s / 3)
            renewed_until = self._clock() + self._lease_s
            try:
                job = await self._jobs.renew(claim, renewed_until)
                if job is None:
                    return
                if job.status is JobStatus.CANCELLING:
                    wait_limit.cancel()
                until = renewed_until
            except StateUnavailable:
                if self._clock() > until:
                    return

    async def _give_back(self, claim: Claim, error: BaseException) -> None:
        """Give up the lease of a unit that failed, and log the reason."""
        if not isinstance(error, AnyclassError | asyncio.CancelledError):
            _log.error("a part of a batch failed", batch=claim.job.id, unit=claim.unit, exc_info=error)
        if isinstance(error, StateUnavailable):
            self._probe.doubt()
        with suppress(AnyclassError):
            if isinstance(error, AnyclassError) and not isinstance(error, StateUnavailable):
                _log.warning("a part of a batch was put off", batch=claim.job.id, reason=type(error).__name__)
            await self._jobs.release(claim)
        # Pause, because the next attempt would probably fail in the same way.
        await pause(self._closing, _POLL_S)

    async def _do(self, claim: Claim, wait_limit: WaitLimit) -> None:
        match claim.unit:
            case "validate":
                await self._check(claim)
            case "finalise":
                await self._finish(claim)
            case chunk:
                results = await self._work.answer(claim.job, chunk, wait_limit)
                if await self._accept(claim, results):
                    ok = sum(each.ok for each in results)
                    self._metrics.job_lines.labels("completed").inc(ok)
                    self._metrics.job_lines.labels("failed").inc(len(results) - ok)
        self._wakeup.set()

    async def _check(self, claim: Claim) -> None:
        plan, faults = await self._work.check(claim.job)
        now = self._clock()
        if not faults:
            await self._jobs.change(claim.job.id, lambda job: transitions.start(job, claim, plan, now))
        else:
            await self._end(claim, lambda job: transitions.fail(job, claim, faults, now))

    async def _finish(self, claim: Claim) -> None:
        job = await self._jobs.change(claim.job.id, lambda job: transitions.finalise(job, claim, self._clock()))
        if job is None:
            return
        now = self._clock()
        try:
            has_output, has_errors = await self._work.write(job, now, self._keep_s)
        except StateUnavailable:
            raise
        except AnyclassError as exc:
            _log.error("a batch cannot be finished", batch=job.id, reason=exc.detail)
            fault = LineFault(code="state_corrupt", message="A part of the batch's results is damaged.")
            await self._end(claim, lambda job: transitions.fail(job, claim, [fault], now))
            return
        await self._end(
            claim, lambda job: transitions.end(job, claim, now, has_output=has_output, has_errors=has_errors)
        )

    async def _end(self, claim: Claim, change: Callable[[Job], Job | None]) -> None:
        ended = await self._jobs.change(claim.job.id, change)
        if ended is not None:
            self._metrics.jobs_ended.labels(ended.status.value).inc()
            _log.info(
                "batch ended",
                batch=ended.id,
                status=ended.status.value,
                total=ended.total,
                completed=ended.completed,
                failed=ended.failed,
            )
            await self._jobs.ended(ended)

    async def _accept(self, claim: Claim, results: Sequence[LineResult]) -> bool:
        """Retry the write until the lease expires: the results were expensive to compute."""
        while True:
            try:
                return await self._jobs.accept(claim, results)
            except StateUnavailable:
                self._probe.doubt()
                await asyncio.sleep(_POLL_S)

    async def _housekeep(self) -> None:
        swept = -_SWEEP_S
        while not self._closing.is_set():
            try:
                active = await self._jobs.active()
                await self._probe.check()
                self._metrics.state_up.set(1)
                counts = count_by_status(active)
                for status in ACTIVE:
                    self._metrics.jobs_active.labels(status.value).set(counts.get(status.value, 0))
                if time.monotonic() - swept >= _SWEEP_S:
                    swept = time.monotonic()
                    now = self._clock()
                    await self._jobs.sweep(now, self._keep_s)
                    await self._files.sweep(now, frozenset(job.input_file_id for job in active))
            except StateUnavailable as exc:
                self._metrics.state_up.set(NO_STATE if exc.lasting else 0)
            except AnyclassError as exc:
                _log.error("expired objects cannot be deleted", reason=exc.detail)
            except Exception:  # noqa: BLE001 - as for workers
                _log.exception("expired objects could not be deleted")
            await pause(self._closing, 5 * _POLL_S)
