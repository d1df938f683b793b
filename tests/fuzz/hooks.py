"""Hooks with knowledge that the OpenAPI document lacks; schemathesis loads this file by the name from `campaign`."""

import base64
import io
import json
import os
import tarfile
import zipfile
import zlib
from typing import Any

import schemathesis
from hypothesis import strategies
from PIL import Image
from schemathesis.generation import GenerationMode

from service.api.documentation.examples import FILE_LINES, RED_DOT

KNOWN_VALUES = json.loads(os.environ.get("ANYCLASS_FUZZ_KNOWN", "{}"))
_IN_BODY = ("application/json", "multipart/form-data")


def _picture(format_: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (9, 7), 120).save(buffer, format_)
    return buffer.getvalue()


def _archives(files: dict[str, bytes]) -> list[bytes]:
    made = []
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        made.append(buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return [*made, buffer.getvalue()]


PICTURES = [
    base64.b64decode(RED_DOT),
    *(_picture(each) for each in ("JPEG", "GIF", "WEBP", "TIFF")),
    _picture("PNG", "L"),
]
ARCHIVES = _archives({"a.png": PICTURES[0], "b.jpg": PICTURES[1], "folder/c.txt": b"no picture"})
WHOLE = [*PICTURES, *ARCHIVES, FILE_LINES.encode()]

_whole = strategies.sampled_from(WHOLE)
_damaged = strategies.builds(lambda content, end: content[:end], _whole, strategies.integers(0, 400))
FILES = strategies.one_of(_whole, _whole, _damaged, strategies.binary(max_size=300))
"""Generate bytes of a file part or a raw body: mostly complete or partial real content."""

schemathesis.openapi.format("binary", FILES)
for media_type in (
    "image/*",
    "application/octet-stream",
    "application/x-tar",
    "application/gzip",
    "application/zip",
):
    schemathesis.openapi.media_type(media_type, FILES)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, object]) -> None:
    """Let some requests reach the code behind their validation.

    Query parameters require a raw body, which OpenAPI cannot express: without this, no other body is ever read. Also
    replaces every second generated id by an existing one.
    """
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.method == "DELETE":
        return  # deleting it would affect all other requests
    if case.media_type in _IN_BODY:
        case.query = {}
    if zlib.crc32(repr((case.path_parameters, case.body)).encode("utf-8", "replace")) % 2:
        for part in (case.path_parameters, case.body):
            if isinstance(part, dict):
                part.update({name: value for name, value in KNOWN_VALUES.items() if name in part})
