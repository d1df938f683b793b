"""Read files of a source, and write files completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

from model_export.errors import SourceError, messages, problems

_Model = TypeVar("_Model", bound=BaseModel)


class Section(BaseModel):
    """Part of a file of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; after the block, sync the file and rename it to ``path``.

    A kill at any moment leaves the old file or the complete new one. An exception leaves the old file.
    """
    partial = path.with_name(path.name + ".partial")
    yield partial
    sync(partial)
    partial.replace(path)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, refusal: Exception) -> Iterator[None]:
    """Keep other processes out of an existing folder within this block; the lock of a killed one is gone.

    Raises:
        Exception: ``refusal``, if another process holds the folder.
    """
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise refusal from error
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an indented JSON object; the same content gives the same bytes."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read(path: Path, *, hint: str) -> bytes:
    """Read a file of a source.

    Raises:
        SourceError: the file is missing (the message ends with ``hint``), or the system refuses.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is missing; {hint}") from exc
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc


def decoded(content: bytes, path: Path) -> str:
    """Decode a file's text.

    Raises:
        SourceError: the content is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as exc:
        raise SourceError(f"{path}: is not text in UTF-8") from exc


def read_object(path: Path, *, hint: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SourceError: the file is missing (the message ends with ``hint``), or holds something else.
    """
    text = decoded(read(path, hint=hint), path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{path}: is not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise SourceError(f"{path}: must hold a JSON object")
    return content


def checked(model: type[_Model], fields: Mapping[str, Any], path: Path) -> _Model:
    """Validate a file's fields against a pydantic model.

    Raises:
        SourceError: a field is missing or invalid; the message names it.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise SourceError(f"{path}: {problems(exc)}") from exc


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Turn a ValidationError in this block, of values that a file states, into a SourceError that names the file."""
    try:
        yield
    except ValidationError as exc:
        raise SourceError(f"{path}: {messages(exc)}") from exc
