"""Filter that drops pairs whose picture and caption differ, by the cosine of their vectors: the CLIP score.

DataComp keeps pairs with a score of ViT-B/32 of at least 0.28 (Gadre et al. 2023, "CLIP score and language filtering").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
import pyarrow as pa

from model_export.curation.embed import CUT, needed
from model_export.curation.encoding import BundleEncoder
from model_export.curation.stage import IMAGE, TEXT, StageResult, digest_of, split
from model_export.errors import CurationError

CLIP_SCORE: Final = "clip_score"
_VERSION: Final = 1


class ClipReason(StrEnum):
    """Why a pair is dropped; the order is that of the checks."""

    MISSING = "missing"
    BROKEN = "broken"
    CLIP_SCORE = "clip score"


@dataclass(frozen=True)
class ClipScore:
    """Stage that adds the column `CLIP_SCORE`, and drops pairs by `ClipReason`.

    Attributes:
        encoder: of the bundle.
        least: cosine of picture and caption.

    Raises:
        CurationError: the least score is no cosine.
    """

    encoder: BundleEncoder
    least: float
    name: str = field(default="clip score", init=False)

    def __post_init__(self) -> None:
        if not -1 <= self.least <= 1:
            raise CurationError(f"clip score {self.least}: must be from -1 to 1, a cosine")

    @property
    def digest(self) -> str:
        """Return a hash of the score, the bundle's revision, and the engine."""
        return digest_of(self.name, _VERSION, {"least": self.least, "encoder": self.encoder.decides})

    def run(self, table: pa.Table) -> StageResult:
        """Return the pairs of at least this score.

        Raises:
            CurationError: the pairs have no pictures or no texts, or the engine failed.
        """
        texts = self.encoder.encode_texts(needed(table, TEXT, "texts").to_pylist())
        pictures = self.encoder.encode_pictures(
            None if missing else picture.as_py()
            for picture, missing in zip(needed(table, IMAGE, "pictures"), texts.problems, strict=True)
        )
        cosines = np.einsum("nd,nd->n", pictures.vectors, texts.vectors)
        reasons: list[ClipReason | None] = []
        for no_text, broken, cosine in zip(texts.problems, pictures.problems, cosines.tolist(), strict=True):
            if no_text:
                reasons.append(ClipReason.MISSING)
            elif broken:
                reasons.append(ClipReason.BROKEN)
            else:
                reasons.append(None if cosine >= self.least else ClipReason.CLIP_SCORE)
        if CLIP_SCORE in table.column_names:  # of another model
            table = table.drop_columns([CLIP_SCORE])
        result = split(table.append_column(CLIP_SCORE, pa.array(cosines, pa.float32())), pa.array(reasons, pa.string()))
        return result._replace(notes={CUT: texts.cut} if texts.cut else {})
