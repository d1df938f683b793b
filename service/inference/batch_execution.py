"""Runs one batch in a device's thread; every entry gets an answer, whatever happens."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from service.errors import AnyclassError, DeviceOutOfMemory, InferenceFailed, NonFiniteOutput
from service.model.arrays import Vectors
from service.monitoring.metrics import Kind

_LOG: Final = logging.getLogger(__name__)

Inputs: TypeAlias = npt.NDArray[Any]
Rows: TypeAlias = Sequence[Any] | Inputs


@dataclass(frozen=True, eq=False)
class Work:
    """One kind of work of one model; compared by identity.

    Attributes:
        collate: rows of several entries → one array `[rows, …]`; called in a thread.
        run: that array → float32 `[rows, dim]`; called in the device's thread only.
        length: units to which each of the rows is padded if they run alone; None if all rows of this work cost the
            same.
        max_batch: most rows in a batch; the device's own limit if None.
    """

    model: str
    kind: Kind
    collate: Callable[[Sequence[Rows]], Inputs]
    run: Callable[[Inputs], Vectors]
    length: Callable[[Rows], int] | None = None
    max_batch: int | None = None


@dataclass(frozen=True, slots=True)
class BatchRun:
    """A batch that ran: float32 `[rows, dim]` or an error for each entry; times are of `time.monotonic`."""

    outcomes: list[Vectors | AnyclassError]
    started: float
    finished: float


def run_batch(work: Work, entries: Sequence[Rows], inputs: Inputs | None) -> BatchRun:
    """Run the entries' rows together. Never raises.

    Args:
        inputs: `work.collate(entries)` if it was computed already.
    """
    started = time.monotonic()
    outcomes = _attempt(work, entries, inputs)
    if len(entries) > 1 and any(isinstance(outcome, NonFiniteOutput) for outcome in outcomes):
        # One input's infinity must not fail its neighbours.
        outcomes = [outcome for rows in entries for outcome in _attempt(work, [rows], None)]
    return BatchRun(outcomes, started, time.monotonic())


def _attempt(work: Work, entries: Sequence[Rows], inputs: Inputs | None) -> list[Vectors | AnyclassError]:
    sizes = [len(rows) for rows in entries]
    failure: AnyclassError
    try:
        vectors = _run(work, work.collate(entries) if inputs is None else inputs)
        if len(vectors) == sum(sizes):
            ends = np.cumsum(sizes)
            return [vectors[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        _LOG.error(
            "the %s encoder of %s gave %d vectors for %d inputs", work.kind, work.model, len(vectors), sum(sizes)
        )
        failure = InferenceFailed("The model gave the wrong number of vectors.")
    except AnyclassError as exc:
        failure = exc
    except BaseException as exc:  # noqa: BLE001 - even SystemExit must not leave the callers waiting
        _LOG.exception("the %s encoder of %s failed on %d inputs", work.kind, work.model, sum(sizes))
        failure = InferenceFailed("The model failed on this input; see the service's log.")
        failure.__cause__ = exc
    return [failure] * len(entries)


def _run(work: Work, inputs: Inputs) -> Vectors:
    """Run a batch; if the device has too little memory for it, retry once in two halves."""
    try:
        return work.run(inputs)
    except DeviceOutOfMemory:
        half = len(inputs) // 2
        if not half:
            raise
        _LOG.warning("too little device memory for %d inputs of %s; trying half as many", len(inputs), work.model)
    return np.concatenate([work.run(inputs[:half]), work.run(inputs[half:])])
