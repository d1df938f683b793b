"""Under which key a class vector is kept: whatever decides it, and nothing else, goes into the hash."""

import hashlib
from collections.abc import Sequence

from service.model.prompts import templates_digest


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
    sha256 = hashlib.sha256
    return [prefix + sha256(identity + _prefixed(label)).hexdigest() for label in labels]


def labels_digest(labels: Sequence[str]) -> bytes:
    """Identify normalised labels in this order. They hold no NUL, so it can part them."""
    return hashlib.sha256("\0".join(labels).encode()).digest()


def matrix_digest(identity: bytes, labels: bytes) -> bytes:
    """Identify the class vectors of the labels of that `labels_digest`."""
    return hashlib.sha256(identity + labels).digest()


def _prefixed(part: str) -> bytes:
    encoded = part.encode()
    return len(encoded).to_bytes(8, "little") + encoded
