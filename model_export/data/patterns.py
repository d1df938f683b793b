"""Names of several files in one: ranges in braces."""

from __future__ import annotations

import re
from typing import Final

from model_export.errors import DataError

_RANGE: Final = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_MOST_FILES: Final = 100_000


def expand_ranges(pattern: str) -> list[str]:
    """Expand ``{000..009}`` as a shell would.

    Raises:
        DataError: the range is empty or too long.
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = (int(bound) for bound in found.groups())
    if not 0 <= last - first < _MOST_FILES:
        raise DataError(f"{pattern}: {found[0]} must count upwards, to {_MOST_FILES:,} files at most")
    width = len(found[1])
    names = (f"{pattern[: found.start()]}{i:0{width}d}{pattern[found.end() :]}" for i in range(first, last + 1))
    return [each for name in names for each in expand_ranges(name)]
