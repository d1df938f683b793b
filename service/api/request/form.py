"""Reads multipart/form-data (RFC 7578) into memory, with limits on the numbers of fields and files.

Uses the parser below Starlette's own reader, which spools files to disk, limits each part but not the whole form, and
decodes broken text as Latin-1. The caller limits the bytes of the whole form.
"""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Final

from service.api.problems.table import FieldErrors
from service.api.request.form_reader import FormReader, file_name, utf8
from service.errors import PayloadTooLarge

_IDENTITY_ENCODINGS: Final = (b"", b"7bit", b"8bit", b"binary")


@dataclass(slots=True)
class Form:
    """Fields and files by name, in the order of their arrival."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Reader(FormReader):
    """Collects fields and files."""

    def __init__(self, *, files: Collection[str], max_fields: int, max_files: int) -> None:
        super().__init__()
        self.form = Form()
        self._max_fields = max_fields
        self._max_files = max_files
        self._n_fields = 0
        self._n_files = 0
        self._data = bytearray()
        self._name = ""
        self._is_file = False
        self._files = files

    def part_begins(self, name: str, options: dict[bytes, bytes]) -> None:
        self._name = name
        self._data = bytearray()
        if self.headers.get(b"content-transfer-encoding", b"").strip().lower() not in _IDENTITY_ENCODINGS:
            raise FieldErrors([(self._name, "must be sent without a Content-Transfer-Encoding")])
        # Some clients send a file without a file name and mark it by its Content-Type only.
        content_type = self.headers.get(b"content-type", b"text/plain").strip().lower()
        self._is_file = file_name(options, name) is not None or content_type.startswith(
            (b"image/", b"application/octet-stream")
        )
        if self._is_file:
            self._count_file()
        else:
            self._n_fields += 1
            if self._n_fields > self._max_fields:
                raise PayloadTooLarge(f"The form has more than {self._max_fields} fields, the limit of this server.")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def part_ends(self) -> None:
        text = None if self._is_file else self._text()
        if text is None:
            self.form.files.setdefault(self._name, []).append(bytes(self._data))
        else:
            self.form.fields.setdefault(self._name, []).append(text)
        self._data = bytearray()

    def _text(self) -> str | None:
        """Return the part's text; None for a file that nothing marks as one (.NET's ByteArrayContent)."""
        try:
            return utf8(self._data, self._name)
        except FieldErrors:
            if self._name not in self._files:
                raise
        self._count_file()
        return None

    def _count_file(self) -> None:
        self._n_files += 1
        if self._n_files > self._max_files:
            raise PayloadTooLarge(f"The form has more than {self._max_files} files, the limit of this server.")


async def read_form(
    body: AsyncIterator[bytes], content_type: str, *, files: Collection[str], max_fields: int, max_files: int
) -> Form:
    """Read a whole form.

    A part is a file by its file name or its Content-Type; one whose name is in `files` also if it is no text in UTF-8.

    Raises `MalformedRequest` for a body that is no form, `FieldErrors` for text that is not UTF-8, `PayloadTooLarge`
    for too many parts, and as iterating `body`.
    """
    reader = _Reader(files=files, max_fields=max_fields, max_files=max_files)
    async for _ in reader.chunks(body, content_type):
        pass
    return reader.form
