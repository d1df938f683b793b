"""Resolves labels to class vectors: cached ones first, the rest computed once.

Vectors are looked up as whole matrices in this process, then one by one in the text cache; the text encoder computes
those in neither. Every missing vector belongs to one group of `PendingVectors`: the first request for a label starts
the group, and later requests join it (single-flight). A request that ends early does not disturb the others; a group
without waiting requests is dropped.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from service.concurrency import Wanted, cancel, run_off_loop, together
from service.errors import AnyclassError, InferenceFailed, NotReady
from service.inference.admission import Reservation
from service.inference.served_model import Model
from service.labels.cache_keys import class_vector_keys, labels_digest, matrix_digest, vector_identity
from service.labels.matrix_cache import MatrixCache
from service.labels.pending_vectors import PendingVectors, cancel_if_unwanted, tokenise, vector
from service.lanes import Lane
from service.model.answer_warnings import AnswerWarning, warn_of_tokens
from service.model.arrays import Vectors
from service.model.scoring import class_vectors
from service.monitoring.metrics import Metrics
from service.vector_cache.caches import VectorCache

_LOG: Final = logging.getLogger(__name__)

_BLOCK_BATCHES: Final = 4
"""Device batches computed at once for one request: enough to sort texts by length, few enough to keep order fair."""

_SMALL_BATCHES: Final = 2
"""A request whose new texts fill at most this many batches stays in its own lane; a larger one goes to background."""


@dataclass(frozen=True, slots=True)
class LabelMatrix:
    """Class vectors float32 `[labels, dim]`, unit length; `cached` of them needed no text encoder.

    `warnings` are about labels that the model cannot use as they probably are meant.
    """

    vectors: Vectors
    cached: int
    warnings: tuple[AnswerWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class _Request:
    """The parameters shared by all groups that a request starts."""

    model: Model
    templates: Sequence[str]
    lane: Lane
    deadline: float


class LabelVectors:
    """Class vectors for all models. Belongs to one event loop."""

    def __init__(self, cache: VectorCache, metrics: Metrics, *, prefix: str, matrices_bytes: int) -> None:
        self._cache = cache
        self._metrics = metrics
        self._prefix = prefix
        self._matrices = MatrixCache(matrices_bytes)
        self._pending: dict[str, PendingVectors] = {}
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
        """Return the class vectors of normalised labels, in their order. Callers must not modify them.

        Args:
            templates: in order.
            lane: for a small number of new texts; a large number goes to the background lane.
            deadline: on the clock of `time.monotonic`; new texts that would probably start later are refused at once.
            digest: `labels_digest` of the labels, if already known.

        Raises:
            PromptTooLong: a label with a template exceeds the model's context.
            Overloaded: too many new texts are queued.
            InferenceFailed: the text encoder failed.
        """
        identity = vector_identity(model.manifest.text_revision, model.numerics, templates)
        if digest is None:
            digest = await run_off_loop(len(labels), lambda: labels_digest(labels), self._threads)
        digest = matrix_digest(identity, digest)
        known = self._matrices.get(digest)
        self._metrics.looked_up("matrix", "miss" if known is None else "hit", len(labels))
        if known is not None:
            return LabelMatrix(known.vectors, len(labels), known.warnings)

        with Wanted() as wanted:
            # Meanwhile the vectors are looked up. Cached ones do not show the tokens of their labels.
            checking = asyncio.get_running_loop().run_in_executor(
                self._threads, lambda: warn_of_tokens(model.tokenizer, [(label,) for label in labels], wanted.check)
            )
            try:
                matrix, computed = await self._looked_up(_Request(model, templates, lane, deadline), identity, labels)
                warnings = await checking
            except BaseException:
                checking.cancel()
                raise
        self._matrices.put(digest, matrix, warnings)
        return LabelMatrix(matrix, len(labels) - computed, warnings)

    async def _looked_up(self, request: _Request, identity: bytes, labels: Sequence[str]) -> tuple[Vectors, int]:
        """Return the vectors of labels, cached ones or new ones, and the number of new ones."""
        keys = await run_off_loop(len(labels), lambda: class_vector_keys(self._prefix, identity, labels), self._threads)
        groups, done_before = self._join_or_start(request, keys, labels)
        try:
            for group in groups:
                await asyncio.shield(group.done)
                group.raise_failure(keys)
        finally:
            for group in groups:
                group.waiters -= 1
                if not group.waiters and not group.done.done():
                    self._forget(group)
        own_keys = set(keys)
        computed = sum(len(group.computed & own_keys) for group in groups if group not in done_before)
        outcomes = {key: outcome for group in groups for key, outcome in group.outcomes.items()}
        matrix = await run_off_loop(len(keys), lambda: np.stack([vector(outcomes[key]) for key in keys]), self._threads)
        return matrix, computed

    async def close(self) -> None:
        """Stop computing and finish writing."""
        await cancel(self._jobs)
        await asyncio.gather(*self._writes, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _join_or_start(
        self, request: _Request, keys: Sequence[str], labels: Sequence[str]
    ) -> tuple[list[PendingVectors], set[PendingVectors]]:
        """Find the pending group of every key, start groups for the rest, and count the request as a waiter of each.

        Returns:
            All groups, and those that were done before the call.
        """
        joined = {group: None for key in keys if (group := self._pending.get(key)) is not None}
        done_before = {group for group in joined if group.done.done()}
        unclaimed = [index for index, key in enumerate(keys) if key not in self._pending]
        labels_per_group = max(1, _BLOCK_BATCHES * request.model.max_batch_texts // len(request.templates))
        loop = asyncio.get_running_loop()
        started = []
        for start in range(0, len(unclaimed), labels_per_group):
            indices = unclaimed[start : start + labels_per_group]
            group = PendingVectors(
                tuple(keys[index] for index in indices), tuple(labels[index] for index in indices), loop.create_future()
            )
            self._pending.update(dict.fromkeys(group.keys, group))
            started.append(group)
        groups = [*joined, *started]
        for group in groups:
            group.waiters += 1
        if started:
            job = loop.create_task(self._resolve(request, started), name="label-vectors")
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            for group in started:
                group.done.add_done_callback(lambda _: cancel_if_unwanted(job, started))
        return groups, done_before

    async def _resolve(self, request: _Request, groups: list[PendingVectors]) -> None:
        """Give every key of the groups an outcome: from the text cache, else from the text encoder."""
        model = request.model
        error: AnyclassError = NotReady("The service is stopping; try again elsewhere.")
        reservation: Reservation | None = None
        try:
            await self._look_up(model, groups)
            prompts = sum(len(group.missing) for group in groups if group.wanted) * len(request.templates)
            small = prompts <= _SMALL_BATCHES * model.max_batch_texts
            request = request if small else replace(request, lane=Lane.BACKGROUND)
            reservation = model.texts[request.lane].reserve(prompts, deadline=request.deadline)
            remaining = [group for group in groups if group.wanted]
            # Two at a time: one is tokenised while the other is on the device.
            await together([self._compute_all(request, remaining, reservation) for _ in range(2)])
        except AnyclassError as exc:
            error = exc
        except Exception as exc:  # noqa: BLE001 - logged, and raised in every waiting request
            _LOG.exception("computing class vectors failed")
            error = InferenceFailed("The labels could not be computed; see the service's log.")
            error.__cause__ = exc
        finally:
            if reservation is not None:
                reservation.release()
            for group in groups:
                if not group.done.done():
                    group.outcomes.update(dict.fromkeys(group.missing, error))
                    self._forget(group)

    async def _look_up(self, model: Model, groups: Sequence[PendingVectors]) -> None:
        keys = [key for group in groups for key in group.keys]
        vectors = await self._cache.get_many(keys, dim=model.manifest.dim)
        found = {key: vector for key, vector in zip(keys, vectors, strict=True) if vector is not None}
        for group in groups:
            group.outcomes.update({key: found[key] for key in group.keys if key in found})
            if not group.missing:
                self._forget(group)

    async def _compute_all(self, request: _Request, remaining: list[PendingVectors], reservation: Reservation) -> None:
        """Compute the remaining groups, block by block. Several calls may share `remaining`."""
        max_prompts = _BLOCK_BATCHES * request.model.max_batch_texts
        while remaining:
            block: list[PendingVectors] = []
            size = 0
            while remaining:
                # Groups that several requests wait for go first.
                group = max(remaining, key=lambda group: group.waiters)
                prompts = len(group.missing) * len(request.templates)
                if block and size + prompts > max_prompts:
                    break
                remaining.remove(group)
                size += prompts
                block.append(group)
            wanted = [group for group in block if group.wanted]
            if wanted:
                await self._compute(request, wanted)
            reservation.release(size)

    async def _compute(self, request: _Request, block: Sequence[PendingVectors]) -> None:
        """Finish the groups of a block with their vectors or errors; a failure affects only the block."""
        sought = {
            key: label
            for group in block
            for key, label in zip(group.keys, group.labels, strict=True)
            if key not in group.outcomes
        }
        computed: dict[str, Vectors] = {}
        loop = asyncio.get_running_loop()
        model, templates = request.model, request.templates
        try:
            tokens, too_long = await loop.run_in_executor(self._threads, tokenise, model, sought, templates)
            keys = [key for key in sought if key not in too_long]
            if keys:
                embeddings = await model.encode_texts(tokens, lane=request.lane)
                vectors = await loop.run_in_executor(self._threads, class_vectors, embeddings, len(templates))
                # A row would keep the whole block in memory, hence the copies.
                computed = {key: vector.copy() for key, vector in zip(keys, vectors, strict=True)}
            failed: dict[str, AnyclassError] = dict(too_long)
        except AnyclassError as exc:
            failed = dict.fromkeys(sought, exc)
        self._metrics.labels_computed.labels(model.name).inc(len(computed))
        for group in block:
            for key in group.missing:
                group.outcomes[key] = computed[key] if key in computed else failed[key]
                if key in computed:
                    group.computed.add(key)
            group.finish()
        write = loop.create_task(self._write(computed, block), name="label-vectors-write")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def _write(self, computed: dict[str, Vectors], block: Sequence[PendingVectors]) -> None:
        # Requests find the vectors in their groups until the cache has them, so none is computed twice.
        try:
            if computed:
                await self._cache.set_many(computed)
        finally:
            for group in block:
                self._forget(group)

    def _forget(self, group: PendingVectors) -> None:
        """Finish a group and let no further request join it."""
        for key in group.keys:
            if self._pending.get(key) is group:
                del self._pending[key]
        group.finish()
