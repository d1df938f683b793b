"""The use cases of label sets: write, read, delete, and use in a classification."""

import asyncio
import hashlib
import time
from functools import partial
from typing import Final

from service.concurrency import cancel
from service.errors import InvalidTemplates, StateFull, StateUnavailable, VersionMismatch
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.label_sets.cleanup import BackgroundDeletion, Recovery
from service.label_sets.computing import Computations, compute_block, templates_of, token_warnings, vectors_id
from service.label_sets.definition import NAME, Definition
from service.label_sets.loading import Loader
from service.label_sets.ready_sets import ReadySet
from service.label_sets.status import Condition, LabelSetStatus, ModelStatus, corrupt, unknown
from service.label_sets.storage import BLOCK, Head, LabelSetStorage, StoredHead, new_version
from service.label_sets.thread import in_thread
from service.labels.vectors import LabelVectors
from service.lanes import Lane
from service.model.answer_warnings import AnswerWarning, warn_of_lone_label
from service.model.arrays import Vectors
from service.monitoring.metrics import Metrics
from service.monitoring.usage import add_work
from service.settings import Settings
from service.state.damage import DamagedEntries
from service.state.protocol import StateStore

_ANY: Final = Condition()
_WRITE_ATTEMPTS: Final = 5
_PAGE: Final = 100


class LabelSets:
    """Writes, reads and deletes label sets for all models. Belongs to one event loop; does not close the store."""

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
        self._storage = LabelSetStorage(store)
        self._damaged = DamagedEntries(metrics)
        self._deletion = BackgroundDeletion(self._storage)
        self._computations = Computations(self._storage, label_vectors, metrics)
        self._loader = Loader(
            self._storage,
            label_vectors,
            self._computations,
            metrics,
            max_bytes=settings.label_sets_mib * 2**20,
            inline_prompts=settings.label_set_inline_prompts,
        )
        self._recovery: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start to compute, in the background, the sets that ended processes left unfinished."""
        self._recovery = asyncio.create_task(
            Recovery(self._storage, self._damaged, self._status).run(), name="label-sets-recovery"
        )

    async def close(self) -> None:
        """Stop computing; stored content stays."""
        if self._recovery is not None:
            await cancel([self._recovery])
        await self._loader.close()
        await self._computations.close()
        await self._deletion.close()

    async def resolve(self, name: str, model: Model, *, lane: Lane = Lane.INTERACTIVE) -> ReadySet:
        """Return the set for `model`; see `Loader.resolve`."""
        return await self._loader.resolve(name, model, lane=lane)

    async def put(self, name: str, definition: Definition, condition: Condition = _ANY) -> tuple[LabelSetStatus, bool]:
        """Write a set; return its status, and whether it is new. An identical definition keeps the version.

        A small set is computed before it is written, so it is ready as soon as it is visible.

        Raises:
            VersionMismatch: the condition does not hold, or no longer held during the write.
            InvalidTemplates: a model has no template set of that name.
            PromptTooLong: a label of a small set is too long for a model.
            StateFull: the limit of sets is reached.
            StateUnavailable: nothing was written; if the store failed meanwhile, that is unknown.
            Overloaded, InferenceFailed, NotReady: a small set could not be computed.
        """
        content = await in_thread(definition.to_json)
        digest = hashlib.sha256(content).hexdigest()
        stored = await self._storage.head(name)
        condition.check(stored.head.version if stored else None)
        if stored is not None and stored.head.digest == digest:
            await self._storage.clear_failure(name, stored.head.version)
            return await self.status(name), False
        # Concurrent writers may exceed the limit by one, which is harmless: it only protects the disk.
        if stored is None and len(await self._storage.names(limit=self._max_sets)) >= self._max_sets:
            raise StateFull(f"The limit of {self._max_sets} label sets is reached; delete one first.")
        computed = await self._compute_inline(definition)
        add_work(None, labels=len(definition.labels))
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
                    await self._delete_content(name, stored.head.version)
                self._loader.forget(name)
                self._loader.heads.put(name, head)
                return await self.status(name), stored is None
            await self._delete_content(name, head.version)
            stored = await self._storage.head(name)
            condition.check(stored.head.version if stored else None)
        raise VersionMismatch("Other clients keep changing the label set; try again.")

    async def warnings(self, definition: Definition) -> tuple[AnswerWarning, ...]:
        """Return the warnings about a set's labels, for all models; those of one code and the same labels once."""
        found = list(warn_of_lone_label(definition.labels))
        for model in self._models:
            found += await in_thread(partial(token_warnings, definition, model))
        return tuple({(each.code, each.labels): each for each in reversed(found)}.values())[::-1]

    async def status(self, name: str) -> LabelSetStatus:
        """Return the status of a set; start computing its missing vectors in this process too.

        Raises: UnknownLabelSet, StateUnavailable, StateCorrupt.
        """
        head = (await self._existing(name)).head
        self._loader.heads.put(name, head)
        return await self._status(name, head)

    async def described(self, name: str) -> tuple[LabelSetStatus, Definition]:
        """Return status and definition of the same version. Raises as `status`."""
        version = None
        while True:
            status = await self.status(name)
            definition = await self._storage.definition(name, status.head.version)
            if definition is not None:
                return status, definition
            if status.head.version == version:
                raise corrupt(name, "its content is missing")
            version = status.head.version  # it was probably just replaced; try again

    async def page(self, *, after: str = "", limit: int = _PAGE) -> tuple[list[LabelSetStatus], str | None]:
        """Return the first `limit` sets whose names follow `after`, and the next `after`, None at the end.

        Skips damaged sets. Raises StateUnavailable.
        """
        page: list[LabelSetStatus] = []
        while names := await self._storage.names(after=after, limit=limit + 1):
            for name in names:
                with self._damaged.skipped("label-set"):
                    stored = await self._storage.head(name)
                    if stored is None:  # it was just deleted
                        continue
                    if len(page) == limit:
                        return page, page[-1].name
                    page.append(await self._status(name, stored.head))
            if len(names) <= limit:
                break
            after = names[-1]
        return page, None

    async def delete(self, name: str, condition: Condition = _ANY) -> None:
        """Delete a set. Raises UnknownLabelSet, VersionMismatch, StateUnavailable, StateCorrupt."""
        for _ in range(_WRITE_ATTEMPTS):
            stored = await self._existing(name)
            condition.check(stored.head.version)
            try:
                deleted = await self._storage.delete_head(name, expected=stored.token)
            except BaseException:
                self._deletion.delete_unless_current(
                    name, stored.head.version
                )  # the head may have been deleted nevertheless
                raise
            if deleted:
                self._loader.forget(name)
                await self._delete_content(name, stored.head.version)
                return
        raise VersionMismatch("Other clients keep changing the label set; try again.")

    async def _compute_inline(self, definition: Definition) -> dict[str, list[Vectors]]:
        """Compute the blocks of the models for which the set is small; model name → blocks."""
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
        """Write a version, its head last; return False if the set was changed meanwhile.

        Deletes the written content if that fails or is cancelled.
        """
        try:
            await self._storage.write_definition(name, head.version, content)
            for model in self._models:
                which = vectors_id(name, head, model)
                for block, vectors in enumerate(computed.get(model.name, ())):
                    await self._storage.write_block(which, block, vectors)
        except BaseException:
            self._deletion.delete(name, head.version)
            raise
        try:
            return await self._storage.write_head(name, head, expected=stored.token if stored else None)
        except BaseException:
            # The head may nevertheless have been written, or may still be.
            versions = [head.version, *([stored.head.version] if stored else [])]
            self._deletion.delete_unless_current(name, *versions)
            raise

    async def _status(self, name: str, head: Head) -> LabelSetStatus:
        models, waits = [], []
        for model in self._models:
            try:
                which = vectors_id(name, head, model)
            except InvalidTemplates as exc:  # written by a server of other models
                models.append(ModelStatus(model.name, "failed", 0, head.labels, exc.detail))
                continue
            present = await self._storage.blocks(which)
            done = sum(head.rows(block) for block in present if block < head.blocks)
            if done == head.labels:
                models.append(ModelStatus(model.name, "ready", done, head.labels))
            elif reason := await self._storage.failure(which):
                models.append(ModelStatus(model.name, "failed", done, head.labels, reason))
            else:
                self._computations.ensure(which, head, model)
                models.append(ModelStatus(model.name, "computing", done, head.labels))
                waits.append(self._computations.retry_after_s(which, head.blocks))
        return LabelSetStatus(name, head, tuple(models), max(waits, default=None))

    async def _existing(self, name: str) -> StoredHead:
        stored = await self._storage.head(name) if NAME.fullmatch(name) else None
        if stored is None:
            raise unknown()
        return stored

    async def _delete_content(self, name: str, version: str) -> None:
        """Delete the content of a version without a head; retry in the background if that fails."""
        try:
            await self._storage.delete_content(name, version)
        except BaseException as exc:
            self._deletion.delete(name, version)
            if not isinstance(exc, StateUnavailable):
                raise
