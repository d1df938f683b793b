"""Removes EXIF that cannot be read from an AVIF."""

import re
from typing import Final

_EXIF_ITEM: Final = re.compile(rb"(infe(?:\x02.{3}.{4}|\x03.{3}.{6}))Exif", re.DOTALL)
"""An item's entry: kind, version and flags, number, protection, type (ISO/IEC 14496-12, 8.11.6)."""


def without_exif(data: bytes) -> bytes:
    """Return the AVIF with its EXIF renamed, so that decoders pass over it. Its orientation is kept elsewhere."""
    return _EXIF_ITEM.sub(rb"\1skip", data)
