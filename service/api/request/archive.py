"""Reads images from an archive that is a request's body or a part of its form, with bounded memory.

A body is always read as fast as it arrives, into a temporary file if it is large. Otherwise a client that sends
everything before it reads the first result, and the service, would wait for each other.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.request.body import OCTETS, receive_chunks
from service.api.request.spool import Spool
from service.classification.types import ImageSource
from service.errors import AnyclassError, Overloaded, PayloadTooLarge
from service.images.archives import ArchiveLimits, entries, too_large
from service.settings import Settings

DOCUMENTED_MEDIA_TYPES: Final = ("application/x-tar", "application/gzip", "application/zip")
MEDIA_TYPES: Final = (
    *DOCUMENTED_MEDIA_TYPES,
    "application/tar",
    "application/x-gtar",
    "application/x-gzip",
    "application/x-compressed-tar",
    "application/x-zip-compressed",
    OCTETS,
)
"""Media types that mark a body as an archive; its first bytes decide on the format."""

MAX_ARCHIVES_IN_WORK: Final = 4
"""Each may take `max_archive_bytes` of disk."""

_MIN_BYTES_PER_S: Final = 2**14
_MAX_IN_WORK_BYTES: Final = 2**24
"""Bytes of images in work, of one archive; a single image may have more."""
_RETRY_S: Final = 10.0

_log = structlog.stdlib.get_logger("service.api")


class ArchiveImages:
    """Yields the images of one archive, in order.

    Attributes:
        names: names of the images read so far.
    """

    def __init__(self, stream: IO[bytes], settings: Settings, *, max_images: int) -> None:
        """Take over `stream`, which `close` closes. Nothing is read yet."""
        self.names: list[str] = []
        self._stream = stream
        self._entries = entries(
            stream,
            ArchiveLimits(
                max_images=max_images, max_image_bytes=settings.max_body_bytes, max_bytes=settings.max_archive_bytes
            ),
        )
        # A separate thread, because it may wait long for a slow upload.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anyclass-archive")
        self._sizes: deque[int] = deque()
        self._released = asyncio.Event()

    async def images(self) -> AsyncGenerator[ImageSource]:
        """Yield each image as soon as it is read. Raises as `archives.entries` for the whole archive."""
        loop = asyncio.get_running_loop()
        while (entry := await loop.run_in_executor(self._thread, next, self._entries, None)) is not None:
            size = len(entry.image) if isinstance(entry.image, bytes) else 0
            while self._sizes and sum(self._sizes) + size > _MAX_IN_WORK_BYTES:
                self._released.clear()
                await self._released.wait()
            self._sizes.append(size)
            self.names.append(entry.name)
            yield entry.image

    def answered(self) -> None:
        """Mark the oldest image in work as answered."""
        self._sizes.popleft()
        self._released.set()

    async def close(self) -> None:
        """Close the archive; reading under way ends with an error."""
        await asyncio.to_thread(self._stream.close)
        self._thread.shutdown(wait=False, cancel_futures=True)


class ArchiveUpload:
    """Reads a request's body into a spool, then waits for the client to disconnect."""

    def __init__(self, receive: Receive, spool: Spool, settings: Settings) -> None:
        """Prepare; reading begins with `start`."""
        self._receive = receive
        self._spool = spool
        self._settings = settings
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start reading in a task."""
        self._task = asyncio.create_task(self._run())

    async def client_disconnected(self) -> None:
        """Wait until the client has disconnected."""
        await self._gone.wait()

    async def close(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        settings = self._settings
        chunks = receive_chunks(
            self._receive,
            limit=settings.max_archive_bytes,
            timeout_s=settings.request_timeout_s,
            bytes_per_s=_MIN_BYTES_PER_S,
        )
        try:
            async for chunk in chunks:
                await asyncio.to_thread(self._spool.append, chunk)
            self._spool.finish()
            while (await self._receive())["type"] != "http.disconnect":
                pass
            self._gone.set()
        except ClientDisconnect as exc:
            self._spool.fail(exc)
            self._gone.set()
        except PayloadTooLarge:
            self._spool.fail(too_large(settings.max_archive_bytes))
        except AnyclassError as exc:
            self._spool.fail(exc)
        except OSError as exc:
            _log.error("an archive cannot be kept in a temporary file", reason=exc.strerror)
            self._spool.fail(Overloaded("The archive does not fit on this server's disk; try again later.", _RETRY_S))


def check_archives_in_work(count: int) -> None:
    """Raise `Overloaded` if `count` archives are as many as may be in work at the same time."""
    if count >= MAX_ARCHIVES_IN_WORK:
        raise Overloaded("Too many archives are being read; try again later.", _RETRY_S)
