"""Answers written by hand, because one may have 100,000 predictions."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.json_writer import answer_json, answer_text, one_line, predictions_text
from service.api.native.schemas import ClassifyAnswer, PredictionOut, Usage, WarningOut
from service.classification.types import Classification, Prediction, Ranking
from service.model.answer_warnings import AnswerWarning

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCORES = st.floats(-1, 1, width=32)


WARNING = AnswerWarning("labels_equal_to_model", "Labels 0 and 1 are the same.", (0, 1))


def classification(*predictions: Prediction, warnings: tuple[AnswerWarning, ...] = ()) -> Classification:
    """Return a classification with these predictions."""
    return Classification("tiny", "0123", predictions, labels=7, labels_cached=3, warnings=warnings)


@given(st.lists(st.builds(Prediction, TEXT, SCORES), max_size=5))
def test_what_is_written_is_json(predictions: list[Prediction]) -> None:
    """Labels keep the client's spelling, scores have seven digits and are always written with a point."""
    expected = [{"label": each.label, "score": float(f"{each.score:.7g}")} for each in predictions]
    answer = classification(*predictions)
    assert expected == json.loads(predictions_text(answer))
    assert all(isinstance(each["score"], float) for each in json.loads(predictions_text(answer)))
    assert {"labels": 7, "labels_cached": 3} == answer_json(answer)["usage"]
    ClassifyAnswer.model_validate_json(answer_text(answer), strict=True)


def test_the_writer_has_the_fields_of_the_schema() -> None:
    """A field added to `ClassifyAnswer` must be added to `answer_text` too: same names, same order."""
    answer = answer_json(classification(Prediction("cat", 0.5), warnings=(WARNING,)))
    assert list(ClassifyAnswer.model_fields) == list(answer)
    assert list(WarningOut.model_fields) == list(answer["warnings"][0])
    ClassifyAnswer.model_validate_json(json.dumps(answer), strict=True)
    assert list(PredictionOut.model_fields) == list(answer["predictions"][0])
    assert list(Usage.model_fields) == list(answer["usage"])


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_line_is_one_for_every_client(label: str) -> None:
    """Python's `splitlines`, which clients use, ends a line at more than line feeds; the label stays unchanged."""
    line = one_line(predictions_text(classification(Prediction(label, 0.5))))
    assert [line] == line.splitlines()
    assert label == json.loads(line)[0]["label"]


def test_a_ranking_is_a_sequence() -> None:
    """It has the kept labels, best first, and equals any sequence of the same predictions."""
    scores = np.array([0.125, 0.5, 0.25], np.float32)
    ranking = Ranking(("a", "b", "c"), np.array([1, 2]), scores)
    expected = (Prediction("b", 0.5), Prediction("c", 0.25))
    assert expected == tuple(ranking) == ranking[:2] == (ranking[0], ranking[-1])
    assert (2, expected[:1]) == (len(ranking), ranking[:1])
    assert ranking == expected
    assert ranking != expected[:1]
    with pytest.raises(IndexError):
        ranking[2]
