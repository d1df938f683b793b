"""Decide which pictures are copies: sign every picture, group the signatures, and keep the best of each group.

Groups are connected components: two pictures are in one if a chain of copies leads from one to the other. The picture
with the most pixels stays; of several, the one whose id has the lowest keyed hash. So the survivors depend on the pairs
only, not on their order, their files or the number of processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.coins import Numbers
from model_export.curation.copies import Copies
from model_export.curation.dedup import METHODS, Dedup, DedupSettings, Method, keys_of
from model_export.curation.groups import Groups
from model_export.curation.output import Output, read_json, write_whole, writing
from model_export.curation.pieces import InputColumns, checked_parquet
from model_export.curation.progress import CurationProgress
from model_export.curation.run import Curation, curate
from model_export.curation.semantic import VectorFiles
from model_export.curation.signature_table import SignatureTable
from model_export.curation.signatures import Sign
from model_export.data.parquet import open_parquet
from model_export.data.patterns import file_names, is_tar
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from model_export.errors import CurationError, DataError, first_line

SIGNATURES: Final = "records/signatures"
"""Folder of the signatures in the folder of the data set, unless another one is named."""
_ROWS: Final = 65_536
_STAYS: Final = 255


@dataclass(frozen=True)
class DedupPlan:
    """A stage that drops copies, and the groups that it was made from.

    Attributes:
        stage: to run over the same data.
        sizes: number of groups of each size, for sizes above 1, ascending.
        pictures: number of pictures that were signed.
        broken: of those, pictures that could not be read; they stay.
        flat: of those, pictures too flat for the method ``near``; they stay, unless they are exact copies.
    """

    stage: Dedup
    sizes: dict[int, int]
    pictures: int
    broken: int
    flat: int


@dataclass(frozen=True)
class Pictures:
    """Data whose pictures are signed.

    Attributes:
        data: files, folders and ranges of names, as for training.
        columns: names in the data.
        folder: for the signatures; a run that was stopped goes on with those that are in it.
        driver: runs the signing.
    """

    data: Sequence[str]
    columns: InputColumns
    folder: Path
    driver: Driver = field(default_factory=LocalDriver)


def plan_dedup(
    pictures: Pictures, settings: DedupSettings, progress: CurationProgress, vectors: VectorFiles | None = None
) -> DedupPlan:
    """Find the copies among pictures.

    Args:
        pictures: to compare.
        settings: methods and thresholds.
        progress: of each part of the work.
        vectors: for the method ``semantic``.

    Raises:
        CurationError: two pairs have one id; the data have no pictures; a folder is in use or cannot be written.
        DataError: the data cannot be read.
    """
    check_pictures(pictures)
    if Method.SEMANTIC in settings.methods:
        check_vectors(vectors)
    check_ids(pictures, progress)
    shards = sign(pictures, progress)
    with tempfile.TemporaryDirectory(prefix="arrays-", dir=pictures.folder) as folder:
        scratch = Path(folder)
        table = SignatureTable.read(shards, lambda ids: keys_of(ids, settings.seed), scratch)
        groups = Groups(table.keys.size)
        copies = Copies(table, groups, scratch, progress, vectors)
        method = np.full(table.keys.size, _STAYS, np.uint8)
        for each in settings.methods:
            for pairs in copies.pairs(each, settings):
                groups.join(pairs)
            method[(method == _STAYS) & ~groups.are_first()] = METHODS.index(each)
        dropped = np.flatnonzero(method != _STAYS)
        dropped = dropped[np.argsort(table.keys[dropped])]
        stage = Dedup(settings, table.keys[dropped], method[dropped])
        broken = int((table.pixels == 0).sum())
        flat = table.keys.size - broken - copies.shown.size
        return DedupPlan(stage, groups.sizes(), table.keys.size, broken, flat)


def check_pictures(pictures: Pictures) -> None:
    """Check that every file has pictures.

    Raises:
        CurationError: a Parquet file has no column of them.
        DataError: a file cannot be read, or has a column of another type.
    """
    for name in file_names(pictures.data):
        if (
            not is_tar(name)
            and pictures.columns.image not in checked_parquet(name, pictures.columns).schema_arrow.names
        ):
            raise CurationError(
                f"{name}: no column {pictures.columns.image!r} of encoded pictures; copies are found by pictures: "
                "name the column with --image-column"
            )


def check_folder(out: Path, settings: DedupSettings) -> None:
    """Check before the pictures are signed that a folder holds nothing else than this removal of copies.

    Raises:
        CurationError: it holds shards of something else, or of other settings.
    """
    found = read_json(out / "records" / "recipe.json")
    for kind, named in (("parquet", "Parquet"), ("tar", "tar")):
        if found is None and any(out.glob(f"*.{kind}")):
            raise CurationError(f"{out}: holds {named} files of something else; name an empty folder")
    if found is not None and found.get("dedup") != settings.as_json():
        raise CurationError(f"{out}: holds a data set of another recipe; name another folder, or delete this one")


def check_vectors(vectors: VectorFiles | None) -> None:
    """Check the files of vectors.

    Raises:
        CurationError: no vectors are given, a file has none, or faiss is not installed.
        DataError: a file cannot be read.
    """
    if vectors is None:
        raise CurationError("--method semantic needs vectors: name Parquet files of them with --vectors")
    vectors.check()


def check_ids(pictures: Pictures, progress: CurationProgress) -> None:
    """Check that ids do not repeat: a stage knows a row by its id.

    Raises:
        CurationError: two pairs have one id.
        DataError: a file cannot be read.
    """
    names = [name for name in file_names(pictures.data) if not is_tar(name)]
    progress.begin("ids", len(names))
    found: list[Numbers] = []
    for name in names:
        found.append(_id_keys(name, pictures.columns.id))
        progress.advance()
    keys = np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))
    if repeated := int((keys[1:] == keys[:-1]).sum()):
        raise CurationError(
            f"{repeated:,} ids of column {pictures.columns.id!r} repeat, and copies are dropped by their ids; give "
            "each pair one of its own, or name a column with --id-column that the data lack: then each pair gets one"
        )


def _id_keys(name: str, column: str) -> Numbers:
    """Return the keys of the ids that a Parquet file has."""
    file = open_parquet(name, buffer_size=2**20)
    if column not in file.schema_arrow.names:
        return np.zeros(0, np.uint64)
    try:
        batches = file.iter_batches(_ROWS, columns=[column])
        keys = [keys_of(pc.drop_null(batch[0].cast(pa.string())), 0) for batch in batches]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: column {column!r} cannot be read ({first_line(error)})") from error
    return np.concatenate([np.zeros(0, np.uint64), *keys])


def sign(pictures: Pictures, progress: CurationProgress) -> list[Path]:
    """Write the signatures of pictures into their folder, or the rest of them; return the shards."""
    curate(Curation(pictures.data, [Sign()], pictures.folder, pictures.columns, driver=pictures.driver), progress)
    return sorted(pictures.folder.glob("*.parquet"))


def share_digests(pictures: Pictures, out: Path) -> None:
    """Hand the digests of the input files on to the run that writes the data set, which need not read them again."""
    mine, theirs = Output(pictures.folder).digests, Output(out).digests
    if not theirs.exists():
        with writing(theirs):
            theirs.parent.mkdir(parents=True, exist_ok=True)
            write_whole(theirs, mine.read_bytes())
