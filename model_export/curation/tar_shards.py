"""Write a shard as a WebDataset tar; the same rows give the same bytes.

A pair has three members: ``key.json`` with the columns but image and text, ``key.jpg`` (or png, webp) by the content of
the image, and ``key.txt``, which a pair without text lacks. The key is the number of the row within the shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from model_export.curation.matches import Counts
from model_export.curation.stage import IMAGE, QUERIES, TEXT
from model_export.errors import CurationError

_PNG: Final = b"\x89PNG\r\n\x1a\n"


def write_tar(path: Path, tables: Iterator[pa.Table]) -> int:
    """Write tables of pairs, and return the number of rows.

    Raises:
        CurationError: the pairs have no pictures, a picture is in a format that tars do not hold, or a column holds
            values that JSON does not.
    """
    rows = 0
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for table in tables:
            if IMAGE not in table.column_names:
                raise CurationError('tars need pictures, and these pairs have none; leave output.format at "parquet"')
            for batch in table.to_batches(max_chunksize=256):
                for row in batch.to_pylist():
                    _add(tar, f"{rows:08d}", row)
                    rows += 1
    return rows


def queries_in_tar(path: Path, queries: int) -> Counts:
    """Return the number of pairs of each query in a shard, int64 ``[queries]``."""
    found = np.zeros(queries, np.int64)
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.endswith(".json") else None
            if content is not None:
                np.add.at(found, np.array(json.load(content).get(QUERIES, []), np.int64), 1)
    return found


def _add(tar: tarfile.TarFile, key: str, row: dict[str, Any]) -> None:
    image, text = row.pop(IMAGE), row.pop(TEXT)
    _write(tar, f"{key}.json", _json(row))
    _write(tar, f"{key}.{_suffix(image, row)}", image)
    if text is not None:
        _write(tar, f"{key}.txt", text.encode())


def _json(row: dict[str, Any]) -> bytes:
    try:
        return json.dumps(row, sort_keys=True, ensure_ascii=False).encode()
    except TypeError as error:
        raise CurationError(
            f'a column cannot be written into a tar ({error}); drop it, or leave output.format at "parquet"'
        ) from error


def _suffix(image: bytes, row: dict[str, Any]) -> str:
    """Return the suffix of a picture by its first bytes."""
    if image.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if image.startswith(_PNG):
        return "png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    raise CurationError(
        f"pair {row.get('id')}: its picture is neither JPEG, PNG nor WebP, which tars hold; drop such pictures, or "
        'leave output.format at "parquet"'
    )


def _write(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file; its owner, its mode and its time are always the same."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))
