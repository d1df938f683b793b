"""Class vectors of label sets: how a block is computed, and the background work that computes a large set's blocks.

Replicas with the same numerics share the work without knowing of each other: each takes, again and again, any of the
blocks that are missing, and writes what it computes. Doing a block twice costs time and changes nothing.
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
from service.label_sets.storage import BLOCK, Head, LabelSetRecords, VectorsId
from service.labels.cache_keys import vector_identity
from service.labels.vectors import LabelVectors
from service.lanes import Lane
from service.model.arrays import Vectors
from service.model.prompts import prompts_for
from service.model.scoring import class_vectors
from service.monitoring.metrics import Metrics

_LOG: Final = logging.getLogger(__name__)

_BATCHES_AT_ONCE: Final = 8
"""Device batches of prompts handed over together, so that they can be sorted by length."""
_PROMPTS_AT_ONCE: Final = 4_096
"""Prompts asked of the label vectors together: a small part of what may wait for a device."""
_INFERENCE_ATTEMPTS: Final = 3
_STATE_PAUSES_S: Final = (0.2, 1.0, 5.0, 30.0)
_FIRST_GUESS_S: Final = 5.0
_LONGEST_RETRY_S: Final = 60.0


def templates_of(model: Model, templates: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates that a set has with a model. Raises InvalidTemplates where it has none of that name."""
    return model.template_set(templates) if isinstance(templates, str) else tuple(templates)


def vectors_id(name: str, head: Head, model: Model) -> VectorsId:
    """Name the class vectors that `model` has for a set. Raises InvalidTemplates."""
    identity = vector_identity(model.manifest.text_revision, model.numerics, templates_of(model, head.templates))
    return VectorsId(name, head.version, hashlib.sha256(identity).hexdigest()[:32])


async def compute_block(
    model: Model, label_vectors: LabelVectors, definition: Definition, block: int, *, lane: Lane
) -> Vectors:
    """Compute the class vectors of one block → float32 `[labels, dim]`, unit length.

    A class vector is the mean over the prompts of all the label's descriptions, normalised again.

    Raises: as `LabelVectors.matrix`; the index of PromptTooLong counts all labels of the set.
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
    """Class vectors of labels with one text each, by way of the text cache → float32 `[texts, dim]`."""
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
    """Class vectors of labels with `count` texts each, label-major → float32 `[texts / count, dim]`."""
    tokens = await asyncio.to_thread(lambda: model.tokenizer.tokenize(prompts_for(texts, templates)))
    place = model.texts[lane].enter(len(tokens))
    try:
        embeddings = await model.encode_texts(tokens, lane=lane)
    finally:
        place.leave()
    return await asyncio.to_thread(class_vectors, embeddings, count * len(templates))


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
class _Job:
    task: asyncio.Task[None]
    began: float
    began_with: int = -1
    done: int = 0


class Computations:
    """The sets that are being computed here in the background, one at a time. Belongs to one event loop."""

    def __init__(self, records: LabelSetRecords, label_vectors: LabelVectors, metrics: Metrics) -> None:
        self._records = records
        self._label_vectors = label_vectors
        self._metrics = metrics
        self._jobs: dict[VectorsId, _Job] = {}
        self._turn = asyncio.Semaphore(1)

    def ensure(self, which: VectorsId, head: Head, model: Model) -> None:
        """Have the missing vectors computed, unless that is under way here."""
        if which in self._jobs:
            return
        task = asyncio.create_task(self._run(which, head, model), name="label-set")
        self._jobs[which] = _Job(task, time.monotonic())
        self._metrics.label_sets_computing.inc()
        task.add_done_callback(lambda _: self._ended(which))

    def retry_after_s(self, which: VectorsId, total: int) -> float:
        """Time until all is there, in seconds, as far as it can be told: 1 to 60."""
        job = self._jobs.get(which)
        fresh = 0 if job is None or job.began_with < 0 else job.done - job.began_with
        if job is None or fresh < 1:
            return _FIRST_GUESS_S
        estimate = (total - job.done) * (time.monotonic() - job.began) / fresh
        return min(max(estimate, 1.0), _LONGEST_RETRY_S)

    async def close(self) -> None:
        """Stop; whoever starts next goes on from the blocks that are there."""
        tasks = [job.task for job in self._jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, which: VectorsId) -> None:
        self._jobs.pop(which, None)
        self._metrics.label_sets_computing.dec()

    async def _run(self, which: VectorsId, head: Head, model: Model) -> None:
        try:
            async with self._turn:
                await self._keep_trying(which, lambda: self._compute(which, head, model))
        except AnyclassError as exc:
            _LOG.warning("a label set was left as it is: %s", type(exc).__name__)
        except Exception:  # noqa: BLE001 - logged; the next who asks for the set begins anew
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
                await self._records.write_failure(which, exc.detail)
                return None
            except NotReady:
                return None  # stopping

    async def _compute(self, which: VectorsId, head: Head, model: Model) -> None:
        definition = await self._records.definition(which.name, which.version)
        job = self._jobs[which]
        job.began, job.began_with = time.monotonic(), -1
        while True:
            present = await self._records.blocks(which)
            job.done = len(present)
            if job.began_with < 0:
                job.began_with = job.done
            missing = [block for block in range(head.blocks) if block not in present]
            if not missing:
                break
            current = await self._records.head(which.name)
            if definition is None or current is None or current.head.version != which.version:
                await self._records.drop(which.name, which.version)
                return
            block = random.choice(missing)  # noqa: S311 - so that two replicas seldom do the same
            vectors = await compute_block(model, self._label_vectors, definition, block, lane=Lane.BACKGROUND)
            await self._records.write_block(which, block, vectors)
            self._metrics.label_set_blocks.inc()
        _LOG.info("a label set of %d labels was computed", head.labels)
