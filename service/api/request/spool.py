"""Where an upload waits to be read: in memory while it is small, else in a temporary file.

It is written by one thread and read by another, which may be behind or wait for more. All here blocks, so none of it is
for an event loop.
"""

import io
import tempfile
import threading
from collections.abc import Callable
from typing import Final, cast

_IN_MEMORY: Final = 2**20
"""Bytes of an upload that are kept without a file."""


class Spool(io.RawIOBase):
    """An upload on its way: `append` and `finish`, or `fail`, on one side; a seekable file on the other."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by `close`
        self._changed = threading.Condition()
        self._size = 0
        self._position = 0
        self._complete = False
        self._failure: Exception | None = None

    def append(self, data: bytes) -> None:
        """Add what has arrived."""
        with self._changed:
            if not self._file.closed:
                self._file.seek(self._size)
                self._file.write(data)
                self._size += len(data)
            self._changed.notify_all()

    def finish(self) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def fail(self, failure: Exception) -> None:
        """Say that the rest does not come; whoever reads gets `failure`."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def readinto(self, buffer: object) -> int:
        """Read what there is, and wait where there is nothing yet. Raises what `fail` was given."""
        view = memoryview(cast("bytearray", buffer))
        with self._changed:
            self._wait(lambda: self._size > self._position)
            self._file.seek(self._position)
            data = self._file.read(min(len(view), max(0, self._size - self._position)))
            self._position += len(data)
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; the end is known, and so waited for, when all has arrived."""
        with self._changed:
            if whence == io.SEEK_END:
                self._wait(lambda: False)
            base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
            self._position = max(0, base + offset)
            return self._position

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._position

    def close(self) -> None:
        """Delete what was kept; a thread that still reads gets an error."""
        with self._changed:
            self._failure = self._failure or ValueError("the upload was closed")
            self._file.close()
            self._changed.notify_all()
        super().close()

    def _wait(self, enough: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._failure is not None or self._complete or enough())
        if self._failure is not None:
            raise self._failure
