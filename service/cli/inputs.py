"""Inputs of the commands: image files, folders and patterns, labels, label sets."""

import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_WHITE_SPACE: Final = " \t\r\n\ufeff"


class InputError(Exception):
    """An input of the command is unusable. The text is for people."""


def find_images(arguments: Sequence[str]) -> list[str]:
    """Return the image files that `arguments` name, in their order.

    A folder yields the images in and below it, sorted by name and recognised by their suffix; hidden files and links to
    folders are skipped. A pattern (``*``, ``?``, ``[…]``, ``**``) yields the files that it matches. Anything else is
    taken for a file, even if it does not exist. Raises `InputError` for a folder or a pattern that yields nothing, and
    for an unreadable folder.
    """
    images: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):  # noqa: PTH112 - a string stays as it was typed: ./a.jpg
            found = list(_images_below(argument))
            if not found:
                raise InputError(f"no images in the folder {argument} (supported: {', '.join(IMAGE_SUFFIXES)})")
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            found = _matches(Path(argument))
            if not found:
                raise InputError(f"no file matches {argument}")
        else:
            found = [argument]
        images += found
    return images


def read_labels(commas: Sequence[str], file: Path | None) -> list[str]:
    """Return comma-separated labels, then those of a file, one a line. Raises `InputError`."""
    labels = [label.strip() for text in commas for label in text.split(",") if label.strip()]
    return labels if file is None else labels + _lines(read_text(file))


def read_label_set(commas: Sequence[str], file: Path | None) -> dict[str, Any]:
    """Return the request body of a label set, from comma-separated labels and a file of text or JSON.

    JSON is a list of labels, or an object as in the HTTP API. Raises `InputError`.
    """
    labels: list[Any] = list(read_labels(commas, None))
    if file is None:
        return {"labels": labels}
    text = read_text(file)
    try:
        content = json.loads(text.strip(_WHITE_SPACE))
    except ValueError as exc:
        if file.suffix.lower() == ".json":
            raise InputError(f"{file} is not JSON: {exc}") from exc
        content = None
    if isinstance(content, dict):
        given = content.get("labels")
        return {**content, "labels": labels + given} if isinstance(given, list) else content
    if isinstance(content, list):
        return {"labels": labels + content}
    return {"labels": labels + _lines(text)}


def parse_templates(given: Sequence[str]) -> str | tuple[str, ...]:
    """Return the name of a template set, or templates."""
    if not given:
        return "default"
    if len(given) == 1 and "{}" not in given[0]:
        return given[0]
    return tuple(given)


def read_text(file: Path) -> str:
    """Return the text of a file, or of the standard input for ``-``. Raises `InputError`."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as exc:
        raise InputError(f"cannot read {file}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"cannot read {file}: it is not UTF-8 text") from exc


def read_at_most(path: str, limit: int) -> bytes | None:
    """Return the bytes of a file, or None if it has more than `limit`. Raises `OSError`."""
    with open(path, "rb") as file:  # noqa: PTH123 - a name may be invalid UTF-8
        content = file.read(limit + 1)
    return None if len(content) > limit else content


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _matches(pattern: Path) -> list[str]:
    """Return matching files. ``**`` follows no links to folders; only a pattern with a dot finds hidden files."""
    parts = pattern.parts
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:fixed]), parts[fixed:]
    wants_hidden = any(part.startswith(".") for part in rest)
    try:
        return sorted(
            str(path)
            for path in root.glob(str(Path(*rest)))
            if (wants_hidden or not _is_hidden(path.relative_to(root))) and not path.is_dir()
        )
    except (OSError, ValueError) as exc:
        raise InputError(f"cannot search for {pattern}: {exc}") from exc


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _images_below(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted((each for each in listing if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as exc:
        raise InputError(f"cannot read the folder {folder}: {exc.strerror or exc}") from exc
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(entry.path)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir():
            yield entry.path
