"""Read files of class names: one name a line, WordNet ids with names, or Keras's JSON index of ImageNet."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.errors import DataError
from model_export.evaluation.data.folder import WORDNET_ID

WORDNET_FILES: Final = ("LOC_synset_mapping.txt", "classnames.txt", "imagenet_class_index.json")
"""Files beside the data that may name WordNet ids."""

_PARENTS: Final = 4
"""Levels to search upwards: in ImageNet's own tree the mapping is four above the classes."""

_ID_LINE: Final = re.compile(rf"({WORDNET_ID.pattern})\s+(\S.*)")


@dataclass(frozen=True)
class ClassFile:
    """Classes in order, with their WordNet ids if the file has them."""

    origin: str
    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None


def read_class_file(path: Path) -> ClassFile:
    """Read the classes of a file.

    If an id has several names, such as ``tench, Tinca tinca``, take the first, or all if another class has the same
    first name.

    Raises:
        DataError: the file cannot be read, is empty, or has an empty line between names.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as exc:
        raise DataError(f"{path}: does not exist; give --classes a file with one class a line") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read as UTF-8 text") from exc
    if path.suffix.lower() == ".json":
        return _of_json(path, text)
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise DataError(f"{path}: is empty; write one class a line")
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} is empty; write one class a line, in their order")
    found = [_ID_LINE.fullmatch(line) for line in lines]
    pairs = [(match[1], match[2]) for match in found if match]
    if len(pairs) == len(lines):
        return _with_ids(path, pairs)
    return ClassFile(str(path), tuple(lines))


def find_wordnet_names(path: Path) -> ClassFile | None:
    """Search the data's folder, and those above it, for one of ``WORDNET_FILES``.

    Raises:
        DataError: the file cannot be read or has no ids.
    """
    start = path.absolute()
    for folder in (start, *start.parents[:_PARENTS]):
        for name in WORDNET_FILES:
            if (folder / name).is_file():
                found = read_class_file(folder / name)
                if found.ids is None:
                    raise DataError(
                        f"{folder / name}: does not name WordNet ids; write lines such as 'n01440764 tench'"
                    )
                return found
    return None


def _of_json(path: Path, text: str) -> ClassFile:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{path}: is not JSON") from exc
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return ClassFile(str(path), tuple(content))
    try:
        rows = [content[str(index)] for index in range(len(content))]
        pairs = [(str(wordnet_id), str(name).replace("_", " ")) for wordnet_id, name in rows]
    except (TypeError, KeyError, ValueError) as exc:
        raise DataError(
            f'{path}: must hold a list of names, or an index such as {{"0": ["n01440764", "tench"]}}'
        ) from exc
    if not pairs:
        raise DataError(f"{path}: names no class; write one class a line")
    return _with_ids(path, pairs)


def _with_ids(path: Path, pairs: Sequence[tuple[str, str]]) -> ClassFile:
    ids = tuple(wordnet_id for wordnet_id, _ in pairs)
    if twice := [wordnet_id for wordnet_id, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{path}: names {twice[0]} twice; remove one of the two lines")
    first = [names.partition(",")[0].strip() for _, names in pairs]
    count = Counter(name.casefold() for name in first)
    names = (name if count[name.casefold()] == 1 else names for name, (_, names) in zip(first, pairs, strict=True))
    return ClassFile(str(path), tuple(names), ids)
