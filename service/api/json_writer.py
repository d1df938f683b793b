"""Answers written as JSON text by hand, for speed; a test holds them to their schemas."""

import json
from json.encoder import encode_basestring
from typing import Any

from service.classification.types import Classification
from service.model.arrays import Vectors


def predictions_text(classification: Classification) -> str:
    """The predictions as a JSON list; scores are float32, of which seven digits are true.

    Written by hand, row by row: there may be 100,000, and `json.dumps` would hold up every thread meanwhile.
    """
    rows = [
        f'{{"label":{encode_basestring(each.label)},"score":{float(f"{each.score:.7g}")!r}}}'
        for each in classification.predictions
    ]
    return f"[{','.join(rows)}]"


def answer_text(classification: Classification) -> str:
    """One image's answer as a JSON object, as `ClassifyAnswer` describes it."""
    usage = {"labels": classification.labels, "labels_cached": classification.labels_cached}
    head = json_text({"model": classification.model, "revision": classification.revision})
    return f'{head[:-1]},"predictions":{predictions_text(classification)},"usage":{json_text(usage)}}}'


def predictions_json(classification: Classification) -> list[dict[str, Any]]:
    """`predictions_text` as Python has it."""
    predictions: list[dict[str, Any]] = json.loads(predictions_text(classification))
    return predictions


def answer_json(classification: Classification) -> dict[str, Any]:
    """`answer_text` as Python has it."""
    answer: dict[str, Any] = json.loads(answer_text(classification))
    return answer


def one_line(text: str) -> str:
    """JSON that every client takes for one line: many end a line at these characters too, which JSON may have."""
    return text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def json_text(value: object) -> str:
    """JSON as all answers have it: without white space, in UTF-8, finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_numbers(values: Vectors) -> str:
    """Finite float32 of any shape, flattened, as JSON numbers between commas; nine digits give each back exactly."""
    return ",".join([f"{value:.9g}" for value in values.ravel().tolist()])
