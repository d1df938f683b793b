"""Limits the total size of all files.

Files in the state store count, including those of replicas and jobs; uploads count in the process that receives them.
Only uploads are refused: the results of an accepted job are always written.
"""

from typing import Protocol

from service.errors import StateFull
from service.jobs.records import ALL, FILE_RECORDS, FileRecord, parse
from service.state.damage import DamagedEntries
from service.state.protocol import StateStore


class Upload(Protocol):
    """Content that is being received: its name in the store, and its bytes so far."""

    data: str
    bytes: int


class FileQuota:
    """Limits all files together to `max_bytes`. Belongs to one event loop.

    Records never change, so each is read once.
    """

    def __init__(self, state: StateStore, damaged: DamagedEntries, max_bytes: int) -> None:
        self._state = state
        self._damaged = damaged
        self._max_bytes = max_bytes
        self._stored: dict[str, tuple[str, int]] = {}
        self._stored_bytes = 0
        self._stored_data: set[str] = set()
        self._uploads: set[Upload] = set()

    async def check(self, more: int = 0) -> None:
        """Read the store, and raise StateFull if all files and `more` bytes exceed the limit."""
        await self._refresh()
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

    async def _refresh(self) -> None:
        """Update the stored files. Raises StateUnavailable."""
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

    def _check_known(self, more: int) -> None:
        # An upload whose record was just written may also be among the stored files.
        uploaded = sum(upload.bytes for upload in self._uploads if upload.data not in self._stored_data)
        if self._stored_bytes + uploaded + more > self._max_bytes:
            raise StateFull(
                f"The file does not fit: all files together may have {self._max_bytes} bytes. Delete files that are no "
                "longer needed, or have ANYCLASS_MAX_TOTAL_FILE_BYTES raised."
            )

    async def _read(self, key: str) -> None:
        entry = await self._state.get(key)
        if entry is not None:
            record = parse(FileRecord, key, entry.value)
            self.add_stored(key, record.data, record.bytes)
