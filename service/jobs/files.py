"""Files in the state store: a record, and the content in blobs of `PIECE_BYTES` each, so never whole in memory."""

import hashlib
import time
from collections.abc import AsyncIterator
from typing import Final

from service.errors import PayloadTooLarge, StateCorrupt
from service.jobs.quota import Room
from service.jobs.records import (
    ALL,
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
from service.state.protocol import StateStore

PIECE_BYTES: Final = 2**20

_DATA: Final = "files/data/"
_ABANDONED_S: Final = 24 * 3600.0
"""Content without a record is of an upload that is going on; one this old was broken off."""


class FileWriter:
    """Content that is coming in. It is a file only after `FileStore.add`; else `discard` it.

    Attributes:
        data: what the content is called in the store.
        bytes: how many there are so far.
        kept: whether a file may hold the content already, so that it must not be discarded.
    """

    def __init__(self, state: StateStore, max_bytes: int | None, room: Room | None) -> None:
        """`max_bytes` and `room` None: no limit, for what the service itself writes."""
        self.data = new_id(FILE_PREFIX, time.time())
        self.bytes = 0
        self.kept = False
        self._state = state
        self._max_bytes = max_bytes
        self._room = room
        self._buffer = bytearray()
        self._pieces = 0
        self._digest = hashlib.sha256()
        if room is not None:
            room.enter(self)

    @property
    def digest(self) -> str:
        """The sha256 of the content so far."""
        return self._digest.hexdigest()

    async def write(self, content: bytes) -> None:
        """Add to the end. Raises PayloadTooLarge, StateFull and StateUnavailable."""
        self.bytes += len(content)
        if self._max_bytes is not None and self.bytes > self._max_bytes:
            raise PayloadTooLarge(f"The file is larger than {self._max_bytes} bytes, the limit of this server.")
        if self._room is not None:
            await self._room.ensure_still()
        self._digest.update(content)
        self._buffer += content
        while len(self._buffer) >= PIECE_BYTES:
            await self._flush()

    async def close(self) -> None:
        """Write what is left."""
        if self._buffer:
            await self._flush()

    async def discard(self) -> None:
        """Remove the content, unless it is kept."""
        try:
            if not self.kept:
                await self._state.delete_blobs(f"{_DATA}{self.data}/")
        finally:
            if self._room is not None:
                self._room.leave(self)

    def became(self, record: FileRecord) -> None:
        """It is the content of a file now, or there was that file already."""
        if self._room is not None:
            self._room.keep(_key(record.id), record.data, record.bytes)
            self._room.leave(self)

    async def _flush(self) -> None:
        piece = bytes(self._buffer[:PIECE_BYTES])
        await self._state.put_blob(_piece(self.data, self._pieces), piece)
        del self._buffer[:PIECE_BYTES]
        self._pieces += 1


class FileStore:
    """All files."""

    def __init__(self, state: StateStore) -> None:
        self._state = state

    def writer(self, max_bytes: int | None = None, room: Room | None = None) -> FileWriter:
        """Begin a file."""
        return FileWriter(self._state, max_bytes, room)

    async def add(
        self, writer: FileWriter, *, file_id: str, name: str, purpose: Purpose, now: float, keep_s: float
    ) -> FileRecord:
        """Make a file of what was written. Where one of that id is there already, it stays and is returned."""
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
        # Said before it is so: should the writing fail in its middle, the record may be there or not. Where it is not,
        # `sweep` finds the content.
        writer.kept = True
        while await self._state.put(_key(file_id), dump(record), expected=None) is None:
            if (there := await self.get(file_id)) is not None:
                if there.data != writer.data:
                    writer.kept = False
                    await writer.discard()
                writer.became(there)
                return there
        writer.became(record)
        return record

    async def get(self, file_id: str) -> FileRecord | None:
        """Look up a file; None for what is not even an id."""
        if not is_id(FILE_PREFIX, file_id):
            return None
        entry = await self._state.get(_key(file_id))
        return None if entry is None else parse(FileRecord, _key(file_id), entry.value)

    async def page(
        self, *, after: str | None, limit: int, ascending: bool = False, purpose: str | None = None
    ) -> tuple[list[FileRecord], bool]:
        """Up to `limit` files that follow `after`, the newest first unless `ascending`, and whether there are more."""
        keys = await self._state.keys(FILE_RECORDS, limit=ALL)
        if ascending:
            keys.reverse()
        if after is not None:
            keys = [key for key in keys if (key < _key(after) if ascending else key > _key(after))]
        found: list[FileRecord] = []
        for key in keys:
            entry = await self._state.get(key)
            if entry is None:
                continue
            record = parse(FileRecord, key, entry.value)
            if purpose in (None, record.purpose):
                if len(found) == limit:
                    return found, True
                found.append(record)
        return found, False

    async def read(self, record: FileRecord, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """The content from byte `start` to before `end`. Raises StateCorrupt where a part of it is missing."""
        end = record.bytes if end is None else min(end, record.bytes)
        while start < end:
            number, offset = divmod(start, PIECE_BYTES)
            piece = await self._state.get_blob(_piece(record.data, number))
            if piece is None or len(piece) <= offset:
                raise StateCorrupt(f"The content of the file {record.id} is incomplete; send it again.")
            part = piece[offset : offset + end - start]
            start += len(part)
            yield part

    async def delete(self, file_id: str) -> bool:
        """Delete a file; whether there was one."""
        if not is_id(FILE_PREFIX, file_id):
            return False
        entry = await self._state.get(_key(file_id))
        if entry is None or not await self._state.delete(_key(file_id), expected=entry.version):
            return False
        record = parse(FileRecord, _key(file_id), entry.value)
        await self._state.delete_blobs(f"{_DATA}{record.data}/")
        return True

    async def sweep(self, now: float, in_use: frozenset[str]) -> None:
        """Delete files that have expired and are not `in_use`, and what broken uploads left."""
        known = set()
        for key in await self._state.keys(FILE_RECORDS, limit=ALL):
            entry = await self._state.get(key)
            if entry is None:
                continue
            record = parse(FileRecord, key, entry.value)
            known.add(record.data)
            if record.expires_at <= now and record.id not in in_use:
                await self.delete(record.id)
        for data in {key.split("/")[2] for key in await self._state.blob_keys(_DATA)} - known:
            if made_at(data) < now - _ABANDONED_S:
                await self._state.delete_blobs(f"{_DATA}{data}/")


def _key(file_id: str) -> str:
    return FILE_RECORDS + newest_first(file_id)


def _piece(data: str, number: int) -> str:
    return f"{_DATA}{data}/{number:08}"
