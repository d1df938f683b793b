"""The sizes that have a name, of every family."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from model_export.errors import SourceError
from model_export.families.family import NamedSize
from model_export.families.table import FAMILIES


def named_size(name: str) -> NamedSize:
    """Find a size by its name or an alias; ``ViT-L-14-336``, ``ViT-L/14@336px`` and ``vit-l-14-336`` are the same.

    Raises:
        SourceError: no size has the name, or several that differ in capitals only (ViT-g/14 and ViT-G/14 are two).
    """
    key = _key(name)
    found = _SPELLINGS.get(key) or _SPELLINGS_FOLDED.get(key.casefold(), ())
    if len(found) == 1:
        return SIZES[found[0]]
    near = found or _near(key)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise SourceError(f"{name!r} names no size; {suggestion}`anyclass-export list` shows every one")


def published_hint(name: str) -> str:
    """Return the end of a message for a name that is no source: the hub id of the size of that name, if it has one."""
    try:
        size = named_size(name)
    except SourceError:
        return ""
    ids = [alias for alias in size.aliases if "/" in alias]
    return f"; {size.name} names a size, whose published weights are {ids[0]}" if ids else ""


SIZES: Final[Mapping[str, NamedSize]] = MappingProxyType(
    {size.name: size for family in FAMILIES.values() for size in family.sizes}
)
"""By name."""


def _key(name: str) -> str:
    key = name.strip()
    for separator in "/@_ ":
        key = key.replace(separator, "-")
    return key.removesuffix("px")


def _spellings() -> Iterator[tuple[str, str]]:
    for size in SIZES.values():
        for spelling in (size.name, *size.aliases):
            yield _key(spelling), size.name


def _grouped(pairs: Iterator[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for key, name in pairs:
        groups[key] = tuple(dict.fromkeys((*groups.get(key, ()), name)))
    return groups


_SPELLINGS: Final = _grouped(_spellings())
_SPELLINGS_FOLDED: Final = _grouped((key.casefold(), name) for key, name in _spellings())


def _near(key: str) -> tuple[str, ...]:
    close = difflib.get_close_matches(key.casefold(), _SPELLINGS_FOLDED, n=3, cutoff=0.6)
    return tuple(dict.fromkeys(name for match in close for name in _SPELLINGS_FOLDED[match]))
