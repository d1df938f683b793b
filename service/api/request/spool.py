"""Buffers an upload between the thread that receives it and the thread that reads it.

A small upload stays in memory, a larger one goes to a temporary file. Methods block: call none on an event loop.
"""

import io
import tempfile
import threading
from collections.abc import Callable
from typing import Final, cast

_IN_MEMORY: Final = 2**20
"""Bytes of an upload that are kept in memory."""


class Spool(io.RawIOBase):
    """A seekable file that is read while it is still being written with `append` and `finish`, or `fail`."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed by `close`
        self._changed = threading.Condition()
        self._size = 0
        self._position = 0
        self._complete = False
        self._failure: Exception | None = None

    def append(self, data: bytes) -> None:
        """Add bytes that have arrived."""
        with self._changed:
            if not self._file.closed:
                self._file.seek(self._size)
                self._file.write(data)
                self._size += len(data)
            self._changed.notify_all()

    def finish(self) -> None:
        """Mark the upload as complete."""
        with self._changed:
            self._complete = True
            self._changed.notify_all()

    def fail(self, failure: Exception) -> None:
        """Mark the upload as failed; reading raises `failure` from now on."""
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
        """Read the bytes that have arrived; wait for the first. Raises the exception given to `fail`."""
        view = memoryview(cast("bytearray", buffer))
        with self._changed:
            self._wait(lambda: self._size > self._position)
            self._file.seek(self._position)
            data = self._file.read(min(len(view), max(0, self._size - self._position)))
            self._position += len(data)
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move. Seeking from the end waits for the whole upload."""
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
        """Delete the content; a thread that still reads gets an error."""
        with self._changed:
            self._failure = self._failure or ValueError("the upload was closed")
            self._file.close()
            self._changed.notify_all()
        super().close()

    def _wait(self, enough: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._failure is not None or self._complete or enough())
        if self._failure is not None:
            raise self._failure
