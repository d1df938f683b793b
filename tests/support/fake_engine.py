"""An engine without a runtime: it computes simple vectors, records calls, and can be held, slowed or made to fail."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from service.model.arrays import Ids, Pixels, Vectors
from service.model.choices import ChosenBy


@dataclass
class FakeEngine:
    """An `Engine` whose image vectors follow from the mean colour, text vectors from the ids without padding, 0.

    Attributes:
        gate: while cleared, holds every run.
        before: called in the device's thread with kind and batch; may raise.
        batches: kind and shape of every run batch.
        texts: ids, without padding, of every run text.
    """

    dim: int = 16
    provider: str = "cpu"
    precision: str = "fp32"
    provider_reason: str = "a test asked for it"
    chosen_by: ChosenBy = "name"
    cpu_threads: int = 1
    delay_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    before: Callable[[str, npt.NDArray[np.generic]], None] | None = None
    batches: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    texts: list[tuple[int, ...]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    closed: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 `[batch, height, width, 3]` to unit vectors by mean colour."""
        self._run("image", pixels)
        means = pixels.reshape(len(pixels), -1, 3).mean(axis=1) / 127.5 - 1
        return self._unit(np.concatenate([means, np.full((len(pixels), self.dim - 3), 0.01)], axis=1))

    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 `[batch, length]` to random unit vectors, always the same for the same ids."""
        self._run("text", ids)
        texts = [tuple(int(token) for token in row if token) for row in ids]
        self.texts += texts
        return self._unit(np.stack([np.random.default_rng(text).normal(size=self.dim) for text in texts]))

    def close(self) -> None:
        """Record the call."""
        self.closed = True

    def _run(self, kind: str, batch: npt.NDArray[np.generic]) -> None:
        self.threads.add(threading.current_thread().name)
        self.batches.append((kind, batch.shape))
        self.gate.wait()
        time.sleep(self.delay_s)
        if self.before is not None:
            self.before(kind, batch)

    def _unit(self, vectors: npt.NDArray[np.floating]) -> Vectors:
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit
