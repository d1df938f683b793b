"""Works on jobs in the background: takes a unit under a lease, does it, and hands in what came of it."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final

import structlog

from service.errors import AnyclassError, StateUnavailable
from service.jobs import transitions as ledger
from service.jobs.files import FileStore
from service.jobs.records import ACTIVE, ENDED, Job, LineFault, Status
from service.jobs.store import JobStore, count_by_status
from service.jobs.transitions import Claim
from service.jobs.work import JobWork, Patience
from service.monitoring.metrics import NO_STATE, Metrics

_POLL_S: Final = 1.0
"""How often is looked for jobs that another process took in."""
_AWAY_S: Final = 5.0
"""How long a store that did not answer is left alone: it logs each attempt."""
_SWEEP_S: Final = 60.0
_LAST_MOMENTS_S: Final = 5.0
"""How long lines in flight may take once the end was asked for; what takes longer is done again later."""

_log = structlog.stdlib.get_logger("service.jobs")


class JobRunner:
    """A number of workers, and a keeper who deletes what has expired. Belongs to one event loop."""

    def __init__(
        self,
        jobs: JobStore,
        files: FileStore,
        work: JobWork,
        metrics: Metrics,
        *,
        workers: int,
        lease_s: float,
        keep_s: float,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing is done before `start`.

        Args:
            jobs: where the jobs are.
            files: where their files are.
            work: what is done.
            metrics: where jobs and lines are counted.
            workers: units at the same time in this process.
            lease_s: how long a unit is left to a process that shows no sign of life.
            keep_s: how long outputs, and jobs that have ended, are kept.
            stopping: whether to begin nothing new, because the process is about to end.
            clock: seconds since 1970.
        """
        self._jobs = jobs
        self._files = files
        self._work = work
        self._metrics = metrics
        self._workers = workers
        self._lease_s = lease_s
        self._keep_s = keep_s
        self._stopping = stopping
        self._clock = clock
        self._closing = asyncio.Event()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        for status in ACTIVE:
            metrics.jobs_active.labels(status.value)
        for status in ENDED:
            metrics.jobs_ended.labels(status.value)

    def start(self) -> None:
        """Begin to work."""
        if self._workers:
            self._tasks = [asyncio.create_task(self._serve(), name=f"jobs-{n}") for n in range(self._workers)]
            self._tasks.append(asyncio.create_task(self._keep(), name="jobs-keeper"))

    def wake(self) -> None:
        """There is a new job, or a change to one."""
        self._news.set()

    async def close(self) -> None:
        """Begin nothing new, and let the lines in flight end; what takes too long is left for the next start."""
        self._closing.set()
        self._news.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_LAST_MOMENTS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self) -> None:
        while not self._closing.is_set():
            self._news.clear()
            claim = None if self._stopping() else await self._claim()
            if claim is None:
                await self._pause(self._news, _POLL_S)
                continue
            structlog.contextvars.clear_contextvars()
            await self._under_lease(claim)

    async def _claim(self) -> Claim | None:
        try:
            return await self._jobs.claim(self._clock(), self._lease_s)
        except StateUnavailable:
            await self._pause(self._closing, _AWAY_S)
        except AnyclassError as exc:
            _log.error("a batch cannot be read", reason=exc.detail)
        except Exception:  # noqa: BLE001 - a worker that dies would be missed by nobody
            _log.exception("a batch could not be claimed")
        return None

    async def _under_lease(self, claim: Claim) -> None:
        """Do a unit for as long as the lease on it can be kept."""
        patience = Patience(claim.job, self._clock)
        work = asyncio.create_task(self._do(claim, patience), name=f"job-unit-{claim.unit}")
        renewals = asyncio.create_task(self._renew(claim, patience), name="job-lease")
        try:
            await asyncio.wait({work, renewals}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, renewals):
                task.cancel()
            done, _ = await asyncio.gather(work, renewals, return_exceptions=True)
            if isinstance(done, BaseException):
                await self._give_back(claim, done)

    async def _renew(self, claim: Claim, patience: Patience) -> None:
        """Return once the lease is lost. Tells those who wait of a job that is being cancelled."""
        until = self._clock() + self._lease_s
        while True:
            await asyncio.sleep(self._lease_s / 3)
            wanted = self._clock() + self._lease_s
            try:
                job = await self._jobs.renew(claim, wanted)
                if job is None:
                    return
                if job.status is Status.CANCELLING:
                    patience.cancel()
                until = wanted
            except StateUnavailable:
                if self._clock() > until:
                    return

    async def _give_back(self, claim: Claim, error: BaseException) -> None:
        if not isinstance(error, AnyclassError | asyncio.CancelledError):
            _log.error("a part of a batch failed", batch=claim.job.id, unit=claim.unit, exc_info=error)
        with suppress(AnyclassError):
            if isinstance(error, AnyclassError) and not isinstance(error, StateUnavailable):
                _log.warning("a part of a batch was put off", batch=claim.job.id, reason=type(error).__name__)
            await self._jobs.release(claim)
        # Not at once again: what failed may still be so.
        await self._pause(self._closing, _POLL_S)

    async def _do(self, claim: Claim, patience: Patience) -> None:
        match claim.unit:
            case "validate":
                await self._check(claim)
            case "finalise":
                await self._finish(claim)
            case chunk:
                results = await self._work.answer(claim.job, chunk, patience)
                if await self._persist(self._jobs.accept, claim, results):
                    ok = sum(each.ok for each in results)
                    self._metrics.job_lines.labels("completed").inc(ok)
                    self._metrics.job_lines.labels("failed").inc(len(results) - ok)
        self._news.set()

    async def _check(self, claim: Claim) -> None:
        plan, faults = await self._work.check(claim.job)
        now = self._clock()
        if not faults:
            await self._jobs.change(claim.job.id, lambda job: ledger.start(job, claim, plan, now))
        else:
            await self._end(claim, lambda job: ledger.fail(job, claim, faults, now))

    async def _finish(self, claim: Claim) -> None:
        job = await self._jobs.change(claim.job.id, lambda job: ledger.finalise(job, claim, self._clock()))
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
            await self._end(claim, lambda job: ledger.fail(job, claim, [fault], now))
            return
        await self._end(claim, lambda job: ledger.end(job, claim, now, has_output=has_output, has_errors=has_errors))

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

    async def _persist(self, write: Callable[..., Coroutine[Any, Any, bool]], *arguments: Any) -> bool:  # noqa: ANN401
        """Write finished work however long the store is away, while the lease lasts: it was dear."""
        while True:
            try:
                return await write(*arguments)
            except StateUnavailable:
                await asyncio.sleep(_POLL_S)

    async def _keep(self) -> None:
        swept = -_SWEEP_S
        while not self._closing.is_set():
            try:
                active = await self._jobs.active()
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
                _log.error("what has expired cannot be deleted", reason=exc.detail)
            except Exception:  # noqa: BLE001 - the same
                _log.exception("what has expired could not be deleted")
            await self._pause(self._closing, 5 * _POLL_S)

    async def _pause(self, until: asyncio.Event, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await until.wait()
