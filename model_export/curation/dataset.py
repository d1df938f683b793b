"""``dataset.json``: the provenance of a curated data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from model_export.curation.making import total_counts
from model_export.curation.output import DATASET, json_bytes, read_json, write_whole
from model_export.curation.pieces import InputFile
from model_export.curation.stage import digest_of
from model_export.errors import CurationError

_FORMAT: Final = 1


def provenance(
    recipe: Mapping[str, Any], inputs: Sequence[InputFile], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Describe a data set.

    Args:
        recipe: settings and digest of each stage, and of the query list.
        inputs: in the order of the plan.
        records: of the shards, in any order.
    """
    shards = sorted((dict(record) for record in records), key=lambda record: str(record["shard"]))
    decides = {
        "recipe": recipe,
        "inputs": [file.digest for file in inputs],
        "shards": [[shard["shard"], shard["sha256"]] for shard in shards],
    }
    return {
        "format": _FORMAT,
        "digest": digest_of("dataset", _FORMAT, decides),
        "recipe": recipe,
        "inputs": [{"name": file.name, "sha256": file.digest} for file in inputs],
        "rows": sum(shard["rows"] for shard in shards),
        "stages": total_counts(shards),
        "shards": shards,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that may change bytes: of shards (pyarrow) or of texts (Unicode)."""
    return {"anyclass": version("anyclass"), "pyarrow": str(pa.__version__), "unicode": unicodedata.unidata_version}


def write_dataset(folder: Path, content: Mapping[str, Any]) -> None:
    """Write ``dataset.json``."""
    write_whole(folder / DATASET, json_bytes(content))


def read_dataset(folder: Path) -> dict[str, Any]:
    """Read ``dataset.json``.

    Raises:
        CurationError: the folder has none, or one of another format.
    """
    content = read_json(folder / DATASET)
    if content is None:
        raise CurationError(f"{folder}: has no {DATASET}; run the curation to its end")
    if content.get("format") != _FORMAT:
        raise CurationError(f"{folder}: {DATASET} has format {content.get('format')}; this version reads {_FORMAT}")
    return content
