"""Cache keys of class vectors: hashes of all inputs that determine a vector, and of nothing else."""

import hashlib
from collections.abc import Sequence
from typing import Final

from service.model.prompts import templates_digest

_STEP: Final = 512
_FORMAT: Final = b"2"
"""Version of the form of stored values (`vector_cache/redis_cache.py`), so that no version reads another's."""


def vector_identity(text_revision: str, numerics: str, templates: Sequence[str]) -> bytes:
    """Join all inputs of a class vector except its label, each preceded by its length.

    Args:
        numerics: provider and precision; the same graph gives different numbers on another device.
        templates: in order.
    """
    return b"".join(_prefixed(part) for part in (text_revision, numerics, templates_digest(templates)))


def class_vector_keys(prefix: str, identity: bytes, labels: Sequence[str]) -> list[str]:
    """Return the key of each normalised label: the prefix and a sha256 over format, identity and prefixed label."""
    sha256 = hashlib.sha256
    start = _FORMAT + identity
    return [prefix + sha256(start + _prefixed(label)).hexdigest() for label in labels]


def labels_digest(labels: Sequence[str]) -> bytes:
    """Return a digest of normalised labels in this order. Labels contain no NUL, so NUL can separate them."""
    return joined_digest(labels)


def joined_digest(labels: Sequence[str], start: str = "", errors: str = "strict") -> bytes:
    """Return the sha256 of `start` and the labels with NULs between them, made in steps that are short for threads."""
    digest = hashlib.sha256(start.encode())
    for at in range(0, len(labels), _STEP):
        digest.update(("\0" * bool(at) + "\0".join(labels[at : at + _STEP])).encode("utf-8", errors))
    return digest.digest()


def matrix_digest(identity: bytes, labels: bytes) -> bytes:
    """Return a digest of the class vectors of labels, given by their `labels_digest`."""
    return hashlib.sha256(identity + labels).digest()


def _prefixed(part: str) -> bytes:
    encoded = part.encode()
    return len(encoded).to_bytes(8, "little") + encoded
