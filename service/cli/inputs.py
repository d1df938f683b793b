"""Inputs of the commands: image files, folders and patterns, labels, label sets."""

import glob
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from service.model.prompts import is_template

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"),
)
"""Ends of names by which a folder's images are found; their content decides the format."""
_NAMED: Final = 5
"""Files passed over that are named; further ones are counted."""
_HEIC_SUFFIXES: Final = (".heic", ".heif")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
_WHITE_SPACE: Final = " \t\r\n\ufeff"


class InputError(Exception):
    """An input of the command is unusable. The text is for people."""


class FoundImages(NamedTuple):
    """Image files, and the files of folders that were passed over because their names are not those of images."""

    images: list[str]
    passed_over: list[str]


def find_images(arguments: Sequence[str]) -> FoundImages:
    """Return the image files that `arguments` name, in their order, and the files passed over.

    A folder yields the images in and below it, sorted by name and recognised by their suffix; its other files are
    passed over, and hidden files and links to folders are skipped. A pattern (``*``, ``?``, ``[…]``, ``**``) yields the
    files that it matches. Anything else is taken for a file, even if it does not exist. Raises `InputError` for a
    folder or a pattern that yields nothing, for an unreadable folder, for a URL, and for ``-``.
    """
    images: list[str] = []
    passed_over: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):  # noqa: PTH112 - a string stays as it was typed: ./a.jpg
            found: list[str] = []
            others: list[str] = []
            for path in _files_below(argument):
                (found if path.lower().endswith(IMAGE_SUFFIXES) else others).append(path)
            if not found:
                reason = describe_passed_over(others) or f"supported: {', '.join(IMAGE_SUFFIXES)}"
                raise InputError(f"no images in the folder {argument} ({reason})")
            passed_over += others
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            found = _matches(Path(argument))
            if not found:
                raise InputError(f"no file matches {argument}")
        else:
            _check_is_no_stream(argument)
            found = [argument]
        images += found
    return FoundImages(images, passed_over)


def describe_passed_over(files: Sequence[str]) -> str:
    """Return a line that counts the files passed over and names the first of them; empty if none was."""
    if not files:
        return ""
    count = "1 file" if len(files) == 1 else f"{len(files):,} files"
    more = f", and {len(files) - _NAMED:,} more" if len(files) > _NAMED else ""
    heic = any(file.lower().endswith(_HEIC_SUFFIXES) for file in files)
    remedy = "; HEIC is not read: export it as JPEG" if heic else ""
    return f"{count} passed over: {', '.join(files[:_NAMED])}{more}{remedy}"


def read_labels(commas: Sequence[str], file: Path | None) -> list[str]:
    """Return comma-separated labels, then those of a file, one a line. Raises `InputError`.

    Lines that begin with ``#`` are comments.
    """
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
    if len(given) == 1 and not is_template(given[0]):
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
    """Return lines without white space around them; empty lines, and comments that begin with ``#``, are left out."""
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line and not line.startswith("#")]


def _check_is_no_stream(argument: str) -> None:
    """Raise `InputError` if the argument is neither a file nor the name of one."""
    if os.path.lexists(argument):
        return
    if argument == "-":
        raise InputError("no image is read from the standard input (-); save it to a file and give the file's name")
    if _URL.fullmatch(argument):
        raise InputError(f"{argument} is a URL, and images are read from files only; download it first: curl -O URL")


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


def _files_below(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted((each for each in listing if not each.name.startswith(".")), key=lambda each: each.name)
    except OSError as exc:
        raise InputError(f"cannot read the folder {folder}: {exc.strerror or exc}") from exc
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(entry.path)
        elif not entry.is_dir():
            yield entry.path
