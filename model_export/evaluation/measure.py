"""Measure images: decode in a few threads, encode in batches, rank under every template set at once.

Only two batches of images are in memory at a time, and three numbers for each set and measured image.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Final, NamedTuple

import numpy as np

from model_export.errors import DataError
from model_export.evaluation.classes import Targets
from model_export.evaluation.data.samples import Rows, Sample, Source
from model_export.evaluation.figures import Answers, answers
from service.errors import AnyclassError
from service.images.decoding import decode
from service.model.arrays import Pixels, Vectors
from service.model.engine.cpus import available_cpus
from service.model.engine.engine import Engine
from service.model.manifest import ImageSection
from service.model.scoring import cosines

_MOST_THREADS: Final = 8
_BROKEN_NAMED: Final = 100


class Broken(NamedTuple):
    """An unreadable image, and the reason."""

    where: str
    reason: str


class Measurement:
    """Collects answers to images.

    Attributes:
        broken: the first hundred unreadable images.
        broken_count: number of all unreadable images.
    """

    def __init__(
        self,
        engine: Engine,
        image: ImageSection,
        matrices: Mapping[str, Vectors],
        columns: Sequence[int],
        batch_size: int,
    ) -> None:
        """Prepare a measurement.

        Args:
            matrices: for each template set the vectors of all names, float32 ``[names, dim]``.
            columns: for each class the row of its name; classes of one name get identical scores.
        """
        self._engine = engine
        self._image = image
        self._matrices = matrices
        self._columns = list(columns)
        self._batch_size = batch_size
        self._parts: dict[str, list[Answers]] = {title: [] for title in matrices}
        self.broken: list[Broken] = []
        self.broken_count = 0

    def run(
        self,
        sources: Sequence[Source],
        chosen: Sequence[Rows],
        targets: Sequence[Targets],
        advance: Callable[[int], None],
    ) -> None:
        """Measure the chosen rows of each source, with their classes in ``targets``; report images to ``advance``.

        Raises:
            DataError: a source is damaged, or none of the images can be read.
            InferenceFailed: the model failed.
        """
        pixels: list[Pixels] = []
        right: list[int] = []
        with closing(self._decoded(_wanted(sources, chosen, targets))) as stream:
            for outcome, target in stream:
                if isinstance(outcome, Broken):
                    self._note(outcome)
                    advance(1)
                    continue
                pixels.append(outcome)
                right.append(target)
                if len(pixels) == self._batch_size:
                    self._score(np.stack(pixels), np.array(right, np.int64))
                    advance(len(pixels))
                    pixels, right = [], []
        if pixels:
            self._score(np.stack(pixels), np.array(right, np.int64))
            advance(len(pixels))
        if not any(self._parts.values()):
            where, reason = self.broken[0]
            raise DataError(f"none of the {self.broken_count:,} images can be read; the first is {where}: {reason}")

    def answers(self) -> dict[str, Answers]:
        """Return the answers of each template set, over all readable images."""
        return {
            title: Answers(
                targets=np.concatenate([part.targets for part in parts]),
                taken_for=np.concatenate([part.taken_for for part in parts]),
                ranks=np.concatenate([part.ranks for part in parts]),
            )
            for title, parts in self._parts.items()
        }

    def _score(self, pixels: Pixels, targets: Targets) -> None:
        vectors = self._engine.encode_images(pixels)
        for title, matrix in self._matrices.items():
            self._parts[title].append(answers(cosines(vectors, matrix)[:, self._columns], targets))

    def _note(self, broken: Broken) -> None:
        self.broken_count += 1
        if len(self.broken) < _BROKEN_NAMED:
            self.broken.append(broken)

    def _decoded(self, samples: Iterator[tuple[Sample, int]]) -> Generator[tuple[Pixels | Broken, int], None, None]:
        """Decode in threads, in order; while one batch is on the device, the threads decode the next."""
        threads = min(_MOST_THREADS, available_cpus())
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            ahead: Iterator[tuple[Pixels | Broken, int]] = iter(())
            while chunk := list(islice(samples, self._batch_size)):
                ready, ahead = ahead, pool.map(self._decode, chunk)
                yield from ready
            yield from ahead
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, wanted: tuple[Sample, int]) -> tuple[Pixels | Broken, int]:
        sample, target = wanted
        try:
            return decode(sample.read(), self._image), target
        except AnyclassError as exc:
            return Broken(sample.where, exc.detail), target
        except OSError as exc:
            return Broken(sample.where, f"It cannot be read ({exc.strerror or type(exc).__name__})."), target


def _wanted(
    sources: Sequence[Source], chosen: Sequence[Rows], targets: Sequence[Targets]
) -> Iterator[tuple[Sample, int]]:
    for source, rows, classes in zip(sources, chosen, targets, strict=True):
        if len(rows):
            for sample in source.samples(rows):
                yield sample, int(classes[sample.row])
