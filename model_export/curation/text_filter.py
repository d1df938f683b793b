"""Filter that keeps pairs whose caption is a title or a description in natural language.

OpenAI kept of YFCC100M the pictures with natural-language titles or descriptions in English, 15 of 100 million
(Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, section 2.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import pyarrow as pa

from model_export.curation.languages import check_languages, is_language, is_surely_other, model_digest
from model_export.curation.stage import TEXT, StageResult, digest_of, split
from model_export.curation.text_rules import Reason, broken_rule
from model_export.errors import CurationError

_VERSION: Final = 1
_LONGEST: Final = 10_000
"""Characters of a caption that are read: what follows does not make it natural."""

_SURE: Final = 0.6
"""Probability with which a part of a caption is in another language."""

_STRONG_SEPARATOR: Final = re.compile(r"\s[/|–—-]\s|[|()\n]")
_SEPARATOR: Final = re.compile(r"[.!?:;,]\s")
_SPACES: Final = re.compile(r"\s+")
_WORDS: Final = re.compile(r"[^\W\d_]{2,}")
_LATIN: Final = re.compile("[a-z\u00c0-\u024f\u1e00-\u1eff]+(?:['’][a-z]+)?", re.IGNORECASE)
_NOT_LATIN: Final = re.compile("[\u0370-\u1dff\u1f00-\u1fff\u2c80-\ua71f\ua800-\ufaff\U00010000-\U0001efff]+")


@dataclass(frozen=True)
class TextFilter:
    """Stage that drops captions by `Reason`.

    Attributes:
        languages: codes of the languages to keep, of ISO 639-1.
        confidence: least probability of one of them, above 0 and at most 1. Higher keeps fewer and surer captions.

    Raises:
        CurationError: a setting is wrong, or the extra ``curate`` is not installed.
    """

    languages: tuple[str, ...] = ("en",)
    confidence: float = 0.25
    name: str = field(default="filter text", init=False)

    def __post_init__(self) -> None:
        check_languages(self.languages)
        if not 0 < self.confidence <= 1:
            raise CurationError(f"confidence {self.confidence} of the text filter: must be above 0 and at most 1")

    @cached_property
    def digest(self) -> str:
        """Return a hash of the rules' version, the settings, the language model and the English words."""
        settings = {"languages": sorted(self.languages), "confidence": self.confidence, "model": model_digest()}
        return digest_of(self.name, _VERSION, settings)

    def run(self, table: pa.Table) -> StageResult:
        """Return the rows whose caption has no reason to be dropped."""
        return split(table, self.reasons(table[TEXT]))

    def reasons(self, texts: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Return why each caption is dropped, null where it stays: string ``[n]``."""
        languages = frozenset(self.languages)
        return pa.array(
            [drop_reason(text, languages, self.confidence) for text in _decoded(texts)],
            pa.string(),
        )


def drop_reason(text: str | None, languages: frozenset[str], confidence: float) -> Reason | None:
    """Return why a caption is dropped, or None if it stays; the first reason in the order of `Reason`."""
    if text is None:
        return Reason.MISSING
    text = _SPACES.sub(" ", text[:_LONGEST]).strip()
    if not text:
        return Reason.MISSING
    return broken_rule(text) or _foreign(text, languages, confidence)


def _foreign(text: str, languages: frozenset[str], confidence: float) -> Reason | None:
    accepted = is_language(text, languages, confidence)
    parts = list(_parts(text))
    if any(is_surely_other(part, languages, _SURE) for part in parts) and (
        accepted or any(is_language(part, languages, confidence) for part in parts)
    ):
        return Reason.MIXED
    return None if accepted else Reason.LANGUAGE


def _parts(text: str) -> Iterator[str]:
    """Yield the parts of a caption that may be in languages of their own; none if it has one part only."""
    if not text.isascii():
        other = " ".join(_NOT_LATIN.findall(text))
        latin = " ".join(_LATIN.findall(text))
        if len(other) >= 2 and len(latin) >= 3:
            yield other
            yield latin
            return
    strong = _STRONG_SEPARATOR.split(text)
    for part in strong:
        weak = _SEPARATOR.split(part)
        fewest = 3 if len(weak) > 1 else 2  # two words between commas are often a name
        for each in weak:
            if len(strong) + len(weak) > 2 and len(_WORDS.findall(each)) >= fewest:
                yield each


def _decoded(texts: pa.Array | pa.ChunkedArray) -> Iterator[str | None]:
    """Yield captions; bytes that are not UTF-8 become U+FFFD, and so mojibake."""
    kind = pa.large_binary() if pa.types.is_large_string(texts.type) else pa.binary()
    for each in texts.cast(kind).to_pylist():
        yield None if each is None else each.decode("utf-8", "replace")
