"""Run the stages of a recipe over data: plan, make every shard, describe the whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_export.curation.dataset import provenance, write_dataset
from model_export.curation.making import ShardMaker
from model_export.curation.output import Output, json_bytes, read_json, write_whole, writing
from model_export.curation.pieces import InputColumns, InputFile, Piece, PieceSizes, file_digest, in_order, plan
from model_export.curation.progress import CurationProgress
from model_export.curation.stage import Stage
from model_export.curation.workers import run_tasks
from model_export.data.locations import describe, is_url
from model_export.data.patterns import file_names
from model_export.errors import DataError


@dataclass(frozen=True)
class Curation:
    """A curation to run.

    Attributes:
        data: files, folders and ranges of names, as for training.
        stages: in order.
        out: the folder of the data set.
        columns: names in the data.
        sizes: of pieces and tables.
        notes: more for ``recipe`` in `dataset.json`, such as the query list; decides the data set.
        workers: processes.
        companions: files to copy into the output folder, by their names there.
    """

    data: Sequence[str]
    stages: Sequence[Stage]
    out: Path
    columns: InputColumns = field(default_factory=InputColumns)
    sizes: PieceSizes = field(default_factory=PieceSizes)
    notes: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1
    companions: Mapping[str, Path] = field(default_factory=dict)

    @property
    def recipe(self) -> dict[str, Any]:
        """Return everything but the data that decides the data set."""
        return {
            "stages": [{"name": stage.name, "digest": stage.digest} for stage in self.stages],
            "columns": self.columns._asdict(),
            "sizes": self.sizes._asdict(),
            **self.notes,
        }


def curate(
    curation: Curation, progress: CurationProgress, started: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Make a data set, or the rest of one, and return the content of its `dataset.json`.

    Args:
        curation: stages and data.
        progress: of files and shards.
        started: called with the id of each process.

    Raises:
        CurationError: the folder is in use, or holds something else; or it cannot be written.
        DataError: the data cannot be read.
    """
    names = file_names(curation.data)
    if not names:
        raise DataError("no data: name Parquet or tar files, or folders of them")
    output = Output(curation.out)
    with output.locked():
        output.claim("recipe", curation.recipe)
        for name, source in curation.companions.items():
            with writing(curation.out / name):
                write_whole(curation.out / name, source.read_bytes())
        digests = _digests(output, names, curation.workers, progress)
        files = in_order(names, digests)
        output.claim("inputs", {_beside(output, file.name): file.digest for file in files})
        pieces = plan(files, curation.columns, curation.sizes)
        maker = ShardMaker(curation.stages, curation.columns, output)
        records = []
        progress.begin("shards", len(pieces))
        seen = kept = 0
        for record in run_tasks(maker, pieces, workers=curation.workers, name=_piece_name, started=started):
            records.append(record)
            seen += record["source"]["rows"]
            kept += record["rows"]
            progress.advance(f"{kept:,} of {seen:,} pairs kept")
        named = [InputFile(_beside(output, file.name), file.digest) for file in files]
        content = provenance(curation.recipe, named, records)
        with writing(output.folder):
            write_dataset(output.folder, content)
    return content


def _digests(output: Output, names: Sequence[str], workers: int, progress: CurationProgress) -> dict[str, str]:
    """Return the digest of each file; unchanged files keep the digest from an earlier run."""
    known = read_json(output.digests) or {}
    marks = {name: list(describe(name)) for name in names}
    digests = {name: known[name][1] for name in names if name in known and known[name][0] == marks[name]}
    todo = [name for name in dict.fromkeys(names) if name not in digests]
    progress.begin("input files", len(todo))
    try:
        # Hashing lets other threads run; so threads do, and start at once.
        with ThreadPoolExecutor(workers) as threads:
            for name, digest in zip(todo, threads.map(file_digest, todo), strict=True):
                digests[name] = digest
                progress.advance()
    finally:
        with writing(output.digests):
            write_whole(output.digests, json_bytes({name: [marks[name], digests[name]] for name in digests}))
    return digests


def _piece_name(piece: Piece) -> str:
    return f"{piece.file.name}, shard {piece.shard}"


def _beside(output: Output, name: str) -> str:
    """Return a file's path from the output folder: the same from every working folder."""
    return name if is_url(name) else os.path.relpath(name, output.folder)
