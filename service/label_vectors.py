"""Labels → class vectors: from the nearest place that has them, and computed once where none has.

The order is: whole matrices in this process, single vectors in the text cache, the text encoder. Every missing vector
belongs to one `_Flight`, whichever request came first with it; later requests wait for that flight. A request that goes
away takes nothing from the others; work that nobody waits for any more is dropped.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np

from service.admission import Place
from service.batching import Lane, Vectors
from service.cache_keys import class_vector_keys, matrix_digest, vector_identity
from service.class_vectors import class_vectors
from service.concurrency import together
from service.errors import AnyclassError, InferenceFailed, NotReady, PromptTooLong
from service.metrics import Metrics
from service.models import Model
from service.prompts import prompts_for
from service.text_cache import MatrixCache, TextCache

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_MANY: Final = 1_024
"""Labels from which on even hashing and stacking are left to a thread."""

_BLOCK_BATCHES: Final = 8
"""Device batches computed at once for one request: enough to sort texts by length, few enough to keep order fair."""

_SMALL_BATCHES: Final = 4
"""A request with no more new texts than this many batches goes in its own lane, a larger one in the background."""


@dataclass(frozen=True, slots=True)
class LabelMatrix:
    """Class vectors float32 `[labels, dim]`, unit length; `cached` of them needed no text encoder."""

    vectors: Vectors
    cached: int


@dataclass(eq=False)
class _Flight:
    """Some labels on their way; every outcome is a vector, or the error of that very label."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    landed: asyncio.Future[None]
    waiters: int = 0
    outcomes: dict[str, Vectors | AnyclassError] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)

    @property
    def wanted(self) -> bool:
        return self.waiters > 0 and not self.landed.done()

    def land(self) -> None:
        if not self.landed.done():
            self.landed.set_result(None)


class LabelVectors:
    """Class vectors for all models. Belongs to one event loop."""

    def __init__(self, cache: TextCache, metrics: Metrics, *, prefix: str, matrices_bytes: int) -> None:
        self._cache = cache
        self._metrics = metrics
        self._prefix = prefix
        self._matrices = MatrixCache(matrices_bytes)
        self._flights: dict[str, _Flight] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="anyclass-text")

    async def matrix(
        self, model: Model, labels: Sequence[str], templates: Sequence[str], *, lane: Lane = Lane.INTERACTIVE
    ) -> LabelMatrix:
        """Return the class vectors of normalised labels, in their order. Not to be changed.

        Raises:
            PromptTooLong: a label fills a template beyond the model's context.
            Overloaded: too many new texts wait.
            InferenceFailed: the text encoder failed.
        """
        identity = vector_identity(model.manifest.text_revision, model.numerics, templates)
        digest = matrix_digest(identity, labels)
        known = self._matrices.get(digest)
        self._metrics.looked_up("matrix", "miss" if known is None else "hit", len(labels))
        if known is not None:
            return LabelMatrix(known, cached=len(labels))

        keys = await self._aside(len(labels), lambda: class_vector_keys(self._prefix, identity, labels))
        flights, landed_before = self._board(model, keys, labels, templates, lane)
        try:
            for flight in flights:
                await asyncio.shield(flight.landed)
                _raise_own_failure(flight, keys)
        finally:
            for flight in flights:
                flight.waiters -= 1
                if not flight.waiters and not flight.landed.done():
                    self._forget(flight)
        computed = sum(len(flight.computed.intersection(keys)) for flight in flights if flight not in landed_before)
        outcomes = {key: outcome for flight in flights for key, outcome in flight.outcomes.items()}
        matrix = await self._aside(len(keys), lambda: np.stack([_vector(outcomes[key]) for key in keys]))
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

    def _board(
        self, model: Model, keys: Sequence[str], labels: Sequence[str], templates: Sequence[str], lane: Lane
    ) -> tuple[list[_Flight], set[_Flight]]:
        """Find the flight of every key, and start flights for those that have none. All get one more waiter."""
        flights = {flight: None for key in keys if (flight := self._flights.get(key)) is not None}
        landed_before = {flight for flight in flights if flight.landed.done()}
        unclaimed = [index for index, key in enumerate(keys) if key not in self._flights]
        seats = max(1, _BLOCK_BATCHES * model.max_batch // len(templates))
        loop = asyncio.get_running_loop()
        mine = []
        for start in range(0, len(unclaimed), seats):
            indices = unclaimed[start : start + seats]
            flight = _Flight(
                tuple(keys[index] for index in indices), tuple(labels[index] for index in indices), loop.create_future()
            )
            self._flights.update(dict.fromkeys(flight.keys, flight))
            mine.append(flight)
        everything = [*flights, *mine]
        for flight in everything:
            flight.waiters += 1
        if mine:
            job = loop.create_task(self._fly(model, mine, templates, lane), name="label-vectors")
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            for flight in mine:
                flight.landed.add_done_callback(lambda _: _cancel_if_unwanted(job, mine))
        return everything, landed_before

    async def _fly(self, model: Model, flights: list[_Flight], templates: Sequence[str], lane: Lane) -> None:
        error: AnyclassError = NotReady("The service is stopping; try again elsewhere.")
        place: Place | None = None
        try:
            await self._look_up(model, flights)
            missing = sum(len(_missing(flight)) for flight in flights if flight.wanted) * len(templates)
            small = missing <= _SMALL_BATCHES * model.max_batch
            lane = lane if small else Lane.BACKGROUND
            place = model.texts[lane].enter(missing)
            pending = [flight for flight in flights if flight.wanted]
            # Two at a time: one is tokenised while the other is on the device.
            await together([self._work_off(model, pending, templates, lane, place) for _ in range(2)])
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
                    flight.outcomes.update(dict.fromkeys(_missing(flight), error))
                    self._forget(flight)

    async def _look_up(self, model: Model, flights: list[_Flight]) -> None:
        keys = [key for flight in flights for key in flight.keys]
        vectors = await self._cache.get_many(keys, dim=model.manifest.dim)
        found = {key: vector for key, vector in zip(keys, vectors, strict=True) if vector is not None}
        for flight in flights:
            flight.outcomes.update({key: found[key] for key in flight.keys if key in found})
            if not _missing(flight):
                self._forget(flight)

    async def _work_off(
        self, model: Model, pending: list[_Flight], templates: Sequence[str], lane: Lane, place: Place
    ) -> None:
        room = _BLOCK_BATCHES * model.max_batch
        while pending:
            block: list[_Flight] = []
            size = 0
            while pending:
                # What several requests wait for goes first.
                flight = max(pending, key=lambda flight: flight.waiters)
                prompts = len(_missing(flight)) * len(templates)
                if block and size + prompts > room:
                    break
                pending.remove(flight)
                size += prompts
                block.append(flight)
            wanted = [flight for flight in block if flight.wanted]
            if wanted:
                await self._compute(model, wanted, templates, lane)
            place.leave(size)

    async def _compute(self, model: Model, block: list[_Flight], templates: Sequence[str], lane: Lane) -> None:
        """Land the flights of a block, each with its vectors or its errors; a failure ends with the block."""
        sought = {
            key: label
            for flight in block
            for key, label in zip(flight.keys, flight.labels, strict=True)
            if key not in flight.outcomes
        }
        computed: dict[str, Vectors] = {}
        loop = asyncio.get_running_loop()
        try:
            tokens, too_long = await loop.run_in_executor(self._threads, _tokenise, model, sought, templates)
            keys = [key for key in sought if key not in too_long]
            if keys:
                embeddings = await model.encode_texts(tokens, lane=lane)
                vectors = await loop.run_in_executor(self._threads, class_vectors, embeddings, len(templates))
                # Copies, for a row would keep the whole block alive.
                computed = {key: vector.copy() for key, vector in zip(keys, vectors, strict=True)}
            failed: dict[str, AnyclassError] = dict(too_long)
        except AnyclassError as exc:
            failed = dict.fromkeys(sought, exc)
        self._metrics.labels_computed.labels(model.name).inc(len(computed))
        for flight in block:
            for key in _missing(flight):
                flight.outcomes[key] = computed[key] if key in computed else failed[key]
                if key in computed:
                    flight.computed.add(key)
            flight.land()
        write = loop.create_task(self._keep(computed, block), name="label-vectors-write")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def _keep(self, computed: dict[str, Vectors], block: list[_Flight]) -> None:
        # Until the cache has them, requests find the vectors in their flights: nothing is computed twice.
        try:
            if computed:
                await self._cache.set_many(computed)
        finally:
            for flight in block:
                self._forget(flight)

    def _forget(self, flight: _Flight) -> None:
        """No request boards this flight any more."""
        for key in flight.keys:
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.land()


def _tokenise(
    model: Model, sought: dict[str, str], templates: Sequence[str]
) -> tuple[list[list[int]], dict[str, PromptTooLong]]:
    """Tokenise all prompts, label-major; labels that are too long are left out and returned apart, by key."""
    tokenize = model.tokenizer.tokenize
    try:
        return tokenize(prompts_for(sought.values(), templates)), {}
    except PromptTooLong:
        tokens: list[list[int]] = []
        too_long: dict[str, PromptTooLong] = {}
        for key, label in sought.items():
            try:
                tokens += tokenize(prompts_for([label], templates))
            except PromptTooLong as exc:
                too_long[key] = exc
        return tokens, too_long


def _missing(flight: _Flight) -> list[str]:
    return [key for key in flight.keys if key not in flight.outcomes]


def _vector(outcome: Vectors | AnyclassError) -> Vectors:
    if isinstance(outcome, AnyclassError):
        raise outcome
    return outcome


def _raise_own_failure(flight: _Flight, keys: Sequence[str]) -> None:
    """Raise the first failure among `keys`: other labels of the same flight are other requests' business."""
    failed = {key: outcome for key, outcome in flight.outcomes.items() if isinstance(outcome, AnyclassError)}
    if not failed:
        return
    for index, key in enumerate(keys):
        error = failed.get(key)
        if isinstance(error, PromptTooLong):
            raise PromptTooLong(
                f"Label {index} has more tokens, with its template, than this model can read; shorten it.", index=index
            )
        if error is not None:
            raise error


def _cancel_if_unwanted(job: asyncio.Task[None], flights: list[_Flight]) -> None:
    if not any(flight.wanted for flight in flights):
        job.cancel()
