"""The scheduler of a device: the only crossing from the event loop to inference threads.

A batch is whatever waits when the device becomes free, up to the limit, with no artificial delay; the next full batch
is put together while one runs. What goes into a batch is decided by the pure `take_batch`; all I/O is here.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from service.batch_choice import Lane, Take, take_batch
from service.batch_run import Inputs, Outcome, Rows, Vectors, Work, run_batch
from service.errors import AnyclassError, DeadlineExceeded, InferenceFailed, NonFiniteOutput, NotReady
from service.metrics import Metrics

__all__ = ["Batcher", "Done", "Inputs", "Lane", "Rows", "Take", "Vectors", "Work", "take_batch"]

_LOG: Final = logging.getLogger(__name__)

_RATE_MEMORY: Final = 0.8
"""Weight of the past in the measured rate: it settles within about ten batches."""


@dataclass(frozen=True, slots=True)
class Done:
    """Vectors of one entry, float32 `[rows, dim]`, how long it waited, and how long its batch ran."""

    vectors: Vectors
    queue_s: float
    run_s: float


@dataclass(eq=False, slots=True)
class _Entry:
    group: Work
    rows: Rows
    lane: Lane
    deadline: float
    future: asyncio.Future[Done]
    on_taken: Callable[[], None] | None
    arrived: float = field(default_factory=time.monotonic)

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def cancelled(self) -> bool:
        return self.future.done()


@dataclass(eq=False, slots=True)
class _Batch:
    entries: tuple[_Entry, ...]
    inputs: Inputs | None = None

    @property
    def work(self) -> Work:
        return self.entries[0].group


class Batcher:
    """The scheduler of one device. Belongs to the event loop that first submits to it."""

    def __init__(self, device: str, metrics: Metrics, *, max_batch: int, background_every: int = 4) -> None:
        self.max_batch = max_batch
        self._device = device
        self._metrics = metrics
        self._background_every = background_every
        self._passed_over = 0
        self._waiting: list[_Entry] = []
        self._at_work: list[_Batch] = []
        self._news = asyncio.Event()
        self._scheduler: asyncio.Task[None] | None = None
        self._closing = False
        self._rates: dict[Work, float] = {}
        self._runner = ThreadPoolExecutor(1, thread_name_prefix=f"anyclass-{device}")
        self._collator = ThreadPoolExecutor(1, thread_name_prefix=f"anyclass-{device}-collate")

    @property
    def healthy(self) -> bool:
        """False once the scheduler has died: nothing will ever be answered again but with an error."""
        return self._scheduler is None or not self._scheduler.done() or self._closing

    def rate(self, work: Work) -> float | None:
        """Rows a second of late, or None before the first batch."""
        return self._rates.get(work)

    async def submit(
        self,
        work: Work,
        rows: Rows,
        *,
        lane: Lane = Lane.INTERACTIVE,
        deadline: float = float("inf"),
        on_taken: Callable[[], None] | None = None,
    ) -> Done:
        """Run `rows`, at most `max_batch` of them, in some batch. Cancelling the caller drops them.

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
            if not 0 < len(rows) <= self.max_batch:
                raise ValueError(f"an entry has 1 to {self.max_batch} rows, not {len(rows)}")
            if self._closing:
                raise NotReady("The service is stopping; try again elsewhere.")
            if not self.healthy:
                raise InferenceFailed("The model's worker has stopped; the service must be restarted.")
            loop = asyncio.get_running_loop()
            entry = _Entry(work, rows, lane, deadline, loop.create_future(), on_taken)
            self._waiting.append(entry)
            self._gauge(work).inc(entry.size)
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
        prepared: _Batch | None = None
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
            running = loop.run_in_executor(self._runner, run_batch, batch.work, rows, batch.inputs)
            running.add_done_callback(lambda _: self._news.set())
            while not running.done():
                prepared = prepared or await self._prefetch()
                if not running.done():
                    await self._news.wait()
                    self._news.clear()
            self._deliver(batch, running)

    def _next(self) -> _Batch | None:
        return self._commit(self._look())

    def _look(self) -> Take[_Entry]:
        return take_batch(
            self._waiting,
            limit=self.max_batch,
            now=time.monotonic(),
            passed_over=self._passed_over,
            background_every=self._background_every,
        )

    def _commit(self, take: Take[_Entry]) -> _Batch | None:
        self._drop(take.dropped)
        self._waiting = list(take.left)
        if not take.batch:
            return None
        self._passed_over = take.passed_over
        batch = _Batch(take.batch)
        self._at_work.append(batch)
        for entry in take.batch:
            self._gauge(entry.group).dec(entry.size)
            if entry.on_taken is not None:
                entry.on_taken()
        return batch

    async def _prefetch(self) -> _Batch | None:
        """Put the next batch together if waiting cannot improve it: it is full, and nothing would go before it."""
        if sum(entry.size for entry in self._waiting) < self.max_batch:
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

    def _still_wanted(self, batch: _Batch) -> bool:
        now = time.monotonic()
        live = tuple(entry for entry in batch.entries if not entry.cancelled and entry.deadline > now)
        if len(live) < len(batch.entries):
            self._drop([entry for entry in batch.entries if entry not in live], waiting=False)
            batch.entries, batch.inputs = live or batch.entries, None
        return bool(live)

    def _deliver(self, batch: _Batch, running: asyncio.Future[Outcome]) -> None:
        self._at_work.remove(batch)
        work = batch.work
        if running.cancelled() or running.exception() is not None:  # the thread could not be started
            _fail(batch.entries, InferenceFailed("The model could not be run; see the service's log."))
            self._metrics.inference_failures.labels(work.model, work.kind, "worker").inc()
            return
        outcome = running.result()
        run_s = outcome.finished - outcome.started
        rows = sum(entry.size for entry in batch.entries)
        self._metrics.batch_size.labels(work.model, work.kind).observe(rows)
        self._metrics.inference_seconds.labels(work.model, work.kind).observe(run_s)
        rate = rows / max(run_s, 1e-6)
        self._rates[work] = _RATE_MEMORY * self._rates.get(work, rate) + (1 - _RATE_MEMORY) * rate
        for entry, result in zip(batch.entries, outcome.results, strict=True):
            if entry.future.done():
                continue
            if isinstance(result, AnyclassError):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(Done(result, outcome.started - entry.arrived, run_s))
        failures = [result for result in outcome.results if isinstance(result, AnyclassError)]
        if failures:
            reason = "non-finite" if isinstance(failures[0], NonFiniteOutput) else "error"
            self._metrics.inference_failures.labels(work.model, work.kind, reason).inc()

    def _drop(self, entries: Iterable[_Entry], *, waiting: bool = True) -> None:
        for entry in entries:
            if waiting:
                self._gauge(entry.group).dec(entry.size)
            reason: Literal["cancelled", "overdue"] = "cancelled" if entry.cancelled else "overdue"
            self._metrics.dropped.labels(entry.group.kind, reason).inc()
            if not entry.future.done():
                message = "The model was too busy to answer within the time limit; try again later."
                entry.future.set_exception(DeadlineExceeded(message))

    def _fail_everyone(self, scheduler: asyncio.Task[None]) -> None:
        """However the scheduler ends, nobody is left waiting."""
        error: AnyclassError = NotReady("The service is stopping; try again elsewhere.")
        if not scheduler.cancelled() and (cause := scheduler.exception()) is not None:
            _LOG.critical("the scheduler of device %s died", self._device, exc_info=cause)
            error = InferenceFailed("The model's worker has stopped; the service must be restarted.")
        for batch in self._at_work:
            _fail(batch.entries, error)
        for entry in self._waiting:
            self._gauge(entry.group).dec(entry.size)
        _fail(self._waiting, error)
        self._waiting, self._at_work = [], []

    def _gauge(self, work: Work) -> Any:  # noqa: ANN401 - prometheus_client's child has no public type
        return self._metrics.waiting.labels(work.model, work.kind)


def _fail(entries: Iterable[_Entry], error: AnyclassError) -> None:
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)
