"""Run the stages of a recipe over data: plan, make every shard, describe the whole.

Stages that judge each row by itself run together, in one step. A planned stage begins another step: the rows before it
are written as shards in the folder ``work`` of the data set, which goes when the data set is whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from model_export.curation.dataset import provenance, write_dataset
from model_export.curation.inputs import check_unchanged, input_digests, input_names
from model_export.curation.making import ShardMaker, total_counts
from model_export.curation.output import DATASET, PARQUET, Output, read_json, write_whole, writing
from model_export.curation.pieces import InputColumns, InputFile, Piece, PieceSizes, file_digest, in_order, plan
from model_export.curation.planned import PlannedStage, Rows
from model_export.curation.progress import CurationProgress
from model_export.curation.stage import Stage
from model_export.data.locations import is_url
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.errors import DataError

WORK: Final = "work"
"""Folder of the shards before planned stages, in the folder of the data set."""


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
        planned: stages that follow the others, in order.
        keep_work: keep the shards before planned stages.
        sources: files that the query list was made of.
        kind: of the shards, `output.PARQUET` or `output.TAR`.
    """

    data: Sequence[str]
    stages: Sequence[Stage]
    out: Path
    columns: InputColumns = field(default_factory=InputColumns)
    sizes: PieceSizes = field(default_factory=PieceSizes)
    notes: Mapping[str, Any] = field(default_factory=dict)
    driver: Driver = field(default_factory=LocalDriver)
    companions: Mapping[str, Path] = field(default_factory=dict)
    planned: Sequence[PlannedStage] = ()
    keep_work: bool = False
    sources: Sequence[InputFile] = ()
    kind: str = PARQUET

    @property
    def recipe(self) -> dict[str, Any]:
        """Return everything but the data that decides the data set."""
        return {
            "stages": deciding((*self.stages, *self.planned)),
            "columns": self.columns._asdict(),
            "sizes": self.sizes._asdict(),
            "format": self.kind,
            **self.notes,
        }

    @property
    def steps(self) -> list[Step]:
        """Return the stages cut into steps; every planned stage but the first of all rows begins one."""
        steps = [] if self.planned and not self.stages else [Step(None, self.stages)]
        return [*steps, *(Step(each, ()) for each in self.planned)]


class Step(NamedTuple):
    """Stages that run together.

    Attributes:
        planned: the first one, if it is to be planned.
        stages: the others.
    """

    planned: PlannedStage | None
    stages: Sequence[Stage]

    @property
    def name(self) -> str:
        """Return the names of the stages."""
        return ", ".join([self.planned.name] if self.planned else [stage.name for stage in self.stages])


def begin(curation: Curation) -> None:
    """Claim the output folder, so that costly preparation is not spent on a run that would be refused.

    Raises:
        CurationError: the folder is in use, or holds something else; or it cannot be written.
        DataError: no data are named.
    """
    input_names(curation.data, texts=bool(curation.columns.text))
    output = Output(curation.out, curation.kind)
    with output.locked():
        output.claim("recipe", curation.recipe)


def curate(curation: Curation, progress: CurationProgress) -> dict[str, Any]:
    """Make a data set, or the rest of one, and return the content of its `dataset.json`.

    Args:
        curation: stages and data.
        progress: of files and shards.

    Raises:
        CurationError: the folder is in use, or holds something else; or it cannot be written.
        DataError: the data cannot be read, or are changed meanwhile.
        DriverError: a node of the cluster does not see the folder, or processes are killed.
    """
    names = input_names(curation.data, texts=bool(curation.columns.text))
    output = Output(curation.out, curation.kind)
    with output.locked():
        curation.driver.check_folder(output.folder)
        output.claim("recipe", curation.recipe)
        for name, source in curation.companions.items():
            with writing(curation.out / name):
                write_whole(curation.out / name, source.read_bytes())
        digests = input_digests(output, names, curation.driver, progress)
        files = in_order(names, digests)
        output.claim("inputs", {_beside(output, file.name): file.digest for file in files})
        if not curation.planned or (content := _finished(output, curation.driver, progress)) is None:
            steps = run_steps(curation, files, output, progress)
            check_unchanged(output, names)
            named, sources = (
                [InputFile(_beside(output, file.name), file.digest) for file in each]
                for each in (files, curation.sources)
            )
            content = provenance(curation.recipe, named, steps, sources)
            with writing(output.folder):
                write_dataset(output.folder, content)
        if not curation.keep_work:
            shutil.rmtree(output.folder / WORK, ignore_errors=True)
    return content


def run_steps(
    curation: Curation, files: Sequence[InputFile], output: Output, progress: CurationProgress
) -> list[dict[str, Any]]:
    """Run the steps of a curation, and return the stages with their counts, and the shards, of each.

    Args:
        curation: its own data and folder are not looked at.
        files: of the data, in the order of the plan.
        output: for the shards of the last step; those of the others are written below its folder.
        progress: of passes and shards.
    """
    ready = prepared(curation, files, output, progress)
    if curation.planned:
        output.claim("stages", {"stages": deciding(ready.stages)})
    what = curation.steps[-1].name if ready.before else "shards"
    return [*ready.before, _step_made(output, what, ready, curation, progress)]


class Prepared(NamedTuple):
    """The last step of a curation, before its shards are made.

    Attributes:
        rows: that it takes.
        stages: planned.
        before: the other steps, as `run_steps` returns them.
    """

    rows: Rows
    stages: Sequence[Stage]
    before: list[dict[str, Any]]


def prepared(curation: Curation, files: Sequence[InputFile], output: Output, progress: CurationProgress) -> Prepared:
    """Run all steps but the last, and plan that one; see `run_steps`."""
    rows = Rows(files, curation.columns)
    made: list[dict[str, Any]] = []
    for at, step in enumerate(curation.steps, 1):
        stages = list(step.stages)
        if step.planned:
            stages = [step.planned.plan(rows, output.records, curation.driver, progress), *stages]
        ready = Prepared(rows, stages, made)
        if at < len(curation.steps):
            place = Output(output.folder / WORK / f"{at}")
            with place.locked():
                place.claim("recipe", {"stages": deciding(stages), "sizes": curation.sizes._asdict()})
                made.append(_step_made(place, step.name, ready, curation, progress))
            shards = [InputFile(str(place.folder / each["shard"]), each["sha256"]) for each in made[-1]["shards"]]
            rows = Rows(shards, InputColumns(label=curation.columns.label))
    return ready


def _step_made(
    output: Output, what: str, ready: Prepared, curation: Curation, progress: CurationProgress
) -> dict[str, Any]:
    """Make the shards of a step, or the rest of them."""
    records = _make_shards(output, what, ready, curation, progress)
    return {"stages": deciding(ready.stages), "counts": total_counts(ready.stages, records), "shards": records}


def deciding(stages: Sequence[Stage | PlannedStage]) -> list[dict[str, str]]:
    """Return names and digests of stages, as `dataset.json` has them."""
    return [{"name": stage.name, "digest": stage.digest} for stage in stages]


def _make_shards(
    output: Output, what: str, ready: Prepared, curation: Curation, progress: CurationProgress
) -> list[dict[str, Any]]:
    """Return the records of the shards in order."""
    stages, rows = ready.stages, ready.rows
    pieces = plan(rows.files, rows.columns, curation.sizes)
    records = []
    progress.begin(what, len(pieces))
    seen = kept = 0
    maker = ShardMaker(stages, rows.columns, output)
    for record in curation.driver.run(maker, pieces, name=_piece_name):
        records.append(record)
        seen += record["source"]["rows"]
        kept += record["rows"]
        progress.advance(f"{kept:,} of {seen:,} pairs kept")
    return sorted(records, key=lambda record: str(record["shard"]))


def _finished(output: Output, driver: Driver, progress: CurationProgress) -> dict[str, Any] | None:
    """Return the content of `dataset.json`, if every shard has the bytes that it names."""
    content = read_json(output.folder / DATASET)
    if content is None:
        return None
    shards = [InputFile(str(output.folder / each["shard"]), each["sha256"]) for each in content["shards"]]
    progress.begin("shards", len(shards))
    for whole in driver.run(_is_whole, shards, threads=True):
        if not whole:
            return None
        progress.advance()
    return content


def _is_whole(file: InputFile) -> bool:
    try:
        return file_digest(file.name) == file.digest
    except DataError:
        return False


def _piece_name(piece: Piece) -> str:
    return f"{piece.file.name}, shard {piece.shard}"


def _beside(output: Output, name: str) -> str:
    """Return a file's path from the output folder: the same from every working folder."""
    return name if is_url(name) else os.path.relpath(name, output.folder)
