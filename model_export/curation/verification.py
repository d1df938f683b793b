"""Verify a data set: its inputs are those that it was made from, and its shards follow from them again."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow.parquet as pq

from model_export.curation.dataset import dataset_digest, read_dataset, versions
from model_export.curation.making import ShardMaker
from model_export.curation.output import DATASET, PARQUET, Output
from model_export.curation.pieces import InputFile, Piece, file_digest, plan
from model_export.curation.planned import Rows
from model_export.curation.progress import CurationProgress
from model_export.curation.recipe_stages import QUERIES_COPY, remade_queries
from model_export.curation.recorded import bundle_named, opened_encoder, recorded_curation, recorded_encoder
from model_export.curation.run import Curation, Prepared, deciding, prepared
from model_export.data.locations import is_url
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError, DataError
from model_export.files import sha256_of

_HERE: Final = LocalDriver()


class Verified(NamedTuple):
    """Result of a verification.

    Attributes:
        shards: number of shards that were made again, or read.
        problems: a line for each input or shard that differs.
        notes: a line for each difference that leaves the rows the same, and for what was not verified.
        remade: the shards were made again; else only their bytes were compared with the recorded digests.
    """

    shards: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    remade: bool = True


def verify_dataset(
    folder: Path,
    progress: CurationProgress,
    *,
    only: Sequence[str] = (),
    driver: Driver = _HERE,
    bundle: Path | None = None,
    threads: int | None = None,
) -> Verified:
    """Read every input again, and make shards again; those that a bundle made only if it is named.

    Args:
        folder: of the data set.
        progress: of files and shards.
        only: names of the shards to make again; all if it is empty.
        driver: runs the tasks.
        bundle: folder of the bundle that the data set was made with.
        threads: of the bundle's engine in each task.

    Raises:
        CurationError: the folder holds no data set, or no shard of such a name; or it was made with another bundle.
        BundleError, ProviderUnavailable, ConfigurationError: the bundle cannot be run here.
    """
    content = read_dataset(folder)
    records = {record["shard"]: record for record in content["shards"]}
    if unknown := [name for name in only if name not in records]:
        raise CurationError(f"{folder}: has no shard {unknown[0]}; {len(records)} are listed in dataset.json")
    problems: list[str] = []
    if content["digest"] != dataset_digest(content):
        problems.append(f"{DATASET}: its digest does not follow from its recipe, inputs and shards")
    wanted = [records[name] for name in only or records]
    recorded, encoder, notes = recorded_encoder(content["recipe"]), None, list[str]()
    if bundle and not recorded:
        raise CurationError(f"{folder}: was made without a bundle; leave --bundle out")
    if recorded and not bundle:
        _unchanged(folder, [*content["sources"], *content["inputs"]], problems, progress, driver)
        problems += _changed_shards(folder, wanted, progress, driver)
        note = f"shards were not made again: they need the bundle {bundle_named(recorded)}; name its folder by --bundle"
        return Verified(len(wanted), tuple(problems), (note,), remade=False)
    if recorded and bundle:
        encoder = opened_encoder(folder, recorded, bundle, threads)
        notes += _engine_notes(recorded, encoder.decides)
    curation = recorded_curation(folder, content["recipe"], driver, encoder)
    known = deciding((*curation.stages, *curation.planned))
    if [stage["name"] for stage in known] != [stage["name"] for stage in content["recipe"]["stages"]]:
        raise CurationError(f"{folder}: has stages without settings; verify takes what the commands of curate make")
    sources = _unchanged(folder, content["sources"], problems, progress, driver)
    if sources and len(sources) == len(content["sources"]) and not only:
        problems += _list_problems(folder, content["recipe"]["settings"], sources, driver, progress)
    intact = _unchanged(folder, content["inputs"], problems, progress, driver)
    if curation.planned and len(intact) < len(content["inputs"]):
        problems.append("shards: were not made again, because a stage looks at all rows; restore the inputs first")
        return Verified(0, tuple(problems), tuple(notes))
    again = _Again(content, wanted, curation)
    if not curation.planned:
        found = again.compare(Prepared(Rows(intact, curation.columns), curation.stages, []), progress)
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".verify-") as work, Output(Path(work)).locked():
            found = again.compare(prepared(curation, intact, Output(Path(work)), progress), progress)
    return found._replace(problems=(*problems, *found.problems), notes=(*notes, *found.notes))


def _changed_shards(
    folder: Path, wanted: Sequence[Mapping[str, Any]], progress: CurationProgress, driver: Driver
) -> list[str]:
    """Return a line for each shard whose bytes are not those that its record names."""
    progress.begin("shards", len(wanted))
    shards = [(folder / record["shard"], record["sha256"]) for record in wanted]
    differing = []
    for name, intact in driver.run(_is_intact, shards, threads=True):
        if not intact:
            differing.append(f"{name}: is missing, or its bytes are not those recorded")
        progress.advance()
    return sorted(differing)


def _is_intact(shard: tuple[Path, str]) -> tuple[str, bool]:
    path, digest = shard
    try:
        return path.name, sha256_of(path) == digest
    except OSError:
        return path.name, False


def _engine_notes(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return a line for each property of the engine that may change its bytes, and is another one here."""
    return [
        f"engine: {name} was {recorded[name]}, here it is {here[name]}"
        for name in ("provider", "precision", "versions")
        if here[name] != recorded[name]
    ]


def _list_problems(
    folder: Path, settings: Mapping[str, Any], sources: Sequence[InputFile], driver: Driver, progress: CurationProgress
) -> list[str]:
    """Make the query list again, and return a line if it differs."""
    digest = remade_queries(folder, settings["queries"], [file.name for file in sources], driver, progress)
    same = digest == settings["match"]["queries"]["sha256"]
    return [] if same else [f"{QUERIES_COPY}: differs from the list that follows from its sources"]


class _Again(NamedTuple):
    """Makes shards of a data set again.

    Attributes:
        content: of `dataset.json`.
        wanted: records of the shards.
        curation: that the data set was made by.
    """

    content: Mapping[str, Any]
    wanted: Sequence[Mapping[str, Any]]
    curation: Curation

    def compare(self, ready: Prepared, progress: CurationProgress) -> Verified:
        """Compare stages and shards with those that follow from the rows before the last step."""
        problems, notes = [], []
        stages = [*(each for step in ready.before for each in step["stages"]), *deciding(ready.stages)]
        for here, recorded in zip(stages, self.content["recipe"]["stages"], strict=True):
            if here["digest"] != recorded["digest"]:
                problems.append(
                    f"stage {here['name']}: its rules, its model or engine, its query list or its plan differ here"
                )
        folder, driver = self.curation.out, self.curation.driver
        digests = {record["shard"]: record["sha256"] for record in self.wanted}
        pieces = plan(ready.rows.files, ready.rows.columns, self.curation.sizes)
        tasks = _tasks(pieces, self.wanted, by_number=bool(ready.before))
        comparison = _Comparison(ShardMaker(ready.stages, ready.rows.columns, Output(folder, self.curation.kind)))
        progress.begin("shards", len(tasks))
        for piece, digest, same_rows in driver.run(comparison, tasks, name=lambda each: each.shard):
            shard = comparison.maker.output.shard(piece.shard).name
            if same_rows is None:
                problems.append(f"{shard}: is missing or cannot be read")
            elif not same_rows or sha256_of(folder / shard) != digests[shard]:
                origin = "the inputs" if ready.before else piece.file.name
                problems.append(f"{shard}: differs from the shard that follows from {origin}")
            elif digest != digests[shard]:
                wrote, reads = self.content["versions"]["pyarrow"], versions()["pyarrow"]
                notes.append(f"{shard}: has the same rows in other bytes (pyarrow {wrote} wrote it, here is {reads})")
            progress.advance()
        return Verified(len(tasks), tuple(problems), tuple(sorted(notes)))


def _tasks(pieces: Sequence[Piece], records: Sequence[Mapping[str, Any]], *, by_number: bool) -> list[Piece]:
    """Return the piece of each record.

    Args:
        pieces: of the rows before the last step.
        records: of shards.
        by_number: the pieces are those of all rows, as when the shards were made; else some inputs may be missing.
    """
    numbers = [int(Path(record["shard"]).stem) for record in records]
    if by_number:
        return [pieces[number] for number in numbers if number < len(pieces)]
    known = {_key(piece.source): piece for piece in pieces}
    keys = [_key(record["source"]) for record in records]
    return [replace(known[key], number=number) for key, number in zip(keys, numbers, strict=True) if key in known]


@dataclass(frozen=True)
class _Comparison:
    """Makes a shard again in a temporary place, and compares it."""

    maker: ShardMaker

    def __call__(self, piece: Piece) -> tuple[Piece, str, bool | None]:
        """Return the piece, the digest of the new shard, and whether both have the same rows; None without one."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard"
            self.maker.write(piece, path)
            digest = sha256_of(path)
            old = self.maker.output.shard(piece.shard)
            try:
                same = sha256_of(old) == digest
                if not same and self.maker.output.kind == PARQUET:
                    same = pq.read_table(old).equals(pq.read_table(path))
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


def _key(source: Mapping[str, Any]) -> tuple[str, int, int]:
    first, stop = source["row_groups"]
    return source["sha256"], first, stop


def _from_here(folder: Path, name: str) -> str:
    return name if is_url(name) else os.path.normpath(folder / name)
