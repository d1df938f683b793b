"""Stores files as a record and blobs of `PIECE_BYTES`, so that no file is ever whole in memory."""

import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Final

from service.errors import PayloadTooLarge, StateCorrupt
from service.jobs.quota import FileQuota
from service.jobs.records import (
    ALL,
    FILE_DATA,
    FILE_PREFIX,
    FILE_RECORDS,
    FileRecord,
    Purpose,
    dump,
    is_id,
    made_at,
    new_id,
    newest_first,
    parse,
)
from service.state.damage import DamagedEntries
from service.state.protocol import StateStore

PIECE_BYTES: Final = 2**20

_ABANDONED_S: Final = 3600.0
"""Time beyond the longest upload from which content without a record is abandoned; enough for the output of a job."""


class FileWriter:
    """Writes the content of a new file. End it with `FileStore.add` or `discard`.

    Attributes:
        data: the content's name in the store.
        bytes: written so far.
        kept: whether a file may already hold the content, so that it must not be discarded.
    """

    def __init__(self, state: StateStore, max_bytes: int | None, quota: FileQuota | None) -> None:
        """Begin a file. Files that the service itself writes are unlimited: `max_bytes` and `quota` are None."""
        self.data = new_id(FILE_PREFIX, time.time())
        self.bytes = 0
        self.kept = False
        self._state = state
        self._max_bytes = max_bytes
        self._quota = quota
        self._buffer = bytearray()
        self._pieces = 0
        self._digest = hashlib.sha256()
        if quota is not None:
            quota.begin_upload(self)

    @property
    def digest(self) -> str:
        """Return the sha256 of the content so far, in hexadecimal."""
        return self._digest.hexdigest()

    async def write(self, content: bytes) -> None:
        """Append content. Raises PayloadTooLarge, StateFull and StateUnavailable."""
        self.bytes += len(content)
        if self._max_bytes is not None and self.bytes > self._max_bytes:
            raise PayloadTooLarge(f"The file is larger than {self._max_bytes} bytes, the limit of this server.")
        if self._quota is not None:
            await self._quota.check_quickly()
        self._digest.update(content)
        self._buffer += content
        while len(self._buffer) >= PIECE_BYTES:
            await self._flush()

    async def close(self) -> None:
        """Write the buffered rest."""
        if self._buffer:
            await self._flush()

    async def discard(self) -> None:
        """Remove the content, unless it is kept."""
        try:
            if not self.kept:
                await self._state.delete_blobs(f"{FILE_DATA}{self.data}/")
        finally:
            if self._quota is not None:
                self._quota.end_upload(self)

    def stored_as(self, record: FileRecord) -> None:
        """Count the content as the file `record` from now on, which may have existed before."""
        if self._quota is not None:
            self._quota.add_stored(_key(record.id), record.data, record.bytes)
            self._quota.end_upload(self)

    async def _flush(self) -> None:
        piece = bytes(self._buffer[:PIECE_BYTES])
        await self._state.put_blob(_piece(self.data, self._pieces), piece)
        del self._buffer[:PIECE_BYTES]
        self._pieces += 1


class FileStore:
    """Reads, writes and deletes files."""

    def __init__(self, state: StateStore, damaged: DamagedEntries, *, upload_timeout_s: float) -> None:
        """Create a store; no upload takes longer than `upload_timeout_s`."""
        self._state = state
        self._damaged = damaged
        self._abandoned_s = upload_timeout_s + _ABANDONED_S
        self._unrecorded: Mapping[str, int] = {}

    def writer(self, max_bytes: int | None = None, quota: FileQuota | None = None) -> FileWriter:
        """Begin a file."""
        return FileWriter(self._state, max_bytes, quota)

    async def add(
        self, writer: FileWriter, *, file_id: str, name: str, purpose: Purpose, now: float, keep_s: float
    ) -> FileRecord:
        """Turn written content into a file. Returns the existing file, unchanged, if the id is already in use."""
        await writer.close()
        record = FileRecord(
            id=file_id,
            name=name,
            purpose=purpose,
            bytes=writer.bytes,
            created_at=int(now),
            expires_at=int(now + keep_s),
            data=writer.data,
        )
        # Set beforehand: a write that fails may have stored the record or not. If not, `sweep` deletes the content.
        writer.kept = True
        while await self._state.put(_key(file_id), dump(record), expected=None) is None:
            if (existing := await self.get(file_id)) is not None:
                if existing.data != writer.data:
                    writer.kept = False
                    await writer.discard()
                writer.stored_as(existing)
                return existing
        writer.stored_as(record)
        return record

    async def get(self, file_id: str) -> FileRecord | None:
        """Look up a file; return None if it does not exist or the id is malformed."""
        if not is_id(FILE_PREFIX, file_id):
            return None
        return await self._record(_key(file_id))

    async def page(
        self, *, after: str | None, limit: int, ascending: bool = False, purpose: str | None = None
    ) -> tuple[list[FileRecord], bool]:
        """Return up to `limit` files after `after`, newest first unless `ascending`, and whether more follow.

        Skips damaged records.
        """
        keys = await self._state.keys(FILE_RECORDS, limit=ALL)
        if ascending:
            keys.reverse()
        if after is not None:
            keys = [key for key in keys if (key < _key(after) if ascending else key > _key(after))]
        found: list[FileRecord] = []
        for key in keys:
            with self._damaged.skipped("file"):
                record = await self._record(key)
                if record is not None and purpose in (None, record.purpose):
                    if len(found) == limit:
                        return found, True
                    found.append(record)
        return found, False

    async def read(self, record: FileRecord, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the content of bytes `start` to `end`, exclusive. Raises StateCorrupt if a part is missing."""
        end = record.bytes if end is None else min(end, record.bytes)
        while start < end:
            number, offset = divmod(start, PIECE_BYTES)
            piece = await self._state.get_blob(_piece(record.data, number))
            if piece is None or len(piece) <= offset:
                raise StateCorrupt(f"The content of the file {record.id} is incomplete. Send it again.")
            part = piece[offset : offset + end - start]
            start += len(part)
            yield part

    async def delete(self, file_id: str) -> bool:
        """Delete a file; return whether it existed."""
        if not is_id(FILE_PREFIX, file_id):
            return False
        entry = await self._state.get(_key(file_id))
        if entry is None or not await self._state.delete(_key(file_id), expected=entry.version):
            return False
        record = parse(FileRecord, _key(file_id), entry.value)
        await self._state.delete_blobs(f"{FILE_DATA}{record.data}/")
        return True

    async def sweep(self, now: float, in_use: frozenset[str]) -> None:
        """Delete expired files that are not `in_use`, and the content that killed processes left.

        Content without a record goes once it is older than any upload and has not grown since the last sweep. While a
        record is damaged it stays: it may be that file's.
        """
        keys = await self._state.keys(FILE_RECORDS, limit=ALL)
        records: list[FileRecord | None] = []
        for key in keys:
            with self._damaged.skipped("file"):
                records.append(await self._record(key))
        for record in records:
            if record is not None and record.expires_at <= now and record.id not in in_use:
                await self.delete(record.id)
        if len(records) < len(keys):
            return
        known = {record.data for record in records if record is not None}
        pieces = Counter(key.split("/")[2] for key in await self._state.blob_keys(FILE_DATA))
        before, self._unrecorded = self._unrecorded, {data: pieces[data] for data in pieces.keys() - known}
        for data, count in self._unrecorded.items():
            if made_at(data) < now - self._abandoned_s and count == before.get(data):
                await self._state.delete_blobs(f"{FILE_DATA}{data}/")

    async def _record(self, key: str) -> FileRecord | None:
        entry = await self._state.get(key)
        return None if entry is None else parse(FileRecord, key, entry.value)


def _key(file_id: str) -> str:
    return FILE_RECORDS + newest_first(file_id)


def _piece(data: str, number: int) -> str:
    return f"{FILE_DATA}{data}/{number:08}"
