"""Limits the total size of all files.

Files in the state store count, including those of replicas and jobs. So does content without a file: an upload that
another process receives, or the part of one that a killed process left; it is seen up to `_SCAN_S` later. Only uploads
are refused: the results of an accepted job are always written.
"""

import time
from collections.abc import Callable
from typing import Final, Protocol

from service.errors import StateFull
from service.jobs.records import ALL, FILE_DATA, FILE_RECORDS, FileRecord, parse
from service.state.damage import DamagedEntries
from service.state.protocol import StateStore

_SCAN_S: Final = 60.0
"""Age from which the list of content without a file is read again; it costs more than the records."""
_RESCAN_S: Final = 1.0
"""The same before an upload is refused."""


class Upload(Protocol):
    """Content that is being received: its name in the store, and its bytes so far."""

    data: str
    bytes: int


class FileQuota:
    """Limits all files together to `max_bytes`. Belongs to one event loop.

    Records never change, so each is read once.
    """

    def __init__(
        self,
        state: StateStore,
        damaged: DamagedEntries,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._damaged = damaged
        self._max_bytes = max_bytes
        self._stored: dict[str, tuple[str, int]] = {}
        self._stored_bytes = 0
        self._stored_data: set[str] = set()
        self._uploads: set[Upload] = set()
        self._unrecorded: dict[str, int] = {}
        self._scanned = -float("inf")
        self._clock = clock

    async def check(self, more: int = 0) -> None:
        """Read the store, and raise StateFull if all files and `more` bytes exceed the limit."""
        await self._refresh(_SCAN_S)
        if self._used() + more > self._max_bytes:
            await self._refresh(_RESCAN_S)  # another process may have discarded its upload
        self._check_known(more)

    async def check_quickly(self) -> None:
        """Raise StateFull if all files exceed the limit; read the store only if they seem to."""
        try:
            self._check_known(0)
        except StateFull:
            await self.check()

    def add_stored(self, key: str, data: str, size: int) -> None:
        """Count a stored file: its record's key, its content's name, its bytes."""
        if key not in self._stored:
            self._stored[key] = (data, size)
            self._stored_bytes += size
            self._stored_data.add(data)

    def begin_upload(self, upload: Upload) -> None:
        """Count an upload as it grows."""
        self._uploads.add(upload)

    def end_upload(self, upload: Upload) -> None:
        """Stop counting an upload: it was discarded, or is stored."""
        self._uploads.discard(upload)
        self._unrecorded.pop(upload.data, None)

    async def _refresh(self, scan_age_s: float) -> None:
        """Update the stored files, and the content without a file if that is `scan_age_s` old.

        Raises StateUnavailable.
        """
        contents: set[str] | None = None
        if self._clock() - self._scanned >= scan_age_s:
            # Before the records are read, so that a file that is stored meanwhile has its record.
            contents = {key.split("/")[2] for key in await self._state.blob_keys(FILE_DATA)}
        await self._read_records()
        if contents is not None:
            unrecorded = contents - self._stored_data - {upload.data for upload in self._uploads}
            self._unrecorded = {data: await self._state.blob_bytes(f"{FILE_DATA}{data}/") for data in unrecorded}
            self._scanned = self._clock()

    async def _read_records(self) -> None:
        before = set(self._stored)
        current = await self._state.keys(FILE_RECORDS, limit=ALL)
        for key in before.difference(current):
            data, size = self._stored.pop(key, ("", 0))
            self._stored_bytes -= size
            self._stored_data.discard(data)
        for key in current:
            if key not in self._stored:
                with self._damaged.skipped("file"):  # a damaged record, of unknown size, must not block uploads
                    await self._read(key)

    def _used(self) -> int:
        # Content whose record was just written may also be among the stored files.
        uploaded = sum(upload.bytes for upload in self._uploads if upload.data not in self._stored_data)
        unrecorded = sum(size for data, size in self._unrecorded.items() if data not in self._stored_data)
        return self._stored_bytes + uploaded + unrecorded

    def _check_known(self, more: int) -> None:
        if self._used() + more > self._max_bytes:
            raise StateFull(
                f"The file does not fit: all files together may have {self._max_bytes} bytes. Delete files that are no "
                "longer needed, or have ANYCLASS_MAX_TOTAL_FILE_BYTES raised."
            )

    async def _read(self, key: str) -> None:
        entry = await self._state.get(key)
        if entry is not None:
            record = parse(FileRecord, key, entry.value)
            self.add_stored(key, record.data, record.bytes)
