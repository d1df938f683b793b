"""Stage that scores labels for pictures, for `anyclass-export score`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.embed import BROKEN, IMAGE_PROBLEM, Counts, needed, passed_through, vector_column
from model_export.curation.encoding import BundleEncoder
from model_export.curation.label_files import LabelList
from model_export.curation.stage import IMAGE, StageResult, digest_of
from model_export.errors import CurationError
from model_export.evaluation.class_matrices import class_matrices
from service.errors import NonFiniteOutput
from service.model.arrays import Vectors
from service.model.choices import ScoringMethod
from service.model.scoring import check_scoring, cosines, rank, scores
from service.model.tokenizer import Tokenizer

SCORES: Final = "scores"
TOP_LABELS: Final = "labels"
LABELS_KEY: Final = "labels"
"""Key of the schema's metadata: the labels as JSON, in the order of `SCORES`."""
_VERSION: Final = 2
_TEXTS_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Score:
    """Stage that keeps ids and chosen columns, and adds scores of labels.

    Attributes:
        encoder: of the bundle.
        labels: with their templates.
        method: as a request's; the model's own if None.
        temperature: as a request's.
        top: write the best labels and their scores, in place of all scores.
        columns: others that pass through.
        drop_broken: drop a row without scores; else it stays, with a null and the reason.
        matrix: vectors of the labels, float32 ``[labels, dim]``, from `label_matrix`.
        takes_null_images: as `stage.takes_null_images` asks.
    """

    takes_null_images: ClassVar[bool] = True
    encoder: BundleEncoder
    labels: LabelList
    method: ScoringMethod | None = None
    temperature: float = 1.0
    top: int | None = None
    columns: tuple[str, ...] = ()
    drop_broken: bool = False
    matrix: Vectors | None = None
    name: str = field(default="score", init=False)

    def __post_init__(self) -> None:
        """Refuse what the model cannot score. Raises InvalidScoring or CurationError."""
        check_scoring(self.encoder.bundle.manifest.scoring, self.method, self.temperature)
        if self.top is not None and not 1 <= self.top <= len(self.labels.names):
            raise CurationError(f"--top {self.top}: choose 1 to {len(self.labels.names)}, the number of labels")

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the scores, as `dataset.json` has it."""
        return {
            "labels": list(self.labels.names),
            "templates": list(self.labels.templates),
            "scoring": self.method or self.encoder.bundle.manifest.scoring.kind,
            "temperature": self.temperature,
            "top": self.top,
            "columns": list(self.columns),
            "drop_broken": self.drop_broken,
            "encoder": self.encoder.decides,
        }

    @classmethod
    def recorded(cls, encoder: BundleEncoder, settings: Mapping[str, Any]) -> Self:
        """Return the stage whose `settings` these are, with its matrix. Raises KeyError if one is missing."""
        labels = LabelList(tuple(settings["labels"]), tuple(settings["templates"]))
        return cls(
            encoder,
            labels,
            settings["scoring"],
            settings["temperature"],
            settings["top"],
            tuple(settings["columns"]),
            settings["drop_broken"],
            label_matrix(encoder, labels),
        )

    @property
    def digest(self) -> str:
        """Return a hash of the settings, the labels, the bundle's revision, and the engine."""
        return digest_of(self.name, _VERSION, self.settings)

    def run(self, table: pa.Table) -> StageResult:
        """Return the scores of the rows.

        Raises:
            CurationError: a column is missing, or the engine failed.
        """
        if self.matrix is None:
            raise ValueError("Score.matrix is missing; use label_matrix")
        kept = passed_through(table, self.columns)
        found = self.encoder.encode_pictures(each.as_py() for each in needed(table, IMAGE, "pictures"))
        scored = scores(
            cosines(found.vectors, self.matrix), self.encoder.bundle.manifest.scoring, self.method, self.temperature
        )
        if self.top is None:
            kept = kept.append_column(SCORES, vector_column(scored, found.problems, "float32"))
            metadata = {LABELS_KEY: json.dumps(self.labels.names, ensure_ascii=False)}
            kept = kept.replace_schema_metadata({**(kept.schema.metadata or {}), **metadata})
        else:
            best = np.array([rank(row, self.top) for row in scored], np.intp).reshape(len(scored), self.top)
            kept = kept.append_column(TOP_LABELS, self._names(best, found.problems))
            kept = kept.append_column(
                SCORES, vector_column(np.take_along_axis(scored, best, axis=1), found.problems, "float32")
            )
        kept = kept.append_column(IMAGE_PROBLEM, pa.array(found.problems, pa.string()))
        counts = Counts()
        return counts.result(kept, counts.add(found, BROKEN), drop=self.drop_broken)

    def _names(self, best: npt.NDArray[np.intp], problems: Sequence[str | None]) -> pa.Array:
        names = pa.array(self.labels.names, pa.string()).take(pa.array(best.ravel()))
        mask = pc.is_valid(pa.array(problems, pa.string()))
        return pa.FixedSizeListArray.from_arrays(names, best.shape[1], mask=mask)


def label_matrix(encoder: BundleEncoder, labels: LabelList) -> Vectors:
    """Return the vectors of labels, float32 ``[labels, dim]``.

    Raises:
        CurationError: the templates cancel each other out for a label.
    """
    try:
        found = class_matrices(
            encoder.engine,
            Tokenizer.from_bundle(encoder.bundle),
            labels.names,
            {"": labels.templates},
            batch_size=_TEXTS_AT_ONCE,
            advance=lambda _: None,
        )
    except NonFiniteOutput as error:
        raise CurationError(f"{error.detail} Choose other --templates.") from error
    return found[""]
