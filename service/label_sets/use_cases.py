"""The use cases of label sets: write, look at, delete, and use in a classification."""

import asyncio
import time
from typing import Final

from service.errors import InvalidTemplates, StateCorrupt, StateFull, StateUnavailable, VersionMismatch
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.label_sets.cleanup import Leftovers, Upkeep
from service.label_sets.computing import Computations, compute_block, templates_of, vectors_id
from service.label_sets.definition import NAME, Definition
from service.label_sets.loading import Loader
from service.label_sets.ready_sets import ReadySet
from service.label_sets.status import Condition, LabelSetStatus, ModelStatus, unknown
from service.label_sets.storage import BLOCK, Head, LabelSetRecords, StoredHead, new_version
from service.labels.vectors import LabelVectors
from service.lanes import Lane
from service.model.arrays import Vectors
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.state.protocol import StateStore

_ANY: Final = Condition()
_WRITE_ATTEMPTS: Final = 5
_PAGE: Final = 100


class LabelSets:
    """Label sets for all models. Belongs to one event loop; does not close the store."""

    def __init__(
        self,
        store: StateStore,
        models: ModelRegistry,
        label_vectors: LabelVectors,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._models = [models.get(name) for name in models.names]
        self._label_vectors = label_vectors
        self._max_sets = settings.max_label_sets
        self._inline_prompts = settings.label_set_inline_prompts
        self._records = LabelSetRecords(store)
        self._leftovers = Leftovers(self._records)
        self._computations = Computations(self._records, label_vectors, metrics)
        self._loader = Loader(
            self._records,
            label_vectors,
            self._computations,
            metrics,
            max_bytes=settings.label_sets_mib * 2**20,
            inline_prompts=settings.label_set_inline_prompts,
        )
        self._upkeep: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the background, to compute what a process that ended has left undone."""
        self._upkeep = asyncio.create_task(Upkeep(self._records, self._status).run(), name="label-sets-upkeep")

    async def close(self) -> None:
        """Stop computing; what is kept stays as it is."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)
        await self._loader.close()
        await self._computations.close()
        await self._leftovers.close()

    async def resolve(self, name: str, model: Model, *, lane: Lane = Lane.INTERACTIVE) -> ReadySet:
        """The set as `model` serves it; see `Loader.resolve`."""
        return await self._loader.resolve(name, model, lane=lane)

    async def put(self, name: str, definition: Definition, condition: Condition = _ANY) -> tuple[LabelSetStatus, bool]:
        """Write a set; whether it is new comes with its status. Written again as it is, it stays the same version.

        A small set is computed before it is written, so it is never seen otherwise than ready.

        Raises:
            VersionMismatch: the condition does not hold, or held no longer when the set was written.
            InvalidTemplates: a model has no template set of that name.
            PromptTooLong: a label of a small set is too long for a model.
            StateFull: there are too many sets already.
            StateUnavailable: nothing was written, or (where the store went away in the middle) nobody can tell.
            Overloaded, InferenceFailed, NotReady: a small set could not be computed.
        """
        content, digest = await asyncio.to_thread(lambda: (definition.to_json(), definition.digest()))
        stored = await self._records.head(name)
        condition.check(stored.head.version if stored else None)
        if stored is not None and stored.head.digest == digest:
            await self._records.forgive(name, stored.head.version)
            return await self.status(name), False
        # Two writers at once may exceed the limit by one: it guards the disk, it is no promise.
        if stored is None and len(await self._records.names(limit=self._max_sets)) >= self._max_sets:
            raise StateFull(f"{self._max_sets} label sets are kept here, the limit; delete one first.")
        computed = await self._computed_at_once(definition)
        for _ in range(_WRITE_ATTEMPTS):
            head = Head(
                version=new_version(),
                digest=digest,
                labels=len(definition.labels),
                texts=definition.text_count,
                templates=definition.templates if isinstance(definition.templates, str) else list(definition.templates),
                written=time.time(),
            )
            if await self._write(name, head, content, computed, stored):
                if stored is not None:
                    await self._drop(name, stored.head.version)
                self._loader.forget(name)
                self._loader.heads.put(name, head)
                return await self.status(name), stored is None
            await self._drop(name, head.version)
            stored = await self._records.head(name)
            condition.check(stored.head.version if stored else None)
        raise VersionMismatch("The label set is being changed by others all the time; try again.")

    async def status(self, name: str) -> LabelSetStatus:
        """Say how far a set is; one that is not computed yet is computed from now on here too.

        Raises: UnknownLabelSet, StateUnavailable, StateCorrupt.
        """
        head = (await self._existing(name)).head
        self._loader.heads.put(name, head)
        return await self._status(name, head)

    async def described(self, name: str) -> tuple[LabelSetStatus, Definition]:
        """How far a set is, and what was written in the same version. Raises as `status`."""
        version = None
        while True:
            status = await self.status(name)
            definition = await self._records.definition(name, status.head.version)
            if definition is not None:
                return status, definition
            if status.head.version == version:
                raise StateCorrupt(f"Content of the label set {name} is missing; delete it and write it anew.")
            version = status.head.version  # else it has just been replaced

    async def page(self, *, after: str = "", limit: int = _PAGE) -> tuple[list[LabelSetStatus], str | None]:
        """The first `limit` sets whose names follow `after`, and the name to go on after, None at the end.

        Raises: StateUnavailable, StateCorrupt.
        """
        names = await self._records.names(after=after, limit=limit + 1)
        page = []
        for name in names[:limit]:
            stored = await self._records.head(name)
            if stored is not None:  # else it was deleted just now
                page.append(await self._status(name, stored.head))
        return page, names[limit - 1] if len(names) > limit else None

    async def delete(self, name: str, condition: Condition = _ANY) -> None:
        """Delete a set. Raises UnknownLabelSet, VersionMismatch, StateUnavailable, StateCorrupt."""
        for _ in range(_WRITE_ATTEMPTS):
            stored = await self._existing(name)
            condition.check(stored.head.version)
            try:
                deleted = await self._records.delete_head(name, expected=stored.token)
            except BaseException:
                self._leftovers.drop_unless_current(name, stored.head.version)  # it may be deleted all the same
                raise
            if deleted:
                self._loader.forget(name)
                await self._drop(name, stored.head.version)
                return
        raise VersionMismatch("The label set is being changed by others all the time; try again.")

    async def _computed_at_once(self, definition: Definition) -> dict[str, list[Vectors]]:
        """Class vectors by model, block by block, for the models with which the set is small."""
        computed = {}
        for model in self._models:
            prompts = definition.text_count * len(templates_of(model, definition.templates))
            if prompts > self._inline_prompts:
                continue
            blocks = range(-(-len(definition.labels) // BLOCK))
            computed[model.name] = [
                await compute_block(model, self._label_vectors, definition, block, lane=Lane.BACKGROUND)
                for block in blocks
            ]
        return computed

    async def _write(
        self, name: str, head: Head, content: bytes, computed: dict[str, list[Vectors]], stored: StoredHead | None
    ) -> bool:
        """Write all of a version, its head last; whether nobody else has changed the set meanwhile.

        Where that fails or is cancelled, what was written is deleted.
        """
        try:
            await self._records.write_definition(name, head.version, content)
            for model in self._models:
                which = vectors_id(name, head, model)
                for block, vectors in enumerate(computed.get(model.name, ())):
                    await self._records.write_block(which, block, vectors)
        except BaseException:
            self._leftovers.drop(name, head.version)
            raise
        try:
            return await self._records.write_head(name, head, expected=stored.token if stored else None)
        except BaseException:
            # The head may be written all the same, or may yet be.
            versions = [head.version, *([stored.head.version] if stored else [])]
            self._leftovers.drop_unless_current(name, *versions)
            raise

    async def _status(self, name: str, head: Head) -> LabelSetStatus:
        models, waits = [], []
        for model in self._models:
            try:
                which = vectors_id(name, head, model)
            except InvalidTemplates as exc:  # written where other models are served
                models.append(ModelStatus(model.name, "failed", 0, head.labels, exc.detail))
                continue
            present = await self._records.blocks(which)
            done = sum(head.rows(block) for block in present if block < head.blocks)
            if done == head.labels:
                models.append(ModelStatus(model.name, "ready", done, head.labels))
            elif reason := await self._records.failure(which):
                models.append(ModelStatus(model.name, "failed", done, head.labels, reason))
            else:
                self._computations.ensure(which, head, model)
                models.append(ModelStatus(model.name, "computing", done, head.labels))
                waits.append(self._computations.retry_after_s(which, head.blocks))
        return LabelSetStatus(name, head, tuple(models), max(waits, default=None))

    async def _existing(self, name: str) -> StoredHead:
        stored = await self._records.head(name) if NAME.fullmatch(name) else None
        if stored is None:
            raise unknown()
        return stored

    async def _drop(self, name: str, version: str) -> None:
        """Delete the content of a version that no head names any more; what cannot be deleted now is deleted later."""
        try:
            await self._records.drop(name, version)
        except BaseException as exc:
            self._leftovers.drop(name, version)
            if not isinstance(exc, StateUnavailable):
                raise
