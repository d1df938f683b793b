"""Reads a file from multipart/form-data and passes it on in pieces, never whole in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.api.problems.table import FieldErrors, quoted
from service.api.request.form_reader import FormReader, file_name, utf8
from service.api.request.validation import unknown_field

FILE: Final = "file"
_MAX_FIELD_BYTES: Final = 1_024
_MAX_NAME_CHARS: Final = 256


@dataclass(slots=True)
class FileForm:
    """A form with one file, without the file's content.

    Attributes:
        name: the file's name; None if the form has no file.
        fields: the form's other parts.
    """

    name: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


class _Reader(FormReader):
    """Collects fields; `pending` holds the pieces of the file that are not written yet."""

    def __init__(self, fields: Sequence[str]) -> None:
        super().__init__()
        self.form = FileForm()
        self._fields = fields
        self.pending: list[bytes] = []
        self._field: str | None = None
        self._value = bytearray()

    def part_begins(self, name: str, options: dict[bytes, bytes]) -> None:
        if name == FILE:
            if self.form.name is not None:
                raise FieldErrors([(FILE, "is given more than once")])
            self.form.name = (file_name(options, FILE) or "upload.jsonl")[:_MAX_NAME_CHARS]
            self._field = None
            return
        if file_name(options, name) is not None:
            raise FieldErrors([(quoted(name), f"must not be a file; send the file as `{FILE}`")])
        if name not in self._fields:
            raise FieldErrors([unknown_field(name, (FILE, *self._fields))])
        if name in self.form.fields:
            raise FieldErrors([(quoted(name), "is given more than once")])
        self._field = name
        self._value.clear()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is None:
            self.pending.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_FIELD_BYTES:
            raise FieldErrors([(quoted(self._field), f"must have at most {_MAX_FIELD_BYTES} bytes")])

    def part_ends(self) -> None:
        if self._field is not None:
            self.form.fields[self._field] = utf8(self._value, self._field)


async def read_file_form(
    body: AsyncIterator[bytes], content_type: str, write: Callable[[bytes], Awaitable[None]], *, fields: Sequence[str]
) -> FileForm:
    """Read a whole form with these `fields`; pass the content of its part `file` to `write` as it arrives.

    Raises `MalformedRequest` for a body that is no form, `FieldErrors` for a part that is not allowed, and as `write`
    and iterating `body`.
    """
    reader = _Reader(fields)
    async for _ in reader.chunks(body, content_type):
        for part in reader.pending:
            await write(part)
        reader.pending.clear()
    return reader.form
