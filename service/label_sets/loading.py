"""Loads label sets by name: from memory, from the store, or computed now if they are small."""

import asyncio
from typing import Final

import numpy as np

from service.concurrency import cancel
from service.errors import LabelSetComputing, LabelSetFailed
from service.inference.served_model import Model
from service.label_sets.computing import Computations, compute_block, templates_of, token_warnings, vectors_id
from service.label_sets.definition import NAME
from service.label_sets.ready_sets import Heads, ReadySet, ReadySets, ready_set
from service.label_sets.status import corrupt, unknown
from service.label_sets.storage import Head, LabelSetStorage, VectorsId
from service.label_sets.thread import in_thread
from service.labels.vectors import LabelVectors
from service.lanes import Lane
from service.monitoring.metrics import Metrics

_ATTEMPTS: Final = 5
_REPLACED_RETRY_S: Final = 1.0


class _ContentMissingError(Exception):
    """Content that the head refers to is not in the store: the set was replaced, or content was lost."""


class Loader:
    """Loads the sets that requests name. Belongs to one event loop."""

    def __init__(
        self,
        storage: LabelSetStorage,
        label_vectors: LabelVectors,
        computations: Computations,
        metrics: Metrics,
        *,
        max_bytes: int,
        inline_prompts: int,
    ) -> None:
        """Keep up to `max_bytes` of sets in memory; compute sets of up to `inline_prompts` while a request waits."""
        self.heads = Heads(storage)
        self._storage = storage
        self._label_vectors = label_vectors
        self._computations = computations
        self._inline_prompts = inline_prompts
        self._ready = ReadySets(max_bytes)
        self._metrics = metrics
        self._loading: dict[VectorsId, asyncio.Task[ReadySet]] = {}

    def forget(self, name: str) -> None:
        """Drop a set that was changed or deleted; requests that hold the old version continue with it."""
        self.heads.forget(name)
        self._forget_ready(name)

    async def close(self) -> None:
        """Stop loading."""
        await cancel(self._loading.values())
        await self.heads.close()

    async def resolve(self, name: str, model: Model, *, lane: Lane = Lane.INTERACTIVE) -> ReadySet:
        """Return the set for `model`: from memory, from the store, or computed now if it is small.

        Raises:
            UnknownLabelSet: no set has this name.
            LabelSetComputing: the set is large and still being computed.
            LabelSetFailed: the set cannot be computed for this model.
            StateUnavailable: the store does not answer and the set is not in memory.
            StateCorrupt: stored content is damaged.
            InvalidTemplates: the model does not have the set's named template set.
            Overloaded, InferenceFailed, NotReady: as for labels.
        """
        if not NAME.fullmatch(name):
            raise unknown()
        version = None
        for _ in range(_ATTEMPTS):
            head = await self.heads.get(name)
            if head is None:
                self._forget_ready(name)
                raise unknown()
            try:
                return await self._resolve(vectors_id(name, head, model), head, model, lane)
            except _ContentMissingError as exc:
                if head.version == version:
                    raise corrupt(name, "its content is missing") from exc
                # The version was read up to a second ago; another process may have replaced it since.
                version = head.version
                self.heads.forget(name)
        raise LabelSetComputing("The label set is being replaced repeatedly; try again.", _REPLACED_RETRY_S)

    async def _resolve(self, which: VectorsId, head: Head, model: Model, lane: Lane) -> ReadySet:
        ready = self._ready.get(which)
        self._metrics.label_set_lookups.labels("miss" if ready is None else "hit").inc()
        if ready is not None:
            return ready
        loading = self._loading.get(which)
        if loading is None:
            loading = asyncio.create_task(self._load(which, head, model, lane), name="label-set-load")
            self._loading[which] = loading
            loading.add_done_callback(lambda task: self._loaded(which, task))
        # Shielded, because other requests may wait for the same task.
        return await asyncio.shield(loading)

    async def _load(self, which: VectorsId, head: Head, model: Model, lane: Lane) -> ReadySet:
        definition = await self._storage.definition(which.name, which.version)
        if definition is None:
            raise _ContentMissingError
        if len(definition.labels) != head.labels:
            raise corrupt(which.name, "its label count does not match")
        present = await self._storage.blocks(which)
        missing = [block for block in range(head.blocks) if block not in present]
        prompts = head.texts * len(templates_of(model, head.templates))
        if missing and prompts > self._inline_prompts:
            current = await self._storage.head(which.name)
            if current is None or current.head.version != which.version:
                raise _ContentMissingError
            if reason := await self._storage.failure(which):
                raise LabelSetFailed(f"The label set cannot be used with this model: {reason}")
            self._computations.ensure(which, head, model)
            wait_s = self._computations.retry_after_s(which, head.blocks)
            raise LabelSetComputing("The label set is still being computed; try again later.", wait_s)
        vectors = np.empty((head.labels, model.manifest.dim), np.float32)
        start = 0
        for block in range(head.blocks):
            rows = head.rows(block)
            part = await self._storage.block(which, block, rows=rows, dim=model.manifest.dim)
            if part is None and block not in missing:
                raise _ContentMissingError
            if part is None:
                part = await compute_block(model, self._label_vectors, definition, block, lane=lane)
                await self._storage.write_block(which, block, part)
            vectors[start : start + rows] = part
            start += rows
        warnings = await in_thread(lambda: token_warnings(definition, model))
        ready = ready_set(head.version, definition.labels, vectors, warnings)
        self._ready.put(which, ready)
        self._metrics.label_set_bytes.set(self._ready.nbytes)
        return ready

    def _forget_ready(self, name: str) -> None:
        self._ready.forget(name)
        self._metrics.label_set_bytes.set(self._ready.nbytes)

    def _loaded(self, which: VectorsId, task: asyncio.Task[ReadySet]) -> None:
        self._loading.pop(which, None)
        if not task.cancelled():
            task.exception()  # retrieved in case no request waits any more; those waiting raise it
