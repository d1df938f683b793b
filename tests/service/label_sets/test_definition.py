import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import (
    AnyclassError,
    InvalidLabels,
    InvalidTemplates,
    TooManyLabels,
)
from service.label_sets.definition import Definition, check_definition, definition_from_json
from service.settings import Settings
from tests.support.longest_step import longest_step


@pytest.mark.parametrize(
    ("error", "labels", "descriptions", "templates"),
    [
        (InvalidLabels, [], {}, None),
        (InvalidLabels, ["a", " a"], {}, None),
        (InvalidLabels, ["\ud800"], {}, None),
        (InvalidLabels, ["a" * 1_001], {}, None),
        (InvalidLabels, ["a"], {0: []}, None),
        (InvalidLabels, ["a"], {0: ["x", " x "]}, None),
        (TooManyLabels, [str(number) for number in range(21)], {}, None),
        (TooManyLabels, ["a"], {0: [str(number) for number in range(101)]}, None),
        (TooManyLabels, ["a", "b"], {0: [str(number) for number in range(60)]}, ["{}", "a {}"]),
        (InvalidTemplates, ["a"], {}, []),
        (InvalidTemplates, ["a"], {}, ["no place"]),
    ],
)
def test_what_cannot_be_a_set(error: type[AnyclassError], labels: Any, descriptions: Any, templates: Any) -> None:
    """The limits of a request's labels apply to a set's, except for their number."""
    settings = Settings(max_label_set_labels=20, max_label_set_prompts=100)
    with pytest.raises(error):
        check_definition(labels, descriptions, templates, settings)


TEXT = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=5).filter(str.strip)


@given(
    labels=st.lists(TEXT, min_size=1, max_size=5, unique_by=lambda text: " ".join(text.split())),
    described=st.dictionaries(st.integers(0, 4), st.lists(TEXT, min_size=1, max_size=3), max_size=3),
    templates=st.one_of(st.none(), st.just("none"), st.lists(st.just("a {}"), min_size=1, max_size=3)),
)
def test_a_definition_is_read_as_it_was_written(labels: Any, described: Any, templates: Any) -> None:
    """Every valid definition survives serialisation, and its digest identifies its content."""
    try:
        descriptions = {index: texts for index, texts in described.items() if index < len(labels)}
        definition = check_definition(labels, descriptions, templates, Settings())
    except InvalidLabels:
        return
    read = definition_from_json(definition.to_json())
    assert definition == read
    assert definition.to_json() == read.to_json()
    assert definition.text_count == sum(len(each) for each in read.texts(0, len(labels)))


def test_a_definition_is_the_json_of_its_parts() -> None:
    """As `json` writes it, so that the digest of a stored set stays the same."""
    definition = Definition(('a"b', "é\\"), {1: ("\u2028", "x")}, ("a {}",))
    content = {"schema": 1, "templates": ["a {}"], "labels": ['a"b', "é\\"], "descriptions": {"1": ["\u2028", "x"]}}
    assert json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() == definition.to_json()


def test_a_large_definition_lets_other_threads_run() -> None:
    """No single call writes or reads it."""
    descriptions = {index: tuple(f"{number}{'x' * 20}" for number in range(100)) for index in range(2_000)}
    definition = Definition(tuple(map(str, range(20_000))), descriptions)
    with longest_step() as step:
        read = definition_from_json(definition.to_json())
    assert definition == read
    assert step.seconds < 0.02


def test_invisible_characters_stay_in_the_spelling_only() -> None:
    """A stored label is as it was written; its text is without them, and twins by them are refused."""
    definition = check_definition(["\ufeffcat", "black\u00adbird"], {}, None, Settings())
    assert ("\ufeffcat", "black\u00adbird") == definition_from_json(definition.to_json()).labels
    assert [("cat",), ("blackbird",)] == definition.texts(0, 2)
    with pytest.raises(InvalidLabels, match="Labels 0 and 1 are the same"):
        check_definition(["cat", "\ufeffcat"], {}, None, Settings())
