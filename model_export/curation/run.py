"""Run the stages of a recipe over data: plan, make every shard, describe the whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_export.curation.dataset import provenance, write_dataset
from model_export.curation.making import ShardMaker
from model_export.curation.output import Output, json_bytes, read_json, write_whole, writing
from model_export.curation.pieces import InputColumns, InputFile, Piece, PieceSizes, file_digest, in_order, plan
from model_export.curation.progress import CurationProgress
from model_export.curation.stage import Stage
from model_export.data.locations import describe, is_url
from model_export.data.patterns import file_names
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
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
        driver: runs the tasks.
        companions: files to copy into the output folder, by their names there.
    """

    data: Sequence[str]
    stages: Sequence[Stage]
    out: Path
    columns: InputColumns = field(default_factory=InputColumns)
    sizes: PieceSizes = field(default_factory=PieceSizes)
    notes: Mapping[str, Any] = field(default_factory=dict)
    driver: Driver = field(default_factory=LocalDriver)
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


def curate(curation: Curation, progress: CurationProgress) -> dict[str, Any]:
    """Make a data set, or the rest of one, and return the content of its `dataset.json`.

    Args:
        curation: stages and data.
        progress: of files and shards.

    Raises:
        CurationError: the folder is in use, or holds something else; or it cannot be written.
        DataError: the data cannot be read.
        DriverError: a node of the cluster does not see the folder, or processes are killed.
    """
    names = file_names(curation.data)
    if not names:
        raise DataError("no data: name Parquet or tar files, or folders of them")
    output = Output(curation.out)
    with output.locked():
        curation.driver.check_folder(output.folder)
        output.claim("recipe", curation.recipe)
        for name, source in curation.companions.items():
            with writing(curation.out / name):
                write_whole(curation.out / name, source.read_bytes())
        digests = _digests(output, names, curation.driver, progress)
        files = in_order(names, digests)
        output.claim("inputs", {_beside(output, file.name): file.digest for file in files})
        pieces = plan(files, curation.columns, curation.sizes)
        maker = ShardMaker(curation.stages, curation.columns, output)
        records = []
        progress.begin("shards", len(pieces))
        seen = kept = 0
        for record in curation.driver.run(maker, pieces, name=_piece_name):
            records.append(record)
            seen += record["source"]["rows"]
            kept += record["rows"]
            progress.advance(f"{kept:,} of {seen:,} pairs kept")
        named = [InputFile(_beside(output, file.name), file.digest) for file in files]
        content = provenance(curation.recipe, named, records)
        with writing(output.folder):
            write_dataset(output.folder, content)
    return content


def _digests(output: Output, names: Sequence[str], driver: Driver, progress: CurationProgress) -> dict[str, str]:
    """Return the digest of each file; unchanged files keep the digest from an earlier run."""
    known = read_json(output.digests) or {}
    marks = {name: list(describe(name)) for name in names}
    digests = {name: known[name][1] for name in names if name in known and known[name][0] == marks[name]}
    todo = [name for name in dict.fromkeys(names) if name not in digests]
    progress.begin("input files", len(todo))
    try:
        for name, digest in driver.run(_named_digest, todo, threads=True):
            digests[name] = digest
            progress.advance()
    finally:
        with writing(output.digests):
            write_whole(output.digests, json_bytes({name: [marks[name], digests[name]] for name in digests}))
    return digests


def _named_digest(name: str) -> tuple[str, str]:
    return name, file_digest(name)


def _piece_name(piece: Piece) -> str:
    return f"{piece.file.name}, shard {piece.shard}"


def _beside(output: Output, name: str) -> str:
    """Return a file's path from the output folder: the same from every working folder."""
    return name if is_url(name) else os.path.relpath(name, output.folder)
