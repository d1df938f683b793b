"""Images out of an archive that is the body of a request, or a part of its form, with bounded memory.

The body is always read as fast as it comes, into a temporary file once it is large: a client that sends everything
before it reads the first result would otherwise wait for the service, and the service for it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.request import body as bodies
from service.api.request.spool import Spool
from service.classification.types import ImageSource
from service.errors import AnyclassError, Overloaded, PayloadTooLarge
from service.images.archives import ArchiveLimits, entries, too_large
from service.settings import Settings

MEDIA_TYPES: Final = (
    "application/x-tar",
    "application/gzip",
    "application/zip",
    "application/x-gtar",
    "application/x-gzip",
    "application/x-compressed-tar",
    "application/x-zip-compressed",
)
"""What an archive may call itself; its first bytes tell what it is."""

AT_ONCE: Final = 4
"""Archives in work at the same time; each may take `max_archive_bytes` of disk."""

_SLOWEST_BYTES_PER_S: Final = 2**14
_IN_WORK_BYTES: Final = 2**24
"""Bytes of images that wait for their results; one image may always."""
_RETRY_S: Final = 10.0

_log = structlog.stdlib.get_logger("service.api")


class ArchiveImages:
    """The images of one archive, in their order.

    Attributes:
        names: of the images that have been read so far.
    """

    def __init__(self, stream: IO[bytes], settings: Settings, *, max_images: int) -> None:
        """Reads nothing yet, and closes `stream` with `close`."""
        self.names: list[str] = []
        self._stream = stream
        self._entries = entries(
            stream,
            ArchiveLimits(
                max_images=max_images, max_image_bytes=settings.max_body_bytes, max_bytes=settings.max_archive_bytes
            ),
        )
        # A thread of its own: it may wait long for a slow upload.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anyclass-archive")
        self._held: deque[int] = deque()
        self._room = asyncio.Event()

    async def images(self) -> AsyncGenerator[ImageSource]:
        """Each image as it can be read. Raises what concerns the whole archive, as `archives.entries`."""
        loop = asyncio.get_running_loop()
        while (entry := await loop.run_in_executor(self._thread, next, self._entries, None)) is not None:
            size = len(entry.image) if isinstance(entry.image, bytes) else 0
            while self._held and sum(self._held) + size > _IN_WORK_BYTES:
                self._room.clear()
                await self._room.wait()
            self._held.append(size)
            self.names.append(entry.name)
            yield entry.image

    def answered(self) -> None:
        """The oldest image that was not answered yet is done with."""
        self._held.popleft()
        self._room.set()

    async def close(self) -> None:
        """Let go of the archive; whatever still reads it ends."""
        await asyncio.to_thread(self._stream.close)
        self._thread.shutdown(wait=False, cancel_futures=True)


class Upload:
    """Reads a request's body into a spool, then watches whether the client is still there."""

    def __init__(self, receive: Receive, spool: Spool, settings: Settings) -> None:
        """Nothing is read before `start`."""
        self._receive = receive
        self._spool = spool
        self._settings = settings
        self._gone = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read from now on."""
        self._task = asyncio.create_task(self._run())

    async def client_gone(self) -> None:
        """Wait until the client has hung up."""
        await self._gone.wait()

    async def close(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        settings = self._settings
        body = bodies.chunks(
            self._receive,
            limit=settings.max_archive_bytes,
            timeout_s=settings.request_timeout_s,
            bytes_per_s=_SLOWEST_BYTES_PER_S,
        )
        try:
            async for chunk in body:
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
            self._spool.fail(Overloaded("There is no room for the archive here; try again later.", _RETRY_S))


def check_room(in_work: int) -> None:
    """Raise `Overloaded` where as many archives are in work as may be."""
    if in_work >= AT_ONCE:
        raise Overloaded("Too many archives are being read; try again later.", _RETRY_S)
