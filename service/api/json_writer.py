"""Writes answers as JSON text by hand, for speed; a test holds them to their schemas."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from json.encoder import encode_basestring
from typing import Any, Final, TypeVar

from service.classification.types import Classification
from service.concurrency import MANY, run_off_loop
from service.model.answer_warnings import AnswerWarning
from service.model.arrays import Vectors

T = TypeVar("T")

_WRITER: Final = ThreadPoolExecutor(1, thread_name_prefix="anyclass-answers")
"""Writes large answers, one at a time: several writers would take turns before the event loop has its own."""


async def written(write: Callable[[], T], *, rows: int = MANY) -> T:
    """Return `write()`, which writes an answer of so many rows: called at once if they are few."""
    return await run_off_loop(rows, write, _WRITER)


def predictions_text(classification: Classification) -> str:
    """Return the predictions as a JSON list; scores are float32, so seven digits are exact.

    Written row by row: `json.dumps` would block every other thread while it writes up to 100,000 rows.
    """
    rows = [
        f'{{"label":{encode_basestring(each.label)},"score":{float(f"{each.score:.7g}")!r}}}'
        for each in classification.predictions
    ]
    return f"[{','.join(rows)}]"


def answer_text(classification: Classification) -> str:
    """Return one image's answer as a JSON object, as `ClassifyAnswer` describes it."""
    usage = {"labels": classification.labels, "labels_cached": classification.labels_cached}
    head = json_text({"model": classification.model, "revision": classification.revision})
    predictions, warnings = predictions_text(classification), warnings_text(classification.warnings)
    return f'{head[:-1]},"predictions":{predictions},"usage":{json_text(usage)}{warnings}}}'


def warnings_json(warnings: Sequence[AnswerWarning]) -> list[dict[str, Any]]:
    """Return warnings as `WarningOut` describes them."""
    return [{"code": each.code, "message": each.message, "labels": list(each.labels)} for each in warnings]


def warnings_text(warnings: Sequence[AnswerWarning]) -> str:
    """Return the last member of a JSON object with its comma, or nothing without warnings."""
    return f',"warnings":{json_text(warnings_json(warnings))}' if warnings else ""


def predictions_json(classification: Classification) -> list[dict[str, Any]]:
    """Return `predictions_text` as a Python object."""
    predictions: list[dict[str, Any]] = json.loads(predictions_text(classification))
    return predictions


def answer_json(classification: Classification) -> dict[str, Any]:
    """Return `answer_text` as a Python object."""
    answer: dict[str, Any] = json.loads(answer_text(classification))
    return answer


def one_line(text: str) -> str:
    """Escape the characters that JSON allows and at which many clients end a line, other than the newline."""
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def json_text(value: object) -> str:
    """Return JSON in the form of all answers: no white space, no escapes for non-ASCII text, no NaN and no infinity."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_numbers(values: Vectors) -> str:
    """Return finite float32 of any shape as flat JSON numbers with commas; nine digits restore each exactly."""
    return ",".join([f"{value:.9g}" for value in values.ravel().tolist()])
