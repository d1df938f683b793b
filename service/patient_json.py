"""Parses large JSON in many short steps, so that other threads run meanwhile.

`json.loads` is one call that holds the interpreter's lock until its end: for a body of 20 MB half a second, in a thread
too. Here no step takes more than a few milliseconds: short values are parsed by `json` some hundred at a time, long
ones piece by piece.

No library does it: msgspec 0.23, orjson 3.13 and python-rapidjson 1.25 parse in one call and keep the last of repeated
names; ijson 3.6 parses in steps, but turns a lone surrogate into "?" and refuses whole numbers of more than 64 bits;
json-stream 2.5 accepts NaN.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from json.decoder import scanstring  # type: ignore[attr-defined] # the standard library's own, not in its stubs
from typing import Any, Final

_MAX_DEPTH: Final = 200
_PIECE: Final = 2**16
_MAX_NUMBER_CHARS: Final = 4_300
"""As Python's own limit for a whole number."""

_SPACE: Final = re.compile(r"[ \t\n\r]{0,65536}+")
_TOKEN: Final = re.compile(rf"[-+.0-9A-Za-z]{{1,{_MAX_NUMBER_CHARS + 1}}}+")
_RUN: Final = re.compile(
    r"""(?:[ \t\n\r]{0,16}+
        (?: "[^"\\]{0,300}+"                         # a string
          | [-+.0-9A-Za-z]{1,300}+                   # a number, or a constant
          | \[[-+.0-9A-Za-z,\ \t\n\r]{0,300}+\]      # an array of these
          | \{[^{}]{0,500}+\}                        # an object, unless a string in it has a brace
        )[ \t\n\r]{0,16}+,){1,256}+""",
    re.VERBOSE,
)
"""Short values of an array, each with its comma."""
_SHORT: Final = re.compile(r'([^"\\\x00-\x1f]{0,300}+)"')
"""The rest of a short string without escapes."""
_LOW_SURROGATE: Final = re.compile(r"\\u[dD][c-fC-F]")
_ESCAPE: Final = 6
"""Characters of such an escape."""
_LONGEST_ESCAPE: Final = 12
"""Characters of a pair of surrogates."""


class PatientParser:
    """Parses one document; its errors are those of `json`."""

    def __init__(
        self,
        decoder: json.JSONDecoder,
        count: Callable[[int, bool], None] = lambda *_: None,
        *,
        max_names: int = sys.maxsize,
    ) -> None:
        """Parse with the hooks of `decoder`.

        Args:
            decoder: must have an `object_pairs_hook`.
            count: is called with a number of values, and whether they are arrays or objects, as soon as they are
                known; may raise.
            max_names: names of an object with which its hook is called; it refuses so many, and the rest is not read.
        """
        self._max_names = max_names
        self._decode = decoder.decode
        self._scan = decoder.scan_once  # type: ignore[attr-defined] # likewise
        self._object_of = decoder.object_pairs_hook
        self._count = count

    def parse(self, text: str) -> Any:  # noqa: ANN401 - any JSON value
        """Parse a document.

        Raises `json.JSONDecodeError`, ValueError for too many digits, RecursionError, and as the hooks and `count`.
        """
        self._text, self._depth = text, 0
        value, end = self._value(self._space(0))
        end = self._space(end)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return value

    def _value(self, start: int) -> tuple[Any, int]:
        """Return the value that begins at `start`, and its end."""
        mark = self._text[start : start + 1]
        nested = mark in ("[", "{")
        self._count(1, nested)
        if mark == '"':
            return self._string(start + 1)
        if nested:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise RecursionError
            found = self._array(start + 1) if mark == "[" else self._object(start + 1)
            self._depth -= 1
            return found
        token = _TOKEN.match(self._text, start)
        if token is not None and len(token[0]) > _MAX_NUMBER_CHARS:
            raise ValueError("a number has too many digits")
        try:
            value, end = self._scan(self._text, start)
        except StopIteration as exc:
            raise json.JSONDecodeError("Expecting value", self._text, exc.value) from None
        return value, end

    def _array(self, start: int) -> tuple[list[Any], int]:
        text, items = self._text, list[Any]()
        end = self._space(start)
        if text[end : end + 1] == "]":
            return items, end + 1
        while True:
            if (run := self._run(end)) is not None:
                values, end = run
                items += values
                continue
            value, end = self._value(self._space(end))
            items.append(value)
            end = self._space(end)
            if text[end : end + 1] == "]":
                return items, end + 1
            end = self._expect(",", end)

    def _run(self, start: int) -> tuple[list[Any], int] | None:
        """Return short values of an array that are followed by commas, and their end; None if the first is long."""
        run = _RUN.match(self._text, start)
        if run is None:
            return None
        content = run[0]
        try:
            # What can be parsed so is parsed right: a run that ended within a value would miss its end.
            values = self._decode(f"[{content[:-1]}]")
        except json.JSONDecodeError:
            return None  # parsed one by one, which finds the place of the error
        nested, others = _counted(values) if "[" in content or "{" in content else (0, len(values))
        self._count(nested, True)  # noqa: FBT003 - of `count`
        self._count(others, False)  # noqa: FBT003
        return values, run.end()

    def _object(self, start: int) -> tuple[Any, int]:
        text, pairs = self._text, list[tuple[str, Any]]()
        end = self._space(start)
        if text[end : end + 1] == "}":
            return self._made(pairs), end + 1
        while True:
            if text[end : end + 1] != '"':
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", text, end)
            name, end = self._string(end + 1)
            end = self._expect(":", self._space(end))
            value, end = self._value(self._space(end))
            pairs.append((name, value))
            end = self._space(end)
            if text[end : end + 1] == "}" or len(pairs) == self._max_names:
                return self._made(pairs), end + 1
            end = self._space(self._expect(",", end))

    def _made(self, pairs: list[tuple[str, Any]]) -> Any:  # noqa: ANN401 - of the hook
        assert self._object_of is not None  # noqa: S101 - as documented
        return self._object_of(pairs)

    def _string(self, start: int) -> tuple[str, int]:
        """Return the string whose content begins at `start`, and its end."""
        text = self._text
        if (short := _SHORT.match(text, start)) is not None:
            return short[1], short.end()
        pieces, end = [], start
        while True:
            cut = self._cut(end)
            if end >= len(text):
                raise json.JSONDecodeError("Unterminated string starting at", text, start - 1)
            piece, length = self._piece(end, cut)
            pieces.append(piece)
            if length <= cut - end:
                return "".join(pieces), end + length
            end = cut

    def _cut(self, start: int) -> int:
        """Return an end, at most `_PIECE` or a little further, at which the content of a string can be divided.

        It is neither within an escape nor between two escapes that are one character, a pair of surrogates.
        """
        text, cut = self._text, start + _PIECE
        if cut >= len(text):
            return len(text)
        last = text.rfind("\\", cut - _LONGEST_ESCAPE, cut)
        if last < 0:
            return cut
        # An escape begins where a row of backslashes does, and at every second one of them.
        first = start + len(text[start : last + 1].rstrip("\\"))
        if first == start:
            return last - (last - start) % 2
        return first + _ESCAPE if _LOW_SURROGATE.match(text, first) else first

    def _piece(self, start: int, end: int) -> tuple[str, int]:
        """Decode the content of a string up to `end`, or to its quote; return it and its length with the quote."""
        try:
            piece: tuple[str, int] = scanstring(f'{self._text[start:end]}"', 0)
        except json.JSONDecodeError as exc:
            raise json.JSONDecodeError(exc.msg, self._text, start + exc.pos) from None
        return piece

    def _expect(self, mark: str, at: int) -> int:
        if self._text[at : at + 1] != mark:
            raise json.JSONDecodeError(f"Expecting '{mark}' delimiter", self._text, at)
        return at + 1

    def _space(self, start: int) -> int:
        """Return the end of the white space at `start`."""
        while (space := _SPACE.match(self._text, start)) is not None and space.end() > start:
            start = space.end()
        return start


def _counted(values: Iterable[Any]) -> tuple[int, int]:
    """Return the number of arrays and objects among `values` and in them, and the number of other values."""
    nested = others = 0
    for each in values:
        if isinstance(each, list | dict):
            inner_nested, inner_others = _counted(each.values() if isinstance(each, dict) else each)
            nested, others = nested + 1 + inner_nested, others + inner_others
        else:
            others += 1
    return nested, others
