import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import AnyclassError, InvalidLabels, InvalidTemplates, TooManyLabels
from service.model.prompts import (
    fill,
    is_template,
    normalise_label,
    normalise_labels,
    prompts_for,
    templates_digest,
    validate_templates,
)


def _labels(*labels: str, max_labels: int = 10, max_chars: int = 100) -> tuple[str, ...]:
    return normalise_labels(labels, max_labels=max_labels, max_chars=max_chars)


def _templates(*templates: str, max_templates: int = 10, max_chars: int = 100) -> tuple[str, ...]:
    return validate_templates(templates, max_templates=max_templates, max_chars=max_chars)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("  tabby\t\n cat ", "tabby cat"),
        ("Cafe\u0301", "Caf\u00e9"),
        ("a\u00a0b\u3000c", "a b c"),
        ("Cat", "Cat"),
        ("👩‍🚀", "👩‍🚀"),
        ("\ufeffcat", "cat"),
        ("black\u00adbird", "blackbird"),
        ("a \u200b cat\u2060", "a cat"),
        ("\u202bקטה\u202c \u200fcat\u2069\u061c", "קטה cat"),
        ("e\u00ad\u0301", "\u00e9"),
        ("می\u200cخواهم \u2764\ufe0f", "می\u200cخواهم \u2764\ufe0f"),
    ],
)
def test_labels_are_normalised(label: str, expected: str) -> None:
    """NFC, without invisible characters, stripped, white space collapsed; case, joiners and emoji are kept."""
    assert (expected,) == _labels(label)


@given(st.text())
def test_normalising_is_idempotent(label: str) -> None:
    """A cache key made of a normalised label is the key of the label."""
    once = normalise_label(label)
    assert once == normalise_label(once)


@given(st.lists(st.text(st.characters(), max_size=20), max_size=12))
def test_any_labels_are_either_fit_to_encode_or_refused(labels: list[str]) -> None:
    """What passes is unique UTF-8 text, one for each label; nothing else is ever raised."""
    try:
        accepted = _labels(*labels)
    except AnyclassError:
        return
    assert len(labels) == len(set(accepted))
    assert all(label.encode() for label in accepted)


def test_no_labels_are_refused() -> None:
    """There must be something to choose from."""
    with pytest.raises(InvalidLabels, match="at least one"):
        _labels()


@pytest.mark.parametrize(
    "label", ["", "  ", "\u2003", "\u200b", "\ufeff \u00ad", "a\0b", "\x1b[31mred", "\ud800", "a\x7f"]
)
def test_labels_that_are_no_text_are_refused_by_position(label: str) -> None:
    """Empty ones, control characters and lone surrogates; the message has the index and not the content."""
    with pytest.raises(InvalidLabels, match="Label 1 "):
        _labels("cat", label)


def test_labels_that_become_the_same_are_refused_with_both_positions() -> None:
    """A label spelled twice would split its own probability."""
    with pytest.raises(InvalidLabels, match="Labels 1 and 3 "):
        _labels("cat", "caf\u00e9", "dog", " cafe\u0301 ")
    with pytest.raises(InvalidLabels, match="Labels 0 and 2 "):
        _labels("cat", "dog", "\ufeffca\u00adt\u200b")


def test_limits_are_inclusive() -> None:
    """Exactly as many as allowed is allowed."""
    assert ("a", "b") == _labels("a", "b", max_labels=2)
    with pytest.raises(TooManyLabels, match="limit of 2"):
        _labels("a", "b", "c", max_labels=2)
    assert ("abc",) == _labels("abc", max_chars=3)
    with pytest.raises(InvalidLabels, match="limit is 3"):
        _labels("abcd", max_chars=3)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {label}", "\ud800{}", "{}\0", "x" * 200 + "{}"])
def test_templates_without_exactly_one_place_are_refused(template: str) -> None:
    """So are those that are too long or not text."""
    with pytest.raises(InvalidTemplates, match="Template 1 "):
        _templates("{}", template)


@pytest.mark.parametrize("template", ["This is a photo of {{}}.", "a photo of a {}. {{x}}", "{{{}}}", "{}}}"])
def test_templates_with_doubled_braces_are_refused(template: str) -> None:
    """The escaped form of f-strings and of Jinja would put braces around each label."""
    with pytest.raises(InvalidTemplates, match=r"^Template 1 has doubled braces, .* Write \{\} in single braces"):
        _templates("{}", template)


@pytest.mark.parametrize("template", ["a photo of {label}", "a photo of {0}", "a photo of %s"])
def test_other_ways_to_mark_the_place_are_named(template: str) -> None:
    """The message says what to write in their place."""
    assert is_template(template)
    with pytest.raises(InvalidTemplates, match=r"exactly once.* in place of \{\{\}\}, \{label\}, \{0\} or %s"):
        _templates(template)


def test_the_name_of_a_set_is_no_template() -> None:
    """Braces and %s tell them apart."""
    assert [False, False, True] == [is_template(text) for text in ("default", "imagenet 80%", "a {}")]


def test_invisible_characters_of_templates_are_dropped() -> None:
    """Those that begin a file, for instance; the rest is used unchanged."""
    assert ("a  photo of {}.",) == _templates("\ufeffa  photo of {}.")


def test_numbers_of_templates_are_limited() -> None:
    """At least one, at most the limit."""
    assert ("a {}", "{}") == _templates("a {}", "{}", max_templates=2)
    with pytest.raises(InvalidTemplates, match="at least one"):
        _templates()
    with pytest.raises(InvalidTemplates, match="limit of 2"):
        _templates("{}", "{}", "{}", max_templates=2)


@pytest.mark.parametrize("label", ["{}", "{0}", "{label.__class__}", "%s", "\\1", "{"])
def test_filling_is_literal(label: str) -> None:
    """No label and no template can reach into the program by its braces."""
    assert f"a {{x}} photo of {label}." == fill("a {x} photo of {}.", label)


def test_prompts_are_label_major() -> None:
    """The order that class_vectors averages over."""
    assert ["a cat", "cat!", "a dog", "dog!"] == prompts_for(["cat", "dog"], ["a {}", "{}!"])


def test_digest_tells_template_sets_apart() -> None:
    """Content, order and where one template ends and the next begins all count."""
    sets = [("a{}", "b{}"), ("b{}", "a{}"), ("a{}b{}",), ("a{}",), ("a{}", "b{}", "")]
    digests = {templates_digest(templates) for templates in sets}
    assert len(sets) == len(digests)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert templates_digest(["a{}", "b{}"]) in digests
