"""Name the curated data sets that files belong to, by the digests in their ``dataset.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from model_export.data.locations import is_url
from model_export.data.patterns import file_names
from model_export.errors import DataError

_DATASET: Final = "dataset.json"


def curated_digests(names: Sequence[str]) -> list[str]:
    """Return the digest of each curated data set that has one of these files, in order.

    Files at URLs, and those in a folder without ``dataset.json``, are of no curated set.

    Args:
        names: files, ranges of names, and folders, as `opening.open_pairs` takes them.

    Raises:
        DataError: a file is not a shard of the set in its folder, or has another size; a ``dataset.json`` is damaged.
    """
    digests: dict[Path, str] = {}
    shards: dict[Path, dict[str, int]] = {}
    for name in file_names(names):
        path = Path(name)
        if is_url(name) or not (path.parent / _DATASET).exists():
            continue
        if path.parent not in digests:
            digests[path.parent], shards[path.parent] = _read(path.parent / _DATASET)
        _check(path, shards[path.parent])
    for folder in (Path(name) for name in names if Path(name) in digests):
        if missing := [shard for shard in shards[folder] if not (folder / shard).exists()]:
            raise DataError(f"{folder / missing[0]}: is missing; run the curation again, which restores it")
    return list(dict.fromkeys(digests.values()))


def _read(path: Path) -> tuple[str, dict[str, int]]:
    """Return the digest of a data set, and the size of each of its shards in bytes."""
    try:
        content: Any = json.loads(path.read_bytes())
        return str(content["digest"]), {str(each["shard"]): int(each["bytes"]) for each in content["shards"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no record of a curated data set; run the curation again") from error


def _check(path: Path, sizes: dict[str, int]) -> None:
    if path.name not in sizes:
        raise DataError(f"{path}: is not among the shards of {path.parent / _DATASET}; remove it from the folder")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: no such file; run the curation again") from error
    if size != sizes[path.name]:
        raise DataError(
            f"{path}: has {size:,} bytes, and {_DATASET} says {sizes[path.name]:,}: it was changed after curation; "
            "run the curation again, which restores it"
        )
