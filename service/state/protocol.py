"""What a store of durable state can do: versioned values with compare-and-set, and immutable blobs beside them."""

import re
from dataclasses import dataclass
from typing import Final, Protocol

_MAX_KEY_CHARS: Final = 512
_SEGMENT: Final = r"[a-z0-9][a-z0-9._-]{0,199}"
_KEY: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX: Final = re.compile(rf"(?:{_SEGMENT}/)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the version it has: an opaque token that no other writing of the key ever had."""

    value: bytes
    version: str


class StateStore(Protocol):
    """A durable store, shared by processes.

    A key is one or more parts with `/` between them, each of `a-z 0-9 . _ -` and beginning with a letter or a digit.
    A prefix is such parts, each followed by `/`, or empty.

    A method that writes has made its change durable when it returns. Where it raises it has changed nothing, but for a
    connection that breaks in its middle: then either may be true. All methods raise

    * StateUnavailable: the store cannot be reached, is full, or does not allow it; `lasting` where `check` was False;
    * StateCorrupt: what is stored under the key was not written by a store; the detail names the key.
    """

    async def check(self) -> bool:
        """Whether there is a store at all; False where none was asked for and what takes its place cannot be used.

        Raises ConfigurationError for a store that cannot keep its promise; logs where that cannot be seen.
        """
        ...

    async def get(self, key: str) -> Entry | None:
        """Look up a value."""
        ...

    async def put(self, key: str, value: bytes, *, expected: str | None) -> str | None:
        """Write a value if the key's version is still `expected`, None meaning that there is no value.

        Returns the new version, or None where the version was another: nothing has changed then.
        """
        ...

    async def delete(self, key: str, *, expected: str) -> bool:
        """Delete a value if its version is still `expected`; whether it was."""
        ...

    async def keys(self, prefix: str, *, after: str = "", limit: int) -> list[str]:
        """The first `limit` keys of values under `prefix` that follow `after`, in the order of their bytes."""
        ...

    async def put_blob(self, key: str, blob: bytes) -> None:
        """Write a blob; a key is used for one content only."""
        ...

    async def get_blob(self, key: str) -> bytes | None:
        """Look up a blob."""
        ...

    async def blob_keys(self, prefix: str) -> list[str]:
        """All keys of blobs under `prefix`, in the order of their bytes."""
        ...

    async def delete_blobs(self, prefix: str) -> None:
        """Delete the blobs under `prefix`."""
        ...

    async def close(self) -> None:
        """Let go of threads and connections."""
        ...


def check_key(key: str) -> None:
    """Raise ValueError for what is not a key: a mistake of the program, never of a client."""
    if len(key) > _MAX_KEY_CHARS or not _KEY.fullmatch(key):
        raise ValueError("not a key of the state store")


def check_prefix(prefix: str) -> None:
    """Raise ValueError for what is not a prefix."""
    if len(prefix) > _MAX_KEY_CHARS or not _PREFIX.fullmatch(prefix):
        raise ValueError("not a prefix of the state store")
