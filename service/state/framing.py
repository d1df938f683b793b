"""How a value or a blob stands in a store: after its own digest, so that a damaged one is never taken for sound."""

import hashlib
import uuid
from typing import Final

from service.errors import StateCorrupt

_MAGIC: Final = b"anyclass-state-1\n"
_DIGEST_BYTES: Final = hashlib.sha256().digest_size


def seal(content: bytes) -> bytes:
    """Put the magic line and the sha256 of `content` before it."""
    return _MAGIC + hashlib.sha256(content).digest() + content


def unseal(key: str, sealed: bytes) -> bytes:
    """Return the content. Raises StateCorrupt, naming `key`."""
    start = len(_MAGIC) + _DIGEST_BYTES
    content = sealed[start:]
    if sealed[: len(_MAGIC)] != _MAGIC or sealed[len(_MAGIC) : start] != hashlib.sha256(content).digest():
        raise corrupt(key)
    return content


def corrupt(key: str) -> StateCorrupt:
    """The error for an entry that cannot be used."""
    return StateCorrupt(f"The stored entry {key} is damaged; restore it, or remove it from the state store.")


def new_version() -> str:
    """A version that no other writing has."""
    return uuid.uuid4().hex
