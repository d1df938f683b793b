"""The scheduler of a device: the only crossing from the event loop to inference threads.

A batch is whatever waits when the device becomes free, up to the limit, with no artificial delay; the next full batch
is put together while one runs. What goes into a batch is decided by the pure `take_batch`; all I/O is here.
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
from service.inference.batch_execution import Outcome, Rows, Work, run_batch
from service.inference.batch_selection import Rules, Take, take_batch
from service.inference.entries import Batch, Done, Entry, fail
from service.inference.load_estimator import Pace
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
        self._pace = Pace(max_batch, background_every)
        self._device = device
        self._metrics = metrics
        self._background_every = background_every
        self._passed_over = 0
        self._waiting: list[Entry] = []
        self._at_work: list[Batch] = []
        self._news = asyncio.Event()
        self._scheduler: asyncio.Task[None] | None = None
        self._closing = False
        self._lost = False
        self._runner = ThreadPoolExecutor(1, thread_name_prefix=f"anyclass-{device}")
        self._collator = ThreadPoolExecutor(1, thread_name_prefix=f"anyclass-{device}-collate")

    @property
    def healthy(self) -> bool:
        """False once the scheduler has died or the device is lost: nothing will be answered again but with an error."""
        return not self._lost and (self._scheduler is None or not self._scheduler.done() or self._closing)

    def rules(self, work: Work) -> Rules:
        """What holds for the batches of this work, by what is known of its costs now."""
        return self._pace.rules(work)

    def completion_s(self, work: Work, rows: int, lane: Lane) -> float | None:
        """Seconds from now until `rows` would be done, those before them of their work and lane included.

        None before the first batch of this work.
        """
        return self._pace.completion_s(work, rows, lane, self._at_work)

    async def submit(
        self,
        work: Work,
        rows: Rows,
        *,
        lane: Lane = Lane.INTERACTIVE,
        deadline: float = float("inf"),
        on_taken: Callable[[], None] | None = None,
    ) -> Done:
        """Run `rows`, at most the work's limit of them, in some batch. Cancelling the caller drops them.

        Args:
            work: what to do.
            rows: what `work.collate` takes.
            lane: interactive or background.
            deadline: on the clock of `time.monotonic`.
            on_taken: called once the rows wait no longer, however that came about.

        Raises:
            DeadlineExceeded: the deadline passed before the device was free.
            InferenceFailed: the model failed on the batch.
            NotReady: the batcher is closed.
        """
        try:
            if not 0 < len(rows) <= (limit := self._pace.limit(work)):
                raise ValueError(f"an entry has 1 to {limit} rows, not {len(rows)}")
            if self._closing:
                raise NotReady(_STOPPING)
            if not self.healthy:
                raise InferenceFailed(_STOPPED)
            loop = asyncio.get_running_loop()
            entry = Entry(work, rows, lane, deadline, loop.create_future(), on_taken)
            self._waiting.append(entry)
            self._count(entry, entry.size)
            self._news.set()
            if self._scheduler is None:
                self._scheduler = loop.create_task(self._schedule(), name=f"batcher-{self._device}")
                self._scheduler.add_done_callback(self._fail_everyone)
            try:
                return await entry.future
            except asyncio.CancelledError:
                # Not left to the scheduler: while a long batch runs, clients that come and go would pile up.
                if entry in self._waiting:
                    self._waiting.remove(entry)
                    self._drop([entry])
                raise
        finally:
            if on_taken is not None:
                on_taken()

    async def close(self) -> None:
        """Run what waits, then stop. Nothing new is accepted from the first moment on."""
        self._closing = True
        self._news.set()
        if self._scheduler is not None:
            await asyncio.wait([self._scheduler])
        await asyncio.to_thread(self._stop_threads)

    def abandon(self) -> None:
        """Stop at once: whoever still waits is answered with `NotReady`; a batch on the device is left to its end."""
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
                self._news.clear()
                await self._news.wait()
                continue
            prepared = None
            if not self._still_wanted(batch):
                self._at_work.remove(batch)
                continue
            rows = [entry.rows for entry in batch.entries]
            loop = asyncio.get_running_loop()
            batch.started = time.monotonic()
            running = loop.run_in_executor(self._runner, run_batch, batch.work, rows, batch.inputs)
            running.add_done_callback(lambda _: self._news.set())
            while not running.done():
                prepared = prepared or await self._prefetch()
                if not running.done():
                    await self._news.wait()
                    self._news.clear()
            self._deliver(batch, running)

    def _next(self) -> Batch | None:
        return self._commit(self._look())

    def _look(self) -> Take[Entry]:
        return take_batch(
            self._waiting,
            rules=self._pace.rules,
            now=time.monotonic(),
            passed_over=self._passed_over,
            background_every=self._background_every,
        )

    def _commit(self, take: Take[Entry]) -> Batch | None:
        self._drop(take.dropped)
        self._waiting = list(take.left)
        if not take.batch:
            return None
        self._passed_over = take.passed_over
        batch = Batch(take.batch[0].group, self._units(take.batch), entries=take.batch)
        self._at_work.append(batch)
        for entry in take.batch:
            self._count(entry, -entry.size)
            if entry.on_taken is not None:
                entry.on_taken()
        return batch

    async def _prefetch(self) -> Batch | None:
        """Put the next batch together if waiting cannot improve it: it is full, and nothing would go before it."""
        if not any(entry.lane is Lane.INTERACTIVE for entry in self._waiting):
            return None
        take = self._look()
        if not take.full or take.lane is Lane.BACKGROUND:
            return None
        batch = self._commit(take)
        if batch is not None:
            rows = [entry.rows for entry in batch.entries]
            loop = asyncio.get_running_loop()
            try:
                batch.inputs = await loop.run_in_executor(self._collator, batch.work.collate, rows)
            except Exception:  # noqa: BLE001 - it comes again in the device's thread, where it is answered
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

    def _deliver(self, batch: Batch, running: asyncio.Future[Outcome]) -> None:
        self._at_work.remove(batch)
        work = batch.work
        if running.cancelled() or running.exception() is not None:  # the thread could not be started
            fail(batch.entries, InferenceFailed("The model could not be run; see the service's log."))
            self._metrics.inference_failures.labels(work.model, work.kind, "worker").inc()
            return
        outcome = running.result()
        run_s = outcome.finished - outcome.started
        rows = sum(entry.size for entry in batch.entries)
        self._metrics.batch_size.labels(work.model, work.kind).observe(rows)
        self._metrics.inference_seconds.labels(work.model, work.kind).observe(run_s)
        for entry, result in zip(batch.entries, outcome.results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, AnyclassError):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Done(result, outcome.started - entry.arrived, run_s))
        failures = [result for result in outcome.results if isinstance(result, AnyclassError)]
        if failures:
            reason = _REASONS.get(type(failures[0]), "error")
            self._metrics.inference_failures.labels(work.model, work.kind, reason).inc()
            self._lost = self._lost or isinstance(failures[0], DeviceLost)
        else:
            self._pace.observe(work, rows, batch.units, run_s)

    def _drop(self, entries: Iterable[Entry], *, waiting: bool = True) -> None:
        for entry in entries:
            if waiting:
                self._count(entry, -entry.size)
            reason: Literal["cancelled", "overdue"] = "cancelled" if entry.cancelled else "overdue"
            self._metrics.dropped.labels(entry.group.kind, reason).inc()
            fail([entry], DeadlineExceeded(_LATE))

    def _fail_everyone(self, scheduler: asyncio.Task[None]) -> None:
        """However the scheduler ends, nobody is left waiting."""
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
        """Rows times length, as the device computes them."""
        rows = self._pace.rules(entries[0].group).padded(sum(entry.size for entry in entries))
        return rows * max(entry.length for entry in entries)

    def _count(self, entry: Entry, rows: int) -> None:
        """Count rows that begin to wait, or no longer do."""
        self._pace.waits(entry.group, entry.lane, rows)
        self._metrics.waiting.labels(entry.group.model, entry.group.kind).inc(rows)
