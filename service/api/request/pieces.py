"""Collects the bytes of a body, or of a part of a form, whatever the number and the size of their chunks."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from service.concurrency import run_off_loop

PIECE_BYTES: Final = 2**20
_FEW: Final = 2
_JOINER: Final = ThreadPoolExecutor(1, thread_name_prefix="anyclass-join")
"""One thread, because joining needs as much memory again."""


class Pieces:
    """Bytes in pieces of about a MiB.

    A single buffer would be copied each time that it grows, on the event loop. A list of the chunks would take many
    times the memory of its bytes if a client sends them one by one.
    """

    def __init__(self) -> None:
        self._full: list[bytes] = []
        self._last = io.BytesIO()

    @property
    def long(self) -> bool:
        """Return whether the body takes more than one piece."""
        return bool(self._full)

    def add(self, chunk: bytes | memoryview) -> None:
        """Append a chunk."""
        self._last.write(chunk)
        if self._last.tell() >= PIECE_BYTES:
            # This shares the buffer.
            self._full.append(self._last.getvalue())
            self._last = io.BytesIO()

    def take(self) -> list[bytes]:
        """Return the pieces, one or more, and keep none."""
        taken = [*self._full, self._last.getvalue()]
        self._full, self._last = [], io.BytesIO()
        return taken


async def joined(pieces: list[bytes]) -> bytes:
    """Return the pieces as one, and empty the list: in a thread if they are many, without the interpreter's lock."""
    return await run_off_loop(len(pieces), lambda: _joined(pieces), _JOINER, many=_FEW)


def _joined(pieces: list[bytes]) -> bytes:
    if len(pieces) == 1:
        return pieces.pop()
    whole = b"".join(pieces)
    while pieces:  # one by one: each may give its memory back to the system, which takes a while
        pieces.pop()
    return whole
