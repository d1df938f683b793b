"""Under which key a class vector is kept: whatever decides it, and nothing else, goes into the hash."""

import hashlib
from collections.abc import Sequence

from service.prompts import templates_digest


def vector_identity(text_revision: str, numerics: str, templates: Sequence[str]) -> bytes:
    """Join all that decides a class vector beside its label, each part preceded by its length.

    Args:
        text_revision: of the manifest.
        numerics: provider and precision, for the same graph gives other numbers on another device.
        templates: in order.
    """
    return b"".join(_prefixed(part) for part in (text_revision, numerics, templates_digest(templates)))


def class_vector_keys(prefix: str, identity: bytes, labels: Sequence[str]) -> list[str]:
    """Return the key of each normalised label: the prefix and a sha256 over identity and length-prefixed label."""
    base = hashlib.sha256(identity)
    keys = []
    for label in labels:
        digest = base.copy()
        digest.update(_prefixed(label))
        keys.append(prefix + digest.hexdigest())
    return keys


def matrix_digest(identity: bytes, labels: Sequence[str]) -> bytes:
    """Identify the matrix of normalised labels in this order. Labels hold no NUL, so it can part them."""
    return hashlib.sha256(identity + "\0".join(labels).encode()).digest()


def _prefixed(part: str) -> bytes:
    encoded = part.encode()
    return len(encoded).to_bytes(8, "little") + encoded
