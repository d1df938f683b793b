"""Keeps label matrices, in process."""

from collections import OrderedDict
from typing import NamedTuple

from service.model.answer_warnings import AnswerWarning
from service.model.arrays import Vectors


class KnownMatrix(NamedTuple):
    """A label matrix, float32 `[labels, dim]`, and the warnings about its labels."""

    vectors: Vectors
    warnings: tuple[AnswerWarning, ...] = ()


class MatrixCache:
    """Keeps the most recently used label matrices, float32 `[labels, dim]`, up to `max_bytes`.

    Their warnings are kept with them and not counted: they are few, and bounded.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._matrices: OrderedDict[bytes, KnownMatrix] = OrderedDict()

    def get(self, digest: bytes) -> KnownMatrix | None:
        """Look up a matrix."""
        matrix = self._matrices.get(digest)
        if matrix is not None:
            self._matrices.move_to_end(digest)
        return matrix

    def put(self, digest: bytes, matrix: Vectors, warnings: tuple[AnswerWarning, ...] = ()) -> None:
        """Store a matrix, made read-only; evict the least recently used ones if needed."""
        if digest in self._matrices or matrix.nbytes > self._max_bytes:
            return
        matrix.flags.writeable = False
        self._matrices[digest] = KnownMatrix(matrix, warnings)
        self._bytes += matrix.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._matrices.popitem(last=False)[1].vectors.nbytes
