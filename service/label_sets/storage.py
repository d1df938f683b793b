"""Stores label sets in the state store: a small head under the name, and the content in immutable blobs.

Every write of a set is a new version with its own blobs: they are written first, then the head is changed by
compare-and-set. So readers find the old or the new set, never a mixture, even if a writer is killed.

    label-sets/NAME                               head (a value)
    label-sets/NAME/VERSION/definition            labels, descriptions, templates (a blob, as are the following)
    label-sets/NAME/VERSION/vectors/NUMERICS/N    class vectors of the Nth block of labels, float32 `[labels, dim]`
    label-sets/NAME/VERSION/failed/NUMERICS       the reason why class vectors cannot be computed
"""

import time
import uuid
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import StateCorrupt
from service.label_sets.definition import Definition, definition_from_json
from service.label_sets.thread import in_thread
from service.model.arrays import STORED_FLOAT32, Vectors, of_unit_length
from service.state.framing import corrupt
from service.state.protocol import StateStore

BLOCK: Final = 1_024
"""Number of labels whose vectors are computed and stored together."""

_ROOT: Final = "label-sets/"
_VERSION_CHARS: Final = 32


class Head(BaseModel):
    """The small record of a label set, readable without its content."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_version: int = 1
    version: str
    digest: str
    labels: int
    texts: int
    templates: str | list[str]
    written: float
    """Seconds since 1970."""

    @property
    def blocks(self) -> int:
        """Return the number of blocks of its class vectors."""
        return -(-self.labels // BLOCK)

    def rows(self, block: int) -> int:
        """Return the number of labels in a block."""
        return min(BLOCK, self.labels - block * BLOCK)


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head, and the store's version token of it for compare-and-set."""

    head: Head
    token: str


@dataclass(frozen=True, slots=True)
class VectorsId:
    """Identifies class vectors: name and version of a set, and a hexadecimal digest of all inputs of the numbers."""

    name: str
    version: str
    numerics: str

    @property
    def prefix(self) -> str:
        """Return the key prefix of its blocks."""
        return f"{_content(self.name, self.version)}vectors/{self.numerics}/"

    @property
    def failure(self) -> str:
        """Return the key of the reason for a failure."""
        return f"{_content(self.name, self.version)}failed/{self.numerics}"

    def key(self, block: int) -> str:
        """Return the key of a block."""
        return f"{self.prefix}{block:06}"


def new_version() -> str:
    """Return a new version: milliseconds since 1970 in hexadecimal, then random digits."""
    return f"{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex}"[:_VERSION_CHARS]


def age_s(version: str) -> float:
    """Return the age of a version in seconds; 0 for a malformed one."""
    try:
        return time.time() - int(version[:12], 16) / 1_000
    except ValueError:
        return 0.0


class LabelSetStorage:
    """Reads and writes label sets. All methods raise StateUnavailable and StateCorrupt."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def head(self, name: str) -> StoredHead | None:
        """Look up the head of a set."""
        entry = await self._store.get(_ROOT + name)
        if entry is None:
            return None
        try:
            head = Head.model_validate_json(entry.value)
        except ValidationError:
            raise corrupt(_ROOT + name) from None
        return StoredHead(head, entry.version)

    async def names(self, *, after: str = "", limit: int) -> list[str]:
        """Return the first `limit` names that follow `after`, in order."""
        keys = await self._store.keys(_ROOT, after=_ROOT + after if after else "", limit=limit)
        return [key.removeprefix(_ROOT) for key in keys]

    async def write_head(self, name: str, head: Head, *, expected: str | None) -> bool:
        """Write a head if the stored one still has the token `expected`; return whether it had."""
        value = head.model_dump_json().encode()
        return await self._store.put(_ROOT + name, value, expected=expected) is not None

    async def delete_head(self, name: str, *, expected: str) -> bool:
        """Delete a head if it still has the token `expected`; return whether it had."""
        return await self._store.delete(_ROOT + name, expected=expected)

    async def write_definition(self, name: str, version: str, content: bytes) -> None:
        """Write the JSON of a definition."""
        await self._store.put_blob(f"{_content(name, version)}definition", content)

    async def definition(self, name: str, version: str) -> Definition | None:
        """Look up a definition; return None if its version was deleted."""
        key = f"{_content(name, version)}definition"
        content = await self._store.get_blob(key)
        if content is None:
            return None
        try:
            return await in_thread(lambda: definition_from_json(content))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _corrupt(key) from None

    async def blocks(self, which: VectorsId) -> set[int]:
        """Return the numbers of the stored blocks."""
        keys = await self._store.blob_keys(which.prefix)
        return {int(tail) for key in keys if (tail := key.removeprefix(which.prefix)).isdigit()}

    async def write_block(self, which: VectorsId, block: int, vectors: Vectors) -> None:
        """Write a block, float32 `[labels, dim]`."""
        await self._store.put_blob(which.key(block), vectors.astype(STORED_FLOAT32, copy=False).tobytes())

    async def block(self, which: VectorsId, block: int, *, rows: int, dim: int) -> Vectors | None:
        """Look up a block → float32 `[rows, dim]`, finite and of unit length; None if it is missing."""
        content = await self._store.get_blob(which.key(block))
        if content is None:
            return None
        if len(content) != rows * dim * STORED_FLOAT32.itemsize:
            raise _corrupt(which.key(block))
        vectors: Vectors = np.frombuffer(content, STORED_FLOAT32).astype(np.float32, copy=False).reshape(rows, dim)
        if not of_unit_length(vectors).all():
            raise _corrupt(which.key(block))
        return vectors

    async def write_failure(self, which: VectorsId, reason: str) -> None:
        """Store the reason why the vectors cannot be computed."""
        await self._store.put_blob(which.failure, reason.encode())

    async def failure(self, which: VectorsId) -> str | None:
        """Return the reason why the vectors cannot be computed, or None."""
        reason = await self._store.get_blob(which.failure)
        return None if reason is None else reason.decode("utf-8", "replace")

    async def clear_failure(self, name: str, version: str) -> None:
        """Delete the reasons for failures, so that computing is tried again."""
        await self._store.delete_blobs(f"{_content(name, version)}failed/")

    async def delete_content(self, name: str, version: str) -> None:
        """Delete all blobs of a version."""
        await self._store.delete_blobs(_content(name, version))

    async def delete_unless_current(self, name: str, *versions: str) -> None:
        """Delete all blobs of each version that is not the current one."""
        stored = await self.head(name)
        for version in versions:
            if stored is None or stored.head.version != version:
                await self.delete_content(name, version)

    async def contents(self) -> set[tuple[str, str]]:
        """Return name and version of all stored content, including content without a head."""
        keys = await self._store.blob_keys(_ROOT)
        parts = (key.removeprefix(_ROOT).split("/") for key in keys)
        return {(name, version) for name, version, *_ in parts}


def _content(name: str, version: str) -> str:
    return f"{_ROOT}{name}/{version}/"


def _corrupt(key: str) -> StateCorrupt:
    return StateCorrupt(f"The stored entry {key} is damaged. Delete the label set and create it again.")
