"""From a label set's name to its matrix: in memory, in the store, or computed now where that is little work."""

import asyncio
from typing import Final

import numpy as np

from service.errors import LabelSetComputing, LabelSetFailed, StateCorrupt
from service.inference.served_model import Model
from service.label_sets.computing import Computations, compute_block, templates_of, vectors_id
from service.label_sets.definition import NAME
from service.label_sets.ready_sets import Heads, ReadySet, ReadySets, ready_set
from service.label_sets.status import unknown
from service.label_sets.storage import Head, LabelSetRecords, VectorsId
from service.labels.vectors import LabelVectors
from service.lanes import Lane
from service.monitoring.metrics import Metrics

_ATTEMPTS: Final = 5
_REPLACED_RETRY_S: Final = 1.0


class _NotThereError(Exception):
    """Content that its head promises is not in the store: the set was replaced, or content was lost."""


class Loader:
    """Gives requests the sets they name. Belongs to one event loop.

    Attributes:
        heads: which versions are current.
    """

    def __init__(
        self,
        records: LabelSetRecords,
        label_vectors: LabelVectors,
        computations: Computations,
        metrics: Metrics,
        *,
        max_bytes: int,
        inline_prompts: int,
    ) -> None:
        """`max_bytes` of sets are kept in memory; one of `inline_prompts` at most is computed while a request waits."""
        self.heads = Heads(records)
        self._records = records
        self._label_vectors = label_vectors
        self._computations = computations
        self._inline_prompts = inline_prompts
        self._ready = ReadySets(max_bytes)
        self._metrics = metrics
        self._loading: dict[VectorsId, asyncio.Task[ReadySet]] = {}

    def forget(self, name: str) -> None:
        """A set was changed or deleted; requests that have the old version end with it."""
        self.heads.forget(name)
        self._drop(name)

    async def close(self) -> None:
        """Stop loading."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.heads.close()

    async def resolve(self, name: str, model: Model, *, lane: Lane = Lane.INTERACTIVE) -> ReadySet:
        """The set as `model` serves it: from memory, from the store, or, where it is small, computed now.

        Raises:
            UnknownLabelSet: there is none of that name.
            LabelSetComputing: it is large and not all there yet; computing goes on, or begins.
            LabelSetFailed: it cannot be computed for this model.
            StateUnavailable: the store does not answer and the set is not in memory.
            StateCorrupt: what is stored is damaged.
            InvalidTemplates: the model has no template set of the set's name for it.
            Overloaded, InferenceFailed, NotReady: as for labels.
        """
        if not NAME.fullmatch(name):
            raise unknown()
        version = None
        for _ in range(_ATTEMPTS):
            head = await self.heads.get(name)
            if head is None:
                self._drop(name)
                raise unknown()
            try:
                return await self._resolve(vectors_id(name, head, model), head, model, lane)
            except _NotThereError as exc:
                if head.version == version:
                    raise StateCorrupt(
                        f"Content of the label set {name} is missing; delete it and write it anew."
                    ) from exc
                # The version was seen up to a second ago; another process may have replaced it since.
                version = head.version
                self.heads.forget(name)
        raise LabelSetComputing("The label set is being replaced all the time; try again.", _REPLACED_RETRY_S)

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
        # Shielded: other requests wait for the same.
        return await asyncio.shield(loading)

    async def _load(self, which: VectorsId, head: Head, model: Model, lane: Lane) -> ReadySet:
        definition = await self._records.definition(which.name, which.version)
        if definition is None:
            raise _NotThereError
        if len(definition.labels) != head.labels:
            raise StateCorrupt(
                f"The label set {which.name} has not as many labels as it says; delete it and write it anew."
            )
        present = await self._records.blocks(which)
        missing = [block for block in range(head.blocks) if block not in present]
        prompts = head.texts * len(templates_of(model, head.templates))
        if missing and prompts > self._inline_prompts:
            current = await self._records.head(which.name)
            if current is None or current.head.version != which.version:
                raise _NotThereError
            if reason := await self._records.failure(which):
                raise LabelSetFailed(f"The label set cannot be used with this model: {reason}")
            self._computations.ensure(which, head, model)
            wait_s = self._computations.retry_after_s(which, head.blocks)
            raise LabelSetComputing("The label set is still being computed; try again later.", wait_s)
        vectors = np.empty((head.labels, model.manifest.dim), np.float32)
        start = 0
        for block in range(head.blocks):
            rows = head.rows(block)
            part = await self._records.block(which, block, rows=rows, dim=model.manifest.dim)
            if part is None and block not in missing:
                raise _NotThereError
            if part is None:
                part = await compute_block(model, self._label_vectors, definition, block, lane=lane)
                await self._records.write_block(which, block, part)
            vectors[start : start + rows] = part
            start += rows
        ready = ready_set(head.version, definition.labels, vectors)
        self._ready.put(which, ready)
        self._metrics.label_set_bytes.set(self._ready.nbytes)
        return ready

    def _drop(self, name: str) -> None:
        self._ready.forget(name)
        self._metrics.label_set_bytes.set(self._ready.nbytes)

    def _loaded(self, which: VectorsId, task: asyncio.Task[ReadySet]) -> None:
        self._loading.pop(which, None)
        if not task.cancelled():
            task.exception()  # whoever waited has raised it; all may have gone
