"""Find the pictures of an evaluation set that a training set has as well (Radford et al., 2021, section 5)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.curation.copies import Copies
from model_export.curation.dedup import METHODS, Dedup, DedupSettings, Method, keys_of
from model_export.curation.deduplicating import Pictures, check_pictures, sign
from model_export.curation.groups import Groups
from model_export.curation.progress import CurationProgress
from model_export.curation.signature_table import SignatureTable
from model_export.curation.stage import ID
from model_export.curation.views import Bits, Rows
from model_export.errors import CurationError

PAIRS: Final = pa.schema([("evaluation", pa.string()), ("training", pa.string()), ("method", pa.string())])
_SETTINGS: Final = DedupSettings()


@dataclass(frozen=True)
class Overlap:
    """Pictures of an evaluation set that are in a training set.

    Attributes:
        pairs: ids of both pictures, and the method that found them; the schema is `PAIRS`.
        pictures: number of readable pictures of the evaluation set.
        exact: of those, pictures with an exact copy.
        copies: of those, pictures with a copy of any kind.
        training: number of readable pictures of the training set.
    """

    pairs: pa.Table
    pictures: int
    exact: int
    copies: int
    training: int

    @property
    def share(self) -> float:
        """Return the share of the evaluation set that is in the training set."""
        return self.copies / self.pictures

    @property
    def error(self) -> float:
        """Return the standard error of the share, as of pictures drawn at random."""
        return math.sqrt(self.share * (1 - self.share) / self.pictures)

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        return {
            "training_pictures": self.training,
            "evaluation_pictures": self.pictures,
            "exact_copies": self.exact,
            "copies": self.copies,
            "share": self.share,
            "standard_error": self.error,
        }


def find_overlap(
    training: Pictures, evaluation: Pictures, settings: DedupSettings, progress: CurationProgress
) -> Overlap:
    """Compare every picture of an evaluation set with every one of a training set.

    Raises:
        CurationError: a set has no pictures; a folder is in use or cannot be written.
        DataError: the data cannot be read.
    """
    for pictures in (training, evaluation):
        check_pictures(pictures)
    sides = [sign(pictures, progress) for pictures in (training, evaluation)]
    shards = [*sides[0], *sides[1]]
    ids = np.concatenate([np.zeros(0, object), *map(_ids, shards)])
    first = sum(pq.read_metadata(shard).num_rows for shard in sides[0])
    with tempfile.TemporaryDirectory(prefix="arrays-", dir=evaluation.folder) as folder:
        table = SignatureTable.read(shards, lambda ids: keys_of(ids, settings.seed), Path(folder))
        evaluated = table.places >= first
        counts = [int((table.pixels[mine] > 0).sum()) for mine in (~evaluated, evaluated)]
        for count, which in zip(counts, ("training", "evaluation"), strict=True):
            if not count:
                raise CurationError(f"the {which} set has no picture that can be read; name another one")
        found: dict[tuple[int, int], Method] = {}
        for method, pairs in _pairs(table, evaluated, settings, Path(folder), progress):
            for some, other in pairs:
                ends = (int(some), int(other)) if evaluated[some] else (int(other), int(some))
                found.setdefault(ends, method)
        rows = sorted(
            (ids[table.places[some]], ids[table.places[other]], str(found[some, other])) for some, other in found
        )
    exact = {some for (some, _), method in found.items() if method is Method.EXACT}
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], []]
    return Overlap(
        pa.table([pa.array(column, pa.string()) for column in columns], schema=PAIRS),
        counts[1],
        len(exact),
        len({some for some, _ in found}),
        counts[0],
    )


def _pairs(
    table: SignatureTable, evaluated: Bits, settings: DedupSettings, scratch: Path, progress: CurationProgress
) -> Iterator[tuple[Method, Rows]]:
    """Yield pairs of one picture of each set, with the method that found them."""
    copies = Copies(table, Groups(table.keys.size), scratch, progress)
    if Method.EXACT in settings.methods:
        yield Method.EXACT, _crossing(copies.exact_groups(), evaluated)
    if Method.NEAR in settings.methods:
        for pairs in copies.near(settings.similarity, apart=evaluated):
            yield Method.NEAR, pairs


def _crossing(groups: Sequence[Rows], evaluated: Bits) -> Rows:
    """Return every pair of a group whose pictures are of both sets: ``[pairs, 2]``."""
    found = [np.zeros((0, 2), np.int64)]
    for rows in groups:
        mine, theirs = rows[evaluated[rows]], rows[~evaluated[rows]]
        found.append(np.stack(np.meshgrid(mine, theirs), axis=-1).reshape(-1, 2))
    return np.concatenate(found)


def _ids(shard: Path) -> Any:  # noqa: ANN401 - an array of objects
    return pq.read_table(shard, columns=[ID])[ID].to_numpy()


def without_overlap(overlap: Overlap) -> Dedup:
    """Return a stage that drops the pictures of the evaluation set that are in the training set."""
    methods = {str(method): number for number, method in enumerate(METHODS)}
    found = dict(zip(overlap.pairs["evaluation"].to_pylist(), overlap.pairs["method"].to_pylist(), strict=True))
    keys = keys_of(pa.array(list(found), pa.string()), _SETTINGS.seed)
    order = np.argsort(keys)
    numbers = np.array([methods[method] for method in found.values()], np.uint8)
    return Dedup(_SETTINGS, keys[order], numbers[order])


def write_pairs(path: Path, overlap: Overlap) -> None:
    """Write the pairs of an overlap as Parquet."""
    pq.write_table(overlap.pairs, path)
