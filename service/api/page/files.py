"""The files of the page, read once: HTML, style, scripts, example pictures."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

INDEX: Final = "index.html"

_FOLDER: Final = Path(__file__).parent / "files"
_MEDIA_TYPES: Final = {
    # Browsers refuse a module script of any other type, so the machine's table of types is not asked.
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent.

    Attributes:
        version: digest of the content, for its entity tag.
    """

    content: bytes
    media_type: str
    version: str


@cache
def page_files() -> Mapping[str, PageFile]:
    """Return the files by name, about 120 kB together."""
    return MappingProxyType({path.name: _read(path) for path in sorted(_FOLDER.iterdir())})


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, _MEDIA_TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:32])
