"""Words of a text: normalise it, and cut it where a query may begin or end.

A text is cut between two characters unless they belong together: two letters, digits or underscores, a character and
the mark on it, both sides of a zero-width joiner. So ``c++`` is ``c``, ``+``, ``+``, and ``o'clock`` is ``o``, ``'``,
``clock``; Hangul, and any script without spaces, stays whole between spaces. The cut between two characters depends on
these two alone, so a query is cut like the texts that contain it.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

WORD, EXTENDS, JOINS, SPACE = 1, 2, 4, 8
"""Flags of a character: of words; belongs to the one before; to the one behind; white space."""
_UNKNOWN: Final = 255
_ZERO_WIDTH: Final = "\u200c\u200d"
_SPACES: Final = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_ASCII_SPACES: Final = {code: " " for code in (*range(32), 0x7F) if code != ord("\n")}
_MANY_SPACES: Final = re.compile(r" {2,}")
_AT_LINES: Final = re.compile(r" ?\n ?")


def normalise_lines(lines: str) -> str:
    """Return lines in NFC and lower case, with single spaces for white space and control characters, trimmed."""
    # Each step is skipped where it would change nothing: most captions are clean.
    text = lines.lower().translate(_ASCII_SPACES) if lines.isascii() else _SPACES.sub(" ", _normalised(lines))
    if "  " in text:
        text = _MANY_SPACES.sub(" ", text)
    if " \n" in text or "\n " in text:
        text = _AT_LINES.sub("\n", text)
    return text.strip(" ")


def normalise(text: str) -> str:
    """Return one text as `normalise_lines` does; line ends are white space too."""
    return normalise_lines(text.replace("\n", " "))


def _normalised(lines: str) -> str:
    # Lower case may take a composed letter apart, and composing may need letters in lower case.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", lines).lower())


def flags_of(character: str) -> int:
    """Return the flags of a character."""
    if character.isspace() or character < " ":
        return SPACE
    if character in _ZERO_WIDTH:
        return EXTENDS | JOINS
    if unicodedata.category(character).startswith("M"):
        return EXTENDS if "\ufe00" <= character <= "\ufe0f" else WORD | EXTENDS
    return WORD if character.isalnum() or character == "_" else 0


def belong_together(before: int, behind: int) -> bool:
    """Return whether a text is not cut between two neighbours with these flags; white space is cut off always."""
    if (before | behind) & SPACE:
        return False
    return bool(behind & EXTENDS or before & JOINS or before & behind & WORD)


def cuts(lines: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Cut normalised lines.

    Returns:
        the place of the first character of each part, and that character's flags. A space is a part, and so is the end
        of a line.
    """
    codes = np.frombuffer(lines.encode("utf-32-le", "surrogatepass"), "<u4")
    flags = _flags(codes)
    before, behind = flags[:-1], flags[1:]
    together = ((behind & EXTENDS) | (before & JOINS) | (before & behind & WORD)) != 0
    together &= ((before | behind) & SPACE) == 0
    first = np.ones(len(codes), np.bool_)
    np.logical_not(together, out=first[1:])
    places = np.flatnonzero(first)
    return places, flags[places]


def _flags(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    table = _table()
    flags = table[codes]
    if (unknown := flags == _UNKNOWN).any():
        for code in np.unique(codes[unknown]).tolist():
            table[code] = flags_of(chr(code))
        flags = table[codes]
    return flags


@cache
def _table() -> npt.NDArray[np.uint8]:
    """Return the flags of all code points, found when they are first needed."""
    return np.full(0x110000, _UNKNOWN, np.uint8)
