"""The stored form of values and blobs: the content after its digest, so that damage is always detected."""

import hashlib
import uuid
from typing import Final

from service.errors import StateCorrupt

_MAGIC: Final = b"anyclass-state-1\n"
_DIGEST_BYTES: Final = hashlib.sha256().digest_size
SEAL_BYTES: Final = len(_MAGIC) + _DIGEST_BYTES
"""Bytes before the content."""


def seal(content: bytes) -> bytes:
    """Prefix `content` with the magic line and its sha256."""
    return _MAGIC + hashlib.sha256(content).digest() + content


def unseal(key: str, sealed: bytes) -> bytes:
    """Return the content. Raises StateCorrupt for a wrong prefix or digest."""
    content = sealed[SEAL_BYTES:]
    if sealed[: len(_MAGIC)] != _MAGIC or sealed[len(_MAGIC) : SEAL_BYTES] != hashlib.sha256(content).digest():
        raise corrupt(key)
    return content


def corrupt(key: str) -> StateCorrupt:
    """Return the error for a damaged entry."""
    return StateCorrupt(f"The stored entry {key} is damaged; restore it, or remove it from the state store.")


def new_version() -> str:
    """Return a version that no other write has."""
    return uuid.uuid4().hex
