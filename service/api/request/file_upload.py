"""A file that comes in as multipart/form-data and goes on piece by piece, never whole in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from service.api.problems.table import FieldErrors, quoted
from service.api.request.form_reader import FormReader, utf8
from service.errors import PayloadTooLarge

FILE: Final = "file"
_MAX_FIELDS: Final = 16
_MAX_FIELD_BYTES: Final = 1_024
_MAX_NAME_CHARS: Final = 256


@dataclass(slots=True)
class Upload:
    """What came with the file: its name, None where there was no file, and the form's other fields."""

    name: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


class _Reader(FormReader):
    """Collects fields; `pending` is the part of the file that nobody has taken yet."""

    def __init__(self) -> None:
        super().__init__()
        self.upload = Upload()
        self.pending: list[bytes] = []
        self._field: str | None = None
        self._value = bytearray()

    def part_begins(self, name: str, options: dict[bytes, bytes]) -> None:
        if name == FILE:
            if self.upload.name is not None:
                raise FieldErrors([(FILE, "is given more than once")])
            self.upload.name = utf8(options.get(b"filename", b""), FILE)[:_MAX_NAME_CHARS] or "upload.jsonl"
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

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.pending.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise FieldErrors([(quoted(self._field), f"has more than {_MAX_FIELD_BYTES} bytes")])

    def part_ends(self) -> None:
        if self._field is not None:
            self.upload.fields[self._field] = utf8(self._value, self._field)


async def read_upload(
    body: AsyncIterator[bytes], content_type: str, write: Callable[[bytes], Awaitable[None]]
) -> Upload:
    """Read a whole form, and hand the content of its part `file` to `write` as it comes.

    Raises `MalformedRequest` where it is not a form, `FieldErrors` for a part that must not be there, `PayloadTooLarge`
    for more parts than allowed, and what reading `body` and `write` raise.
    """
    reader = _Reader()
    async for _ in reader.chunks(body, content_type):
        for part in reader.pending:
            await write(part)
        reader.pending.clear()
    return reader.upload
