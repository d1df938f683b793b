"""The rows of a result table, the same in every format."""

from collections.abc import Iterator
from typing import Final

from service.api.json_writer import predictions_json
from service.cli.classify.outcomes import Outcome

COLUMNS: Final = ("image", "rank", "label", "score", "model", "error")
"""Of CSV and Parquet: a row for each prediction, best first; one row without a rank for an image that has none."""


def rows(outcome: Outcome) -> Iterator[tuple[str, int | None, str | None, float | None, str | None, str | None]]:
    """The rows of an image, as `COLUMNS`."""
    # A name may have bytes that are no UTF-8, which no format but JSON can hold.
    image = outcome.image.encode("utf-8", "replace").decode("utf-8")
    if outcome.answer is None:
        yield image, None, None, None, None, outcome.error
        return
    predictions = predictions_json(outcome.answer)
    for rank, prediction in enumerate(predictions, 1):
        yield image, rank, prediction["label"], prediction["score"], outcome.answer.model, None
    if not predictions:
        yield image, None, None, None, outcome.answer.model, None
