"""The scheduler of a device: the only crossing from the event loop to inference threads.

A batch is all that waits when the device becomes free, up to the limit, without artificial delay. The next full batch
is put together while one runs. The pure `select_batch` decides on the entries of a batch; all I/O is here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Literal

from service.errors import (
    AnyclassError,
    DeadlineExceeded,
    DeviceLost,
    DeviceOutOfMemory,
    InferenceFailed,
    NonFiniteOutput,
    NotReady,
)
from service.inference.batch_execution import BatchRun, Rows, Work, run_batch
from service.inference.batch_selection import Rules, Selection, select_batch
from service.inference.entries import Batch, Done, Entry, fail
from service.inference.load_estimator import LoadEstimator
from service.lanes import Lane
from service.monitoring.metrics import Broken, Metrics

_LOG: Final = logging.getLogger(__name__)

_REASONS: Final[dict[type[AnyclassError], Broken]] = {
    NonFiniteOutput: "non-finite",
    DeviceOutOfMemory: "out-of-memory",
    DeviceLost: "device-lost",
}
_STOPPED: Final = "The model's worker has stopped; the service must be restarted."
_LATE: Final = "The model was too busy to answer within the time limit; try again later."
_STOPPING: Final = "The service is stopping; try again elsewhere."


class Batcher:
    """The scheduler of one device. Belongs to the event loop that first submits to it."""

    def __init__(self, device: str, metrics: Metrics, *, max_batch: int, background_every: int = 4) -> None:
        self.max_batch = max_batch
        self._estimator = LoadEstimator(max_batch, background_every)
        self._device = device
        self._metrics = metrics
        self._background_every = background_every
        self._passed_over = 0
        self._waiting: list[Entry] = []
        self._at_work: list[Batch] = []
        self._wakeup = asyncio.Event()
        self._scheduler: asyncio.Task[None] | None = None
        self._closing = False
        self._lost = False
        self._runner = ThreadPoolExecutor(1, thread_name_prefix=f"anyclass-{device}")
        self._collator = ThreadPoolExecutor(1, thread_name_prefix=f"anyclass-{device}-collate")

    @property
    def healthy(self) -> bool:
        """Whether work can still succeed; False once the scheduler has died or the device is lost."""
        return not self._lost and (self._scheduler is None or not self._scheduler.done() or self._closing)

    def rules(self, work: Work) -> Rules:
        """Return the limits on batches of this work, from its costs as measured so far."""
        return self._estimator.rules(work)

    def completion_s(self, work: Work, rows: int, lane: Lane) -> float | None:
        """Estimate the seconds until `rows` of `work` would be done; None before the first batch of this work.

        Args:
            rows: the new rows, and those of the same work and lane that wait before them.
        """
        return self._estimator.completion_s(work, rows, lane, self._at_work)

    async def submit(
        self,
        work: Work,
        rows: Rows,
        *,
        lane: Lane = Lane.INTERACTIVE,
        deadline: float = float("inf"),
        on_dequeued: Callable[[], None] | None = None,
    ) -> Done:
        """Run `rows`, at most the work's limit of them, in some batch. Cancelling the caller drops them.

        Args:
            rows: an argument of `work.collate`.
            deadline: on the clock of `time.monotonic`.
            on_dequeued: called when the rows leave the queue, and again at the end whatever the outcome.

        Raises:
            DeadlineExceeded: the deadline passed before the device was free.
            InferenceFailed: the model failed on the batch.
            NotReady: the batcher is closed.
        """
        try:
            if not 0 < len(rows) <= (limit := self._estimator.limit(work)):
                raise ValueError(f"an entry has 1 to {limit} rows, not {len(rows)}")
            if self._closing:
                raise NotReady(_STOPPING)
            if not self.healthy:
                raise InferenceFailed(_STOPPED)
            loop = asyncio.get_running_loop()
            entry = Entry(work, rows, lane, deadline, loop.create_future(), on_dequeued)
            self._waiting.append(entry)
            self._count(entry, entry.size)
            self._wakeup.set()
            if self._scheduler is None:
                self._scheduler = loop.create_task(self._schedule(), name=f"batcher-{self._device}")
                self._scheduler.add_done_callback(self._fail_all)
            try:
                return await entry.future
            except asyncio.CancelledError:
                # The scheduler sleeps while a long batch runs, so entries of cancelled callers would pile up.
                if entry in self._waiting:
                    self._waiting.remove(entry)
                    self._drop([entry])
                raise
        finally:
            if on_dequeued is not None:
                on_dequeued()

    async def close(self) -> None:
        """Refuse new work at once, run the waiting work, then stop."""
        self._closing = True
        self._wakeup.set()
        if self._scheduler is not None:
            await asyncio.wait([self._scheduler])
        await asyncio.to_thread(self._stop_threads)

    def abandon(self) -> None:
        """Stop at once: fail waiting entries with `NotReady`, and do not wait for the batch on the device."""
        self._closing = True
        if self._scheduler is not None:
            self._scheduler.cancel()
        self._runner.shutdown(wait=False, cancel_futures=True)
        self._collator.shutdown(wait=False, cancel_futures=True)

    def _stop_threads(self) -> None:
        self._runner.shutdown()
        self._collator.shutdown()

    async def _schedule(self) -> None:
        prepared: Batch | None = None
        while True:
            batch = prepared or self._next()
            if batch is None:
                if self._closing and not self._waiting:
                    return
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            prepared = None
            if not self._still_wanted(batch):
                self._at_work.remove(batch)
                continue
            rows = [entry.rows for entry in batch.entries]
            loop = asyncio.get_running_loop()
            batch.started = time.monotonic()
            running = loop.run_in_executor(self._runner, run_batch, batch.work, rows, batch.inputs)
            running.add_done_callback(lambda _: self._wakeup.set())
            while not running.done():
                prepared = prepared or await self._prefetch()
                if not running.done():
                    await self._wakeup.wait()
                    self._wakeup.clear()
            self._deliver(batch, running)

    def _next(self) -> Batch | None:
        return self._commit(self._select())

    def _select(self) -> Selection[Entry]:
        return select_batch(
            self._waiting,
            rules=self._estimator.rules,
            now=time.monotonic(),
            passed_over=self._passed_over,
            background_every=self._background_every,
        )

    def _commit(self, selection: Selection[Entry]) -> Batch | None:
        self._drop(selection.dropped)
        self._waiting = list(selection.left)
        if not selection.batch:
            return None
        self._passed_over = selection.passed_over
        batch = Batch(selection.batch[0].group, self._units(selection.batch), entries=selection.batch)
        self._at_work.append(batch)
        for entry in selection.batch:
            self._count(entry, -entry.size)
            if entry.on_dequeued is not None:
                entry.on_dequeued()
        return batch

    async def _prefetch(self) -> Batch | None:
        """Collate the next batch if waiting cannot improve it: it is full, and no other batch would go first."""
        if not any(entry.lane is Lane.INTERACTIVE for entry in self._waiting):
            return None
        selection = self._select()
        if not selection.full or selection.lane is Lane.BACKGROUND:
            return None
        batch = self._commit(selection)
        if batch is not None:
            rows = [entry.rows for entry in batch.entries]
            loop = asyncio.get_running_loop()
            try:
                batch.inputs = await loop.run_in_executor(self._collator, batch.work.collate, rows)
            except Exception:  # noqa: BLE001 - the device's thread collates again and reports the error
                batch.inputs = None
        return batch

    def _still_wanted(self, batch: Batch) -> bool:
        now = time.monotonic()
        live = tuple(entry for entry in batch.entries if not entry.cancelled and entry.deadline > now)
        if len(live) < len(batch.entries):
            self._drop([entry for entry in batch.entries if entry not in live], waiting=False)
            batch.entries, batch.inputs = live or batch.entries, None
            batch.units = self._units(batch.entries)
        return bool(live)

    def _deliver(self, batch: Batch, running: asyncio.Future[BatchRun]) -> None:
        self._at_work.remove(batch)
        work = batch.work
        if running.cancelled() or running.exception() is not None:  # the thread could not be started
            fail(batch.entries, InferenceFailed("The model could not be run; see the service's log."))
            self._metrics.inference_failures.labels(work.model, work.kind, "worker").inc()
            return
        run = running.result()
        run_s = run.finished - run.started
        rows = sum(entry.size for entry in batch.entries)
        self._metrics.batch_size.labels(work.model, work.kind).observe(rows)
        self._metrics.inference_seconds.labels(work.model, work.kind).observe(run_s)
        for entry, outcome in zip(batch.entries, run.outcomes, strict=True):
            if entry.future.done():
                continue
            if isinstance(outcome, AnyclassError):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(Done(outcome, run.started - entry.arrived, run_s))
        failures = [outcome for outcome in run.outcomes if isinstance(outcome, AnyclassError)]
        if failures:
            reason = _REASONS.get(type(failures[0]), "error")
            self._metrics.inference_failures.labels(work.model, work.kind, reason).inc()
            self._lost = self._lost or isinstance(failures[0], DeviceLost)
        else:
            self._estimator.observe(work, rows, batch.units, run_s)

    def _drop(self, entries: Iterable[Entry], *, waiting: bool = True) -> None:
        for entry in entries:
            if waiting:
                self._count(entry, -entry.size)
            reason: Literal["cancelled", "overdue"] = "cancelled" if entry.cancelled else "overdue"
            self._metrics.dropped.labels(entry.group.kind, reason).inc()
            fail([entry], DeadlineExceeded(_LATE))

    def _fail_all(self, scheduler: asyncio.Task[None]) -> None:
        """Fail every entry when the scheduler ends, whatever the reason, so that no caller waits for ever."""
        error: AnyclassError = NotReady(_STOPPING)
        if not scheduler.cancelled() and (cause := scheduler.exception()) is not None:
            _LOG.critical("the scheduler of device %s died", self._device, exc_info=cause)
            error = InferenceFailed(_STOPPED)
        for batch in self._at_work:
            fail(batch.entries, error)
        for entry in self._waiting:
            self._count(entry, -entry.size)
        fail(self._waiting, error)
        self._waiting, self._at_work = [], []

    def _units(self, entries: Sequence[Entry]) -> int:
        """Return rows times length, as the device computes them."""
        return sum(entry.size for entry in entries) * max(entry.length for entry in entries)

    def _count(self, entry: Entry, rows: int) -> None:
        """Count rows that start to wait, or stop if negative."""
        self._estimator.count_waiting(entry.group, entry.lane, rows)
        self._metrics.waiting.labels(entry.group.model, entry.group.kind).inc(rows)
