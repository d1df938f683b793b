"""Verify a data set: its inputs are those that it was made from, and its shards follow from them again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from model_export.curation.dataset import read_dataset, versions
from model_export.curation.making import ShardMaker
from model_export.curation.output import Output
from model_export.curation.pieces import InputFile, Piece, file_digest, plan
from model_export.curation.progress import CurationProgress
from model_export.curation.recipe import recorded_curation
from model_export.data.locations import is_url
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError, DataError
from model_export.files import sha256_of

_HERE: Final = LocalDriver()


@dataclass(frozen=True)
class Verified:
    """Result of a verification.

    Attributes:
        shards: number of shards that were made again.
        problems: a line for each input or shard that differs.
        notes: a line for each difference that leaves the rows the same.
    """

    shards: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def verify_dataset(
    folder: Path, progress: CurationProgress, *, only: Sequence[str] = (), driver: Driver = _HERE
) -> Verified:
    """Read every input again, and make shards again.

    Args:
        folder: of the data set.
        progress: of files and shards.
        only: names of the shards to make again; all if it is empty.
        driver: runs the tasks.

    Raises:
        CurationError: the folder holds no data set, or no shard of such a name.
    """
    content = read_dataset(folder)
    records = {record["shard"]: record for record in content["shards"]}
    if unknown := [name for name in only if name not in records]:
        raise CurationError(f"{folder}: has no shard {unknown[0]}; {len(records)} are listed in dataset.json")
    wanted = [records[name] for name in only or records]
    problems: list[str] = []
    curation = recorded_curation(folder, content["recipe"])
    made_by = content["recipe"]["stages"]
    if [stage.name for stage in curation.stages] != [each["name"] for each in made_by]:
        raise CurationError(
            f"{folder}: was made by a command that keeps no settings for this; verify takes what 'curate run' and "
            "'curate match' make"
        )
    for stage, recorded in zip(curation.stages, made_by, strict=True):
        if stage.digest != recorded["digest"]:
            problems.append(f"stage {stage.name}: its rules, its model or its query list are others here")
    intact = _unchanged(folder, content["inputs"], problems, progress, driver)
    pieces = {_key(piece.source): piece for piece in plan(intact, curation.columns, curation.sizes)}
    tasks = [
        replace(pieces[_key(record["source"])], number=int(Path(record["shard"]).stem))
        for record in wanted
        if _key(record["source"]) in pieces
    ]
    again = _Again(ShardMaker(curation.stages, curation.columns, Output(folder)))
    progress.begin("shards", len(tasks))
    notes: list[str] = []
    for piece, digest, same_rows in driver.run(again, tasks, name=lambda each: each.shard):
        shard = f"{piece.shard}.parquet"
        if same_rows is None:
            problems.append(f"{shard}: is missing or cannot be read")
        elif not same_rows or sha256_of(folder / shard) != records[shard]["sha256"]:
            problems.append(f"{shard}: differs from the shard that follows from {piece.file.name}")
        elif digest != records[shard]["sha256"]:
            made, here = content["versions"]["pyarrow"], versions()["pyarrow"]
            notes.append(f"{shard}: has the same rows in other bytes (pyarrow {made} wrote it, here is {here})")
        progress.advance()
    return Verified(len(tasks), tuple(problems), tuple(sorted(notes)))


@dataclass(frozen=True)
class _Again:
    """Makes a shard again in a temporary place, and compares it."""

    maker: ShardMaker

    def __call__(self, piece: Piece) -> tuple[Piece, str, bool | None]:
        """Return the piece, the digest of the new shard, and whether both have the same rows; None without one."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.parquet"
            self.maker.write(piece, path)
            digest = sha256_of(path)
            old = self.maker.output.shard(piece.shard)
            try:
                same = sha256_of(old) == digest or pq.read_table(old).equals(pq.read_table(path))
            except OSError:
                return piece, digest, None
            except ValueError:  # Arrow's errors
                return piece, digest, None
        return piece, digest, same


def _unchanged(
    folder: Path, inputs: Sequence[dict[str, Any]], problems: list[str], progress: CurationProgress, driver: Driver
) -> list[InputFile]:
    """Return the inputs with the bytes that were recorded; add a line for each other one."""
    files = [InputFile(_from_here(folder, each["name"]), each["sha256"]) for each in inputs]
    progress.begin("input files", len(files))
    found = {}
    for name, problem in driver.run(_problem, files, name=lambda file: file.name, threads=True):
        found[name] = problem
        progress.advance()
    problems += [problem for file in files if (problem := found[file.name])]
    return [file for file in files if not found[file.name]]


def _problem(file: InputFile) -> tuple[str, str]:
    """Return the name of a file, and what is wrong with it, or nothing."""
    try:
        changed = file_digest(file.name) != file.digest
    except DataError as error:
        return file.name, str(error)
    return file.name, f"{file.name}: its bytes are not those read" if changed else ""


def _key(source: dict[str, Any]) -> tuple[str, int, int]:
    first, stop = source["row_groups"]
    return source["sha256"], first, stop


def _from_here(folder: Path, name: str) -> str:
    return name if is_url(name) else os.path.normpath(folder / name)
