"""The folder of a curated data set: shards that are whole or absent, one recipe, one writer.

    records/recipe.json       stages and settings, written first
    records/inputs.json       digests of the input files
    00000.parquet, …          shards; or tars, each with an index for training
    records/00000.json, …     digest, counts and source of each shard, written behind it
    records/stages.json       stages after a look at all rows
    work/1/, …                shards before stages that need such a look, each a folder like this one
    dataset.json              the whole, when every shard is finished

A kill at any moment leaves finished shards, and at most a partial file, which the next run removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from model_export.errors import CurationError
from model_export.files import locked, sha256_of, sync

DATASET: Final = "dataset.json"
PARQUET: Final = "parquet"
TAR: Final = "tar"
"""Kinds of shards, as their suffixes."""
RECORDS: Final = "records"
_SHOWN: Final = 5
_PARTIAL: Final = ".partial"
_READ_AT_ONCE: Final = 8 * 2**20


class Output:
    """An output folder. It can be pickled; only the process that drives the others locks it."""

    def __init__(self, folder: Path, kind: str = PARQUET) -> None:
        self.folder = folder
        self.kind = kind

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, keep other runs out of it, and remove what a killed run left half written.

        Raises:
            CurationError: another run uses it, or it cannot be written.
        """
        with writing(self.folder):
            (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
        refusal = f"{self.folder}: another run writes to this folder; wait for its end, or name another folder"
        with ExitStack() as held:
            with writing(self.folder):
                held.enter_context(locked(self.folder, CurationError(refusal)))
                for partial in [*self.folder.glob(f"*{_PARTIAL}"), *self.records.glob(f"*{_PARTIAL}")]:
                    partial.unlink(missing_ok=True)
            yield

    def claim(self, part: str, decides: Mapping[str, Any]) -> None:
        """Write down what decides the shards, or compare it with what the folder was begun with.

        Args:
            part: ``recipe`` or ``inputs``.
            decides: the same for each run that may go on in this folder; values that JSON can hold.

        Raises:
            CurationError: the folder holds shards of something else; the message names the difference.
        """
        path = self.records / f"{part}.json"
        if (found := read_json(path)) is None:
            for kind, name in ((PARQUET, "Parquet"), (TAR, "tar")):
                if any(self.folder.glob(f"*.{kind}")):
                    raise CurationError(f"{self.folder}: holds {name} files of something else; name an empty folder")
            write_whole(path, json_bytes(decides))
            return
        decides = json.loads(json.dumps(decides))
        if differing := [key for key in sorted({*decides, *found}) if decides.get(key) != found.get(key)]:
            more = f" and {len(differing) - _SHOWN:,} more" if len(differing) > _SHOWN else ""
            raise CurationError(
                f"{self.folder}: holds a data set of other {part} (different: {', '.join(differing[:_SHOWN])}{more}); "
                "name another folder, or delete this one"
            )

    def shard(self, name: str) -> Path:
        """Return the path of a shard."""
        return self.folder / f"{name}.{self.kind}"

    def finished(self, name: str, source: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the record of a shard that is whole and was made from this source; None if it must be made."""
        record = read_json(self.records / f"{name}.json")
        if record is None or record.get("source") != source:
            return None
        try:
            intact = sha256_of(self.shard(name)) == record.get("sha256")
        except OSError:
            return None
        return record if intact else None

    def commit(self, name: str, partial: Path, source: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
        """Give a shard its name, then write its record, and return the record.

        Args:
            name: of the shard.
            partial: the file, complete, from `partial_beside`.
            source: decides the shard's rows.
            figures: more for the record.
        """
        digest, size = sha256_of(partial), partial.stat().st_size
        _publish(partial, self.shard(name))
        record = {"shard": self.shard(name).name, "sha256": digest, "bytes": size, "source": source, **figures}
        write_whole(self.records / f"{name}.json", json_bytes(record))
        return dict(record)

    @property
    def digests(self) -> Path:
        """Return the file of the digests of input files, which spares the next run to read them all again."""
        return self.records / "digests.json"

    @property
    def records(self) -> Path:
        """Return the folder of the records."""
        return self.folder / RECORDS


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of this block to write into one line.

    Raises:
        CurationError: the disk is full, or the system refuses.
    """
    try:
        yield
    except OSError as error:
        raise CurationError(
            f"{path}: cannot be written ({error.strerror or error}); correct that and run the same command again: "
            "finished shards are kept"
        ) from error


@contextmanager
def partial_beside(path: Path) -> Iterator[Path]:
    """Yield the name of a new file in the same folder, and remove the file if it still has that name at the end."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(OSError):
            Path(name).unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears when it is whole and on the disk."""
    with partial_beside(path) as partial:
        partial.write_bytes(content)
        _publish(partial, path)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return an indented JSON object; the same content gives the same bytes."""
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _publish(partial: Path, path: Path) -> None:
    """Sync a file and give it its name."""
    partial.chmod(0o644)
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object; None if it is absent or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
