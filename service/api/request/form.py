"""Reads multipart/form-data (RFC 7578) into memory, with limits on the numbers of fields and files.

Uses the parser below Starlette's own reader, which spools files to disk, limits each part but not the whole form, and
decodes broken text as Latin-1. The caller limits the bytes of the whole form.
"""

import codecs
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from service.api.problems.table import FieldErrors
from service.api.request.form_reader import FormReader, file_name, utf8
from service.api.request.off_loop import off_loop
from service.api.request.pieces import Pieces, joined
from service.errors import PayloadTooLarge

MAX_TEXT_BYTES: Final = 2**22
"""Most bytes of one part that is no file."""
_IDENTITY_ENCODINGS: Final = (b"", b"7bit", b"8bit", b"binary")


@dataclass(slots=True)
class Form:
    """Fields and files by name, in the order of their arrival."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


class _Reader(FormReader):
    """Collects fields and files.

    Attributes:
        form: its fields and files; those of more than one piece are empty.
        long_fields: the place in `form` of each such field, its name and its pieces.
        long_files: the place of each such file, and its pieces.
    """

    def __init__(self, *, files: Collection[str], max_fields: int, max_files: int) -> None:
        super().__init__()
        self.form = Form()
        self._max_fields = max_fields
        self._max_files = max_files
        self._n_fields = 0
        self._n_files = 0
        self.long_fields: list[tuple[list[str], int, str, list[bytes]]] = []
        self.long_files: list[tuple[list[bytes], int, list[bytes]]] = []
        self._pieces = Pieces()
        self._size = 0
        self._name = ""
        self._is_file = False
        self._files = files

    def part_begins(self, name: str, options: dict[bytes, bytes]) -> None:
        self._name = name
        self._size = 0
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
        self._size += end - start
        if self._size > MAX_TEXT_BYTES and not self._is_file and self._name not in self._files:
            raise PayloadTooLarge(
                f"A field of the form has more than {MAX_TEXT_BYTES} bytes, the limit of this server."
            )
        self._pieces.add(memoryview(data)[start:end])

    def part_ends(self) -> None:
        first, *others = pieces = self._pieces.take()
        if not self._is_file and self._name in self._files and not _is_text(first, whole=not others):
            # Nothing marks this file as one (.NET's ByteArrayContent).
            self._is_file = True
            self._count_file()
        if self._is_file:
            files = self.form.files.setdefault(self._name, [])
            if others:
                self.long_files.append((files, len(files), pieces))
            files.append(b"" if others else first)
            return
        fields = self.form.fields.setdefault(self._name, [])
        if others and self._name not in self._files:
            self.long_fields.append((fields, len(fields), self._name, pieces))
        fields.append("" if others else utf8(first, self._name))

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
    for too many parts and a long field, and as iterating `body`.
    """
    reader = _Reader(files=files, max_fields=max_fields, max_files=max_files)
    async for _ in reader.chunks(body, content_type):
        pass
    for contents, place, pieces in reader.long_files:
        contents[place] = await joined(pieces)
    for texts, place, name, pieces in reader.long_fields:
        whole = await joined(pieces)
        texts[place] = await off_loop(len(whole), partial(utf8, whole, name))
    return reader.form


def _is_text(piece: bytes, *, whole: bool) -> bool:
    """Return whether the first piece of a part, or the whole part, is UTF-8."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(piece, final=whole)
    except UnicodeDecodeError:
        return False
    return True
