"""Parses large JSON in many short steps, so that other threads run meanwhile.

`json.loads` is one call that holds the interpreter's lock until its end: for a body of 20 MB half a second, in a thread
too. Here no step takes more than a few milliseconds: short values are parsed by `json` some hundred at a time, long
ones piece by piece. The document stays bytes: as text it would be copied whole, four bytes for each character if one
of them is an emoji.

No library does it: msgspec 0.23, orjson 3.13 and python-rapidjson 1.25 parse in one call and keep the last of repeated
names; ijson 3.6 parses in steps, but turns a lone surrogate into "?" and refuses whole numbers of more than 64 bits;
json-stream 2.5 accepts NaN.
"""

import codecs
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

MAX_TEXT_BYTES: Final = 2**22
"""Most bytes of a string that is not ASCII throughout."""

_SPACE: Final = re.compile(rb"[ \t\n\r]{0,65536}+")
_TOKEN: Final = re.compile(rb"[-+.0-9A-Za-z]{1,%d}+" % (_MAX_NUMBER_CHARS + 1))
_RUN: Final = re.compile(
    rb"""(?:[ \t\n\r]{0,16}+
        (?: "[^"\\]{0,300}+"                         # a string
          | [-+.0-9A-Za-z]{1,300}+                   # a number, or a constant
          | \[[-+.0-9A-Za-z,\ \t\n\r]{0,300}+\]      # an array of these
          | \{[^{}]{0,500}+\}                        # an object, unless a string in it has a brace
        )[ \t\n\r]{0,16}+,){1,256}+""",
    re.VERBOSE,
)
"""Short values of an array, each with its comma."""
_SHORT: Final = re.compile(rb'([^"\\\x00-\x1f]{0,300}+)"')
"""The rest of a short string without escapes."""
_LOW_SURROGATE: Final = re.compile(rb"\\u[dD][c-fC-F]")
_ESCAPE: Final = 6
"""Characters of such an escape."""
_LONGEST_ESCAPE: Final = 12
"""Characters of a pair of surrogates."""
_CONTINUATION: Final = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that begin no character."""


class TextTooLongError(ValueError):
    """A string has more than `MAX_TEXT_BYTES`, and not only ASCII: making one of its pieces would take long."""


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

    def parse(self, body: bytes) -> Any:  # noqa: ANN401 - any JSON value
        """Parse a document in UTF-8; it may begin with a byte order mark, as RFC 8259 allows in section 8.1.

        Raises UnicodeDecodeError, `json.JSONDecodeError` with the right line and column but without the document,
        ValueError for too many digits, `TextTooLongError`, RecursionError, and as the hooks and `count`.
        """
        _check_utf8(body)
        self._body, self._depth = body, 0
        self._begin = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
        value, end = self._value(self._space(self._begin))
        end = self._space(end)
        if end != len(body):
            raise self._error("Extra data", end)
        return value

    def _value(self, start: int) -> tuple[Any, int]:
        """Return the value that begins at `start`, and its end."""
        mark = self._body[start : start + 1]
        nested = mark in (b"[", b"{")
        self._count(1, nested)
        if mark == b'"':
            return self._string(start + 1)
        if nested:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                raise RecursionError
            found = self._array(start + 1) if mark == b"[" else self._object(start + 1)
            self._depth -= 1
            return found
        token = _TOKEN.match(self._body, start)
        if token is None:
            raise self._error("Expecting value", start)
        if len(token[0]) > _MAX_NUMBER_CHARS:
            raise ValueError("a number has too many digits")
        try:
            value, length = self._scan(token[0].decode("ascii"), 0)
        except StopIteration as exc:
            raise self._error("Expecting value", start + exc.value) from None
        return value, start + length

    def _array(self, start: int) -> tuple[list[Any], int]:
        body, items = self._body, list[Any]()
        end = self._space(start)
        if body[end : end + 1] == b"]":
            return items, end + 1
        while True:
            if (run := self._run(end)) is not None:
                values, end = run
                items += values
                continue
            value, end = self._value(self._space(end))
            items.append(value)
            end = self._space(end)
            if body[end : end + 1] == b"]":
                return items, end + 1
            end = self._expect(b",", end)

    def _run(self, start: int) -> tuple[list[Any], int] | None:
        """Return short values of an array that are followed by commas, and their end; None if the first is long."""
        run = _RUN.match(self._body, start)
        if run is None:
            return None
        content = run[0].decode("utf-8")
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
        body, pairs = self._body, list[tuple[str, Any]]()
        end = self._space(start)
        if body[end : end + 1] == b"}":
            return self._made(pairs), end + 1
        while True:
            if body[end : end + 1] != b'"':
                raise self._error("Expecting property name enclosed in double quotes", end)
            name, end = self._string(end + 1)
            end = self._expect(b":", self._space(end))
            value, end = self._value(self._space(end))
            pairs.append((name, value))
            end = self._space(end)
            if body[end : end + 1] == b"}" or len(pairs) == self._max_names:
                return self._made(pairs), end + 1
            end = self._space(self._expect(b",", end))

    def _made(self, pairs: list[tuple[str, Any]]) -> Any:  # noqa: ANN401 - of the hook
        assert self._object_of is not None  # noqa: S101 - as documented
        return self._object_of(pairs)

    def _string(self, start: int) -> tuple[str, int]:
        """Return the string whose content begins at `start`, and its end."""
        body = self._body
        if (short := _SHORT.match(body, start)) is not None:
            return short[1].decode("utf-8"), short.end()
        pieces, end, ascii_only = [], start, True
        while True:
            cut = self._cut(end)
            if end >= len(body):
                raise self._error("Unterminated string starting at", start - 1)
            piece, length = self._piece(end, cut)
            pieces.append(piece)
            ascii_only = ascii_only and piece.isascii()
            if not ascii_only and end + length - start > MAX_TEXT_BYTES:
                raise TextTooLongError("a text is too long")
            if length <= cut - end:
                return "".join(pieces), end + length
            end = cut

    def _cut(self, start: int) -> int:
        """Return an end, at most `_PIECE` or a little further, at which the content of a string can be divided.

        It is neither within a character, nor within an escape, nor between two escapes that are one character, a pair
        of surrogates.
        """
        body, cut = self._body, start + _PIECE
        if cut >= len(body):
            return len(body)
        last = body.rfind(b"\\", cut - _LONGEST_ESCAPE, cut)
        if last < 0:
            while body[cut] in _CONTINUATION:
                cut -= 1
            return cut
        # An escape begins where a row of backslashes does, and at every second one of them.
        first = start + len(body[start : last + 1].rstrip(b"\\"))
        if first == start:
            return last - (last - start) % 2
        return first + _ESCAPE if _LOW_SURROGATE.match(body, first) else first

    def _piece(self, start: int, end: int) -> tuple[str, int]:
        """Decode the content of a string up to `end`, or to its quote; return it and its bytes with the quote."""
        text = self._body[start:end].decode("utf-8", "ignore")  # an unterminated escape may end within a character
        try:
            piece, chars = scanstring(f'{text}"', 0)
        except json.JSONDecodeError as exc:
            raise self._error(exc.msg, start + len(text[: exc.pos].encode())) from None
        return piece, chars if text.isascii() else len(f'{text}"'[:chars].encode())

    def _expect(self, mark: bytes, at: int) -> int:
        if self._body[at : at + 1] != mark:
            raise self._error(f"Expecting '{mark.decode()}' delimiter", at)
        return at + 1

    def _space(self, start: int) -> int:
        """Return the end of the white space at `start`."""
        while (space := _SPACE.match(self._body, start)) is not None and space.end() > start:
            start = space.end()
        return start

    def _error(self, message: str, at: int) -> json.JSONDecodeError:
        """Return an error at a byte, with its place in characters."""
        body, error = self._body, json.JSONDecodeError(message, "", 0)
        line = body.rfind(b"\n", self._begin, at) + 1 or self._begin
        error.lineno = 1 + body.count(b"\n", 0, at)
        error.colno = 1 + sum(
            len(body[place : min(place + _PIECE, at)].translate(None, _CONTINUATION))
            for place in range(line, at, _PIECE)
        )
        return error


def _check_utf8(body: bytes) -> None:
    """Raise UnicodeDecodeError for a document that is not UTF-8, without making a text of it."""
    if body.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(body), _PIECE):
        decoder.decode(body[at : at + _PIECE])
    decoder.decode(b"", final=True)


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
