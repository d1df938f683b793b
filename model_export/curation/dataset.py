"""``dataset.json``: the provenance of a curated data set."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from model_export.curation.output import DATASET, json_bytes, read_json, write_whole
from model_export.curation.pieces import InputFile
from model_export.curation.stage import digest_of
from model_export.errors import CurationError

_FORMAT: Final = 1


def provenance(
    recipe: Mapping[str, Any],
    inputs: Sequence[InputFile],
    steps: Sequence[Mapping[str, Any]],
    sources: Sequence[InputFile] = (),
) -> dict[str, Any]:
    """Describe a data set.

    Args:
        recipe: settings and digest of each stage, and of the query list.
        inputs: in the order of the plan.
        steps: of `run.run_steps`; the last one has the data set's own shards.
        sources: files that the query list was made of.
    """
    shards = steps[-1]["shards"]
    recipe = {**recipe, "stages": [stage for step in steps for stage in step["stages"]]}
    content = {
        "format": _FORMAT,
        "recipe": recipe,
        "inputs": _listed(inputs),
        "sources": _listed(sources),
        "rows": sum(shard["rows"] for shard in shards),
        "stages": [*steps[0]["counts"], *(each for step in steps[1:] for each in step["counts"][1:])],
        "shards": shards,
        "before": [{"stages": step["stages"], "shards": step["shards"]} for step in steps[:-1]],
        "versions": versions(),
    }
    return {"digest": dataset_digest(content), **content}


def dataset_digest(content: Mapping[str, Any]) -> str:
    """Return the digest of a data set: of its recipe, the bytes of its inputs, and the bytes of its shards."""
    decides = {
        "recipe": content["recipe"],
        "inputs": [file["sha256"] for file in content["inputs"]],
        "shards": [[shard["shard"], shard["sha256"]] for shard in content["shards"]],
    }
    return digest_of("dataset", content["format"], decides)


def _listed(files: Sequence[InputFile]) -> list[dict[str, str]]:
    return [{"name": file.name, "sha256": file.digest} for file in files]


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
