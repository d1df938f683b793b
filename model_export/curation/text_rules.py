"""Rules that find captions which describe nothing: names of files, dates, addresses, markup, lists of tags.

A caption breaks at most one rule, the first in the order of `Reason`. The rules know nothing about languages, except
the English function words that tell a sentence from a list, and English names of months and days.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

from model_export.curation.words import words_of


class Reason(StrEnum):
    """Why a caption is dropped; the order is that of the checks."""

    MISSING = "missing"
    MOJIBAKE = "mojibake"
    HTML = "html"
    URL = "url"
    FILE_NAME = "file name"
    DATE = "date"
    TAGS = "tags"
    SHORT = "short"
    MIXED = "mixed"
    LANGUAGE = "language"


_ANY_CASE: Final = re.IGNORECASE

# UTF-8 read as Windows-1252: a lead byte's character, then that of a continuation byte (0x80 to 0xbf).
_CONTINUATION: Final = (
    "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
)
_MOJIBAKE: Final = re.compile(
    "[\ufffd\u0080-\u009f]"
    f"|[\u00c2\u00c3]{_CONTINUATION}"
    f"|[\u00e0-\u00ef]{_CONTINUATION}{{2}}"
    f"|[\u00c4\u00c5\u00ce-\u00d1\u00d7-\u00da]{_CONTINUATION}.*[\u00c4\u00c5\u00ce-\u00d1\u00d7-\u00da]{_CONTINUATION}"
)

_HTML: Final = re.compile(
    r"</?[a-z][^<>]*>|<!--|&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z]{2,8}\d?);|\[/?(?:url|img|b|i|quote)\b[^\[\]]*\]",
    _ANY_CASE,
)

_URL: Final = re.compile(
    r"\b(?:https?|ftp)://|\bmailto:|\bwww\.\w"
    r"|\w@[\w-]{1,63}\.[a-z]{2}"
    r"|\w\.(?:com|org|net|edu|gov|info|biz|app|co\.uk)\b"
    r"|\w\.[a-z]{2,6}/\w",
    _ANY_CASE,
)

_EXTENSIONS: Final = (
    "jpe?g|png|gif|tiff?|bmp|webp|heic|avif|svg|psd|ai|eps|pdf|raw|cr[23]|nef|arw|dng|orf|raf|rw2|mp4|mov|avi|3gp|mts"
)
_CAMERAS: Final = (
    "img|dsc[nf]?|pict|cimg|mvi|sany|gopr|imgp|mg|hpim|pano|wp|dji|vid|pxl|rimg|kif|dcp|mov|burst|mvimg|p|pic"
)
_FILE_NAME: Final = re.compile(
    rf"\w\.(?:{_EXTENSIONS})\b"
    rf"|(?<![a-z0-9])(?:{_CAMERAS})[_-]?\d{{3,}}(?!\d*[a-z])"
    r"|(?<![a-z0-9])(?:img|dsc[nf]?)[ _]\d{2,}"
    r"|(?<![a-z0-9])[a-z]{1,4}\d{6,}(?![a-z])"
    r"|(?<![a-z0-9])[a-z]{2,5}_\d{3,}"
    r"|(?<!\d)1\d\d[-_]\d{4}(?!\d)"
    r"|(?<!\d)(?:19|20)\d{6}_\d{4,6}"
    r"|^(?:file|image):"
    r"|^[^\W_]+(?:_[^\W_]+)+(?: copy)?(?: ?\(?\d+\)?)?$",
    _ANY_CASE,
)
_NAME_LIKE: Final = re.compile(r"[\d_]|\w\.\w|^(?:file|image):", _ANY_CASE)
_DEFAULT_NAME: Final = re.compile(
    r"(?:copy of )?(?:untitled|picture|photo|image|pic|scan|slide|snapshot|screen ?shot|new folder|no title|title)"
    r"(?:[\s\d_.:()#-]|\b(?:on|at|am|pm|copy|from)\b)*",
    _ANY_CASE,
)

_MONTHS: Final = (
    "jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    "|nov(?:ember)?|dec(?:ember)?"
)
_DAYS: Final = "(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?"
_SEASONS: Final = "spring|summer|autumn|fall|winter"
_DATE: Final = re.compile(
    rf"(?=.*(?:\d.*(?:{_MONTHS}|{_DAYS}|{_SEASONS})|(?:{_MONTHS}|{_DAYS}|{_SEASONS}).*\d"
    r"|(?<!\d)(?:1[89]|20)\d\d|\d[-/.:]\d))"  # a number beside a name, a year, or numbers that are joined
    rf"(?:\b(?:{_MONTHS}|{_DAYS}|{_SEASONS}|am|pm|of|the|at|to|on|utc|gmt)\b|\d{{1,2}}(?:st|nd|rd|th)\b"
    r"|(?:1[89]|20)\d\d(?:[01]\d[0-3]\d)?(?!\d)|(?<!\d)\d{1,2}(?!\d)|(?<=\d)[tz]|[\s,.:/'()+–-])+",
    _ANY_CASE,
)

_LONGEST_DATE: Final = 64  # characters
_DIGIT: Final = re.compile(r"\d")

FUNCTION_WORDS: Final = words_of("english_function")
"""English words that carry a sentence; a list of tags has none, or few."""

_HASHTAG: Final = re.compile(r"(?<!\w)#[^\W\d]\w*")
_EXPOSURE: Final = re.compile(r"\bf/?\d|\biso ?\d{2}|\b\d{1,3}(?:-\d{1,3})? ?mm\b|\b1/\d{2}|\beos \d", _ANY_CASE)
_BRAND: Final = re.compile(
    r"\b(?:canon|nikon|sony|olympus|pentax|leica|fuji(?:film)?|panasonic|lumix|tamron|sigma|iphone|eos|powershot)\b",
    _ANY_CASE,
)
_TAG_SEPARATOR: Final = re.compile(r"[,;|•·\n]+|\s/\s")
_LABELLED_TAGS: Final = re.compile(r"(?:tags|keywords)\s*:", _ANY_CASE)
_TOKENS: Final = re.compile(r"[\s,;|/•·–—]+")
_LETTER: Final = re.compile(r"[^\W\d_]")
_COMPOUND: Final = re.compile(r"[a-z]-(?=[a-z]{2})", _ANY_CASE)
_UNSPACED: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2}")
"""Two characters of a script without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""


def broken_rule(text: str) -> Reason | None:
    """Return the first rule that a caption breaks, of those that need no language model; None if it breaks none."""
    for reason, is_broken in _RULES:
        if is_broken(text):
            return reason
    words = _words(text)
    if is_tag_list(text, words):
        return Reason.TAGS
    return Reason.SHORT if count_words(words) < 2 else None


def _is_mojibake(text: str) -> bool:
    return not text.isascii() and _MOJIBAKE.search(text) is not None


def _has_markup(text: str) -> bool:
    return ("<" in text or "&" in text or "[" in text) and _HTML.search(text) is not None


def _has_address(text: str) -> bool:
    return ("." in text or ":" in text or "@" in text) and _URL.search(text) is not None


def _has_file_name(text: str) -> bool:
    likely = _NAME_LIKE.search(text) is not None and _FILE_NAME.search(text) is not None
    return likely or _DEFAULT_NAME.fullmatch(text) is not None


def _is_date(text: str) -> bool:
    return len(text) <= _LONGEST_DATE and _DIGIT.search(text) is not None and _DATE.fullmatch(text) is not None


_RULES: Final[tuple[tuple[Reason, Callable[[str], bool]], ...]] = (
    (Reason.MOJIBAKE, _is_mojibake),
    (Reason.HTML, _has_markup),
    (Reason.URL, _has_address),
    (Reason.FILE_NAME, _has_file_name),
    (Reason.DATE, _is_date),
)


def _words(text: str) -> list[str]:
    """Return the tokens of a text that have a letter."""
    return [token for token in _TOKENS.split(text) if token.isalpha() or _LETTER.search(token)]


def count_words(tokens: list[str]) -> int:
    """Count words: tokens with a letter, parts of a compound, and pairs of characters of a script without spaces."""
    count = 0
    for token in tokens:
        if token.isascii():
            count += 1 + len(_COMPOUND.findall(token))
        else:
            count += len(_UNSPACED.findall(token)) or 1
    return count


def is_tag_list(text: str, words: list[str]) -> bool:
    """Return whether a caption lists hashtags, keywords or a camera's settings.

    Args:
        text: the caption.
        words: its tokens that have a letter.
    """
    if "#" in text:
        hashtags = len(_HASHTAG.findall(text))
        if hashtags and hashtags >= (len(words) + 1) // 2:
            return True
    lowered = [word.lower() for word in words]
    is_natural = not FUNCTION_WORDS.isdisjoint(lowered)
    if not is_natural and _DIGIT.search(text) and _is_camera_data(text, lowered):
        return True
    if _TAG_SEPARATOR.search(text):
        segments = [part.strip() for part in _TAG_SEPARATOR.split(text) if part.strip()]
        if len(segments) >= 3:
            return _are_keywords(text, segments)
    # Words side by side, without a sentence: "snow winter cold ice tree white".
    return (
        not is_natural
        and len(words) >= 5
        and text.islower()
        and not any(word.endswith(("ing", "ed", "'s", "’s")) for word in lowered)
    )


def _is_camera_data(text: str, lowered: list[str]) -> bool:
    exposures = len(_EXPOSURE.findall(text))
    if exposures >= 2:
        return True
    has_model = any(any(map(str.isdigit, word)) for word in lowered)
    return (has_model or exposures > 0) and _BRAND.search(text) is not None


def _are_keywords(text: str, segments: list[str]) -> bool:
    if _LABELLED_TAGS.match(text):
        return True
    if text.rstrip()[-1:] in ".!?…" or segments[-1].lower().startswith(("and ", "or ", "& ")):
        return False
    parts = [segment.lower().split() for segment in segments]
    if max(map(len, parts)) > 3:
        return False
    sentences = sum(not FUNCTION_WORDS.isdisjoint(part) for part in parts)
    if 3 * sentences >= len(parts):
        return False
    # "Camden Market, London, England" is a place, in capitals and from the small to the large.
    places = sum(segment[:1].isupper() or segment[:1].isdigit() for segment in segments)
    return len(segments) >= 5 or places < len(segments)
