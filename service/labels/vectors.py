"""Labels → class vectors: from the nearest place that has them, and computed once where none has.

The order is: whole matrices in this process, single vectors in the text cache, the text encoder. Every missing vector
belongs to one `Flight`, whichever request came first with it; later requests wait for that flight. A request that goes
away takes nothing from the others; work that nobody waits for any more is dropped.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from service.concurrency import together
from service.errors import AnyclassError, InferenceFailed, NotReady
from service.inference.admission import Place
from service.inference.batch_execution import Vectors
from service.inference.served_model import Model
from service.labels.cache import MatrixCache, TextCache
from service.labels.cache_keys import class_vector_keys, labels_digest, matrix_digest, vector_identity
from service.labels.pending_vectors import Flight, cancel_if_unwanted, missing, raise_own_failure, tokenise, vector
from service.lanes import Lane
from service.model.scoring import class_vectors
from service.monitoring.metrics import Metrics

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_MANY: Final = 1_024
"""Labels from which on even hashing and stacking are left to a thread."""

_BLOCK_BATCHES: Final = 4
"""Device batches computed at once for one request: enough to sort texts by length, few enough to keep order fair."""

_SMALL_BATCHES: Final = 2
"""A request with no more new texts than this many batches goes in its own lane, a larger one in the background."""


@dataclass(frozen=True, slots=True)
class LabelMatrix:
    """Class vectors float32 `[labels, dim]`, unit length; `cached` of them needed no text encoder."""

    vectors: Vectors
    cached: int


@dataclass(frozen=True, slots=True)
class _Order:
    """What all flights of a request have in common."""

    model: Model
    templates: Sequence[str]
    lane: Lane
    deadline: float


class LabelVectors:
    """Class vectors for all models. Belongs to one event loop."""

    def __init__(self, cache: TextCache, metrics: Metrics, *, prefix: str, matrices_bytes: int) -> None:
        self._cache = cache
        self._metrics = metrics
        self._prefix = prefix
        self._matrices = MatrixCache(matrices_bytes)
        self._flights: dict[str, Flight] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="anyclass-text")

    async def matrix(
        self,
        model: Model,
        labels: Sequence[str],
        templates: Sequence[str],
        *,
        lane: Lane = Lane.INTERACTIVE,
        deadline: float = float("inf"),
        digest: bytes | None = None,
    ) -> LabelMatrix:
        """Return the class vectors of normalised labels, in their order. Not to be changed.

        Args:
            model: whose text encoder.
            labels: normalised.
            templates: in order.
            lane: of a small number of new texts; a large one goes in the background.
            deadline: on the clock of `time.monotonic`; where new texts are not likely to have their turn by then they
                are refused at once.
            digest: `labels_digest` of the labels, where it is known.

        Raises:
            PromptTooLong: a label fills a template beyond the model's context.
            Overloaded: too many new texts wait.
            InferenceFailed: the text encoder failed.
        """
        identity = vector_identity(model.manifest.text_revision, model.numerics, templates)
        if digest is None:
            digest = await self._aside(len(labels), lambda: labels_digest(labels))
        digest = matrix_digest(identity, digest)
        known = self._matrices.get(digest)
        self._metrics.looked_up("matrix", "miss" if known is None else "hit", len(labels))
        if known is not None:
            return LabelMatrix(known, cached=len(labels))

        keys = await self._aside(len(labels), lambda: class_vector_keys(self._prefix, identity, labels))
        flights, landed_before = self._board(_Order(model, templates, lane, deadline), keys, labels)
        try:
            for flight in flights:
                await asyncio.shield(flight.landed)
                raise_own_failure(flight, keys)
        finally:
            for flight in flights:
                flight.waiters -= 1
                if not flight.waiters and not flight.landed.done():
                    self._forget(flight)
        mine = set(keys)
        computed = sum(len(flight.computed & mine) for flight in flights if flight not in landed_before)
        outcomes = {key: outcome for flight in flights for key, outcome in flight.outcomes.items()}
        matrix = await self._aside(len(keys), lambda: np.stack([vector(outcomes[key]) for key in keys]))
        self._matrices.put(digest, matrix)
        return LabelMatrix(matrix, cached=len(labels) - computed)

    async def close(self) -> None:
        """Stop computing and finish writing."""
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _aside(self, size: int, work: Callable[[], T]) -> T:
        if size < _MANY:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _board(self, order: _Order, keys: Sequence[str], labels: Sequence[str]) -> tuple[list[Flight], set[Flight]]:
        """Find the flight of every key, and start flights for those that have none. All get one more waiter."""
        flights = {flight: None for key in keys if (flight := self._flights.get(key)) is not None}
        landed_before = {flight for flight in flights if flight.landed.done()}
        unclaimed = [index for index, key in enumerate(keys) if key not in self._flights]
        seats = max(1, _BLOCK_BATCHES * order.model.max_batch_texts // len(order.templates))
        loop = asyncio.get_running_loop()
        mine = []
        for start in range(0, len(unclaimed), seats):
            indices = unclaimed[start : start + seats]
            flight = Flight(
                tuple(keys[index] for index in indices), tuple(labels[index] for index in indices), loop.create_future()
            )
            self._flights.update(dict.fromkeys(flight.keys, flight))
            mine.append(flight)
        everything = [*flights, *mine]
        for flight in everything:
            flight.waiters += 1
        if mine:
            job = loop.create_task(self._fly(order, mine), name="label-vectors")
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            for flight in mine:
                flight.landed.add_done_callback(lambda _: cancel_if_unwanted(job, mine))
        return everything, landed_before

    async def _fly(self, order: _Order, flights: list[Flight]) -> None:
        model = order.model
        error: AnyclassError = NotReady("The service is stopping; try again elsewhere.")
        place: Place | None = None
        try:
            await self._look_up(model, flights)
            prompts = sum(len(missing(flight)) for flight in flights if flight.wanted) * len(order.templates)
            small = prompts <= _SMALL_BATCHES * model.max_batch_texts
            order = order if small else replace(order, lane=Lane.BACKGROUND)
            place = model.texts[order.lane].enter(prompts, deadline=order.deadline)
            pending = [flight for flight in flights if flight.wanted]
            # Two at a time: one is tokenised while the other is on the device.
            await together([self._work_off(order, pending, place) for _ in range(2)])
        except AnyclassError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - logged, and told to every waiter
            _LOG.exception("computing class vectors failed")
            error = InferenceFailed("The labels could not be computed; see the service's log.")
            error.__cause__ = exc
        finally:
            if place is not None:
                place.leave()
            for flight in flights:
                if not flight.landed.done():
                    flight.outcomes.update(dict.fromkeys(missing(flight), error))
                    self._forget(flight)

    async def _look_up(self, model: Model, flights: list[Flight]) -> None:
        keys = [key for flight in flights for key in flight.keys]
        vectors = await self._cache.get_many(keys, dim=model.manifest.dim)
        found = {key: vector for key, vector in zip(keys, vectors, strict=True) if vector is not None}
        for flight in flights:
            flight.outcomes.update({key: found[key] for key in flight.keys if key in found})
            if not missing(flight):
                self._forget(flight)

    async def _work_off(self, order: _Order, pending: list[Flight], place: Place) -> None:
        room = _BLOCK_BATCHES * order.model.max_batch_texts
        while pending:
            block: list[Flight] = []
            size = 0
            while pending:
                # What several requests wait for goes first.
                flight = max(pending, key=lambda flight: flight.waiters)
                prompts = len(missing(flight)) * len(order.templates)
                if block and size + prompts > room:
                    break
                pending.remove(flight)
                size += prompts
                block.append(flight)
            wanted = [flight for flight in block if flight.wanted]
            if wanted:
                await self._compute(order, wanted)
            place.leave(size)

    async def _compute(self, order: _Order, block: list[Flight]) -> None:
        """Land the flights of a block, each with its vectors or its errors; a failure ends with the block."""
        sought = {
            key: label
            for flight in block
            for key, label in zip(flight.keys, flight.labels, strict=True)
            if key not in flight.outcomes
        }
        computed: dict[str, Vectors] = {}
        loop = asyncio.get_running_loop()
        model, templates = order.model, order.templates
        try:
            tokens, too_long = await loop.run_in_executor(self._threads, tokenise, model, sought, templates)
            keys = [key for key in sought if key not in too_long]
            if keys:
                embeddings = await model.encode_texts(tokens, lane=order.lane)
                vectors = await loop.run_in_executor(self._threads, class_vectors, embeddings, len(templates))
                # Copies, for a row would keep the whole block alive.
                computed = {key: vector.copy() for key, vector in zip(keys, vectors, strict=True)}
            failed: dict[str, AnyclassError] = dict(too_long)
        except AnyclassError as exc:
            failed = dict.fromkeys(sought, exc)
        self._metrics.labels_computed.labels(model.name).inc(len(computed))
        for flight in block:
            for key in missing(flight):
                flight.outcomes[key] = computed[key] if key in computed else failed[key]
                if key in computed:
                    flight.computed.add(key)
            flight.land()
        write = loop.create_task(self._keep(computed, block), name="label-vectors-write")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def _keep(self, computed: dict[str, Vectors], block: list[Flight]) -> None:
        # Until the cache has them, requests find the vectors in their flights: nothing is computed twice.
        try:
            if computed:
                await self._cache.set_many(computed)
        finally:
            for flight in block:
                self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        """No request boards this flight any more."""
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.land()
