"""Files of a run that are there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_export.errors import SourceError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a file beside ``path`` to write to; at the block's end it takes that name, after it has reached the disk.

    A kill at any moment leaves what was at ``path``, or all that was written. An exception leaves what was there.
    """
    partial = path.with_name(path.name + ".partial")
    yield partial
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object for people and programs, the same bytes for the same content."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read(path: Path, *, hint: str) -> bytes:
    """Read a file of a source.

    Raises:
        SourceError: it is not there (``hint`` says what may be wrong), or the system refuses.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is not there; {hint}") from exc
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc


def decoded(content: bytes, path: Path) -> str:
    """Decode a file's text.

    Raises:
        SourceError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path}: is not text in UTF-8") from exc
