"""Write labelled pictures for evaluations in every supported layout."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Labelled = Sequence[tuple[bytes, str]]
"""Encoded pictures, and the class of each."""


def write_folder(path: Path, labelled: Labelled, suffix: str = ".png") -> Path:
    """Write a sub-folder for each class, with every second file one level deeper."""
    for index, (content, label) in enumerate(labelled):
        folder = path / label / "more" if index % 2 else path / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:04d}{suffix}").write_bytes(content)
    return path


def write_parquet(
    path: Path, labelled: Labelled, *, group_rows: int = 3, write_batch_size: int | None = None, **columns: Any
) -> Path:
    """Write the columns that training reads, in several row groups; `columns` adds or replaces some."""
    labels = [label for _, label in labelled]
    table = {"image": [content for content, _ in labelled], "text": labels, "label": labels} | columns
    pq.write_table(
        pa.table(table), path, row_group_size=group_rows, write_batch_size=write_batch_size, use_dictionary=False
    )
    return path


def write_hugging_face(path: Path, labelled: Labelled, names: Sequence[str]) -> Path:
    """Write the columns of a Hugging Face data set: pictures as structures, classes as numbers, named by metadata."""
    table = pa.table(
        {
            "image": pa.array(
                [{"bytes": content, "path": None} for content, _ in labelled],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            ),
            "label": [names.index(label) for _, label in labelled],
        }
    )
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """Write any members, in order."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def webdataset(labelled: Labelled, *, suffix: str = "cls") -> list[tuple[str, bytes]]:
    """Return the members of a shard: a note first, then each picture and its label."""
    members = [("README.txt", b"about these pictures")]
    for index, (content, label) in enumerate(labelled):
        members += [(f"part/{index:04d}.png", content), (f"part/{index:04d}.{suffix}", label.encode())]
    return members
