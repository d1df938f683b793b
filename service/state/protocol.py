"""The interface of state stores: versioned values with compare-and-set, and immutable blobs."""

import re
from dataclasses import dataclass
from typing import Final, Protocol

_MAX_KEY_CHARS: Final = 512
_SEGMENT: Final = r"[a-z0-9][a-z0-9._-]{0,199}"
_KEY: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX: Final = re.compile(rf"(?:{_SEGMENT}/)*")


@dataclass(frozen=True, slots=True)
class VersionedValue:
    """A value and its version: an opaque token that no other write of the key ever has."""

    value: bytes
    version: str


class StateStore(Protocol):
    """A durable store, shared by processes.

    A key is one or more parts separated by `/`. A part consists of `a-z 0-9 . _ -` and begins with a letter or a digit.
    A prefix is empty, or such parts, each followed by `/`.

    A write is durable when its method returns. If the method raises, nothing has changed, unless the connection broke
    meanwhile: then the change may or may not have been made. All methods raise

    * StateUnavailable: the store cannot be reached, is full or refuses access; `lasting` if `check` returned False;
    * StateCorrupt: the stored bytes were not written by a store; the detail names the key.
    """

    async def check(self) -> bool:
        """Return whether the store is usable; False if none is configured and the fallback cannot be used.

        Raises ConfigurationError if the store is not durable; logs a warning if that cannot be determined.
        """
        ...

    async def get(self, key: str) -> VersionedValue | None:
        """Look up a value."""
        ...

    async def put(self, key: str, value: bytes, *, expected: str | None) -> str | None:
        """Write a value if the key's version is still `expected`; None means that the key has no value.

        Returns the new version, or None without a change if the version differs.
        """
        ...

    async def delete(self, key: str, *, expected: str) -> bool:
        """Delete a value if its version is still `expected`; return whether it was."""
        ...

    async def keys(self, prefix: str, *, after: str = "", limit: int) -> list[str]:
        """Return the first `limit` keys of values under `prefix` that follow `after`, in byte order."""
        ...

    async def put_blob(self, key: str, blob: bytes) -> None:
        """Write a blob. A key must not be used again for different content."""
        ...

    async def get_blob(self, key: str) -> bytes | None:
        """Look up a blob."""
        ...

    async def blob_keys(self, prefix: str) -> list[str]:
        """Return all keys of blobs under `prefix`, in byte order."""
        ...

    async def blob_bytes(self, prefix: str) -> int:
        """Return the size of all blobs under `prefix` together, in bytes."""
        ...

    async def delete_blobs(self, prefix: str) -> None:
        """Delete the blobs under `prefix`."""
        ...

    async def prove_writable(self) -> None:
        """Write a little, and leave nothing of it. Raises StateUnavailable for a full or read-only store."""
        ...

    async def close(self) -> None:
        """Release threads and connections."""
        ...


def check_key(key: str) -> None:
    """Raise ValueError for an invalid key: a bug of the caller, never a client's mistake."""
    if len(key) > _MAX_KEY_CHARS or not _KEY.fullmatch(key):
        raise ValueError("not a key of the state store")


def check_prefix(prefix: str) -> None:
    """Raise ValueError for an invalid prefix."""
    if len(prefix) > _MAX_KEY_CHARS or not _PREFIX.fullmatch(prefix):
        raise ValueError("not a prefix of the state store")
