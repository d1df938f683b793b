"""multipart/form-data (RFC 7578), in memory and with every count capped.

Starlette's own reader spools files to disk, has a limit per part and none for the whole, and takes a broken
encoding for Latin-1; so the parser underneath it is used directly. The caller caps the bytes of the whole.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.problems import FieldErrors, quoted
from service.errors import MalformedRequest, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_IDENTITY_ENCODINGS: Final = (b"", b"7bit", b"8bit", b"binary")


@dataclass(slots=True)
class Form:
    """Fields and files in the order of their coming, by name."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Reader:
    """Collects what the parser calls back with."""

    def __init__(self, *, max_fields: int, max_files: int) -> None:
        self.form = Form()
        self.complete = False
        self._max_fields = max_fields
        self._max_files = max_files
        self._n_fields = 0
        self._n_files = 0
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()
        self._name = ""
        self._is_file = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_header_field": self._header_field,
            "on_header_value": self._header_data,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._headers = {}
        self._data = bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_data(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise MalformedRequest('A part of the form has no `Content-Disposition: form-data; name="…"`.')
        self._name = _text(options[b"name"], "the name of a part")
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in _IDENTITY_ENCODINGS:
            raise FieldErrors([(self._name, "send the part as it is, without a Content-Transfer-Encoding")])
        # Some clients send a file without a name and say by its type that it is one.
        content_type = self._headers.get(b"content-type", b"text/plain").strip().lower()
        self._is_file = b"filename" in options or content_type.startswith((b"image/", b"application/octet-stream"))
        if self._is_file:
            self._n_files += 1
            if self._n_files > self._max_files:
                raise PayloadTooLarge(f"The form has more files than may be sent at once here, {self._max_files}.")
        else:
            self._n_fields += 1
            if self._n_fields > self._max_fields:
                raise PayloadTooLarge(f"The form has more fields than {self._max_fields}, the limit of this server.")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _part_end(self) -> None:
        if self._is_file:
            self.form.files.setdefault(self._name, []).append(bytes(self._data))
        else:
            self.form.fields.setdefault(self._name, []).append(_text(self._data, self._name))
        self._data = bytearray()

    def _end(self) -> None:
        self.complete = True


async def read_form(body: AsyncIterator[bytes], content_type: str, *, max_fields: int, max_files: int) -> Form:
    """Read a whole form.

    Raises `MalformedRequest` where it is not one, `FieldErrors` for text that is not UTF-8, `PayloadTooLarge`
    for more parts than allowed, and what reading `body` raises.
    """
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type multipart/form-data has no boundary; let your client set the header.")
    reader = _Reader(max_fields=max_fields, max_files=max_files)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in body:
            parser.write(chunk)
        parser.finalize()
    except FormParserError as exc:
        raise MalformedRequest("The body is not valid multipart/form-data.") from exc
    if not reader.complete:
        raise MalformedRequest("The form ends before its closing boundary.")
    return reader.form


def _text(data: bytes | bytearray, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FieldErrors([(quoted(name), "must be text in UTF-8")]) from exc
