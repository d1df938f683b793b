"""Remembers label lists that were checked, so that repeated lists are neither normalised nor checked again."""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from service.concurrency import MANY, Wanted, run_off_loop
from service.labels.cache_keys import joined_digest, labels_digest
from service.model.prompts import normalise_labels

_MANY_CHARS: Final = 2**20
"""Characters from which the hash of a list would block the event loop."""
_FEW_CHARS: Final = 2**14
_SHORT_CHARS: Final = 200
"""Characters of a label whose marks are brought into their order at once; the time grows with the square."""
_ENTRY_BYTES: Final = 500
"""Approximate memory of an entry without its labels."""


@dataclass(frozen=True, slots=True)
class CheckedLabels:
    """Normalised labels in the order of the request, and their digest for cache keys."""

    labels: tuple[str, ...]
    digest: bytes


class KnownLabels:
    """Checks label lists and keeps the most recently used ones. Belongs to one event loop."""

    def __init__(self, *, max_labels: int, max_chars: int, max_bytes: int = 32 * 2**20) -> None:
        """Create it with the limits of `normalise_labels`, and room for lists of `max_bytes` in total."""
        self._max_labels = max_labels
        self._max_chars = max_chars
        self._max_bytes = max_bytes
        self._bytes = 0
        # One thread: several would keep the interpreter's lock among them, and the event loop waiting.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anyclass-labels")
        self._lists: OrderedDict[bytes, tuple[CheckedLabels, int]] = OrderedDict()

    async def check(self, labels: Sequence[str]) -> CheckedLabels:
        """Normalise and check the labels of a request.

        Raises:
            TooManyLabels: before any work on the labels.
            InvalidLabels: see `normalise_labels`.
        """
        if not 0 < len(labels) <= self._max_labels:
            return self._checked(labels, Wanted())
        longest, chars = max(map(len, labels)), sum(map(len, labels))
        if longest > self._max_chars:
            with Wanted() as wanted:
                return await run_off_loop(MANY, lambda: self._checked(labels, wanted), self._thread)
        key = await run_off_loop(chars, lambda: _raw_key(labels), self._thread, many=_MANY_CHARS)
        found = self._lists.get(key)
        if found is not None:
            self._lists.move_to_end(key)
            return found[0]
        short = longest <= _SHORT_CHARS and chars <= _FEW_CHARS
        with Wanted() as wanted:
            count = len(labels) if short else MANY
            checked = await run_off_loop(count, lambda: self._checked(labels, wanted), self._thread)
        self._keep(key, checked)
        return checked

    def _checked(self, labels: Sequence[str], wanted: Wanted) -> CheckedLabels:
        normalised = normalise_labels(
            labels, max_labels=self._max_labels, max_chars=self._max_chars, check=wanted.check
        )
        return CheckedLabels(normalised, labels_digest(normalised))

    def _keep(self, key: bytes, checked: CheckedLabels) -> None:
        # Counts every string in full, although a normalised label is often the same object as the request's.
        size = _ENTRY_BYTES + sys.getsizeof(checked.labels) + sum(map(sys.getsizeof, checked.labels))
        if key in self._lists or size > self._max_bytes:
            return
        self._lists[key] = (checked, size)
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._bytes -= self._lists.popitem(last=False)[1][1]


def _raw_key(labels: Sequence[str]) -> bytes:
    """Hash labels as a client wrote them.

    Lists that pass the checks contain no NUL, so the label count and the joined text are unambiguous for them.
    """
    return joined_digest(labels, f"{len(labels)}\0", "surrogatepass")
