"""A file that comes in as multipart/form-data and goes on piece by piece, never whole in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.api.problems import FieldErrors, quoted
from service.errors import MalformedRequest, PayloadTooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE: Final = "file"
_MAX_FIELDS: Final = 16
_MAX_FIELD_BYTES: Final = 1_024
_MAX_NAME_CHARS: Final = 256


@dataclass(slots=True)
class Upload:
    """What came with the file: its name, None where there was no file, and the form's other fields."""

    name: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


class _Reader:
    """Collects what the parser calls back with; `pending` is the part of the file that nobody has taken yet."""

    def __init__(self) -> None:
        self.upload = Upload()
        self.complete = False
        self.pending: list[bytes] = []
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._field: str | None = None
        self._value = bytearray()

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
        name = _text(options[b"name"], "the name of a part")
        if name == FILE:
            if self.upload.name is not None:
                raise FieldErrors([(FILE, "is given more than once")])
            self.upload.name = _text(options.get(b"filename", b""), FILE)[:_MAX_NAME_CHARS] or "upload.jsonl"
            self._field = None
            return
        if b"filename" in options:
            raise FieldErrors([(quoted(name), f"is a file; only `{FILE}` may be one")])
        if name in self.upload.fields:
            raise FieldErrors([(quoted(name), "is given more than once")])
        if len(self.upload.fields) >= _MAX_FIELDS:
            raise PayloadTooLarge(f"The form has more fields than {_MAX_FIELDS}, the limit of this server.")
        self._field = name
        self._value.clear()

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.pending.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise FieldErrors([(quoted(self._field), f"has more than {_MAX_FIELD_BYTES} bytes")])

    def _part_end(self) -> None:
        if self._field is not None:
            self.upload.fields[self._field] = _text(self._value, self._field)

    def _end(self) -> None:
        self.complete = True


async def read_upload(
    body: AsyncIterator[bytes], content_type: str, write: Callable[[bytes], Awaitable[None]]
) -> Upload:
    """Read a whole form, and hand the content of its part `file` to `write` as it comes.

    Raises `MalformedRequest` where it is not a form, `FieldErrors` for a part that must not be there, `PayloadTooLarge`
    for more parts than allowed, and what reading `body` and `write` raise.
    """
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type multipart/form-data has no boundary; let your client set the header.")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in body:
            parser.write(chunk)
            for part in reader.pending:
                await write(part)
            reader.pending.clear()
        parser.finalize()
    except FormParserError as exc:
        raise MalformedRequest("The body is not valid multipart/form-data.") from exc
    if not reader.complete:
        raise MalformedRequest("The form ends before its closing boundary.")
    return reader.upload


def _text(data: bytes | bytearray, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FieldErrors([(quoted(name), "must be text in UTF-8")]) from exc
