"""Files that name classes: one name a line, WordNet ids with their names, or Keras's JSON index of ImageNet."""

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
"""Where the names of WordNet ids are looked for, beside the data."""

_PARENTS: Final = 4
"""Folders upwards; in ImageNet's own tree the mapping lies four above the classes."""

_ID_LINE: Final = re.compile(rf"({WORDNET_ID.pattern})\s+(\S.*)")


@dataclass(frozen=True)
class ClassFile:
    """Classes in their order, and the WordNet id of each where the file says it."""

    origin: str
    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None


def read_class_file(path: Path) -> ClassFile:
    """Read one.

    Of several names for an id, ``tench, Tinca tinca``, the first is taken, and all of them where another class has the
    same first name.

    Raises:
        DataError: it cannot be read, holds no names, or an empty line between names.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as exc:
        raise DataError(f"{path}: no such file; --classes takes a file with one class a line") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: cannot be read as text in UTF-8") from exc
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
    """Look for one of ``WORDNET_FILES`` in the folder of the data, and in those above it.

    Raises:
        DataError: there is one, and it cannot be read or says no ids.
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
            f'{path}: is neither a list of names nor an index such as {{"0": ["n01440764", "tench"]}}'
        ) from exc
    if not pairs:
        raise DataError(f"{path}: names no class")
    return _with_ids(path, pairs)


def _with_ids(path: Path, pairs: Sequence[tuple[str, str]]) -> ClassFile:
    ids = tuple(wordnet_id for wordnet_id, _ in pairs)
    if twice := [wordnet_id for wordnet_id, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{path}: names {twice[0]} twice")
    first = [names.partition(",")[0].strip() for _, names in pairs]
    count = Counter(name.casefold() for name in first)
    names = (name if count[name.casefold()] == 1 else names for name, (_, names) in zip(first, pairs, strict=True))
    return ClassFile(str(path), tuple(names), ids)
