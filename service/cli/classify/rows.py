"""Rows of CSV and Parquet."""

from collections.abc import Iterator
from typing import Final

from service.api.json_writer import predictions_json
from service.cli.classify.outcomes import ImageOutcome

COLUMNS: Final = ("image", "rank", "label", "score", "model", "error")
"""A row for each prediction, best first; one row without a rank for an image without predictions."""


def rows(outcome: ImageOutcome) -> Iterator[tuple[str, int | None, str | None, float | None, str | None, str | None]]:
    """Yield the rows of an image, as in `COLUMNS`."""
    # A file name may be invalid UTF-8, which only JSON can hold.
    image = outcome.image.encode("utf-8", "replace").decode("utf-8")
    if outcome.answer is None:
        yield image, None, None, None, None, outcome.error
        return
    predictions = predictions_json(outcome.answer)
    for rank, prediction in enumerate(predictions, 1):
        yield image, rank, prediction["label"], prediction["score"], outcome.answer.model, None
    if not predictions:
        yield image, None, None, None, outcome.answer.model, None
