"""The common part of all readers of multipart/form-data (RFC 7578): boundary, part headers, end of the form."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Final
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.problems.table import FieldErrors, quoted
from service.concurrency import turn
from service.errors import MalformedRequest

_PIECE_BYTES: Final = 2**14
"""Parsed at once, as long as that is quick: content is, the heads of small parts are not."""
_SMALL_PIECE_BYTES: Final = 2**11
_TURN_S: Final = 0.001
"""Processor time after which others have their turn. Of all long forms one has its turn in each round of the loop."""
_MAX_CONTENT_TYPE_CHARS: Final = 1_024
_MAX_PARAMETERS: Final = 64


class FormReader(ABC):
    """Handles the parser's callbacks. Subclasses handle the parts."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self._complete = False
        self._header_name = bytearray()
        self._header_value = bytearray()

    @abstractmethod
    def part_begins(self, name: str, options: dict[bytes, bytes]) -> None:
        """Start a part.

        Args:
            name: the part's name.
            options: parameters of its Content-Disposition. `headers` has all its headers, with names in lower case.
        """

    @abstractmethod
    def part_data(self, data: bytes, start: int, end: int) -> None:
        """Handle the bytes `data[start:end]` of the part."""

    @abstractmethod
    def part_ends(self) -> None:
        """Finish the part."""

    async def chunks(self, body: AsyncIterator[bytes], content_type: str) -> AsyncIterator[None]:
        """Parse a whole form; yield after each part of the body.

        Raises `MalformedRequest` for a body that is no form, and as the subclass and iterating `body`.
        """
        if len(content_type) > _MAX_CONTENT_TYPE_CHARS:
            raise MalformedRequest(f"The Content-Type has more than {_MAX_CONTENT_TYPE_CHARS} characters.")
        _, options = parse_options_header(content_type.encode("latin-1", "replace"))
        boundary = options.get(b"boundary")
        if not boundary:
            raise MalformedRequest(
                "The Content-Type multipart/form-data has no boundary. Let your HTTP client set this header."
            )
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self.headers.clear,
                    "on_part_data": self.part_data,
                    "on_part_end": self.part_ends,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_data,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_end": self._end,
                },
            )
            begun, piece_bytes = time.thread_time(), _PIECE_BYTES
            async for chunk in body:
                at = 0
                while at < len(chunk):
                    parser.write(piece := chunk[at : at + piece_bytes])
                    at += len(piece)
                    yield
                    if time.thread_time() - begun > _TURN_S:
                        await turn()
                        begun, piece_bytes = time.thread_time(), _SMALL_PIECE_BYTES
            parser.finalize()
        except FormParserError as exc:
            raise MalformedRequest("The body is not valid multipart/form-data.") from exc
        if not self._complete:
            raise MalformedRequest("The form ends before its closing boundary.")

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self.headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        header = self.headers.get(b"content-disposition", b"")
        if header.count(b";") > _MAX_PARAMETERS:
            raise MalformedRequest(f"A part of the form has more than {_MAX_PARAMETERS} parameters of its disposition.")
        disposition, options = parse_options_header(header)
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedRequest('A part of the form has no `Content-Disposition: form-data; name="…"`.')
        self.part_begins(utf8(options[b"name"], "the name of a part"), options)

    def _end(self) -> None:
        self._complete = True


def file_name(options: Mapping[bytes, bytes], name: str) -> str | None:
    """Return the file name in the Content-Disposition of the part `name`; None for a part that is not a file.

    Some clients send it in its extended form (RFC 8187) only, against RFC 7578. Raises `FieldErrors`.
    """
    if (plain := options.get(b"filename")) is not None:
        return utf8(plain, name)
    if (extended := options.get(b"filename*")) is None:
        return None
    return unquote(extended.rpartition(b"'")[2].decode("ascii", "replace"))


def utf8(data: bytes | bytearray, name: str) -> str:
    """Decode a part's text. Raises `FieldErrors` for `name` if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FieldErrors([(quoted(name), "must be text in UTF-8")]) from exc
