"""Label lists that were checked before: one that comes again is neither normalised nor checked again."""

import asyncio
import hashlib
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.labels.cache_keys import labels_digest
from service.model.prompts import normalise_labels

_MANY: Final = 1_024
"""Labels from which on checking them is left to a thread."""

_ENTRY_BYTES: Final = 500
"""What an entry takes beside its labels, about."""


@dataclass(frozen=True, slots=True)
class CheckedLabels:
    """Normalised labels in the order of the request, and the digest that stands for them in cache keys."""

    labels: tuple[str, ...]
    digest: bytes


class KnownLabels:
    """Checks label lists, and keeps those used last by a hash of what clients wrote. Belongs to one event loop."""

    def __init__(self, *, max_labels: int, max_chars: int, max_bytes: int = 32 * 2**20) -> None:
        """`max_labels` and `max_chars` as for `normalise_labels`; lists of `max_bytes` in all are kept."""
        self._max_labels = max_labels
        self._max_chars = max_chars
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lists: OrderedDict[bytes, tuple[CheckedLabels, int]] = OrderedDict()

    async def check(self, labels: Sequence[str]) -> CheckedLabels:
        """Normalise and check the labels of a request.

        Raises:
            TooManyLabels: before anything is computed from them.
            InvalidLabels: as `normalise_labels`.
        """
        if not 0 < len(labels) <= self._max_labels:
            return self._checked(labels)
        key = _raw_key(labels)
        found = self._lists.get(key)
        if found is not None:
            self._lists.move_to_end(key)
            return found[0]
        checked = await asyncio.to_thread(self._checked, labels) if len(labels) >= _MANY else self._checked(labels)
        self._keep(key, checked)
        return checked

    def _checked(self, labels: Sequence[str]) -> CheckedLabels:
        normalised = normalise_labels(labels, max_labels=self._max_labels, max_chars=self._max_chars)
        return CheckedLabels(normalised, labels_digest(normalised))

    def _keep(self, key: bytes, checked: CheckedLabels) -> None:
        # The strings are counted in full, though a request's own are often the same objects.
        size = _ENTRY_BYTES + sys.getsizeof(checked.labels) + sum(map(sys.getsizeof, checked.labels))
        if key in self._lists or size > self._max_bytes:
            return
        self._lists[key] = (checked, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._lists.popitem(last=False)[1][1]


def _raw_key(labels: Sequence[str]) -> bytes:
    """Hash labels as a client wrote them, whatever they hold.

    No list that passed the checks holds a NUL, so the count of labels and the joined text tell it from any other.
    """
    joined = f"{len(labels)}\0" + "\0".join(labels)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).digest()
