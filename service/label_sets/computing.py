"""Computes class vectors of label sets, block by block; those of large sets in the background.

Replicas with the same numerics share the work without coordination: each repeatedly picks a random missing block,
computes it and writes it. Computing a block twice costs time but does no harm.
"""

import asyncio
import hashlib
import logging
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from service.concurrency import cancel
from service.errors import (
    AnyclassError,
    InferenceFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    PromptTooLong,
    StateCorrupt,
    StateUnavailable,
)
from service.inference.served_model import Model
from service.label_sets.definition import Definition
from service.label_sets.storage import BLOCK, Head, LabelSetStorage, VectorsId
from service.label_sets.thread import in_thread
from service.labels.cache_keys import vector_identity
from service.labels.vectors import LabelVectors
from service.lanes import Lane
from service.model.answer_warnings import AnswerWarning, warn_of_tokens
from service.model.arrays import Vectors
from service.model.prompts import prompts_for
from service.model.scoring import class_vectors
from service.monitoring.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)

_BATCHES_AT_ONCE: Final = 8
"""Device batches of prompts submitted together, so that they can be sorted by length."""
_PROMPTS_AT_ONCE: Final = 4_096
"""Prompts requested from `LabelVectors` together: a small part of a device's queue."""
_INFERENCE_ATTEMPTS: Final = 3
_STATE_PAUSES_S: Final = (0.2, 1.0, 5.0, 30.0)
_FIRST_GUESS_S: Final = 5.0
_LONGEST_RETRY_S: Final = 60.0


def templates_of(model: Model, templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return a set's templates for a model. Raises InvalidTemplates if the model has no template set of that name."""
    return model.template_set(templates) if isinstance(templates, str) else tuple(templates)


def vectors_id(name: str, head: Head, model: Model) -> VectorsId:
    """Return the id of the class vectors of a set for `model`. Raises InvalidTemplates."""
    identity = vector_identity(model.manifest.text_revision, model.numerics, templates_of(model, head.templates))
    return VectorsId(name, head.version, hashlib.sha256(identity).hexdigest()[:32])


def token_warnings(definition: Definition, model: Model) -> tuple[AnswerWarning, ...]:
    """Return the warnings about the labels of a set that depend on the model; see `warn_of_tokens`."""
    return warn_of_tokens(model.tokenizer, definition.texts(0, len(definition.labels)))


async def compute_block(
    model: Model, label_vectors: LabelVectors, definition: Definition, block: int, *, lane: Lane
) -> Vectors:
    """Compute the class vectors of one block → float32 `[labels, dim]`, unit length.

    A class vector is the mean over the prompts of all descriptions of the label, normalised again.

    Raises: as `LabelVectors.matrix`; the index of PromptTooLong is that in the whole set.
    """
    start = block * BLOCK
    texts = definition.texts(start, start + BLOCK)
    templates = templates_of(model, definition.templates)
    vectors = np.empty((len(texts), model.manifest.dim), np.float32)
    by_count: dict[int, list[int]] = defaultdict(list)
    for index, each in enumerate(texts):
        by_count[len(each)].append(index)
    for count, indices in sorted(by_count.items()):
        prompts = count * len(templates)
        at_once = _PROMPTS_AT_ONCE if count == 1 else _BATCHES_AT_ONCE * model.max_batch
        for chosen in _parts(indices, max(1, at_once // prompts)):
            try:
                if count == 1:
                    described = [texts[index][0] for index in chosen]
                    vectors[chosen] = await _by_one_text(model, label_vectors, described, templates, lane)
                else:
                    described = [text for index in chosen for text in texts[index]]
                    vectors[chosen] = await _by_several_texts(model, described, count, templates, lane)
            except PromptTooLong as exc:
                position = None if exc.index is None else exc.index // (1 if count == 1 else prompts)
                raise _too_long(start, chosen, position) from exc
    return vectors


async def _by_one_text(
    model: Model, label_vectors: LabelVectors, texts: Sequence[str], templates: Sequence[str], lane: Lane
) -> Vectors:
    """Compute class vectors of labels with one text each, using the text cache → float32 `[texts, dim]`."""
    unique = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    try:
        matrix = await label_vectors.matrix(model, list(unique), templates, lane=lane)
    except PromptTooLong as exc:
        index = None if exc.index is None else texts.index(list(unique)[exc.index])
        raise PromptTooLong(exc.detail, index=index) from exc
    vectors: Vectors = matrix.vectors[[unique[text] for text in texts]]
    return vectors


async def _by_several_texts(
    model: Model, texts: Sequence[str], count: int, templates: Sequence[str], lane: Lane
) -> Vectors:
    """Compute class vectors of labels with `count` texts each, label-major → float32 `[texts / count, dim]`."""
    tokens = await in_thread(lambda: model.tokenizer.tokenize(prompts_for(texts, templates)))
    reservation = model.texts[lane].reserve(len(tokens))
    try:
        embeddings = await model.encode_texts(tokens, lane=lane)
    finally:
        reservation.release()
    return await in_thread(lambda: class_vectors(embeddings, count * len(templates)))


def _parts(indices: Sequence[int], size: int) -> list[Sequence[int]]:
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def _too_long(start: int, indices: Sequence[int], position: int | None) -> PromptTooLong:
    if position is None:
        return PromptTooLong("A label has more tokens, with its template, than this model can read; shorten it.")
    index = start + indices[position]
    return PromptTooLong(
        f"Label {index} has more tokens, with its template, than this model can read; shorten it.", index=index
    )


@dataclass(eq=False, slots=True)
class _Computation:
    task: asyncio.Task[None]
    began: float
    began_with: int = -1
    done: int = 0


class Computations:
    """Computes sets in the background, one at a time. Belongs to one event loop."""

    def __init__(self, storage: LabelSetStorage, label_vectors: LabelVectors, metrics: Metrics) -> None:
        self._storage = storage
        self._label_vectors = label_vectors
        self._metrics = metrics
        self._running: dict[VectorsId, _Computation] = {}
        self._turn = asyncio.Semaphore(1)

    def ensure(self, which: VectorsId, head: Head, model: Model) -> None:
        """Start computing the missing vectors, unless this process already does."""
        if which in self._running:
            return
        task = asyncio.create_task(self._run(which, head, model), name="label-set")
        self._running[which] = _Computation(task, time.monotonic())
        self._metrics.label_sets_computing.inc()
        task.add_done_callback(lambda _: self._ended(which))

    def retry_after_s(self, which: VectorsId, total: int) -> float:
        """Estimate the time until all blocks are computed, in seconds: 1 to 60."""
        running = self._running.get(which)
        fresh = 0 if running is None or running.began_with < 0 else running.done - running.began_with
        if running is None or fresh < 1:
            return _FIRST_GUESS_S
        estimate = (total - running.done) * (time.monotonic() - running.began) / fresh
        return min(max(estimate, 1.0), _LONGEST_RETRY_S)

    async def close(self) -> None:
        """Stop computing; the next start continues from the stored blocks."""
        await cancel(running.task for running in self._running.values())

    def _ended(self, which: VectorsId) -> None:
        self._running.pop(which, None)
        self._metrics.label_sets_computing.dec()

    async def _run(self, which: VectorsId, head: Head, model: Model) -> None:
        try:
            async with self._turn:
                await self._keep_trying(which, lambda: self._compute(which, head, model))
        except AnyclassError as exc:
            _LOG.warning("computing a label set was stopped: %s", type(exc).__name__)
        except Exception:  # noqa: BLE001 - logged; the next request for the set starts again
            _LOG.exception("computing a label set failed")
            self._metrics.label_set_failures.inc()

    async def _keep_trying(self, which: VectorsId, attempt: Callable[[], Awaitable[None]]) -> None:
        failures = troubles = 0
        while True:
            try:
                return await attempt()
            except Overloaded as exc:
                await asyncio.sleep(exc.retry_after_s)
            except StateUnavailable:
                await asyncio.sleep(_STATE_PAUSES_S[min(troubles, len(_STATE_PAUSES_S) - 1)])
                troubles += 1
            except (InvalidRequest, InferenceFailed, StateCorrupt) as exc:
                failures += 1
                if isinstance(exc, InferenceFailed) and failures < _INFERENCE_ATTEMPTS:
                    await asyncio.sleep(_STATE_PAUSES_S[failures])
                    continue
                self._metrics.label_set_failures.inc()
                await self._storage.write_failure(which, exc.detail)
                return None
            except NotReady:
                return None  # stopping

    async def _compute(self, which: VectorsId, head: Head, model: Model) -> None:
        definition = await self._storage.definition(which.name, which.version)
        running = self._running[which]
        running.began, running.began_with = time.monotonic(), -1
        while True:
            present = await self._storage.blocks(which)
            running.done = len(present)
            if running.began_with < 0:
                running.began_with = running.done
            missing = [block for block in range(head.blocks) if block not in present]
            if not missing:
                break
            current = await self._storage.head(which.name)
            if definition is None or current is None or current.head.version != which.version:
                await self._storage.delete_content(which.name, which.version)
                return
            block = random.choice(missing)  # noqa: S311 - replicas seldom pick the same block
            vectors = await compute_block(model, self._label_vectors, definition, block, lane=Lane.BACKGROUND)
            await self._storage.write_block(which, block, vectors)
            self._metrics.label_set_blocks.inc()
        _LOG.info("a label set of %d labels was computed", head.labels)
