"""Cleaning of texts as OpenAI's CLIP and open_clip do it before their tokenizers (`basic_clean`).

Both call ``ftfy.fix_text``, then ``html.unescape`` twice: full-width letters and ligatures become plain ones, curly
quotes straight, HTML entities characters. This module does the same, save one step of ftfy: it does not guess that a
text was decoded with a wrong encoding ("cafÃ©"), because the guesses change with ftfy's version, and a vector must
follow from the bundle alone. `docs/adr/0023-text-cleaning.md` has the measurements.
"""

import functools
import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Final

from service.model.manifest import Cleaning

_LIGATURES: Final = "ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆ"
_PLAIN: Final = "IJ ij ʼn DZ Dz dz DŽ Dž dž LJ Lj lj NJ Nj nj ff fi fl ffi ffl ſt st"
_DROPPED: Final = (*range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
"""Characters of control beyond ASCII: deprecated formats, the byte order mark, annotations. Labels have no others."""


def _replacements() -> dict[int, str]:
    table = dict(zip(map(ord, _LIGATURES), _PLAIN.split(), strict=True))
    # Half-width and full-width forms, and the ideographic space.
    table |= {code: unicodedata.normalize("NFKC", chr(code)) for code in (0x3000, *range(0xFF01, 0xFFF0))}
    table |= dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'")
    table |= dict.fromkeys(range(0x201C, 0x2020), '"')
    table |= dict.fromkeys((0x85, 0x2028, 0x2029), "\n")
    return table | dict.fromkeys(_DROPPED, "")


_REPLACED: Final[Mapping[int, str]] = _replacements()
_ENTITY: Final = re.compile("&#?[0-9A-Za-z]{1,24};")


@functools.cache
def _entities() -> dict[str, str]:
    """Return the entities of HTML 5, and those in capitals that stand for no other character."""
    found = {}
    for name, character in html.entities.html5.items():
        if name.endswith(";"):
            found[f"&{name}"] = character
            capitals = f"&{name.upper()}"
            if name == name.lower() and html.unescape(capitals) == capitals:
                found[capitals] = character.upper()
    return found


def _unescaped(match: re.Match[str]) -> str:
    text = match[0]
    if text.startswith("&#"):
        character = html.unescape(text)
        return text if ";" in character else character
    return _entities().get(text, text)


def _clean_for_clip(text: str) -> str:
    if text.isascii() and "&" not in text:
        return text
    may_be_markup = "<" in text
    before = None
    while before != text:
        before = text
        if not may_be_markup:
            text = _ENTITY.sub(_unescaped, text)
        text = unicodedata.normalize("NFC", text.translate(_REPLACED))
    return html.unescape(html.unescape(text)).strip()


CLEANERS: Final[Mapping[Cleaning, Callable[[str], str] | None]] = {"none": None, "clip": _clean_for_clip}
"""For each cleaning of a manifest its function; None where texts stay as they are."""
