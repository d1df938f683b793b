"""Label sets in the state store: a small head under the name, and everything large in blobs that never change.

A set's content belongs to one writing of it, its version: blobs are written first, then the head is changed by
compare-and-set. So whatever happens to a writer, a reader finds an old set or a new one and never a mixture.

    label-sets/NAME                               head (a value)
    label-sets/NAME/VERSION/definition            labels, descriptions, templates (a blob, as are the following)
    label-sets/NAME/VERSION/vectors/NUMERICS/N    class vectors of the Nth thousand labels, float32 `[labels, dim]`
    label-sets/NAME/VERSION/failed/NUMERICS       why the class vectors cannot be computed
"""

import asyncio
import time
import uuid
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import StateCorrupt
from service.label_sets.definition import Definition, definition_from_json
from service.model.arrays import STORED_FLOAT32, Vectors
from service.state.protocol import StateStore

BLOCK: Final = 1_024
"""Labels whose vectors are computed and kept together."""

_ROOT: Final = "label-sets/"
_UNIT_TOLERANCE: Final = 1e-3
_VERSION_CHARS: Final = 32


class Head(BaseModel):
    """What is known of a label set without reading its content."""

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
        """How many blocks its class vectors have."""
        return -(-self.labels // BLOCK)

    def rows(self, block: int) -> int:
        """Labels in a block."""
        return min(BLOCK, self.labels - block * BLOCK)


@dataclass(frozen=True, slots=True)
class StoredHead:
    """A head, and the token by which the store knows this writing of it."""

    head: Head
    token: str


@dataclass(frozen=True, slots=True)
class VectorsId:
    """Whose class vectors: a writing of a set, and all that decides numbers, as a digest in hexadecimal."""

    name: str
    version: str
    numerics: str

    @property
    def prefix(self) -> str:
        """Where its blocks are."""
        return f"{_content(self.name, self.version)}vectors/{self.numerics}/"

    @property
    def failure(self) -> str:
        """Where it says why there are none."""
        return f"{_content(self.name, self.version)}failed/{self.numerics}"

    def key(self, block: int) -> str:
        """Where a block is."""
        return f"{self.prefix}{block:06}"


def new_version() -> str:
    """Name a new writing of a set: milliseconds since 1970, then randomness."""
    return f"{time.time_ns() // 1_000_000:012x}{uuid.uuid4().hex}"[:_VERSION_CHARS]


def age_s(version: str) -> float:
    """Seconds since a version was named; 0 for what is none."""
    try:
        return time.time() - int(version[:12], 16) / 1_000
    except ValueError:
        return 0.0


class LabelSetRecords:
    """Reads and writes label sets. Raises, in all its methods, StateUnavailable and StateCorrupt."""

    def __init__(self, store: StateStore) -> None:
        self._store = store

    async def head(self, name: str) -> StoredHead | None:
        """Look up a set."""
        entry = await self._store.get(_ROOT + name)
        if entry is None:
            return None
        try:
            head = Head.model_validate_json(entry.value)
        except ValidationError:
            raise _corrupt(_ROOT + name) from None
        return StoredHead(head, entry.version)

    async def names(self, *, after: str = "", limit: int) -> list[str]:
        """The first names that follow `after`, in order."""
        keys = await self._store.keys(_ROOT, after=_ROOT + after if after else "", limit=limit)
        return [key.removeprefix(_ROOT) for key in keys]

    async def write_head(self, name: str, head: Head, *, expected: str | None) -> bool:
        """Make a new set or a new version known, if the head still has the token `expected`; whether it had."""
        value = head.model_dump_json().encode()
        return await self._store.put(_ROOT + name, value, expected=expected) is not None

    async def delete_head(self, name: str, *, expected: str) -> bool:
        """Make a set unknown, if its head still has the token `expected`; whether it had."""
        return await self._store.delete(_ROOT + name, expected=expected)

    async def write_definition(self, name: str, version: str, content: bytes) -> None:
        """Keep a definition's JSON."""
        await self._store.put_blob(f"{_content(name, version)}definition", content)

    async def definition(self, name: str, version: str) -> Definition | None:
        """Look up a definition; None once this version is gone."""
        key = f"{_content(name, version)}definition"
        content = await self._store.get_blob(key)
        if content is None:
            return None
        try:
            return await asyncio.to_thread(definition_from_json, content)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _corrupt(key) from None

    async def blocks(self, which: VectorsId) -> set[int]:
        """Which blocks are there."""
        keys = await self._store.blob_keys(which.prefix)
        return {int(tail) for key in keys if (tail := key.removeprefix(which.prefix)).isdigit()}

    async def write_block(self, which: VectorsId, block: int, vectors: Vectors) -> None:
        """Keep float32 `[labels, dim]`."""
        await self._store.put_blob(which.key(block), vectors.astype(STORED_FLOAT32, copy=False).tobytes())

    async def block(self, which: VectorsId, block: int, *, rows: int, dim: int) -> Vectors | None:
        """Look up a block → float32 `[rows, dim]`, finite and of unit length."""
        content = await self._store.get_blob(which.key(block))
        if content is None:
            return None
        if len(content) != rows * dim * STORED_FLOAT32.itemsize:
            raise _corrupt(which.key(block))
        vectors: Vectors = np.frombuffer(content, STORED_FLOAT32).astype(np.float32, copy=False).reshape(rows, dim)
        # Not so for NaN either.
        if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) < _UNIT_TOLERANCE).all():
            raise _corrupt(which.key(block))
        return vectors

    async def write_failure(self, which: VectorsId, reason: str) -> None:
        """Say that there will be no vectors."""
        await self._store.put_blob(which.failure, reason.encode())

    async def failure(self, which: VectorsId) -> str | None:
        """Why there will be no vectors, if so."""
        reason = await self._store.get_blob(which.failure)
        return None if reason is None else reason.decode("utf-8", "replace")

    async def forgive(self, name: str, version: str) -> None:
        """Let what failed be tried again."""
        await self._store.delete_blobs(f"{_content(name, version)}failed/")

    async def drop(self, name: str, version: str) -> None:
        """Delete all blobs of a version."""
        await self._store.delete_blobs(_content(name, version))

    async def contents(self) -> set[tuple[str, str]]:
        """Name and version of all content that is there, also of what no head names."""
        keys = await self._store.blob_keys(_ROOT)
        parts = (key.removeprefix(_ROOT).split("/") for key in keys)
        return {(name, version) for name, version, *_ in parts}


def _content(name: str, version: str) -> str:
    return f"{_ROOT}{name}/{version}/"


def _corrupt(key: str) -> StateCorrupt:
    return StateCorrupt(f"The stored entry {key} is damaged; delete the label set and write it anew.")
